"""What one large run can do, on the ranks that torchrun has started; the rest is refused at once.

docs/how-to/large.md has the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from harness.base.errors import UserError
from harness.learning.moments import FLOAT32
from harness.models.flex import FLEX
from harness.runs.engines import check_copies
from harness.runs.methods import MethodSpec
from harness.runs.order import Order
from harness.sampling.transformers import GRAPHS

METHODS = (
    *("sft", "sdft", "grpo", "dft", "psft", "self_sft"),
    *("offline_distillation", "sft_from_teacher"),
)
PARTS = ("replay", "talr", "eaft", "flow")
PARAMETERS = ("all", "lora")
ALONE = "or run it without torchrun"


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError for an option of run_sequence.py that is of one process."""
    given = {
        "--plan": args.plan,
        "--check-teacher": args.check_teacher,
        "--explain": args.explain is not None,
        "--shard": args.shard is not None,
        "--status": args.status,
        "--workers": args.workers is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise UserError(option, "is no matter of several ranks", "leave out torchrun")


def check_order(order: Order, on_machine: int) -> None:
    """Raises UserError for what several ranks cannot do, before anything loads.

    on_machine: ranks of a machine.
    """
    for label, spec in order.methods.items():
        place = f"{order.place}: methods.{label}"
        for problem, remedy in _refusals(spec):
            raise UserError(place, f"{problem} on the ranks of torchrun", remedy or ALONE)
    place, model = order.place, order.model
    for key, is_set in {
        "decode": model.decode == GRAPHS,
        "fused_losses": model.fused_losses,
        "attention": model.attention == FLEX,
    }.items():
        if is_set:
            problem = f"{getattr(model, key)} does not run on the ranks of torchrun"
            raise UserError(f"{place}: model.{key}", problem, "leave it out")
    check_copies(order, on_machine)
    if order.judge is not None:
        problem = "every rank of torchrun would ask it"
        raise UserError(
            f"{place}: judge",
            problem,
            "leave it out; python -m harness.judge grades a finished folder",
        )


def _refusals(spec: MethodSpec) -> Iterator[tuple[str, str]]:
    """(what does not run, what helps) of a method's options."""
    config: Any = spec.config
    if _own(spec.cls, "methods") not in METHODS:
        yield "the method does not run", f"on ranks run {', '.join(METHODS)}; {ALONE}"
    for part in spec.parts:
        if _own(part.cls, "methods.parts") not in PARTS:
            yield f"with: {part.name} does not run", f"on ranks run {', '.join(PARTS)}; {ALONE}"
    if (trained := spec.parameters) and _own(trained.cls, "methods.parameters") not in PARAMETERS:
        problem = f"parameters: {trained.name} does not run"
        yield problem, f"on ranks run {', '.join(PARAMETERS)}; {ALONE}"
    if config.masters == "host":
        yield "masters in host memory do not run", "take masters: host_moments, or device"
    if config.moments != FLOAT32:
        yield "moments in 8 bits do not run", "take moments: float32"


def _own(cls: type, package: str) -> str | None:
    """The name of one of the project's plug-ins; None for a user's own, which is not tried."""
    before, _, name = cls.__module__.rpartition(".")
    return name if before == package else None
