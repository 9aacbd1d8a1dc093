"""Grades completions made anywhere, with the code that grades a run's own."""

from harness.base.errors import UserError
from harness.base.files import read_jsonl


def grade(skill, path):
    """The rows of the JSONL file ``path`` with ``score`` (the metric that counts) and ``scores``
    ({metric: value}) added.

    All values are in [0, 1]. Raises UserError naming the first row that cannot be graded.
    """
    rows = []
    for number, row in read_jsonl(path):
        place = f"{path}, row {number}"
        if not isinstance(row.get("completion"), str):
            raise UserError(
                f"{place}: completion", "must be a text", "the answer that is to be graded"
            )
        reference = skill.reference(row, place)
        try:
            scores = {
                name: float(f(row["completion"], reference)) for name, f in skill.metrics.items()
            }
        except Exception as error:  # a reference of another skill may break its grader in any way
            raise UserError(
                f"{place}: reference",
                f"cannot be compared ({type(error).__name__}: {error})",
                f"it must read as in the skill {skill.name}",
            ) from error
        rows.append({**row, "score": scores[skill.metric], "scores": scores})
    if not rows:
        raise UserError(path, "has no rows", "give one JSON object a line")
    return rows
