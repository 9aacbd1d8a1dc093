"""The viewer: from every number of a report to its questions and answers, as files that open alone.

This writes the data; no page reads them yet. A browser fetches nothing from disk but runs scripts
from there, so that every file of data is a script that calls ``viewer.load(name, value)``. The
data, in pages that are read when they are shown:

* ``index``: methods with their runs, and what was measured;
* ``run-N``: one row a measurement, (name, stage, value, n, evaluation);
* ``answers-F-KEY``, ``-P``: scores of an evaluation, and page P of its answers;
* ``questions-HASH``, ``-P``: ids of the questions that evaluations share, and page P of them.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.report.data import ReportData
from harness.results.folders import Json
from harness.results.formats import JOINT, SINGLE
from harness.results.items import item_scores

PAGE = 200_000  # bytes of a page, except for one item that is larger
MOST = 1_000_000  # answers in a viewer: ends of stages that tables show come first
STALE = r"(run|answers|questions)-[\w.+=-]+\.js"  # files of data that an earlier report may have
# Keys of an item that are shown as questions, scores or not at all; all others are its answer.
NOT_ANSWERS = ("id", "prompt", "reference", "scores", "score", "weight")
FIRST = ("completion", "completions", "answer", "verdict", "reply", "error", "response")
LEFT_OUT = ""  # instead of the name of an evaluation

Rows = list[tuple[int, int, float | None, int | None, str | None]]


@dataclass(frozen=True)
class ViewedTask:
    """What was measured: a skill or a retention task; ``metric`` is the one that counts."""

    name: str
    kind: str
    metric: str
    fraction: bool  # right or wrong, or between these
    higher: bool  # is better
    about: str


@dataclass(frozen=True)
class ViewedNumber:
    """One number: ``what`` is a place in the list of ``ViewedTask``; key: of its evaluation."""

    what: int
    stage: int
    value: float
    n: float
    folder: int
    key: str | None
    shown: bool  # in a table


def write_data(results: ReportData, out: Path) -> None:
    """Writes the data of a report's viewer into the new folder ``out``/data."""
    data = out / "data"
    data.mkdir(parents=True)
    measured = list(_measured(results))
    runs = list(_runs(results, measured))
    names = _write_evaluations(results, measured, [of for *_, of in runs], data)
    methods: dict[str, list[Json]] = {}
    for number, (method, run, order, measurements) in enumerate(runs):
        file = f"run-{number}"
        methods.setdefault(method, []).append({"key": run, "order": order, "file": file})
        rows: Rows = []
        for m in measurements:
            evaluation = names[m.folder, m.key]
            n = int(m.n) if math.isfinite(m.n) else None
            rows.append((m.what, m.stage, m.value, n, evaluation))
        _write(data, file, rows)
    index = {
        "title": " and ".join(results.names),
        "methods": [{"name": name, "runs": of} for name, of in methods.items()],
        "measured": [vars(what) for what in measured],
    }
    _write(data, "index", index)


def run_key(seed: int, sequence: str) -> str:
    """A run as the addresses of the viewer name it."""
    return f"{seed}@{sequence}" if sequence else str(seed)


def _measured(results: ReportData) -> Iterator[ViewedTask]:
    for name, entry in results.skills.items():
        about = entry.get("description") or ""
        yield ViewedTask(name, "skill", results.metric[name], True, True, about)
    for name, entry in results.retention.items():
        higher = entry.get("higher_is_better", True)
        fraction = results.tasks_in_mean[name]
        about = entry.get("description") or ""
        yield ViewedTask(name, "retention", entry["metric"], fraction, higher, about)


def _runs(
    results: ReportData, measured: list[ViewedTask]
) -> Iterator[tuple[str, str, list[str], list[ViewedNumber]]]:
    """(method, run, its skills in turn, what it measured at the ends of its stages)."""
    places = {(what.kind, what.name): place for place, what in enumerate(measured)}
    for label in results.series:
        for run, (folder, seed, sequence) in enumerate(results.runs[label]):
            order = results.order_of(label, run)
            T = len(order)
            columns = {
                "R": [places["skill", name] for name in order],
                "D": [places["retention", name] for name in results.retention],
            }
            found: dict[str, list[ViewedNumber]] = {label: []}
            rows = {stage: (label, stage) for stage in range(T + 1)}
            if label in results.references:
                rows |= {T + 1: (f"{label} {JOINT}", T), T + 2: (f"{label} {SINGLE}", 1)}
            for kind, of_kind in columns.items():
                values, keys, answers = _arrays(results, kind, label)
                for row, (method, stage) in rows.items():
                    for column, what in enumerate(of_kind):
                        at = run, row, column
                        if row >= values.shape[1] or not math.isfinite(values[at]):
                            continue
                        shown = stage in (0, T) or (kind == "R" and stage == column + 1)
                        found.setdefault(method, []).append(
                            ViewedNumber(
                                what, stage, values[at], answers[at], folder, keys[at], shown
                            )
                        )
            for method, measurements in found.items():
                yield method, run_key(seed, sequence), list(order), measurements


def _arrays(results: ReportData, kind: str, label: str) -> tuple[np.ndarray, ...]:
    """Values, keys and answers of a kind, with the rows of references where there are any."""
    return results.final_arrays(f"{kind}+" if label in results.references else kind, label)


# -- evaluations


def _write_evaluations(
    results: ReportData, measured: list[ViewedTask], runs: Sequence[list[ViewedNumber]], data: Path
) -> dict[tuple[int, str | None], str | None]:
    """Writes every evaluation once; returns their names, None for one that is not on disk."""
    names: dict[tuple[int, str | None], str | None] = {}
    written: set[str] = set()
    answers = 0
    every = (m for shown in (True, False) for of in runs for m in of if m.shown is shown)
    for m in every:
        if (m.folder, m.key) in names:
            continue
        if answers >= MOST:
            names[m.folder, m.key] = LEFT_OUT
            continue
        evaluation = results.evaluation(m.folder, m.key)
        items = [*(evaluation.get("items") or []), *(evaluation.get("unjudged") or [])]
        name = f"answers-{m.folder}-{m.key}" if items else None
        names[m.folder, m.key] = name
        if name is not None:
            answers += len(items)
            _write_answers(evaluation, items, measured[m.what].metric, name, written, data)
    return names


def _write_answers(
    evaluation: Json, items: list[Json], metric: str, name: str, written: set[str], data: Path
) -> None:
    """One evaluation: its scores, its answers in pages, and the questions if they are new."""
    questions = [
        (str(item.get("id")), _text(item.get("prompt")), _text(item.get("reference")))
        for item in items
    ]
    digest = hashlib.sha256(json.dumps(questions).encode()).hexdigest()[:16]
    of_questions = f"questions-{digest}"
    if of_questions not in written:
        written.add(of_questions)
        starts = _write_pages(data, of_questions, [question[1:] for question in questions])
        _write(data, of_questions, {"ids": [q[0] for q in questions], "starts": starts})
    scores = item_scores(evaluation, metric) or {}
    judged = len(evaluation.get("items") or [])  # those behind have no verdict
    pairs = [scores.get(q[0]) if i < judged else None for i, q in enumerate(questions)]
    fields, answers = _answers(items, metric)
    head = {
        "questions": of_questions,
        "metric": metric,
        "scores": [pair and (pair[0] / pair[1] if pair[1] else 0) for pair in pairs],
        "weights": [pair and pair[1] for pair in pairs],
        "fields": fields,
        "starts": _write_pages(data, name, answers),
    }
    _write(data, name, head)


def _answers(items: list[Json], metric: str) -> tuple[list[str], list[list[Any]]]:
    """(names of what items hold beside question and score, one row an item)."""
    rows = []
    for item in items:
        row = {key: value for key, value in item.items() if key not in NOT_ANSWERS}
        others = {k: v for k, v in (item.get("scores") or {}).items() if k != metric}
        row = {key: _value(value) for key, value in {**row, **others}.items()}
        if isinstance(row.get("response"), list) and isinstance(others.get("margin"), float):
            row["right choice"] = right_choice(row["response"], others["margin"])
        rows.append(row)
    found = dict.fromkeys(key for row in rows for key in row)
    fields = [*(key for key in FIRST if key in found), *(key for key in found if key not in FIRST)]
    return fields, [[row.get(field) for field in fields] for row in rows]


def right_choice(values: list[float], margin: float) -> int | None:
    """Number (from 1) of the right choice, which the margin tells; None where it does not.

    values: log-likelihoods. The margin is that of the best right choice over the best wrong one:
    above 0 the right one is the best of all, else it is that far below the best.
    """
    best = max(values)
    right = best + min(margin, 0.0)
    near = [i for i, value in enumerate(values, 1) if abs(value - right) < 1e-6]
    return near[0] if len(near) == 1 else None


def _value(value: Any) -> Any:
    """A number, a text, a truth value or a list of numbers as it is, all else as a text."""
    numbers = isinstance(value, list) and len(value) > 1
    if numbers and all(isinstance(v, float) and math.isfinite(v) for v in value):
        return value
    return value if isinstance(value, bool | int | float) else _text(value)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, indent=1, ensure_ascii=False)


# -- files of data


def _write_pages(data: Path, name: str, rows: Sequence[Any]) -> list[int]:
    """Writes rows in pages of about PAGE bytes; returns the place of each page's first row."""
    starts: list[int] = []
    page: list[str] = []
    size = 0
    for place, row in enumerate(rows):
        text = as_script(row)
        if not starts or size + len(text) > PAGE:
            if starts:
                _write_texts(data, f"{name}-{len(starts) - 1}", page)
            starts.append(place)
            page, size = [], 0
        page.append(text)
        size += len(text)
    _write_texts(data, f"{name}-{len(starts) - 1}", page)
    return starts


def _write_texts(data: Path, name: str, rows: list[str]) -> None:
    text = f'viewer.load("{name}",[\n' + ",\n".join(rows) + "\n]);\n"
    (data / f"{name}.js").write_text(text, encoding="ascii")


def _write(data: Path, name: str, value: Any) -> None:
    text = f'viewer.load("{name}",{as_script(value)});\n'
    (data / f"{name}.js").write_text(text, encoding="ascii")


def as_script(value: Any) -> str:
    """A value as JavaScript that any parser reads alike.

    ASCII alone, so that a lone surrogate or a line separator is an escape. A ``<`` is one as well:
    no text ends a script, wherever a file's content is copied to.
    """
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
