"""What methods ask of an order before anything loads, and what a stage asks of a method."""

from harness.base.errors import UserError
from harness.learning.distillation import DistillationConfig
from harness.learning.method import OrderView
from harness.learning.part import having
from harness.learning.stage import Stage


def check_teacher(order: OrderView, context: str | None, place: str) -> None:
    """Raises UserError if a training example of ``order`` lacks what its teacher sees.

    context: as in Skill.teacher_prompt.
    """
    for skill in order.skills:
        for example in skill.examples("train"):
            try:
                skill.teacher_prompt(example, order.template(skill), context)
            except UserError as error:
                raise UserError(place, str(error)) from None


def check_on_policy(order: OrderView, config: DistillationConfig, place: str) -> None:
    """Raises UserError if rollouts of ``order`` are not samples of what the estimator assumes."""
    estimator = config.estimator
    rollout = order.rollout
    if estimator in ("sampled", "rao_blackwell") and rollout.top_p < 1:
        raise UserError(
            place,
            f"estimator: {estimator} is an average over the student's own distribution, "
            f"which rollout.top_p: {rollout.top_p} cuts",
            "set rollout.top_p to 1, or take estimator: full",
        )
    if estimator == "rao_blackwell" and rollout.engine == "vllm" and config.importance_cap is None:
        raise UserError(
            place,
            "estimator: rao_blackwell wants completions of the student itself, and vLLM's are "
            "of nearly it",
            "set importance_cap to 0 to take them for its own, or take another estimator or engine",
        )


def check_done(stage: Stage, place: str) -> None:
    """Raises UserError at ``place`` unless each step of the budget was done, with an update."""
    is_over = stage.step >= stage.steps_in_all
    unmerged = is_over and having(stage.parts, "merge") and not stage.merged
    if unmerged or (stage.updates is None and any(part.acts() for part in stage.parts)):
        raise UserError(
            f"{place}: with",
            "parts act through a Trainer, and learn() makes none",
            "train by harness.learning.trainer.learning, or leave the parts out",
        )
    if stage.updates is None and stage.parameters.makes:
        raise UserError(
            f"{place}: parameters",
            "they are trained by a Trainer, and learn() makes none",
            "train by harness.learning.trainer.learning, or take parameters: all",
        )
    if not is_over:
        raise UserError(
            place,
            f"learn() left {stage.steps_in_all - stage.step} of {stage.steps_in_all} steps of "
            f"skill {stage.skill.name} undone",
            "it loops over stage.steps() to the end, in each phase",
        )
    if stage.idle:
        raise UserError(
            place,
            f"{stage.idle} of {stage.steps_in_all} steps of skill {stage.skill.name} made no "
            "update",
            "call trainer.update() in each step",
        )
