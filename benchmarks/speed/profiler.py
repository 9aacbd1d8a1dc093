"""Where our time goes: ``python -m benchmarks.speed.profiler sft|sdft|grpo|sampling``.

It measures what the benchmark's row does, in float32: the second of two optimizer steps with their
sampling, or the second of two sampled batches, so that nothing is done for the first time.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.steps import choose, our_steps
from benchmarks.speed.timing import Settings, product_seconds, timed
from harness.base.errors import Parser, reported
from harness.models.chat import chat_tokens
from harness.sampling.transformers import TransformersSampler

PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm"}


Operator = tuple[str, float, float]  # name, its own seconds, FLOP of its matrix products


def measure(settings: Settings, kind: str) -> tuple[float, list[Operator]]:
    """(seconds, the operators, longest first)."""
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

        our_steps(settings, kind, examples, 2, "float32", True)(pause)
    else:
        sample = warm_sampling(settings)
        with profiler:
            seconds.append(timed(sample)[0])
    operators = [
        (event.key, event.self_cpu_time_total / 1e6, event.flops)
        for event in profiler.key_averages()
    ]
    return seconds[-1], sorted(operators, key=lambda operator: -operator[1])


def warm_sampling(settings: Settings) -> Callable[[], Any]:
    """A function that samples the batch of the row, which has been sampled once."""
    examples, tokenizer = choose(settings, settings.prompts)
    sampler = TransformersSampler(*settings.load("float32"))
    sampler.stops = {-1}
    prompts = [chat_tokens(tokenizer, e.prompt) for e in examples]

    def work() -> Any:
        return sampler.sample(prompts, max_new_tokens=settings.tokens)

    work()
    return work


def report(seconds: float, operators: list[Operator]) -> str:
    """Matrix products beside what the machine reaches, and the ten longest operators."""
    products = [operator for operator in operators if operator[0] in PRODUCTS]
    product = sum(own for _, own, _ in products)
    flop = sum(flop for *_, flop in products)
    reached = 2 * 2048**3 / product_seconds(2048, torch.float32)
    lines = [
        f"matrix products: {product:.3g} s ({product / seconds:.0%}), {flop / 1e12:.3g} TFLOP at "
        f"{flop / product / 1e9:.0f} GFLOP/s; one of 2,048 x 2,048 reaches {reached / 1e9:.0f}"
    ]
    lines += [f"  {own:8.2f} s  {own / seconds:4.0%}  {name}" for name, own, _ in operators[:10]]
    return "\n".join(lines)


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=("sft", "sdft", "grpo", "sampling"))
    parser.add_argument("--model", default=Settings.model, help="another model's folder")
    args = parser.parse_args()
    with reported(), tempfile.TemporaryDirectory() as work:
        seconds, operators = measure(Settings(Path(work), model=args.model), args.kind)
        print(f"{args.kind}: {seconds:.3g} s under the profiler, {torch.get_num_threads()} threads")
        print(report(seconds, operators))


if __name__ == "__main__":
    main()
