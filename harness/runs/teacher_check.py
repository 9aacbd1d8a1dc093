"""Is the teacher better than the model? Asked before a long run."""

from harness.base.console import Progress
from harness.models.checkpoint import model_fingerprint
from harness.results.writer import ResultsWriter
from harness.runs.engines import engine_for, evaluator_for, load_order_model, sampler_for


def check_teacher(order, folder, progress=None):
    """Accuracy of the base model and of the demonstration-conditioned teacher on each skill, before
    a long run.

    On the validation split (the training split of a skill that has none), where the examples have
    demonstrations. Returns rows {"skill", "split", "n", "base", "teacher"}.
    """
    results, progress = ResultsWriter(folder), progress or Progress()
    splits = [order.teacher_split(skill) for skill in order.skills]  # refuses before anything loads
    model, tokenizer = load_order_model(order)
    measure = evaluator_for(order, results)
    weights, rows = model_fingerprint(model), []
    with engine_for(order) as engine:
        sampler = sampler_for(order.evaluate, engine, model, tokenizer)
        for skill, split in zip(order.skills, splits):
            row = {"skill": skill.name, "split": split}
            for who in ("base", "teacher"):
                progress.show(f"{skill.name}: {who}")
                _, _, found = measure.skill(
                    model, tokenizer, sampler, weights, skill, split, teacher=who == "teacher"
                )
                row[who], row["n"] = found["metrics"][skill.metric][0], found["n"]
            rows.append(row)
    return rows
