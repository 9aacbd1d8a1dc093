// A second device in host memory that computes by the CPU's kernels and is as strict as a GPU.
//
// It is a backend of PyTorch (PrivateUse1, the place for devices that PyTorch does not know). One
// function, `run_on_cpu`, stands for all operators: it refuses arguments of two devices, lends the
// kernel of the CPU the device's memory, and takes what the kernel allocated for the device. No
// tensor is copied on the way, so the numbers are the CPU's, and the bytes those of the tensors.
//
// It differs from a GPU where PyTorch does not see it: kernels run at once, in order, and what they
// allocate for themselves is not counted. It has no convolutions, no sparse tensors and no lazy
// complex conjugates, for which PyTorch wants more of a device.
//
// It needs no header of Python: runtime.py calls the functions at the end by ctypes.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_sdp_choice_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::IValue;
using c10::Storage;
using c10::Stream;

constexpr c10::DeviceType kStrict = c10::DeviceType::PrivateUse1;
const Device kDevice(kStrict, 0);
const c10::DispatchKeySet kStrictKeys(c10::DispatchKey::PrivateUse1);
const c10::DispatchKeySet kCpuKeys(c10::DispatchKey::CPU);

// ---- what is counted ---------------------------------------------------------------------------

// A running total. The backward pass of a device has a thread of its own in PyTorch.
struct Counter {
  const char* name;
  std::atomic<int64_t> value{0};
};

Counter kernels{"kernels"};
Counter to_device{"host_to_device"};
Counter to_device_bytes{"host_to_device_bytes"};
Counter to_host{"device_to_host"};
Counter to_host_bytes{"device_to_host_bytes"};
Counter scalar_reads{"scalar_reads"};
Counter waits{"waits"};
Counter* const counters[] = {&kernels, &to_device,    &to_device_bytes, &to_host, &to_host_bytes,
                             &scalar_reads, &waits};

std::atomic<int64_t> allocated{0};  // bytes
std::atomic<int64_t> peak{0};

void count_allocated(int64_t bytes) {
  const int64_t now = allocated += bytes;
  int64_t before = peak;
  while (before < now && !peak.compare_exchange_weak(before, now)) {
  }
}

// ---- memory ------------------------------------------------------------------------------------

// A block of the device's memory: the host memory behind it, which it keeps alive, and its size.
struct Block {
  Storage host;
  int64_t bytes;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  allocated -= block->bytes;
  delete block;
}

// The memory of `host` as memory of the device.
c10::DataPtr taken(const Storage& host) {
  const auto bytes = host.data() == nullptr ? 0 : static_cast<int64_t>(host.nbytes());
  count_allocated(bytes);
  return {host.mutable_data(), new Block{host, bytes}, &free_block, kDevice};
}

struct StrictAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    c10::Allocator* cpu = c10::GetCPUAllocator();
    return taken(Storage(Storage::use_byte_size_t(), bytes, cpu->allocate(bytes), cpu, false));
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};

StrictAllocator allocator;

// ---- random numbers ----------------------------------------------------------------------------

// A generator of the device. The kernels draw from `host`, which nothing on the CPU shares: who
// restores the CPU's random state alone finds other numbers here.
struct StrictGenerator final : c10::GeneratorImpl {
  explicit StrictGenerator(at::Generator numbers)
      : GeneratorImpl(kDevice, kStrictKeys),
        host(std::move(numbers)) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    host.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }
  GeneratorImpl* clone_impl() const override { return new StrictGenerator(host.clone()); }

  at::Generator host;
};

at::Generator new_generator() {
  return at::make_generator<StrictGenerator>(at::detail::createCPUGenerator());
}

const at::Generator& default_generator() {
  static const at::Generator generator = new_generator();
  return generator;
}

// ---- operators ---------------------------------------------------------------------------------

bool on_device(const Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kStrict;
}

// A tensor of the dtype, sizes and strides of `form` in `storage`.
template <typename... Kind>
Tensor tensor_like(const Tensor& form, Storage storage, c10::DispatchKeySet keys, Kind... kind) {
  Tensor tensor =
      at::detail::make_tensor<c10::TensorImpl>(kind..., std::move(storage), keys, form.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(
      form.sizes(), form.strides(), form.storage_offset());
  return tensor;
}

// What the device lends to the CPU for the length of one operator.
//
// A tensor and a storage are lent once, however often they are arguments: kernels ask whether two
// arguments are the same tensor or share their memory.
class Loan {
 public:
  // The device's tensor as a CPU tensor in the same memory.
  Tensor lend(const Tensor& tensor) {
    for (const auto& pair : tensors_) {
      if (pair.device.is_same(tensor)) return pair.cpu;
    }
    Tensor cpu = tensor_like(tensor, lend(tensor.storage()), kCpuKeys);
    tensors_.push_back({tensor, cpu});
    return cpu;
  }

  Storage lend(const Storage& storage) {
    for (const auto& pair : storages_) {
      if (pair.device.is_alias_of(storage)) return pair.cpu;
    }
    c10::DataPtr data(storage.mutable_data(), c10::Device(c10::kCPU));
    Storage cpu(Storage::use_byte_size_t(), storage.nbytes(), std::move(data),
                c10::GetCPUAllocator(), /*resizable=*/true);
    storages_.push_back({storage, cpu});
    return cpu;
  }

  // Carry over to the lent tensors what the kernel made of them: other sizes, more memory.
  void settle() {
    for (auto& [device, cpu] : storages_) {
      if (cpu.data() == device.data()) continue;
      device.set_data_ptr_noswap(taken(cpu));
      device.set_nbytes(cpu.nbytes());
    }
    for (auto& [device, cpu] : tensors_) {
      auto* impl = device.unsafeGetTensorImpl();
      const Storage storage = of_device(cpu.storage());
      if (!storage.is_alias_of(device.storage())) impl->set_storage_keep_dtype(storage);
      if (cpu.sizes() != device.sizes() || cpu.strides() != device.strides() ||
          cpu.storage_offset() != device.storage_offset()) {
        impl->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
      }
    }
  }

  // What the kernel returned as a tensor of the device: an argument, a view of one, or a new one.
  Tensor returned(const Tensor& cpu) {
    if (!cpu.defined()) return cpu;
    for (const auto& [device, lent] : tensors_) {
      if (lent.is_same(cpu)) return device;
    }
    for (const auto& [device, lent] : tensors_) {
      if (lent.storage().is_alias_of(cpu.storage())) {
        // The keys say whether autograd and the inference mode know the tensor.
        return tensor_like(cpu, device.storage(), device.key_set(), c10::TensorImpl::VIEW);
      }
    }
    // Autograd's tensors of zeros have no memory, which this key says.
    const auto keys =
        cpu._is_zerotensor() ? kStrictKeys.add(c10::DispatchKey::ZeroTensor) : kStrictKeys;
    return tensor_like(cpu, of_device(cpu.storage()), keys);
  }

  // Whether the kernel returned memory of its own.
  bool has_new_memory() const { return has_new_memory_; }

 private:
  template <typename T>
  struct Pair {
    T device;
    T cpu;
  };

  // The device's storage for one of the CPU: the one that was lent, or a new one in its memory.
  Storage of_device(const Storage& cpu) {
    for (const auto& pair : storages_) {
      if (pair.cpu.is_alias_of(cpu)) return pair.device;
    }
    has_new_memory_ = true;
    Storage device(Storage::use_byte_size_t(), cpu.nbytes(), taken(cpu), &allocator,
                   /*resizable=*/true);
    storages_.push_back({device, cpu});
    return device;
  }

  std::vector<Pair<Tensor>> tensors_;
  std::vector<Pair<Storage>> storages_;
  bool has_new_memory_ = false;
};

// The arguments of one call of an operator, which are the last values of a stack.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), stack_(stack), first_(stack->size() - op.schema().arguments().size()) {}

  // Raises an error, as a GPU does, where the arguments are on the device and elsewhere.
  //
  // Two kinds of host tensors are no mistake: a number that a pointwise kernel gets by value, and
  // indices, which PyTorch copies to the device by itself.
  void check_devices() {
    const std::string& name = op_.schema().name();
    const bool takes_numbers =
        op_.hasTag(at::Tag::pointwise) || name == "aten::_index_put_impl_";
    std::string elsewhere;
    bool any_on_device = false;
    int64_t copied_indices = 0;  // bytes
    for (size_t i = first_; i < stack_->size(); ++i) {
      const IValue& value = (*stack_)[i];
      const auto* alias = argument(i).alias_info();
      const bool is_written = alias != nullptr && alias->isWrite();
      for (const Tensor& tensor : tensors(value)) {
        if (on_device(tensor)) {
          any_on_device = true;
        } else if (value.isOptionalTensorList() && tensor.is_cpu()) {
          copied_indices += tensor.nbytes();
        } else if (!takes_numbers || !value.isTensor() || is_written || tensor.dim() > 0) {
          elsewhere = tensor.device().str() + " as " + argument(i).name();
        }
      }
    }
    if (!any_on_device) return;
    TORCH_CHECK(elsewhere.empty(), "strict device: ", op_.schema().operator_name(),
                " has arguments on ", kDevice.str(), " and on ", elsewhere);
    // aten::index has copied its indices before it comes here, with a tensor to write to.
    if (copied_indices > 0 && name != "aten::index") {
      ++to_device.value;
      to_device_bytes.value += copied_indices;
    }
  }

  // Put what the CPU's kernel can use into the place of what belongs to the device.
  void lend(Loan& loan) {
    for (size_t i = first_; i < stack_->size(); ++i) {
      IValue& value = (*stack_)[i];
      const auto lent = [&](const Tensor& t) { return on_device(t) ? loan.lend(t) : t; };
      if (value.isTensor()) {
        value = lent(value.toTensor());
      } else if (value.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor& tensor : value.toTensorVector()) list.push_back(lent(tensor));
        value = std::move(list);
      } else if (value.isOptionalTensorList()) {
        c10::List<std::optional<Tensor>> list;
        for (const auto& tensor : value.toOptionalTensorVector()) {
          list.push_back(tensor ? std::optional<Tensor>(lent(*tensor)) : std::nullopt);
        }
        value = std::move(list);
      } else if (value.isStorage()) {
        value = loan.lend(value.toStorage());
      } else if (value.isDevice()) {
        value = c10::Device(c10::kCPU);
      } else if (value.isGenerator() || argument(i).name() == "generator") {
        value = numbers(value);
      }
    }
  }

  // Give the device what the kernel returned.
  void take(Loan& loan) {
    loan.settle();
    for (size_t i = stack_->size() - op_.schema().returns().size(); i < stack_->size(); ++i) {
      IValue& value = (*stack_)[i];
      if (value.isTensor()) {
        value = loan.returned(value.toTensor());
      } else if (value.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor& tensor : value.toTensorVector()) list.push_back(loan.returned(tensor));
        value = std::move(list);
      }
    }
  }

  // Whether an argument is written.
  bool writes() const {
    for (const auto& argument : op_.schema().arguments()) {
      if (argument.alias_info() != nullptr && argument.alias_info()->isWrite()) return true;
    }
    return false;
  }

 private:
  const c10::Argument& argument(size_t i) const { return op_.schema().arguments()[i - first_]; }

  // The defined tensors of an argument.
  static std::vector<Tensor> tensors(const IValue& value) {
    std::vector<Tensor> all;
    if (value.isTensor()) {
      all = {value.toTensor()};
    } else if (value.isTensorList()) {
      all = value.toTensorVector();
    } else if (value.isOptionalTensorList()) {
      for (const auto& tensor : value.toOptionalTensorVector()) {
        if (tensor) all.push_back(*tensor);
      }
    }
    std::erase_if(all, [](const Tensor& tensor) { return !tensor.defined(); });
    return all;
  }

  // The generator behind an argument of the device, its default one if that is None.
  static at::Generator numbers(const IValue& value) {
    const at::Generator generator = value.isNone() ? default_generator() : value.toGenerator();
    TORCH_CHECK(generator.device().type() == kStrict, "strict device: a generator of ",
                generator.device().str(), " cannot draw on ", kDevice.str());
    return static_cast<StrictGenerator*>(generator.unsafeGetGeneratorImpl())->host;
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  size_t first_;
};

// Any operator of the device that has no other kernel below.
void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;  // which is done by now
  Call call(op, stack);
  Loan loan;
  call.check_devices();
  call.lend(loan);
  op.redispatchBoxed(kCpuKeys, stack);
  call.take(loan);
  const std::string& name = op.schema().name();
  const bool reads_number = name == "aten::_local_scalar_dense";
  if (reads_number) ++scalar_reads.value;
  // The host must know a result, a number or a size, before it can go on.
  const bool waited =
      op.hasTag(at::Tag::data_dependent_output) || op.hasTag(at::Tag::dynamic_output_shape);
  if (waited) ++waits.value;
  const bool only_allocates =
      name == "aten::empty" || name == "aten::empty_strided" || name == "aten::resize_";
  const bool computes = call.writes() || loan.has_new_memory() || waited;
  if (computes && !only_allocates && !reads_number) ++kernels.value;
}

// aten::_copy_from(self, dst, non_blocking): what copy_ does where a side is not on the CPU.
void copy(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const bool non_blocking = torch::jit::pop(*stack).toBool();
  const Tensor to = torch::jit::pop(*stack).toTensor();
  const Tensor from = torch::jit::pop(*stack).toTensor();
  Loan loan;
  Tensor source = on_device(from) ? loan.lend(from) : from;
  Tensor converted;
  if (!on_device(from)) {
    ++to_device.value;
    to_device_bytes.value += to.nbytes();
    if (!non_blocking) ++waits.value;  // for all the work before it
  } else if (on_device(to)) {
    ++kernels.value;
  } else {
    ++to_host.value;
    to_host_bytes.value += to.nbytes();
    if (!non_blocking) ++waits.value;
    if (from.dtype() != to.dtype()) {
      source = source.to(to.scalar_type());
      converted = loan.returned(source);  // A GPU converts before it sends, in its own memory.
    }
  }
  (on_device(to) ? loan.lend(to) : to).copy_(source);
  torch::jit::push(*stack, to);
}

// Which kernel scaled_dot_product_attention takes: that of the CPU, mostly the fused one.
int64_t attention_of_cpu(const Tensor& query, const Tensor& key, const Tensor& value,
                         const std::optional<Tensor>& mask, double dropout, bool is_causal,
                         std::optional<double> scale, bool grouped) {
  Loan loan;
  std::optional<Tensor> lent_mask;
  if (mask && mask->defined()) lent_mask = on_device(*mask) ? loan.lend(*mask) : *mask;
  return at::native::_fused_sdp_choice_cpp(loan.lend(query), loan.lend(key), loan.lend(value),
                                           lent_mask, dropout, is_causal, scale, grouped);
}

// ---- what PyTorch asks a device for ------------------------------------------------------------

// There is one device, one stream, and nothing to wait for.
struct StrictGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kStrict; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, kDevice); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, kDevice); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, kDevice); }
  Stream exchangeStream(Stream) const override { return Stream(Stream::DEFAULT, kDevice); }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
};

struct StrictHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  Device getDeviceFromPtr(void*) const override { return kDevice; }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    return default_generator();
  }
  at::Generator getNewGenerator(DeviceIndex) const override { return new_generator(); }
  // All host memory is as good as pinned.
  bool isPinnedPtr(const void*) const override { return true; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void resizePrivateUse1Bytes(const Storage& storage, size_t bytes) const override {
    c10::DataPtr data = allocator.allocate(bytes);
    std::memcpy(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(bytes);
  }
};

// The registrations live as long as the process: PyTorch refers to them at its very end.
void register_device() {
  static StrictGuard guard;
  static c10::impl::DeviceGuardImplRegistrar registrar(kStrict, &guard);
  c10::SetAllocator(kStrict, &allocator);
  at::RegisterPrivateUse1HooksInterface(new StrictHooks());
  auto& dispatcher = c10::Dispatcher::singleton();
  static auto* registrations = new std::vector<c10::RegistrationHandleRAII>();
  registrations->push_back(dispatcher.registerFallback(
      c10::DispatchKey::PrivateUse1,
      c10::KernelFunction::makeFromBoxedFunction<&run_on_cpu>(), "strict device"));
  registrations->push_back(dispatcher.registerImpl(
      {"aten::_copy_from", ""}, c10::DispatchKey::PrivateUse1,
      c10::KernelFunction::makeFromBoxedFunction<&copy>(), std::nullopt, nullptr,
      "strict device"));
  at::native::_fused_sdp_choice_stub.set_privateuse1_dispatch_ptr(&attention_of_cpu);
}

}  // namespace

// ---- for runtime.py ----------------------------------------------------------------------------

extern "C" {

void strict_register() { register_device(); }

// The name of a counter, nullptr after the last one.
const char* strict_counter_name(size_t i) {
  return i < std::size(counters) ? counters[i]->name : nullptr;
}

int64_t strict_counter_value(size_t i) { return counters[i]->value; }

void strict_reset_counters() {
  for (Counter* counter : counters) counter->value = 0;
}

// Bytes, now and at most since the last reset.
int64_t strict_memory_allocated() { return allocated; }
int64_t strict_memory_peak() { return peak; }
void strict_reset_peak() { peak = allocated.load(); }

void strict_seed(uint64_t seed) {
  default_generator().unsafeGetGeneratorImpl()->set_current_seed(seed);
}

// Bytes of the default generator's state; they are written to `out` unless it is null.
int64_t strict_read_random_state(void* out) {
  const auto state = default_generator().unsafeGetGeneratorImpl()->get_state();
  const auto bytes = static_cast<int64_t>(state->numel() * state->itemsize());
  if (out != nullptr) std::memcpy(out, state->data(), bytes);
  return bytes;
}

void strict_write_random_state(const void* bytes) {
  const auto state = default_generator().unsafeGetGeneratorImpl()->get_state();
  std::memcpy(state->mutable_data(), bytes, state->numel() * state->itemsize());
  default_generator().unsafeGetGeneratorImpl()->set_state(*state);
}

}  // extern "C"
