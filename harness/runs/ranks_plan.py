"""The text of ``--plan --gpus 8x80``: one large run on the ranks of torchrun, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator

from harness.base.console import clock, padded
from harness.models.load import load_tokenizer
from harness.runs.cost import StepWork
from harness.runs.estimate import StageWork, outlooks_of, work_of
from harness.runs.methods import MethodSpec
from harness.runs.on_ranks import check_order
from harness.runs.order import Order
from harness.runs.plan import model_shape
from harness.runs.ranks_cost import MACHINE, Fleet, RanksCost, RankShare, fleet_of

HEAD = ("method", "skill", "GPU, GiB", "a pass", "s/step", "waits", "learning", "efficiency")


def plan_on_ranks(order: Order, gpus: str) -> str:
    """What each rank takes for the order; gpus: as ``8x80``.

    Loads tokenizer and configuration, no weights. Raises UserError for what torchrun would refuse.
    """
    fleet = fleet_of(gpus)
    check_order(order, min(fleet.count, MACHINE))
    place, model = f"{order.path}: model", order.model
    tokenizer, source = load_tokenizer(model.name, model.revision, place, model.template)
    shape = model_shape(order, source, place)
    by_vllm = order.rollout.engine == "vllm"
    of_copy = order.vllm.tensor_parallel_size if by_vllm else 0
    cost = RanksCost(shape, order.dtype(), fleet, of_copy)
    outlooks = outlooks_of(order, tokenizer, cost.memory.parameters)
    rows: list[tuple[str, ...]] = [HEAD]
    for spec in order.methods.values():
        for number, skill in enumerate(order.skills, 1):
            prompts = order.prompts(skill, spec.config)
            earlier = [(e, order.prompts(e, spec.config)) for e in order.skills[: number - 1]]
            later = len(order.skills) - number
            stage = work_of(spec, shape, outlooks, (skill, prompts), later, earlier)
            rows.append(_row(order, spec, cost, stage, prompts))
    size = f"{cost.memory.parameters / 1e9:.2g}B"
    return "\n".join([*_head(order, fleet, size), *padded(rows, left=(0, 1))])


def _head(order: Order, fleet: Fleet, size: str) -> Iterator[str]:
    yield f"{order.name}: {order.model.name} ({size} parameters) on {fleet}, a rank each"
    yield (
        "by datasheets and a model that no GPU has confirmed; learning alone, evaluations come on "
        "top; waits: seconds of a step for what other GPUs send"
    )
    yield ""


def _row(
    order: Order, spec: MethodSpec, cost: RanksCost, stage: StageWork, prompts: int
) -> tuple[str, ...]:
    outlook, work, trained, _ = stage
    batch = order.batch_size(spec.config)
    step = StepWork(
        prompts=min(batch, prompts),
        work=work,
        completion=max(0.0, work.learned - outlook.prompt),
        passes=spec.make_parameters().passes,
        trained=trained,
        masters=spec.config.masters,
        limit=1,
        at_once=max(1, round(batch * max(1, work.answers))),
    )
    cached = batch * work.answers * (outlook.prompt + outlook.limit)
    share = cost.share(spec.config, work, trained, step, cached)
    return (spec.label, outlook.skill.name, *_cells(share, -(-prompts // batch)))


def _cells(share: RankShare, steps: int) -> tuple[str, ...]:
    if share.passes is None:
        return (f"{share.gib:.1f}", "does not fit", "", "", "", "")
    seconds = sum(share.terms)
    again = ", again" if share.passes.recomputed else ""
    return (
        f"{share.gib:.1f}",
        f"{share.passes.tokens:,}{again}",
        f"{seconds:.1f}",
        f"{share.sent:.1f}",
        clock(seconds * steps),
        f"{share.efficiency:.2f}",
    )
