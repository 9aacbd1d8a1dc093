"""The strict device, and the whole harness on it: what would fail on a GPU before any kernel runs.

PyTorch must know the device before the first backward pass of a process, so everything runs in a
process of its own. Where no C++ compiler is found, the tests are skipped.
"""

import functools
import gc
import io
import json
import multiprocessing
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml

from benchmarks import strict_device
from harness.base.console import Progress
from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.learning import packing
from harness.learning.packing import Row
from harness.runs import listing
from tests.conftest import read_lines, save_tiny, tiny_tokenizer, write_rows

DEVICE = strict_device.NAME
# Options that differ from the defaults. A method that is not here runs with its defaults.
OPTIONS = {"grpo": {"group_size": 3, "kl_beta": 0.1}}
VARIANTS = {
    "sdft_rao_blackwell": {"estimator": "rao_blackwell", "divergence": "reverse"},
    "sdft_top_k": {"estimator": "top_k", "top_k": 10, "rollouts": 2},
}


def begin():
    torch.set_num_threads(1)
    strict_device.register()


@pytest.fixture(scope="module")
def strict():
    """Calls a function in a process that knows the device."""
    if reason := strict_device.available():
        pytest.skip(reason)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=begin) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


# ---- the device ------------------------------------------------------------------------------


def lanes():
    """Digests of some tensors there, and of the same ones here."""
    from harness.models.digest import digests

    torch.manual_seed(0)
    tensors = [torch.randn(5, 7), torch.randn(33).bfloat16(), torch.arange(9)[1:], torch.ones(0)]
    return digests([tensor.to(DEVICE) for tensor in tensors]), digests(tensors)


def test_digests_are_the_cpus(strict):
    there, here = strict(lanes)
    assert there == here and len({*here}) == 4


def refusals():
    """What each of these says when it is refused; None if it is not."""
    x, host = torch.ones(3, 4, device=DEVICE), torch.ones(3, 4)
    embedding = torch.nn.Embedding(5, 4).to(DEVICE)
    tries = {
        "sum": lambda: x + host,
        "sum, the other way": lambda: host + x,
        "product": lambda: host @ x.T,
        "in place": lambda: x.add_(host),
        "list": lambda: torch.cat([x, host]),
        "written": lambda: torch.zeros(()).add_(x.sum()),
        "index of a host tensor": lambda: host[torch.tensor([0], device=DEVICE)],
        "forgotten move": lambda: embedding(torch.tensor([1, 2])),
        "forgotten step": lambda: torch._fused_adamw_(
            *([x], [x], [x], [x], [], [torch.tensor(1.0)]),
            **{"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0.0, "eps": 1e-8},
            **{"amsgrad": False, "maximize": False},
        ),
        "index by a host number": lambda: x.index_select(0, torch.tensor(1)),
        "generator": lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
        "numpy": lambda: x.numpy(),
    }
    found = {}
    for name, attempt in tries.items():
        try:
            attempt()
            found[name] = None
        except (RuntimeError, TypeError) as error:
            found[name] = str(error).splitlines()[0]
    return found


def test_two_devices_are_refused(strict):
    found = strict(refusals)
    assert [name for name, message in found.items() if message is None] == []
    assert found["list"] == (
        "strict device: aten::cat.out has arguments on strict:0 and on cpu as tensors"
    )
    assert "generator of cpu" in found["generator"]


def crossings():
    """Counts of one thing after the other, without what is 0; and bytes of memory."""
    found, memory = {}, []

    def note(name):
        found[name] = {key: value for key, value in strict_device.counts().items() if value}
        memory.append((torch.strict.memory_allocated(), torch.strict.max_memory_allocated()))
        strict_device.reset_counts()

    torch.strict.reset_peak_memory_stats()
    strict_device.reset_counts()
    x = torch.ones(3, 4).to(DEVICE)
    note("to the device")
    torch.ones(3, 4).to(DEVICE, non_blocking=True)
    note("to the device, meanwhile")
    y = x @ x.T
    note("product")
    y.T[1:].unsqueeze(0).expand(2, 2, 3)
    note("views")
    y.sum().item()
    note("number")
    y.tolist()
    note("list")
    y.to("cpu", torch.float64, non_blocking=True)
    note("another dtype")
    y[y > 0]
    note("what is positive")
    x[torch.tensor([0, 2])]
    note("host indices")
    x + torch.tensor(2.0)
    note("host number")
    del x, y
    note("nothing")
    return found, memory


def test_what_crosses_the_border_is_counted(strict):
    found, memory = strict(crossings)
    assert found == {
        "to the device": {"host_to_device": 1, "host_to_device_bytes": 48, "waits": 1},
        "to the device, meanwhile": {"host_to_device": 1, "host_to_device_bytes": 48},
        "product": {"kernels": 1},
        "views": {},
        "number": {"kernels": 1, "scalar_reads": 1, "waits": 1},
        "list": {"device_to_host": 1, "device_to_host_bytes": 36, "waits": 1},
        "another dtype": {"device_to_host": 1, "device_to_host_bytes": 72},
        # A comparison, the places of what is true, and the read of these places.
        "what is positive": {"kernels": 3, "waits": 1},
        "host indices": {
            **{"kernels": 1, "host_to_device": 1, "host_to_device_bytes": 16},
            "waits": 1,
        },
        "host number": {"kernels": 1},
        "nothing": {},
    }
    assert memory[0] == (48, 48) and memory[1] == (48, 96) and memory[2] == memory[3] == (84, 96)
    # A GPU converts before it sends: 9 numbers of 8 bytes more.
    assert memory[6] == (84, 84 + 72) and memory[-1][0] == 0


def values(device):
    """Results of operators that a device could get wrong, as tensors of the CPU."""
    torch.manual_seed(1)
    x = torch.randn(4, 6).to(device).requires_grad_()
    q = torch.randn(2, 3, 5, 8).to(device).requires_grad_()
    mask = torch.ones(5, 5, dtype=torch.bool).tril().to(device)
    attend = torch.nn.functional.scaled_dot_product_attention
    attended = attend(q, q, q, is_causal=True) + attend(q, q, q, attn_mask=mask)
    views = x.t().contiguous().view(-1)[3:].unfold(0, 2, 1).as_strided((2, 3), (4, 1), 1)
    (attended.square().sum() + views.exp().sum() + x.softmax(-1)[x > 0].sum()).backward()
    y = x.detach().clone()
    y[1:].add_(y[:-1].clone())  # through a view
    y.t()[2] = 7.0
    out = torch.empty(0, device=device)
    torch.mul(y, 2, out=out)  # which is resized
    filled = torch.zeros(3, device=device)
    filled.resize_(2, 3).copy_(out[:2, :3])
    with torch.inference_mode():
        inside = x.detach()[None, :, 1:] + 1
        inside += 1
    stored = io.BytesIO()
    torch.save({"y": y}, stored)
    stored.seek(0)
    loaded = torch.load(stored)["y"]
    assert loaded.device == y.device
    moved = deepcopy(torch.nn.Linear(6, 2).to(device))(y).detach()
    found = [x.grad, q.grad, attended.detach(), views.detach(), y, out, filled, inside, loaded]
    signs = torch.ones(3, device=device, requires_grad=True)
    signs.sgn().sum().backward()  # by a tensor of zeros that has no memory
    found += [moved, signs.grad + 0, torch.tensor([torch.equal(y, loaded), y.storage_offset()])]
    return [t.cpu() for t in found]


def test_values_are_the_cpus(strict):
    for expected, found in zip(strict(values, "cpu"), strict(values, DEVICE), strict=True):
        assert torch.equal(expected, found)


def is_tied(folder):
    from harness.models.load import load_model

    model, _ = load_model(str(save_tiny(folder)), "float32", DEVICE)
    return model.lm_head.weight is model.model.embed_tokens.weight


def test_tied_weights_stay_tied(strict, tmp_path):
    assert strict(is_tied, tmp_path)


def random_numbers():
    torch.manual_seed(3)
    state = torch.strict.get_rng_state()
    first = torch.rand(2, device=DEVICE)
    torch.rand(5)  # of the CPU, whose generator is another
    second = torch.rand(2, device=DEVICE)
    torch.strict.set_rng_state(state)
    again = torch.rand(4, device=DEVICE)
    own = torch.Generator(device=DEVICE).manual_seed(3)
    alone = torch.rand(4, device=DEVICE, generator=own)
    return [t.cpu() for t in (torch.cat([first, second]), again, alone)]


def test_the_device_has_random_numbers_of_its_own(strict):
    drawn, again, alone = strict(random_numbers)
    assert torch.equal(drawn, again) and torch.equal(drawn, alone)


def test_a_process_that_is_too_late_is_told(strict):
    code = (
        "import torch; torch.ones(1, requires_grad=True).sum().backward()\n"
        "from benchmarks import strict_device; strict_device.register()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "strict device: this process has made a backward pass without it" in done.stderr


def test_a_missing_compiler_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    strict_device.build.library.cache_clear()
    try:
        for compiler, reason in (
            ("no-such-compiler -O2", "there is no C++ compiler (no-such-compiler)"),
            ("false", "false cannot build it (exit code 1)"),
        ):
            monkeypatch.setenv("CXX", compiler)
            assert str(strict_device.available()).startswith(f"strict device: {reason}")
    finally:
        strict_device.build.library.cache_clear()
    assert list((tmp_path / "strict_device").iterdir()) == []


def test_an_order_cannot_name_it_unregistered(tmp_path):
    from harness.models.load import check_device

    with pytest.raises(UserError, match="unknown device 'strict'; known: auto, cpu, cuda"):
        check_device("strict", "model: device")


# ---- orders on the device --------------------------------------------------------------------


def all_methods():
    """{label: options} of every method of the project, and of two estimators.

    Not of ``trl``, whose loop asks accelerate for a device, and accelerate knows none but its own;
    of ``in_context``, which trains nothing; of ``gkd``, whose teacher is the model itself in the
    first stage: AdamW makes steps of the rounding of its gradients.
    """
    left_out = ("trl", "in_context", "gkd")
    names = [name for name, _ in listing.methods() if name not in left_out]
    labels = {name: OPTIONS.get(name, {}) for name in names}
    return labels | {label: {"method": "sdft", **more} for label, more in VARIANTS.items()}


def write_order(
    folder, methods, model, dtype="float32", device=DEVICE, masters="device", answer=5, **more
):
    """Path of an order with one skill for ``model``, a folder; answer: tokens."""
    for split, count in (("train", 12), ("validation", 2), ("test", 2)):
        write_rows(
            folder / f"{split}.jsonl",
            [
                {
                    "prompt": f"{i:x} {split[0]}?",
                    "demonstration": (f"{i}aeiou" * answer)[:answer],
                    "reference": f"{i}a",
                    "source": f"The vowels of {split} are {i}.",
                }
                for i in range(count)
            ],
        )
    files = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    common = {"learning_rate": 1e-3, "masters": masters}
    order = {
        "model": {"name": str(model), "dtype": dtype, "device": device},
        "skills": [{"name": "vowels", "grader": "token_f1", "max_new_tokens": answer, **files}],
        "methods": {label: {**common, **options} for label, options in methods.items()},
        "budget": {"prompts": 8, "batch_size": 4},
        **more,
    }
    path = folder / f"{device}-{dtype}-{masters}.yaml"
    path.write_text(yaml.safe_dump(order))
    return path


def run(path, out):
    """(records, {run: logged steps}) of an order, without times."""
    from harness.runs.reading import read_order
    from harness.runs.sequence import run_order

    order = read_order(path)
    gc.collect()
    gc.freeze()  # each stage collects garbage, and would go through all that is imported
    run_order(order, out, Progress(stream=io.StringIO()))
    records = [
        (row["run"], row["step"], row["name"], row["split"], row["metric"], row["value"])
        for row in read_lines(out / "records.jsonl")
    ]
    return records, {
        log.parts[-3]: [{k: v for k, v in row.items() if k != "seconds"} for row in read_lines(log)]
        for log in sorted(out.glob("runs/*/stage-1/training.jsonl"))
    }


EVERYTHING = {
    "evaluate": {
        "every_steps": 1,
        "teacher": True,
        "pass_at_k": {"samples": 4, "prompts": 2},
        "kl": {"prompts": 2},
    },
    "retention": [{"task": "embedded_minimal_pairs", "limit": 4}],
    "checkpoints": {"minutes": 0},
}


@pytest.fixture(scope="module")
def runs(strict, tmp_path_factory):
    """{(device, dtype, masters): (records, logs)} of an order with all methods and measures."""
    folder = tmp_path_factory.mktemp("orders")
    model = save_tiny(folder / "model")

    def of(*place):
        device, dtype, masters = place
        path = write_order(folder, all_methods(), model, dtype, device, masters, **EVERYTHING)
        return strict(run, path, folder / "-".join(place))

    return {
        place: of(*place)
        for place in (
            ("cpu", "float32", "device"),
            (DEVICE, "float32", "device"),
            (DEVICE, "float32", "host"),
            (DEVICE, "bfloat16", "device"),
            (DEVICE, "bfloat16", "host"),
        )
    }


def test_every_method_gives_the_cpus_numbers(runs):
    records, logs = runs[DEVICE, "float32", "device"]
    expected_records, expected_logs = runs["cpu", "float32", "device"]
    assert set(logs) == {f"{label}-seed0" for label in all_methods()}
    metrics = {metric for *_, metric, _ in records}
    assert {"teacher_accuracy", "pass@4", "kl_forward_token", "acc,none"} <= metrics
    assert [row[:-1] for row in records] == [row[:-1] for row in expected_records]
    # Absolute, since the divergences are small differences of numbers near 1.
    for row, expected in zip(records, expected_records, strict=True):
        # A margin is a difference of sums of some hundred nats in float32.
        rounding = 3e-5 if row[-2] == "margin" else 1e-6
        assert row[-1] == pytest.approx(expected[-1], rel=1e-6, abs=rounding), row
    for label, steps in logs.items():
        for step, expected in zip(steps, expected_logs[label], strict=True):
            assert step == pytest.approx(expected, rel=1e-6, abs=1e-6), label


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masters_on_the_host_change_no_bit(runs, dtype):
    assert runs[DEVICE, dtype, "host"] == runs[DEVICE, dtype, "device"]


class Stop(Exception):
    pass


def stopped_and_resumed(path, out):
    """``run``, which is stopped after step 3 of each method and begun again."""
    from harness.runs import checkpoints

    saved, stops = checkpoints.save_state, []

    def save(folder, state, *more):
        saved(folder, state, *more)
        if state["stage"]["step"] == 3 and folder not in stops:
            stops.append(folder)
            raise Stop

    with mock.patch.object(checkpoints, "save_state", save):
        while True:
            try:
                return run(path, out), len(stops)
            except Stop:
                continue


@pytest.mark.parametrize("masters", ["device", "host"])
def test_a_stopped_run_ends_in_the_same_bits(strict, masters, tmp_path):
    methods = {
        "sdft": {},
        "grpo": {"group_size": 3, "kl_beta": 0.1},
        "less": {"method": "sft", "moments": "8bit"},
    }
    path = write_order(
        tmp_path,
        methods,
        save_tiny(tmp_path / "model"),
        "bfloat16",
        masters=masters,
        budget={"prompts": 20, "batch_size": 4},
        checkpoints={"minutes": 0},
    )
    resumed, stops = strict(stopped_and_resumed, path, tmp_path / "resumed")
    assert stops == 3 and resumed == strict(run, path, tmp_path / "whole")
    assert all(len(steps) == 5 for steps in resumed[1].values())


def joined(path, out):
    """``run``, and what the runs' folders say of their passes."""
    return run(path, out), [
        json.loads(file.read_text()) for file in sorted(out.glob("runs/*/passes.json"))
    ]


PARTS = {
    "l2sp": {"coupled": False, "strength": 10.0},
    "ewc": {"examples": 4},
    "agem": {},
    "ema": {"decay": 0.5},
}
CLIPPED = {"weight_decay": 0.1, "max_grad_norm": 0.1}
JOINED = {
    "plain": {"method": "sft", **CLIPPED},
    "again": {"method": "sft", **CLIPPED, "gradient_checkpointing": True},
    "less": {"method": "sft", **CLIPPED, "moments": "8bit"},
    "sdft": {"gradient_checkpointing": True, "micro_batch_tokens": 60},
    "sfa": {"method": "sft", "with": {"sfa": {}}},
    "lora": {"method": "sdft", "parameters": {"lora": {}}},
    **{name: {"method": "sft", "with": {name: options}} for name, options in PARTS.items()},
}


def test_parts_and_adapters_do_not_see_where_masters_are(strict, tmp_path):
    """Two stages, so that parts have an earlier skill. Layers that are computed again change no
    number either.
    """
    model = save_tiny(tmp_path / "model")
    found = {}
    for masters in ("device", "host_moments", "host"):
        path = write_order(tmp_path, JOINED, model, "bfloat16", masters=masters)
        order = yaml.safe_load(path.read_text())
        first = order["skills"][0]
        order["skills"] = [first, {**first, "name": "again"}]
        order["evaluate"] = {"examples": 1}
        path.write_text(yaml.safe_dump(order))
        found[masters], passes = strict(joined, path, tmp_path / masters)
        found_passes = {(p["tokens"], p["recomputed"]) for p in passes}
        assert found_passes == {(8192, False), (8192, True), (60, True)}
    assert found["host_moments"] == found["device"] and found["host"] == found["device"]
    _, logs = found["device"]
    assert set(logs) == {f"{label}-seed0" for label in JOINED}
    assert logs["again-seed0"] == logs["plain-seed0"]


def test_fused_losses_change_no_gradient(strict, tmp_path):
    model, found = save_tiny(tmp_path / "model"), {}
    for fused in (False, True):
        path = write_order(tmp_path, {"sft": {}, "sdft": {}}, model, "bfloat16")
        order = yaml.safe_load(path.read_text())
        order["model"]["fused_losses"] = fused
        path.write_text(yaml.safe_dump(order))
        found[fused] = strict(run, path, tmp_path / f"out-{fused}")
    (records, logs), (fused_records, fused_logs) = found.values()
    assert records == fused_records
    for label, steps in logs.items():
        assert {step["grad_norm"] for step in steps} == {
            step["grad_norm"] for step in fused_logs[label]
        }


# ---- how often the host waits ----------------------------------------------------------------


def paper_rows(vocabulary, prompt, answer=16, count=32):
    """Rows in the proportions of a step of the paper: 32 prompts of 600 tokens, answers of 1,024,
    each a 64th as long.
    """
    generator = random.Random(0)

    def tokens(length):
        return [generator.randrange(5, vocabulary) for _ in range(length)]

    return [Row(tokens(prompt + i % 3), tokens(answer - i % 2)) for i in range(count)]


def waits_of_steps(folder, dtype, chunks, micro_batches):
    """{loss: waits of one step} with chunks of so many tokens, micro-batches of so many."""
    from benchmarks.gpu_check.material import make_stage
    from harness.learning.distillation import DistillationConfig, distil
    from harness.learning.teacher import Teacher
    from harness.learning.trainer import Trainer, TrainingConfig, cross_entropy
    from harness.models.load import load_model
    from methods.grpo import GRPOConfig, PolicyLoss

    model, tokenizer = load_model(str(folder), dtype, DEVICE)
    vocabulary = model.config.vocab_size
    rows, seen = paper_rows(vocabulary, 9), paper_rows(vocabulary, 12)
    seen = [Row(b.prompt, a.completion) for a, b in zip(rows, seen, strict=True)]
    stage = make_stage(model, tokenizer)
    stage.sampled_elsewhere = True  # so that there are importance weights
    logprobs = [[-1.0] * len(row.completion) for row in rows]
    gains = torch.tensor([(-1.0) ** i for i in range(len(rows))])

    def sdft(trainer, teacher, **options):
        config = DistillationConfig(micro_batch_tokens=micro_batches, **options)
        given = None if options["estimator"] == "rao_blackwell" else logprobs
        distil(trainer, teacher, rows, seen, config, given)

    def grpo(trainer, teacher):
        config = GRPOConfig(kl_beta=0.1, micro_batch_tokens=micro_batches)
        loss = PolicyLoss(stage, config, rows, gains, logprobs, teacher)
        trainer.backward(loss.rows, loss)
        loss.diagnostics()

    losses = {
        "sft": lambda trainer, teacher: trainer.token_mean(rows, cross_entropy),
        "grpo": grpo,
        **{
            f"{divergence} {estimator}": functools.partial(
                sdft, divergence=divergence, estimator=estimator
            )
            for divergence, estimator in (
                *(("forward", "full"), ("forward", "rao_blackwell")),
                *(("mixture", "sampled"), ("mixture", "top_k")),
            )
        },
    }
    found = {}
    with mock.patch.dict(packing.VOCABULARY_CHUNK, {True: chunks * vocabulary}):
        trainer = Trainer(stage, TrainingConfig(micro_batch_tokens=micro_batches))
        teacher = Teacher(stage, 0.01, trainer.limit)
        # The first one makes what is kept between steps.
        for name, loss in (("first", grpo), *losses.items()):
            strict_device.reset_counts()
            loss(trainer, teacher)
            trainer.update()
            teacher.follow(trainer.masters)
            found[name] = strict_device.counts()["waits"]
        trainer.close()
    del found["first"]
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_waits_for_a_few_numbers_alone(strict, dtype, tmp_path):
    """At the paper's proportions seven micro-batches of six chunks: 18 waits, where 60 are allowed.

    No chunk reads anything from the device. transformers looks once at the positions of a pass.
    """
    folder = save_tiny(tmp_path / "model")
    found = strict(waits_of_steps, folder, dtype, 14, 128)
    assert len(found) == 6 and max(found.values()) <= 18, found
    assert strict(waits_of_steps, folder, dtype, 5, 128) == found


def waits_of_a_token(folder, way, **settings):
    """Waits of one more token of 12 answers, of different lengths with their prompts."""
    from harness.models.load import load_model
    from harness.sampling.transformers import TransformersSampler, keep_way

    model, tokenizer = load_model(str(folder), "bfloat16", DEVICE)
    keep_way(model, way)
    prompts = [row.prompt for row in paper_rows(model.config.vocab_size, 6, count=12)]
    found = []
    for stops in ({-1}, set(range(0, 260, 20))):  # no answer ends, or one after the other does
        sampler = TransformersSampler(model, tokenizer)
        sampler.stops = stops
        waits, tokens = [], []
        for limit in (2, 22):
            strict_device.reset_counts()
            groups = sampler.sample(prompts, max_new_tokens=limit, seed=1, **settings)
            waits.append(strict_device.counts()["waits"])
            tokens.append(max(len(answer.token_ids) for [answer] in groups))
        found.append((waits[1] - waits[0]) / (tokens[1] - tokens[0]))
    return found


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.8}, {"temperature": 0}])
def test_a_token_waits_twice_at_most(strict, settings, tmp_path):
    """For what was drawn; and under a mask of two dimensions transformers looks at that."""
    folder = save_tiny(tmp_path / "model")
    for way, most in (("buffers", 2), ("graphs", 1)):
        assert max(strict(functools.partial(waits_of_a_token, folder, way, **settings))) <= most


# ---- memory ----------------------------------------------------------------------------------


def save_small(folder):
    """A Qwen2 in the proportions of the one with 7 billion weights, 5 layers of width 192."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 1016, "num_hidden_layers": 5}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=2048, **shape, **heads, **ends))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def peaks(path, out):
    """{label: (GiB that --plan says, GiB at the peak)} on the device."""
    from harness.models.load import load_tokenizer
    from harness.results.writer import ResultsWriter
    from harness.runs.estimate import estimate_order
    from harness.runs.plan import model_shape
    from harness.runs.reading import read_order

    order = read_order(path)
    tokenizer, source = load_tokenizer(order.model.name)
    shape = model_shape(order, source, "model")
    planned = estimate_order(order, tokenizer, shape, ResultsWriter(out)).memory
    run(path, out)
    return {
        label: (on_device, json.loads(stage(out, label).read_text())["peak_memory_gib"])
        for label, (on_device, _) in planned.items()
    }


def stage(out, label):
    return Path(out) / "runs" / f"{label}-seed0" / "stage-1" / "stage.json"


@pytest.mark.parametrize(
    "dtype, masters",
    [
        ("bfloat16", "device"),
        ("bfloat16", "host_moments"),
        ("bfloat16", "host"),
        ("float32", "device"),
    ],
)
def test_the_plan_says_the_peak(strict, dtype, masters, tmp_path):
    """Micro-batches that are full, two in each of two steps."""
    prompt, answer = len("0 t?") + 3, 40  # tokens
    row, tree = prompt + answer, prompt + 4 * (answer - 1)
    path = write_order(
        tmp_path,
        {
            "sft": {"micro_batch_tokens": 4 * row},
            "sdft": {"micro_batch_tokens": 4 * row},
            "grpo": {"micro_batch_tokens": 2 * tree, "group_size": 4, "kl_beta": 0.1},
        },
        save_small(tmp_path / "model"),
        dtype,
        masters=masters,
        answer=answer,
        budget={"prompts": 16, "batch_size": 8},
        evaluate={"examples": 1},
    )
    for label, (planned, measured) in strict(peaks, path, tmp_path / "out").items():
        assert planned == pytest.approx(measured, rel=0.15), label
