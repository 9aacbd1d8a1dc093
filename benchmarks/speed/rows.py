"""The rows of the table, one function each; docs/explanation/speed.md says what each side does."""

from collections.abc import Callable

from benchmarks.speed.evaluation import evaluation, identical_scores
from benchmarks.speed.growth import growth, memory, records
from benchmarks.speed.orders import order, stage
from benchmarks.speed.profiler import measure
from benchmarks.speed.sampling import sampling, sampling_vllm
from benchmarks.speed.steps import grpo, sdft, sft
from benchmarks.speed.timing import Result, Settings

Row = Callable[[Settings], list[Result]]
BOUND = 0.6  # part of the time in matrix products from which nothing but they could be faster


def _profiled(kind: str, row: Row, bound: float | None = None) -> Row:
    """``row``, whose result states where the time goes if it misses its mark.

    bound: part of the time in matrix products that reaches the mark as well.
    """

    def measured(settings: Settings) -> list[Result]:
        (result,) = row(settings)
        if result.met:
            return [result]
        found = measure(settings, kind)
        result.notes += found.lines()
        result.details["products_share"] = found.share
        if bound is not None:
            result.wanted += f", or {bound:.0%} in products"
            result.met = found.share >= bound
        return [result]

    return measured


ROWS: dict[str, Row] = {
    "sdft": _profiled("sdft", sdft),
    "sft": _profiled("sft", sft),
    "grpo": _profiled("grpo", grpo),
    "sampling": _profiled("sampling", sampling, BOUND),
    "sampling_vllm": sampling_vllm,
    "evaluation": _profiled("evaluation", evaluation, BOUND),
    "identical_scores": identical_scores,
    "stage": stage,
    "order": order,
    "memory": memory,
    "records": records,
    "growth": growth,
}
