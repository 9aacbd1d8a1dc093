"""A model whose weights lie in parts on all ranks, by FSDP2 (torch.distributed.fsdp.fully_shard).

Each rank holds a part of every weight along its first side, in float32: these are the masters. A
layer is whole on a rank only while it computes, in the order's dtype. Gradients come back in
float32 as sums over the ranks, each part to the rank that has it.

The head is no part of the body's passes. Its weight is made whole once for all chunks of tokens,
and its gradient, a float32 sum over them, is divided once (harness/learning/trainer.py). Tied to
the embedding it has the same parts, and the two gradients are added there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from harness.base.errors import UserError
from harness.models import ranks
from harness.models.memory import free_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARDED = "_sharded"  # attribute of a model that lies in parts


def sharded(model: torch.nn.Module) -> Sharded | None:
    """What is known of a model in parts; None for one that is whole here."""
    return getattr(model, _SHARDED, None)


def shard(model: PreTrainedModel, dtype: torch.dtype, device: str | torch.device) -> None:
    """Leave this rank's part of each weight of ``model``, on ``device``, in float32.

    dtype: that the model computes in. Raises UserError for a model of another build than a body of
    layers and a linear head.
    """
    Sharded(model, dtype, torch.device(device))


class Sharded:
    """The parts of ``model``.

    dtype: that it computes in; body: of the model, without the head; layers: of the body.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.model, self.dtype = model, dtype
        self.mesh = ranks.mesh(device.type)
        self.body: Any = getattr(model, model.base_model_prefix or "model", None)
        self.head: Any = model.get_output_embeddings()
        self.layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        self._check()
        is_tied = self.head.weight is model.get_input_embeddings().weight
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        weight = self.head.weight
        for module in [*self.layers, self.body]:
            module.float()
            unit: Any = fully_shard(
                module, mesh=self.mesh, mp_policy=policy, reshard_after_forward=True
            )
            # Losses are divided by what they average over: gradients are sums over the ranks.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        self.head.weight = (
            model.get_input_embeddings().weight if is_tied else self._parts_of(weight, device)
        )
        self.head.forward = self.project
        self._whole: torch.Tensor | None = None  # the head's weight, while it is kept
        self._wear(model)

    def _check(self) -> None:
        head, model = self.head, self.model
        known = {id(p) for p in self.body.parameters()} if self.body is not None else set()
        known.add(id(getattr(head, "weight", None)))
        rest = [name for name, p in model.named_parameters() if id(p) not in known]
        if not self.layers or type(head) is not torch.nn.Linear or head.bias is not None or rest:
            raise UserError(
                "model",
                f"{type(model).__name__} is no body of layers with a linear head, which torchrun "
                f"can divide{f' ({rest[0]})' if rest else ''}",
                "run it in one process",
            )

    def _wear(self, model: PreTrainedModel) -> None:
        """Let the model tell the dtype that it computes in, not that of its parts."""
        own = type(model)
        answers = {"dtype": property(lambda model: model._sharded.dtype)}
        model.__class__ = type(own.__name__, (own,), {"__module__": own.__module__, **answers})
        setattr(model, _SHARDED, self)

    def _parts_of(self, weight: torch.nn.Parameter, device: torch.device) -> torch.nn.Parameter:
        """A parameter in parts, as FSDP2 makes them: PyTorch's chunks of the first side."""
        from torch.distributed.tensor import DTensor, Shard

        parts = weight.detach().chunk(ranks.count())
        own = parts[ranks.index()] if ranks.index() < len(parts) else weight.detach()[:0]
        local = own.to(device, torch.float32, copy=True)
        spread = DTensor.from_local(
            local,
            self.mesh,
            [Shard(0)],
            run_check=False,
            shape=weight.shape,
            stride=weight.stride(),
        )
        return torch.nn.Parameter(spread, requires_grad=weight.requires_grad)

    # ---- parts and wholes ----------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        """All weights, by name, as DTensors."""
        return dict(self.model.named_parameters())

    def parts(self) -> dict[str, torch.Tensor]:
        """This rank's part of each weight, float32, in the model's own memory."""
        return {name: weight.to_local().detach() for name, weight in self.weights().items()}

    def spread(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """The tensor in parts, laid out as the weight ``name``, of which this rank has ``part``.

        The part stays on its device.
        """
        from torch.distributed.tensor import DTensor

        like = self.weights()[name]
        return DTensor.from_local(
            part,
            ranks.mesh(part.device.type),
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: str) -> torch.Tensor:
        """A tensor in parts, of zeros; device: the kind of it."""
        from torch.distributed.tensor import Shard, zeros

        new: torch.Tensor = zeros(
            list(shape), dtype=dtype, device_mesh=ranks.mesh(device), placements=[Shard(0)]
        )
        return new

    def spread_like(self, name: str, value: Any) -> Any:
        """``spread`` of what has the shape of the weight's part; anything else as it is.

        A list has the pieces of such a tensor.
        """
        part = self.weights()[name].to_local()
        if isinstance(value, list):
            whole = value[0] if len(value) == 1 else torch.cat(value)
            return [self.spread(name, whole.view(part.shape))]
        is_part = isinstance(value, torch.Tensor) and value.shape == part.shape
        return self.spread(name, value) if is_part and value.ndim else value

    def whole(self, weight: Any) -> torch.Tensor:
        """A weight in the dtype that the model computes in; all ranks ask for it at once."""
        with torch.inference_mode(False), torch.no_grad():
            whole: torch.Tensor = weight.detach().to(self.dtype).full_tensor()
        return whole

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole tensor) of what ``state_dict`` has, by name, one at a time.

        All ranks go through it at once.
        """
        for name, tensor in sorted(self.model.state_dict(keep_vars=True).items()):
            in_parts = hasattr(tensor, "full_tensor")
            yield name, self.whole(tensor) if in_parts else tensor.detach()

    def saved(self) -> dict[str, torch.Tensor]:
        """What rank 0 saves, whole and in host memory; {} on the others. All ask for it at once."""
        again = set(self.model.state_dict()) - {n for n, _ in self.model.named_buffers()}
        again -= set(self.weights())  # tied to a weight of another name
        kept: dict[str, torch.Tensor] = {}
        for name, tensor in self.state():
            if ranks.index() == 0 and name not in again:
                kept[name] = tensor.cpu()
        return kept

    @torch.no_grad()
    def round(self) -> None:
        """Let the weights be what the model computes with: a stage ends with such."""
        if self.dtype != torch.float32:
            for part in self.parts().values():
                part.copy_(part.to(self.dtype))

    def divide(self, gradient: torch.Tensor) -> torch.Tensor:
        """This rank's part of the sum of the ranks' gradients of the head's weight."""
        from torch.distributed.tensor import DTensor, Partial, Shard

        sums = DTensor.from_local(gradient, self.mesh, [Partial()], run_check=False)
        part: torch.Tensor = sums.redistribute(placements=[Shard(0)]).to_local()
        return part

    def no_gradient(self) -> torch.Tensor:
        """Zeros in the shape of the head's weight, float32."""
        return torch.zeros(self.head.weight.shape, device=self.model.device)

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, this rank's part) of the gradients of the body's weights, which are cleared."""
        for name, weight in self.weights().items():
            if weight.grad is not None:
                yield name, weight.grad.to_local()
                weight.grad = None

    # ---- the head ------------------------------------------------------------------------------

    def head_weight(self) -> torch.Tensor:
        """The head's weight, whole, as it is now; all ranks ask for it at once."""
        return self.whole(self.head.weight) if self._whole is None else self._whole

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Logits before caps and scales, as the head's own ``forward``."""
        return F.linear(states, self.head_weight())

    # ---- passes of the whole model -------------------------------------------------------------

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Ranks may make different numbers of passes of the whole model in the body.

        Where there is room the model is whole on each rank meanwhile, which changes no number. Else
        a rank says so before each pass; one that is done makes empty passes as long as another has
        passes to make, since a layer is made whole by all ranks together.
        """
        self._whole = self.head_weight()
        if self._has_room():
            with self._kept_whole():
                yield
            self._whole = None
            return
        hook = self.model.register_forward_pre_hook(lambda *_: self._goes_on(True))
        try:
            yield
        finally:
            hook.remove()
            self._whole = None
        with torch.no_grad():
            while self._goes_on(False):
                self.body(torch.zeros(1, 1, dtype=torch.long, device=self.model.device))

    def _has_room(self) -> bool:
        """Whether each rank has room for the whole model and as much again."""
        size = self.dtype.itemsize * sum(weight.numel() for weight in self.weights().values())
        device = self.model.device
        sharing = ranks.count() if device.type == "cpu" else 1  # of one host's memory
        return min(ranks.gathered(free_memory(device))) >= 2 * size * sharing

    @contextmanager
    def _kept_whole(self) -> Iterator[None]:
        """Layers and body stay whole, so that passes send nothing."""
        units = [*self.layers, self.body]
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                unit.set_reshard_after_forward(True, recurse=False)
                unit.reshard()

    def _goes_on(self, busy: bool) -> bool | None:
        count = ranks.summed(torch.tensor(int(busy), device=self.model.device))
        return None if busy else bool(count)

    # ---- another one ---------------------------------------------------------------------------

    @torch.no_grad()
    def twin(self) -> PreTrainedModel:
        """A second model with the same weights, in parts of its own."""
        model = self.model
        kind: Any = type(model).__mro__[1]
        with torch.device("meta"):
            other = kind(copy.deepcopy(model.config))
        other.generation_config = copy.deepcopy(model.generation_config)
        is_tied = self.head.weight is model.get_input_embeddings().weight
        if is_tied:
            other.get_output_embeddings().weight = other.get_input_embeddings().weight
        device = model.device
        Sharded(other, self.dtype, device)
        other.to_empty(device=device)
        if is_tied:
            other.get_output_embeddings().weight = other.get_input_embeddings().weight
        for new, old in zip(other.modules(), model.modules(), strict=True):
            for name, buffer in old.named_buffers(recurse=False):
                new.get_buffer(name).copy_(buffer)
            for name, value in vars(old).items():
                if isinstance(value, torch.Tensor):  # a rotary embedding's first frequencies
                    setattr(new, name, value.clone())
        own = sharded(other)
        assert own is not None
        copy_parts(own.parts(), self.parts())
        for name, value in vars(model).items():
            if isinstance(value, bool | str) and name.startswith("_") and name not in vars(other):
                setattr(other, name, value)  # what the model was found able to do
        return other.train(model.training)


def own_parts(state: Any) -> Any:
    """``state`` with this rank's part of each tensor that lies in parts."""
    if isinstance(state, Mapping):
        return {key: own_parts(value) for key, value in state.items()}
    if isinstance(state, list):
        return [own_parts(value) for value in state]
    return state.to_local() if hasattr(state, "to_local") else state


def rows_of_part(weight: Any) -> slice:
    """Which rows of a weight in parts this rank has."""
    each = -(-weight.shape[0] // ranks.count())
    first = min(weight.shape[0], ranks.index() * each)
    return slice(first, min(weight.shape[0], first + each))


def copy_parts(parts: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Write ``values`` into the parts of the same names."""
    for name, part in parts.items():
        part.copy_(values[name])


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights by name: what this rank has of them, or all of them where it has all."""
    own = sharded(model)
    return own.parts() if own else dict(model.named_parameters())
