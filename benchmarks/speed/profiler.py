"""Where our time goes: ``python -m benchmarks.speed.profiler sft|sdft|grpo|sampling``.

What is measured is that of the benchmark's row, in float32: the second of two optimizer steps,
their sampling included, or of two batches sampled, so that nothing is new.
"""

import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import rows
from benchmarks.speed.timing import Settings, product_seconds, timed
from harness.base.errors import Parser, reported
from harness.models.chat import chat_tokens
from harness.models.load import load_model
from harness.sampling.transformers import TransformersSampler

PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm"}


def measure(settings, kind):
    """(seconds, [(name of the operator, its own seconds, FLOP of its matrix products)], longest
    first).
    """
    profiler, seconds = profile(activities=[ProfilerActivity.CPU], with_flops=True), []
    if kind in ("sft", "sdft", "grpo"):
        examples, _ = rows.choose(settings, settings.groups if kind == "grpo" else settings.prompts)

        def pause(logged):
            seconds.append(logged["seconds"])
            profiler.stop() if len(seconds) == 2 else profiler.start()

        rows.our_steps(settings, kind, examples, 2, "float32", True)(pause)
    else:
        work = sampled(settings)
        with profiler:
            seconds.append(timed(work)[0])
    found = [(e.key, e.self_cpu_time_total / 1e6, e.flops) for e in profiler.key_averages()]
    return seconds[-1], sorted(found, key=lambda row: -row[1])


def sampled(settings):
    """A function that samples the batch of the row, which has been sampled once."""
    examples, tokenizer = rows.choose(settings, settings.prompts)
    sampler = TransformersSampler(*load_model(settings.folder, "float32", "cpu"))
    sampler.stops = {-1}
    prompts = [chat_tokens(tokenizer, e.prompt) for e in examples]

    def work():
        return sampler.sample(prompts, max_new_tokens=settings.tokens)

    work()
    return work


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=("sft", "sdft", "grpo", "sampling"))
    parser.add_argument("--model", default=Settings.model, help="another model's folder")
    args = parser.parse_args()
    with reported(), tempfile.TemporaryDirectory() as work:
        seconds, found = measure(Settings(Path(work), model=args.model), args.kind)
        product, flop = (sum(row[i] for row in found if row[0] in PRODUCTS) for i in (1, 2))
        print(f"{args.kind}: {seconds:.3g} s under the profiler, {torch.get_num_threads()} threads")
        print(
            f"matrix products: {product:.3g} s ({product / seconds:.0%}), {flop / 1e12:.3g} TFLOP at {flop / product / 1e9:.0f} GFLOP/s; "
            f"one of 2,048 x 2,048 reaches {2 * 2048**3 / product_seconds(2048, torch.float32) / 1e9:.0f}"
        )
        for name, own, _ in found[:10]:
            print(f"  {own:8.2f} s  {own / seconds:4.0%}  {name}")


if __name__ == "__main__":
    main()
