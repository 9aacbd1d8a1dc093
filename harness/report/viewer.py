"""The viewer: from every number of a report to its questions and answers, as files that open alone.

``write_viewer`` writes a folder of one page (templates/viewer.html, .css, .js) and its data. A
browser fetches nothing from disk but runs scripts from there, so that every file of data is a
script that calls ``viewer.load(name, value)``. They are read when they are shown:

* ``index``: methods with their runs, and what was measured;
* ``run-N``: one row a measurement, (place in ``measured``, stage, value, n, evaluation);
* ``answers-N``, ``answers-N-P``: scores of an evaluation, and page P of its answers;
* ``questions-N``, ``questions-N-P``: questions that evaluations share: their ids, and page P.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from harness.report.data import ReportData
from harness.report.html import TEMPLATES
from harness.report.names import metric_name
from harness.results.folders import Json
from harness.results.formats import JOINT, SINGLE
from harness.results.items import item_scores

PAGE = 200_000  # bytes of a page, except for one item that is larger
MOST = 200_000  # answers in a viewer, in some 100 MB: those behind the tables come first
BRIEF = 90  # letters of a question or an answer in the list
ENOUGH = 24  # letters with which the last lines of a question say what it asks
ROLE = re.compile(r"\[(?:system|user|assistant)\] ")  # begins a turn of a conversation
FILES = {  # of the page, and the templates that make each: they hold no values
    "index.html": ["viewer.html"],
    "viewer.css": ["style.css", "viewer.css"],
    "viewer.js": ["viewer_data.js", "viewer.js"],
}
# Files of data that an earlier report may have, and this one not.
STALE = r"(run|answers|questions)-\d+(-\d+)?\.js"
# Keys of an item that are shown as questions, scores or not at all; all others are its answer.
NOT_ANSWERS = ("id", "prompt", "reference", "scores", "score", "weight")
FIRST = ("completion", "completions", "answer", "verdict", "reply", "error", "response")
LEFT_OUT = ""  # instead of the name of an evaluation

Rows = list[tuple[int, int, float | None, int | None, str | None]]


@dataclass(frozen=True)
class ViewedTask:
    """What was measured: a skill or a retention task; ``metric`` is the one that counts.

    name: in addresses; fraction: right or wrong, or between these; higher: is better.
    """

    name: str
    kind: str
    metric: str
    fraction: bool
    higher: bool
    about: str


class ViewedNumber(NamedTuple):
    """One number: ``what`` is a place in the list of ``ViewedTask``; key: of its evaluation.

    shown: whether a table shows it.
    """

    what: int
    stage: int
    value: float
    n: float
    folder: int
    key: str | None
    shown: bool


@dataclass(frozen=True)
class ViewedQuestion:
    """What an item asked; choices: of a retention task that has some."""

    id: str
    prompt: str | None
    reference: str | None
    choices: list[str] | None

    @property
    def brief(self) -> str:
        """What it asks in a line: its last lines, since examples stand before the question.

        Without a question the text whose likelihood is measured.
        """
        lines = [line.strip() for line in (self.prompt or "").splitlines() if line.strip()]
        brief = ""
        while lines and len(brief) < ENOUGH:
            line = lines.pop()
            brief = f"{ROLE.sub('', line)} {brief}".strip()
            if ROLE.match(line):
                break
        return _brief(brief or (self.choices or [""])[0] or self.reference or "")


@dataclass
class ViewerData:
    """The files of data in the folder ``data``; numbers count the files of each kind."""

    results: ReportData
    data: Path
    questions: dict[str, int] = field(default_factory=dict)  # {hash of the questions: number}
    evaluations: int = 0
    answers: int = 0
    names: dict[tuple[int, str | None], str | None] = field(default_factory=dict)
    on_disk: dict[int, set[str]] = field(default_factory=dict)  # by folder

    # -- files

    def write(self, name: str, value: Any) -> None:
        self._write_text(name, as_script(value))

    def write_pages(self, name: str, rows: Sequence[Any]) -> list[int]:
        """Writes rows in pages of about PAGE bytes; returns the place of each page's first row."""
        starts: list[int] = []
        page: list[str] = []
        size = 0
        for place, row in enumerate(rows):
            text = as_script(row)
            if not starts or size + len(text) > PAGE:
                if starts:
                    self._write_page(f"{name}-{len(starts) - 1}", page)
                starts.append(place)
                page, size = [], 0
            page.append(text)
            size += len(text)
        self._write_page(f"{name}-{len(starts) - 1}", page)
        return starts

    def _write_page(self, name: str, rows: list[str]) -> None:
        self._write_text(name, "[\n" + ",\n".join(rows) + "\n]")

    def _write_text(self, name: str, script: str) -> None:
        text = f'viewer.load("{name}",{script});\n'
        (self.data / f"{name}.js").write_text(text, encoding="ascii")

    # -- evaluations

    def write_evaluations(
        self, measured: list[ViewedTask], numbers: Iterable[ViewedNumber]
    ) -> None:
        """Writes the evaluations of numbers that are not written yet, as long as there is room."""
        for number in numbers:
            if self.answers >= MOST:
                return
            place = number.folder, number.key
            if place not in self.names and self._is_on_disk(number):
                self.names[place] = self._write_evaluation(number, measured[number.what].metric)

    def name_of(self, number: ViewedNumber) -> str | None:
        """The file of a number's answers: LEFT_OUT without room, None where none are on disk."""
        if not self._is_on_disk(number):
            return None
        return self.names.get((number.folder, number.key), LEFT_OUT)

    def _is_on_disk(self, number: ViewedNumber) -> bool:
        if number.folder not in self.on_disk:
            self.on_disk[number.folder] = self.results.evaluation_keys(number.folder)
        return number.key in self.on_disk[number.folder]

    def _write_evaluation(self, number: ViewedNumber, metric: str) -> str | None:
        """One evaluation: its scores, its answers in pages, and the questions if they are new."""
        evaluation = self.results.evaluation(number.folder, number.key)
        items = [*(evaluation.get("items") or []), *(evaluation.get("unjudged") or [])]
        if not items:
            return None
        name = f"answers-{self.evaluations}"
        self.evaluations += 1
        self.answers += len(items)
        asked = self.results.questions(number.folder, evaluation.get("protocol"))
        questions = [_question(item, asked) for item in items]
        scores = item_scores(evaluation, metric) or {}
        judged = len(evaluation.get("items") or [])  # those behind have no verdict
        pairs = [scores.get(q.id) if i < judged else None for i, q in enumerate(questions)]
        fields, briefs, answers = _answers(items, questions, metric)
        head = {
            "questions": self._write_questions(questions),
            "metric": metric,
            "scores": [pair and (pair[0] / pair[1] if pair[1] else 0) for pair in pairs],
            "weights": [pair and pair[1] for pair in pairs],
            "fields": fields,
            "briefs": briefs,
            "starts": self.write_pages(name, answers),
        }
        self.write(name, head)
        return name

    def _write_questions(self, questions: Sequence[ViewedQuestion]) -> str:
        rows = [(q.prompt, q.reference, q.choices) for q in questions]
        ids = [as_address(q.id) for q in questions]
        digest = hashlib.sha256(json.dumps([ids, rows]).encode()).hexdigest()
        name = f"questions-{self.questions.setdefault(digest, len(self.questions))}"
        if not (self.data / f"{name}.js").exists():
            starts = self.write_pages(name, rows)
            self.write(name, {"ids": ids, "briefs": [q.brief for q in questions], "starts": starts})
        return name


def write_viewer(results: ReportData, out: Path) -> None:
    """Writes the viewer of a report into the new folder ``out``."""
    (out / "data").mkdir(parents=True)
    for name, templates in FILES.items():
        texts = [(TEMPLATES / template).read_text(encoding="utf-8") for template in templates]
        (out / name).write_text("".join(texts), encoding="utf-8")
    writer = ViewerData(results, out / "data")
    measured = list(_measured(results))
    for shown in (True, False):
        numbers = (n for *_, of_run in _runs(results, measured) for n in of_run)
        writer.write_evaluations(measured, (n for n in numbers if n.shown is shown))
    methods: dict[str, list[Json]] = {}
    for count, (method, run, order, reference, of_run) in enumerate(_runs(results, measured)):
        file = f"run-{count}"
        about = {
            "key": as_address(run),
            "order": [*map(as_address, order)],
            "reference": reference,
            "file": file,
        }
        methods.setdefault(as_address(method), []).append(about)
        rows: Rows = []
        for n in of_run:
            answers = int(n.n) if math.isfinite(n.n) else None
            rows.append((n.what, n.stage, n.value, answers, writer.name_of(n)))
        writer.write(file, rows)
    index = {
        "title": " and ".join(results.names),
        "methods": [{"name": name, "runs": of} for name, of in methods.items()],
        "measured": [
            {**vars(what), "name": as_address(what.name), "words": metric_name(what.metric)}
            for what in measured
        ],
        "answers": writer.answers,
    }
    writer.write("index", index)


def run_key(seed: int, sequence: str) -> str:
    """A run as the addresses of the viewer name it."""
    return f"{seed}@{sequence}" if sequence else str(seed)


def as_address(text: str) -> str:
    """A text as addresses have it: half of a pair of surrogates is no letter of any."""
    return text.encode("utf-8", "replace").decode()


def addresses(results: ReportData) -> dict[tuple[str, str], str]:
    """{("skill" or "retention", name): the name in addresses, which no two of them share}."""
    of_tasks = {
        ("retention", name): f"{name} (retention)" if name in results.skills else name
        for name in results.retention
    }
    return {("skill", name): name for name in results.skills} | of_tasks


def _measured(results: ReportData) -> Iterator[ViewedTask]:
    names = addresses(results)
    for name, entry in results.skills.items():
        about = entry.get("description") or ""
        yield ViewedTask(name, "skill", results.metric[name], True, True, about)
    for name, entry in results.retention.items():
        higher = entry.get("higher_is_better", True)
        fraction = results.tasks_in_mean[name]
        about = entry.get("description") or ""
        address = names["retention", name]
        yield ViewedTask(address, "retention", entry["metric"], fraction, higher, about)


def _runs(
    results: ReportData, measured: list[ViewedTask]
) -> Iterator[tuple[str, str, list[str], str, list[ViewedNumber]]]:
    """(method, run, its skills in turn, of which reference, what it measured after its stages)."""
    places = {(what.kind, what.name): place for place, what in enumerate(measured)}
    of_task = addresses(results)
    tasks = [places["retention", of_task["retention", name]] for name in results.retention]
    for label in results.series:
        for run, (folder, seed, sequence) in enumerate(results.runs[label]):
            order = results.order_of(label, run)
            T = len(order)
            columns: dict[Literal["R", "D"], list[int]] = {
                "R": [places["skill", name] for name in order],
                "D": tasks,
            }
            found: dict[str, list[ViewedNumber]] = {label: []}
            rows = {stage: (label, stage) for stage in range(T + 1)}
            if label in results.references:
                rows |= {T + 1: (f"{label} {JOINT}", T), T + 2: (f"{label} {SINGLE}", 1)}
            for kind, of_kind in columns.items():
                values, keys, answers = results.final_arrays(kind, label)
                # Behind the tasks are the columns of their continuous metrics.
                measured_there = np.isfinite(values[run, :, : len(of_kind)])
                for row, column in np.argwhere(measured_there).tolist():
                    method, stage = rows[row]
                    value, key, n = (array[run, row, column] for array in (values, keys, answers))
                    shown = stage in (0, T) or (kind == "R" and stage == column + 1)
                    number = ViewedNumber(
                        of_kind[column], stage, float(value), n, folder, key, shown
                    )
                    found.setdefault(method, []).append(number)
            references = {f"{label} {name}": name for name in (JOINT, SINGLE)}
            for method, numbers in found.items():
                about = run_key(seed, sequence), list(order), references.get(method, "")
                yield method, *about, numbers


# -- items


def _question(item: Json, asked: dict[str, Any]) -> ViewedQuestion:
    """asked: the questions that the folder keeps of a retention task, by id."""
    own = {**asked.get(str(item.get("id")), {}), **item}
    return ViewedQuestion(
        str(item.get("id")),
        _text(own.get("prompt")),
        _text(own.get("reference")),
        own["choices"] if "choices" not in item and "choices" in own else None,
    )


def _answers(
    items: list[Json], questions: Sequence[ViewedQuestion], metric: str
) -> tuple[list[str], list[str], list[list[Any]]]:
    """(names of what items hold beside question and score, briefs, one row an item)."""
    rows, briefs = [], []
    for item, question in zip(items, questions, strict=True):
        row = {key: value for key, value in item.items() if key not in NOT_ANSWERS}
        others = {k: v for k, v in (item.get("scores") or {}).items() if k != metric}
        row = {key: _value(value) for key, value in {**row, **others}.items()}
        if isinstance(values := row.get("response"), list):
            if question.choices:  # behind them may be the same without a prompt
                values = values[: len(question.choices)]
            row["choice"] = best_choice(values, question.choices, metric)
            if isinstance(margin := others.get("margin"), float):
                row["right choice"] = right_choice(values, margin)
        rows.append(row)
        briefs.append(_brief(_said(row, question)))
    found = dict.fromkeys(key for row in rows for key in row)
    fields = [*(key for key in FIRST if key in found), *(key for key in found if key not in FIRST)]
    return fields, briefs, [[row.get(field) for field in fields] for row in rows]


def _said(row: Json, question: ViewedQuestion) -> str:
    """An answer in a line: its text, or the choice."""
    if row.get("choice") and question.choices:
        return question.choices[row["choice"] - 1]
    texts = (row.get(key) for key in ("answer", "completion", "response"))
    return next((text for text in texts if isinstance(text, str)), "")


def best_choice(values: list[float], choices: list[str] | None, metric: str) -> int | None:
    """Number (from 1) of the choice that the model took; None where that is not known.

    values: log-likelihoods; ``acc_norm`` divides them by the letters of the choices (lm-eval).
    """
    if metric.startswith("acc_norm"):
        if choices is None or len(choices) != len(values):
            return None
        lengths = (max(1, len(choice.removeprefix(" "))) for choice in choices)
        values = [value / length for value, length in zip(values, lengths, strict=True)]
    return values.index(max(values)) + 1


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


def _brief(text: str) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text[: 4 * BRIEF].split())
    return line if len(line) <= BRIEF else line[: BRIEF - 1] + "…"


def as_script(value: Any) -> str:
    """A value as JavaScript that any parser reads alike.

    ASCII alone, so that a lone surrogate or a line separator is an escape. A ``<`` is one as well:
    no text ends a script, wherever a file's content is copied to.
    """
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
