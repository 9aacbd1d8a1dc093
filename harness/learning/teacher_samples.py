"""The teacher's own samples, and what a teacher needs of an order."""

import time

from harness.base.errors import UserError
from harness.base.files import read_jsonl, write_jsonl
from harness.base.seeds import seed_for
from harness.learning.stage import draws


class TeacherSamples:
    """Answers of the teacher, sampled once: for each of the first ``count`` prompts that the stage
    draws, at most all, one.

    The teacher is the model at the start of the stage under the teacher's prompt (``context`` as in
    Skill.teacher_prompt). Answers are written to ``stage.folder`` in blocks as they come: a killed
    stage reads those that it has, and makes the others as it would have made them.
    """

    def __init__(self, stage, count=None, context=None, block=256):
        drawn = stage.draws()
        examples, self.batch_size, self.pairs = (
            [stage.examples[i] for i in drawn[:count]],
            stage.batch_size,
            [],
        )
        for start in range(0, len(examples), block):
            chosen, path = (
                examples[start : start + block],
                stage.folder / f"teacher_samples-{start // block:04d}.jsonl",
            )
            prompts = [stage.teacher_tokens(e, context) for e in chosen]
            known = path.exists()
            if not known:
                before = time.perf_counter()
                found = stage.sample(
                    prompts, seed=seed_for(stage.seed, stage.index, "teacher samples", start)
                )
                seconds = (time.perf_counter() - before) / len(found)
                write_jsonl(
                    path,
                    [
                        {
                            "example": e.id,
                            "completion": c.text,
                            "token_ids": c.token_ids,
                            "finished": c.finished,
                            "seconds": seconds,
                        }
                        for e, (c,) in zip(chosen, found)
                    ],
                )
            rows = [row for _, row in read_jsonl(path)]
            if known and stage.step == 0:  # made before a kill, and on no checkpoint
                stage.seconds["sampling"] += sum(row["seconds"] for row in rows)
                stage.tokens += sum(len(p) + len(row["token_ids"]) for p, row in zip(prompts, rows))
            self.pairs += [(e, row["token_ids"]) for e, row in zip(chosen, rows)]
        again = draws(
            len(self.pairs),
            len(drawn) - len(self.pairs),
            seed_for(stage.seed, stage.index, "teacher samples again"),
        )
        self.order = [*range(len(self.pairs)), *again]

    def of(self, step):
        """The pairs (example, token ids of the answer) of optimizer step ``step``: in the order of
        the draws, then shuffled.
        """
        first = step.index * self.batch_size
        return [self.pairs[i] for i in self.order[first : first + self.batch_size]]


def check_teacher(order, context, place):
    """Raises UserError if a training example of ``order`` lacks what the teacher is to be shown."""
    for skill in order.skills:
        for example in skill.examples("train"):
            try:
                skill.teacher_prompt(example, order.template(skill), context)
            except UserError as error:
                raise UserError(place, str(error)) from None


def check_on_policy(order, config, place):
    """Raises UserError if completions of ``order`` are not drawn from what the estimator assumes."""
    if config.estimator in ("sampled", "rao_blackwell") and order.rollout.top_p < 1:
        raise UserError(
            place,
            f"estimator: {config.estimator} is an average over the student's own distribution, which "
            f"rollout.top_p: {order.rollout.top_p} cuts",
            "set rollout.top_p to 1, or take estimator: full",
        )
    if (
        config.estimator == "rao_blackwell"
        and order.rollout.engine == "vllm"
        and config.importance_cap is None
    ):
        raise UserError(
            place,
            "estimator: rao_blackwell wants completions of the student itself, and vLLM's are of nearly it",
            "set importance_cap to 0 to take them for its own, or take another estimator or engine",
        )
