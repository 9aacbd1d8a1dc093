"""AdamW with its moments beside the masters, or kept elsewhere; its rate, and what decays.

Both make the same numbers, those of ``torch.optim.AdamW``, by its own fused kernel. Moments in 8
bits (moments.py) make numbers of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy
import torch
from torch.optim.adamw import adamw

from harness.learning.halves import Halves, Master, pieces
from harness.learning.moments import FLOAT32, Moment, moments_of, restore, thresholds_at
from harness.learning.weights import check_names
from harness.models.memory import finish

if TYPE_CHECKING:
    from harness.learning.options import TrainingConfig

BETAS, EPS = (0.9, 0.999), 1e-8  # PyTorch's own defaults
OWNER = "the checkpoint of the optimizer"


class Optimizer(Protocol):
    """AdamW on masters by name, with the gradients in ``.grad``."""

    def step(self, rate: float) -> None:
        """Move all masters by their gradients."""

    def move(self, name: str, gradient: torch.Tensor, rate: float) -> None:
        """Move one master, while no master has a gradient."""

    def forget(self) -> None:
        """Let the moments start again."""

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Moments and steps by the masters' names."""

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises ValueError naming the first master that only one of state and optimizer has."""


class Resident:
    """AdamW whose moments are where the masters are."""

    def __init__(self, masters: Mapping[str, torch.Tensor], decay: Mapping[str, float]) -> None:
        """decay: the weight decay of each master."""
        self.masters = masters
        groups = [[n for n in masters if bool(decay[n]) == decays] for decays in (True, False)]
        self.adamw = torch.optim.AdamW(
            [
                {"params": [masters[name] for name in names], "weight_decay": decay[names[0]]}
                for names in groups
                if names
            ],
            betas=BETAS,
            eps=EPS,
            fused=True,
        )
        self.numbered = [name for names in groups for name in names]  # as AdamW numbers its weights

    def step(self, rate: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()

    def move(self, name: str, gradient: torch.Tensor, rate: float) -> None:
        master = self.masters[name]
        master.grad = gradient
        self.step(rate)  # leaves out masters without a gradient
        master.grad = None

    def forget(self) -> None:
        self.adamw.state.clear()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        state = self.adamw.state  # empty before the first step
        return {name: dict(state[m]) for name, m in self.masters.items() if m in state}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        if state:
            check_names(state, self.masters, OWNER)
        # PyTorch's optimizers number their weights in the order in which they got them
        numbered = {i: state[name] for i, name in enumerate(self.numbered) if name in state}
        groups = self.adamw.state_dict()["param_groups"]
        self.adamw.load_state_dict({"state": numbered, "param_groups": groups})


class Streamed:
    """AdamW whose moments are kept in host memory or in 8 bits, and made whole piece by piece.

    Gradients, masters and the computation are on the device. All copies are in the order of the
    device's stream, so that the host waits for none of them; who reads ``state_dict`` waits.
    """

    def __init__(
        self,
        masters: Mapping[str, Master],
        decay: Mapping[str, float],
        place: torch.device | None = None,
        kind: str = FLOAT32,
    ) -> None:
        """decay: the weight decay of each master; place: of the moments, host memory if left out;
        kind: of MOMENTS.
        """
        self.masters = masters
        self.decay = decay
        self.place, self.kind = place or torch.device("cpu"), kind
        self.moments: dict[str, tuple[Moment, Moment]] = {}  # means and mean squares of gradients
        self.steps: dict[str, int] = {}

    def step(self, rate: float) -> None:
        for name, master in self.masters.items():
            if master.grad is not None:
                self.move(name, master.grad, rate)

    @torch.no_grad()
    def move(self, name: str, gradient: torch.Tensor, rate: float) -> None:
        master = self.masters[name]
        kept = self._moments(name)
        done = self.steps[name]
        self.steps[name] = done + 1
        weight = master.weight if isinstance(master, Halves) else master
        gradients = pieces(gradient.contiguous() if weight.is_contiguous() else gradient)
        thresholds = None if self.kind == FLOAT32 else thresholds_at(done, weight.device)

        def move(i: int, numbers: torch.Tensor) -> None:
            moments = [moment.read(i, weight.device) for moment in kept]
            count = torch.full((), float(done), device=weight.device)
            adamw(
                *([numbers], [gradients[i]], [moments[0]], [moments[1]], [], [count]),
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                eps=EPS,
                lr=rate,
                weight_decay=self.decay[name],
            )
            for moment, new in zip(kept, moments, strict=True):
                moment.write(i, new, thresholds)

        if isinstance(master, Halves):
            master.change(move)
        else:
            for i, part in enumerate(pieces(master)):
                move(i, part)

    def _moments(self, name: str) -> tuple[Moment, Moment]:
        if name not in self.moments:
            master = self.masters[name]
            like = master.weight if isinstance(master, Halves) else master
            self.moments[name] = moments_of(like, self.place, self.kind)
            self.steps[name] = 0
        return self.moments[name]

    def forget(self) -> None:
        self.moments, self.steps = {}, {}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        for device in {master.device for master in self.masters.values()}:
            finish(device)
        return {
            name: {
                "step": self.steps[name],
                "exp_avg": list(means.parts),
                "exp_avg_sq": list(squares.parts),
            }
            for name, (means, squares) in self.moments.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        if state:
            check_names(state, self.masters, OWNER)
        self.forget()
        for name, kept in state.items():
            means, squares = self._moments(name)
            restore(means, kept["exp_avg"])
            restore(squares, kept["exp_avg_sq"])
            self.steps[name] = kept["step"]


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The rate of optimizer step ``step`` (from 0) of ``steps``.

    Linear warm-up, then the schedule, which goes down to 0 unless it is constant.
    """
    warmup = min(config.warmup_steps, steps // 5)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    factor = 1.0
    if config.schedule == "cosine":
        factor = 0.5 * (1 + numpy.cos(numpy.pi * progress))
    elif config.schedule == "linear":
        factor = 1 - progress
    return float(config.learning_rate * factor)


NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def decayed_names(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that weight decay acts on.

    They are those of transformers' ``Trainer.get_decay_parameter_names``, from which TRL's trainers
    have theirs: no bias, nothing in a LayerNorm, and nothing in a module whose name says norm.
    """
    norms = [
        f"{name}." for name, part in model.named_modules() if isinstance(part, torch.nn.LayerNorm)
    ]
    return {
        name
        for name, _ in model.named_parameters()
        if not NOT_DECAYED.search(name.lower()) and not name.startswith(tuple(norms))
    }
