"""What methods ask of an order before anything loads; see ``Method.check``."""

from harness.base.errors import UserError
from harness.learning.distillation import DistillationConfig
from harness.learning.method import OrderView


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
