"""A 7B's decoding by the project's sampler: milliseconds a token step, and tokens a second."""

import torch

from benchmarks.gpu_check.bench import Bench, Skip, free_memory, seconds_of
from benchmarks.gpu_check.exact import sampled
from benchmarks.gpu_check.material import large_config, make_model, make_rows, make_tokenizer
from harness.sampling.transformers import BUFFERS, GRAPHS, TransformersSampler, keep_way

# rows: tokens a second that a GPU must reach
WANTED = {32: 900, 128: 3500}


def run(bench: Bench) -> None:
    """Batches of 32 and 128 rows, each answer as long as the limit."""
    config = large_config(bench.tiny)
    if not bench.tiny and free_memory(bench.device) < 20:
        raise Skip("a 7B's weights and keys want 20 GiB on the device")
    model = make_model(config, torch.bfloat16, bench.device)
    sampler = TransformersSampler(model, make_tokenizer(config.vocab_size), batch_size=128)
    sampler.stops = {-1}  # no answer ends early
    tokens = 8 if bench.tiny else 128
    prompt = 16 if bench.tiny else 200

    def sample(rows: int, length: int) -> None:
        prompts = [row.prompt for row in make_rows(config.vocab_size, [prompt] * rows, 1)]
        sampler.sample(prompts, max_new_tokens=length)

    def seconds_of_a_step(rows: int) -> tuple[float, float]:
        """Seconds of all tokens, milliseconds of one more."""
        sample(rows, 2)  # warms up
        reading = seconds_of(lambda: sample(rows, 1), bench.device)
        seconds = seconds_of(lambda: sample(rows, tokens), bench.device)
        return seconds, 1000 * (seconds - reading) / (tokens - 1)

    keep_way(model, BUFFERS)
    for rows, wanted in WANTED.items():
        seconds, step = seconds_of_a_step(rows)
        if rows == min(WANTED):
            bench.speed(f"{rows} rows, a token step", step, "ms", "at most 35", step <= 35)
        else:
            bench.note(f"{rows} rows, a token step", step, "ms")
        rate = rows * tokens / seconds
        name = f"{rows} rows of {tokens} tokens after {prompt}"
        bench.speed(name, rate, "tokens/s", f"at least {wanted}", rate >= wanted)
    keep_way(model, GRAPHS)
    for rows in WANTED:
        bench.note(f"{rows} rows, a token step by graphs", seconds_of_a_step(rows)[1], "ms")
    sampled(bench, "bfloat16, graphs", model, sampler.tokenizer, config.vocab_size, 0.02)
