"""Is the teacher better than the model? To be checked before a long run."""

from pathlib import Path
from typing import Any

from harness.base.console import Progress
from harness.base.files import refuse_links
from harness.models.checkpoint import model_fingerprint
from harness.results.writer import ResultsWriter
from harness.runs.engines import (
    engine_for,
    evaluator_for,
    load_order_model,
    sampler_for,
    take_products,
)
from harness.runs.order import Order


def check_teacher(
    order: Order, folder: str | Path, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Accuracy of the base model and of the demonstration-conditioned teacher on each skill.

    On the validation split (the training split of a skill that has none), where the examples have
    demonstrations. Returns rows {"skill", "split", "n", "base", "teacher"}.
    """
    refuse_links(Path(folder).parent)
    results = ResultsWriter(folder)
    progress = progress or Progress()
    # Refuses before anything loads.
    splits = {skill.name: order.teacher_split(skill) for skill in order.skills}
    take_products(order, Path(folder).parent)  # those of the runs, where they have begun
    model, tokenizer = load_order_model(order)
    weights = model_fingerprint(model)
    evaluator = evaluator_for(order, results)
    rows = []
    with engine_for(order) as engine:
        sampler = sampler_for(order.evaluate, engine, model, tokenizer)
        for skill in order.skills:
            row: dict[str, Any] = {"skill": skill.name, "split": splits[skill.name]}
            for who in ("base", "teacher"):
                progress.show(f"{skill.name}: {who}")
                _, _, evaluation = evaluator.skill(
                    model,
                    tokenizer,
                    sampler,
                    weights,
                    skill,
                    splits[skill.name],
                    teacher=who == "teacher",
                )
                row[who], _ = evaluation["metrics"][skill.metric]
                row["n"] = evaluation["n"]
            rows.append(row)
    return rows
