"""The same run on the ranks of torchrun: a 7B on 2, 4 and 8 GPUs, a 72B on 16."""

from collections.abc import Iterator

import torch

from benchmarks.gpu_model.table import (
    ANSWER,
    BATCH,
    LARGE,
    PROMPT,
    PROMPTS,
    RANK,
    shape_of,
    trained_by,
    work_of_run,
)
from harness.learning.outlook import Work
from harness.runs.cost import StepWork
from harness.runs.ranks_cost import MACHINE, RanksCost, RankShare, fleet_of
from methods.sdft import SDFTConfig

FLEETS = (("7B", "2x80"), ("7B", "4x80"), ("7B", "8x80"), ("72B", "8x141"), ("72B", "16x141"))
DEMONSTRATION = 300  # tokens of SFT's completion


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| model | GPUs | method | trains | GPU, GiB | a pass, tokens | s a step | of it waits "
        "| run, h | efficiency |\n",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|\n",
    ]
    for name, gpus in FLEETS:
        of_copy = MACHINE if name in LARGE else 1
        for method, copy in (("SFT", 0), ("SDFT", 0), ("SDFT, vLLM", of_copy)):
            for trained in ("all", "LoRA"):
                share = share_of(name, gpus, method, trained, of_copy=copy)
                lines.append(_row(name, gpus, method, trained, share))
                if share.passes is None:
                    share = share_of(name, gpus, method, trained, "host_moments", copy)
                    lines.append(_row(name, gpus, method, f"{trained}, `host_moments`", share))
    return "".join(lines)


def share_of(
    name: str, gpus: str, method: str, trained: str, masters: str = "device", of_copy: int = 0
) -> RankShare:
    """What a rank takes; gpus: as ``8x80``; masters: the option; of_copy: ranks that hold a copy of
    vLLM's weights, 0 without vLLM.
    """
    cost = RanksCost(shape_of(name), torch.bfloat16, fleet_of(gpus), of_copy)
    size, passes = trained_by(name, trained)
    work = (
        work_of_run(ANSWER) if method.startswith("SDFT") else Work(learned=PROMPT + DEMONSTRATION)
    )
    step = StepWork(
        prompts=BATCH,
        work=work,
        completion=work.learned - PROMPT,
        passes=passes,
        trained=size,
        masters=masters,
        limit=1,
        at_once=BATCH,
        longest=ANSWER if work.answers else None,
    )
    cached = BATCH * work.answers * (PROMPT + ANSWER)
    return cost.share(SDFTConfig(masters=masters), work, size, step, cached)


def _row(name: str, gpus: str, method: str, trained: str, share: RankShare) -> str:
    label = f"LoRA, rank {RANK}" if trained == "LoRA" else trained
    start = f"| {name} | {gpus} | {method} | {label} "
    return start + "".join(f"| {cell} " for cell in _cells(share)) + "|\n"


def _cells(share: RankShare) -> Iterator[str]:
    yield f"{share.gib:.0f}"
    if share.passes is None:
        yield "does not fit"
        yield from ("", "", "", "")
        return
    seconds = sum(share.terms)
    yield f"{share.passes.tokens:,}{', again' if share.passes.recomputed else ''}"
    yield f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
    yield f"{share.sent:.0f}" if share.sent >= 10 else f"{share.sent:.1f}"
    yield f"{-(-PROMPTS // BATCH) * seconds / 3600:.2f}"
    yield f"{share.efficiency:.2f}"
