"""Where our time goes: ``python -m benchmarks.speed.profiler sft|sdft|grpo|sampling|evaluation``.

It measures what the benchmark's row does: the second of two optimizer steps with their sampling,
the second of two sampled batches, so that nothing is done for the first time, or an evaluation with
fewer questions. A row that misses its mark states it.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.evaluation import our_evaluation
from benchmarks.speed.steps import choose, our_steps
from benchmarks.speed.timing import Settings, product_seconds, timed
from harness.base.errors import Parser, reported
from harness.models.chat import chat_tokens
from harness.sampling.transformers import TransformersSampler

PRODUCTS = {
    "aten::mm",
    "aten::addmm",
    "aten::addmm_",
    "aten::bmm",
    "aten::baddbmm",
    "mkldnn::_linear_pointwise",  # by packed weights
}
KINDS = ("sft", "sdft", "grpo", "sampling", "evaluation")
EXAMPLES, DOCUMENTS = 8, 16  # of an evaluation: the profiler keeps every operation


@dataclass(frozen=True)
class Operator:
    """What one operator took in all. seconds: its own; flop: of its matrix products."""

    name: str
    seconds: float
    flop: float


@dataclass(frozen=True)
class Profile:
    """seconds: of the work under the profiler; operators: the longest first."""

    kind: str
    dtype: str
    seconds: float
    operators: list[Operator]

    @property
    def products(self) -> list[Operator]:
        return [operator for operator in self.operators if operator.name in PRODUCTS]

    @property
    def share(self) -> float:
        """The part of the time that matrix products take."""
        return sum(operator.seconds for operator in self.products) / self.seconds

    def lines(self) -> list[str]:
        """Matrix products beside what the machine reaches, and the longest operators."""
        seconds = sum(operator.seconds for operator in self.products)
        rate = ""
        counted = [operator for operator in self.products if operator.flop]
        if sum(operator.seconds for operator in counted) > seconds / 2:
            # A packed product states no FLOP, and takes most of the time in sampling.
            flop = sum(operator.flop for operator in counted)
            reached = 2 * 2048**3 / product_seconds(2048, getattr(torch, self.dtype))
            speed = flop / sum(operator.seconds for operator in counted)
            rate = f" at {speed / 1e9:.0f} GFLOP/s, where 2,048 x 2,048 reaches {reached / 1e9:.0f}"
        longest = ", ".join(
            f"{operator.name.removeprefix('aten::')} {operator.seconds / self.seconds:.0%}"
            for operator in self.operators[:8]
        )
        return [
            f"under the profiler, {self.dtype}: {self.seconds:.3g} s, of which matrix products "
            f"{seconds:.3g} s ({self.share:.0%}){rate}",
            f"its longest operators: {longest}",
        ]


def measure(settings: Settings, kind: str) -> Profile:
    """The Profile of one of KINDS in our dtype."""
    profiler = profile(activities=[ProfilerActivity.CPU], with_flops=True)
    seconds: list[float] = []
    if kind in ("sft", "sdft", "grpo"):
        examples, _ = choose(settings, settings.groups if kind == "grpo" else settings.prompts)

        def pause(logged: dict[str, Any]) -> None:
            seconds.append(logged["seconds"])
            if len(seconds) == 2:
                profiler.stop()
            else:
                profiler.start()

        our_steps(settings, kind, examples, 2, settings.our_dtype, True)(pause)
    else:
        if kind == "sampling":
            work = warm_sampling(settings)
        else:
            fewer = replace(
                settings,
                examples=min(settings.examples, EXAMPLES),
                documents=min(settings.documents or DOCUMENTS, DOCUMENTS),
            )
            work = our_evaluation(fewer, "profiled")[0]
        with profiler:
            seconds.append(timed(work)[0])
    operators = [
        Operator(event.key, event.self_cpu_time_total / 1e6, event.flops)
        for event in profiler.key_averages()
    ]
    operators.sort(key=lambda operator: -operator.seconds)
    return Profile(kind, settings.our_dtype, seconds[-1], operators)


def warm_sampling(settings: Settings) -> Callable[[], Any]:
    """A function that samples the batch of the row, which has been sampled once."""
    examples, tokenizer = choose(settings, settings.prompts)
    sampler = TransformersSampler(*settings.load())
    sampler.stops = {-1}
    prompts = [chat_tokens(tokenizer, e.prompt) for e in examples]

    def work() -> Any:
        return sampler.sample(prompts, max_new_tokens=settings.tokens)

    work()
    return work


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--model", default=Settings.model, help="another model's folder")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    args = parser.parse_args()
    with reported(), tempfile.TemporaryDirectory() as work:
        found = measure(Settings(Path(work), model=args.model, dtype=args.dtype), args.kind)
        print(f"{args.kind}, {torch.get_num_threads()} threads", *found.lines(), sep="\n")


if __name__ == "__main__":
    main()
