"""The rows of the table, one function each; docs/explanation/speed.md says what each side does."""

from collections.abc import Callable

from benchmarks.speed.evaluation import evaluation, identical_scores
from benchmarks.speed.growth import growth, memory, records
from benchmarks.speed.orders import order, stage
from benchmarks.speed.sampling import sampling, sampling_vllm
from benchmarks.speed.steps import grpo, sdft, sft
from benchmarks.speed.timing import Result, Settings

Row = Callable[[Settings], list[Result]]
ROWS: dict[str, Row] = {
    "sdft": sdft,
    "sft": sft,
    "grpo": grpo,
    "sampling": sampling,
    "sampling_vllm": sampling_vllm,
    "evaluation": evaluation,
    "identical_scores": identical_scores,
    "stage": stage,
    "order": order,
    "memory": memory,
    "records": records,
    "growth": growth,
}
