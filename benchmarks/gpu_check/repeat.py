"""One bfloat16 step of SDFT twice from the same weights: the same bits, and what that costs.

Some rows share their prompts under a mask and others do not: the kernels of attention differ.
"""

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_check.bench import Bench, seconds_of
from benchmarks.gpu_check.material import make_rows, make_stage, small_checkpoint
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.packing import Row
from harness.learning.teacher import Teacher
from harness.learning.trainer import Trainer
from harness.models.load import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Weights = dict[str, torch.Tensor]


def run(bench: Bench) -> None:
    """With deterministic kernels the step must repeat; without, whether it does is told."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(small_checkpoint(bench, Path(folder)))
        model, tokenizer = load_model(source, "bfloat16", str(bench.device))
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    for deterministic in (True, False):
        first = after_a_step(bench, model, tokenizer, start, deterministic)
        second = after_a_step(bench, model, tokenizer, start, deterministic)
        differ = sum(not torch.equal(first[name], second[name]) for name in first)
        if deterministic:
            moved = sum(not torch.equal(first[name], start[name]) for name in start)
            bench.judge("weights that a step moves", moved, "", "at least 1", moved > 0)
            bench.equal("deterministic, weights and answers that differ", differ, 0)
        else:
            bench.note("not deterministic, weights and answers that differ", differ)
    model.load_state_dict(start)
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(8):
        deterministic = turn % 2 == 0
        seconds = learning_seconds(bench, model, tokenizer, deterministic)
        if turn >= 2:  # the first two warm up
            times[deterministic].append(seconds)
    fast = statistics.median(times[False])
    price = 100 * (statistics.median(times[True]) / fast - 1)
    bench.note("backward pass, not deterministic", fast, "s")
    bench.speed("price of deterministic", price, "%", "at most 20", price <= 20)


def batches(bench: Bench, model: "PreTrainedModel") -> list[tuple[list[Row], list[Row]]]:
    """Rows of a step and the teacher's: those that share prompts, and those that do not."""
    vocabulary = model.config.get_text_config().vocab_size
    lengths = [12, 40] if bench.tiny else [64, 128, 200, 256]
    answers = 16 if bench.tiny else 96
    shared = make_rows(vocabulary, lengths, answers, each=2)
    apart = make_rows(vocabulary, lengths, answers, seed=1)
    # What the teacher sees first is behind a token of the row's own, so that nothing is shared.
    return [
        (rows, [Row([row.prompt[0], *[300] * 24, *row.prompt], row.completion) for row in rows])
        for rows in (shared, apart)
    ]


def learn(
    trainer: Trainer,
    teacher: Teacher,
    rows: list[tuple[list[Row], list[Row]]],
    config: DistillationConfig,
) -> None:
    """The backward passes of a step."""
    for own, teachers in rows:
        distil(trainer, teacher, own, teachers, config)


def after_a_step(
    bench: Bench,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    start: Weights,
    deterministic: bool,
) -> Weights:
    """Weights and sampled answers after one step from ``start``."""
    model.load_state_dict(start)
    stage = make_stage(model, tokenizer, answers=16, deterministic=deterministic)
    config = DistillationConfig(learning_rate=1e-3, warmup_steps=0)
    rows = batches(bench, model)
    prompts = [row.prompt for row in rows[0][0]]
    # A single row is decoded at the end: its cumulative sums go through another kernel.
    groups = stage.sample(prompts[:1], seed=5) + stage.sample(prompts, seed=6)
    trainer = Trainer(stage, config)
    learn(trainer, Teacher(stage, 0, trainer.limit), rows, config)
    trainer.update()
    trainer.close()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for i, group in enumerate(groups):
        weights[f"answer {i}"] = torch.tensor(group[0].token_ids)
    return weights


def learning_seconds(
    bench: Bench,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    deterministic: bool,
) -> float:
    """Seconds of a step's training passes, without sampling."""
    stage = make_stage(model, tokenizer, deterministic=deterministic)
    config = DistillationConfig()
    rows = batches(bench, model)
    trainer = Trainer(stage, config)
    teacher = Teacher(stage, 1, trainer.limit)
    seconds = seconds_of(lambda: learn(trainer, teacher, rows, config), bench.device)
    trainer.close()
    return seconds
