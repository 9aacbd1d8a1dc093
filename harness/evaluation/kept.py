"""Whether a kept evaluation is of what is asked for: a file may be edited, or of another time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.metrics import mean_and_stderr
from harness.results.writer import AGAIN


def check_kept_evaluation(
    path: Path, evaluation: Mapping[str, Any], wanted: Mapping[str, Any], ids: list[str] | None
) -> None:
    """Raises UserError unless a kept evaluation is of what is asked for.

    wanted: what its keys must hold; ids: of its items, None where they are not known beforehand.
    """
    for name, value in wanted.items():
        if evaluation[name] != value:
            raise UserError(path, f"its {name} is {evaluation[name]!r}, not {value!r}", AGAIN)
    items, metrics = evaluation["items"], evaluation["metrics"]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(path, "its items are no list of objects", AGAIN)
    if ids is not None and [item.get("id") for item in items] != ids:
        raise UserError(path, "its items are not those of the skill's examples", AGAIN)
    if not isinstance(metrics, dict) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair))
        for pair in metrics.values()
    ):
        raise UserError(path, "its metrics are not pairs of value and standard error", AGAIN)
    for name, (value, _) in metrics.items():
        scores = [
            item["scores"].get(name) for item in items if isinstance(item.get("scores"), dict)
        ]
        if items and len(scores) == len(items) and all(map(_is_number, scores)):
            found = None if None in scores else mean_and_stderr(scores)[0]
            if found is not None and found != value:
                raise UserError(path, f"its items' {name} is {found}, its own {value}", AGAIN)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
