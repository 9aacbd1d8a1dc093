"""Answers that the teacher samples once, before the first step."""

import time
from collections.abc import Sequence
from pathlib import Path

from harness.base.files import jsonl, read_jsonl
from harness.base.seeds import seed_for
from harness.base.sums import check_sum, write_summed
from harness.learning.draws import draws
from harness.learning.stage import Stage
from harness.learning.step import Step
from harness.skills.skill import Example

Pair = tuple[Example, list[int]]  # an example, and the token ids of the teacher's answer


class TeacherSamples:
    """One answer of the teacher to each of the first ``count`` prompts that the stage draws.

    The teacher is the model at the start of the stage under the teacher's prompt (``context`` as in
    Skill.teacher_prompt). count: all prompts that are drawn, if left out or above that number.

    Answers are written to ``stage.folder`` in blocks as they come. A stage that was killed reads
    the blocks that it has, and samples the others as it would have sampled them.

    pairs: examples and answers, in the order of the draws; order: for each draw of the stage the
    index of its pair. Where there are fewer answers than draws, they come again, shuffled in each
    further pass.
    """

    def __init__(
        self,
        stage: Stage,
        count: int | None = None,
        context: str | None = None,
        block: int = 256,
    ) -> None:
        drawn = stage.draws()
        examples = [stage.examples[i] for i in drawn[:count]]
        self.batch_size = stage.batch_size
        self.pairs: list[Pair] = []
        for start in range(0, len(examples), block):
            path = stage.folder / f"teacher_samples-{start // block:04d}.jsonl"
            seed = seed_for(stage.seed, stage.index, "teacher samples", start)
            self.pairs += _block(stage, examples[start : start + block], context, seed, path)
            stage.show("answers of the teacher", len(self.pairs), len(examples))
        repeated = draws(
            len(self.pairs),
            len(drawn) - len(self.pairs),
            seed_for(stage.seed, stage.index, "teacher samples again"),
        )
        self.order = [*range(len(self.pairs)), *repeated]

    def of(self, step: Step) -> list[Pair]:
        """The pairs of an optimizer step: an example and the token ids of its answer."""
        first = step.index * self.batch_size
        return [self.pairs[i] for i in self.order[first : first + self.batch_size]]


def _block(
    stage: Stage, examples: Sequence[Example], context: str | None, seed: int, path: Path
) -> list[Pair]:
    """The pairs of a block, from the file ``path``; the block is sampled if that is not there."""
    prompts = [stage.teacher_tokens(example, context) for example in examples]
    is_old = path.exists()
    if is_old:
        check_sum(path, "remove it: it is sampled again")
    else:
        _sample_block(stage, examples, prompts, seed, path)
    rows = [row for _, row in read_jsonl(path)]
    # Sampled before the stage was killed, and no checkpoint has counted it
    if is_old and stage.step == 0:
        stage.seconds["sampling"] += sum(row["seconds"] for row in rows)
        stage.tokens += sum(map(len, prompts)) + sum(len(row["token_ids"]) for row in rows)
    return [(e, row["token_ids"]) for e, row in zip(examples, rows, strict=True)]


def _sample_block(
    stage: Stage,
    examples: Sequence[Example],
    prompts: list[list[int]],
    seed: int,
    path: Path,
) -> None:
    start = time.perf_counter()
    groups = stage.sample(prompts, seed=seed, max_new_tokens=stage.limits(examples))
    seconds = (time.perf_counter() - start) / len(groups)
    rows = [
        {
            "example": example.id,
            "completion": completion.whole,
            "token_ids": completion.token_ids,
            "finished": completion.finished,
            "seconds": seconds,
        }
        for example, (completion,) in zip(examples, groups, strict=True)
    ]
    write_summed(path, jsonl(rows))
