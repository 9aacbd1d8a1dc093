"""A results folder, read from its files alone: what was run, records, evaluations, costs.

``open_results(path)`` is for reports, notebooks and other tools alike. It reads results.json and
checks it; all other files are read when they are asked for. Nothing is written, and nothing that a
folder names is imported or unpickled.
"""

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harness.base.errors import UserError
from harness.base.sums import check_sum, has_sums
from harness.results.formats import (
    EVALUATION,
    EVALUATION_KEY,
    HEAD,
    OF_SEQUENCE,
    READABLE,
    REMEDY,
    RUN,
    SELECTION,
    STAGE,
    check_place,
    check_shape,
    evaluation_file,
    read_object,
    short_json,
)
from harness.results.hashes import gone_sums_line
from harness.results.questions import AskedQuestion, read_questions
from harness.results.reader import json_objects, read_records

Json = dict[str, Any]  # an object of a JSON file; formats.py has the shapes that are checked

RUN_NAME = re.compile(rf"([^{OF_SEQUENCE}]+)(?:{OF_SEQUENCE}(.+))?-seed(-?\d+)")
REBUILT = "start the run again, which writes it again from the stages"


class RunFolder(NamedTuple):
    """The folder of one run; ``label`` is the method's in results.json.

    sequence: name in ``orders``, "" where there is one.
    """

    label: str
    seed: int
    path: Path
    sequence: str = ""


class RecordTable(NamedTuple):
    """records.jsonl as a table, one row a record, and how many lines could not be read."""

    table: pd.DataFrame
    unreadable: int


def open_results(path: str | Path, every_point: bool = False) -> "ResultsFolder":
    """The results folder at ``path``; raises UserError where it is none of this version.

    every_point: let every point of a grid count as a method of its own, selected or not.
    """
    return ResultsFolder(Path(path), _read_results(Path(path)), every_point)


class ResultsFolder:
    """A results folder; ``results`` is the content of results.json."""

    def __init__(self, path: Path, results: Json, every_point: bool = False) -> None:
        self.path = path
        self.results = results
        self.every_point = every_point

    # -- what was run

    @property
    def name(self) -> str:
        """The order's name, or the folder's where the order has none."""
        return self.results.get("name") or self.path.name

    @property
    def version(self) -> int:
        """Of the results folder: hashes of two versions mean different things."""
        return self.results["version"]

    @property
    def has_sums(self) -> bool:
        """Whether records have a SHA-256 that is checked when they are read."""
        return has_sums(self.path)

    @property
    def gone_sums(self) -> str | None:
        """One line on hashes that a folder of this version has, and that are gone."""
        return gone_sums_line(self.path, self.version)

    @property
    def split(self) -> str:
        """The split that the skills are measured on."""
        return (self.results.get("evaluate") or {}).get("split") or "test"

    @property
    def skills(self) -> list[Json]:
        """The skills in their order."""
        return self.results["skills"]

    @property
    def retention(self) -> list[Json]:
        """The tasks of the retention suite."""
        return self.results.get("retention") or []

    @cached_property
    def selection(self) -> Json:
        """selection.json: of every grid the rule, the selected point and all points."""
        return read_object(self.path / "selection.json", SELECTION)

    @cached_property
    def unselected(self) -> list[str]:
        """Labels of the points of grids that are not selected, or not yet."""
        selection = self.selection  # Read also where there is no grid, so that its form is checked.
        if self.every_point:
            return []
        return [
            label
            for label, entry in self.results["methods"].items()
            if (grid := entry.get("grid"))
            and selection.get(grid["of"], {}).get("selected") != label
        ]

    @cached_property
    def methods(self) -> Json:
        """The methods whose numbers count: all but the unselected points of grids.

        A selected point's ``grid`` has the number of ``points`` and the ``rule`` added.
        """
        methods = {}
        for label, entry in self.results["methods"].items():
            if label in self.unselected:
                continue
            if self.every_point:
                entry = {key: value for key, value in entry.items() if key != "grid"}
            elif grid := entry.get("grid"):
                choice = self.selection[grid["of"]]
                grid = {**grid, "points": len(choice["points"]), "rule": choice["rule"]}
                entry = {**entry, "grid": grid}
            methods[label] = entry
        return methods

    @property
    def undecided_grids(self) -> list[str]:
        """Grids from which nothing is selected yet."""
        grids = dict.fromkeys(
            self.results["methods"][label]["grid"]["of"] for label in self.unselected
        )
        return [grid for grid in grids if not self.selection.get(grid, {}).get("selected")]

    # -- what was measured

    def read_records(self) -> RecordTable:
        """The records of ``methods``. They are not kept here: a large order has a million.

        Raises UserError where they are not those that were written.
        """
        if (self.path / "records.jsonl").is_file():
            check_sum(self.path / "records.jsonl", REBUILT)
        table, unreadable = read_records(self.path / "records.jsonl")
        if self.unselected:
            table = table[~table["method"].isin(self.unselected)].copy()
        return RecordTable(table, unreadable)

    def counting_metrics(self, records: pd.DataFrame) -> dict[str, str]:
        """{skill: the metric that counts}.

        That is the grader's; where ``records`` have the first metric of the skill's judge, that
        one. Verdicts and grades are never mixed in one column.
        """
        metrics = {}
        for skill in self.skills:
            name = skill["name"]
            metrics[name] = skill["metric"]
            for judged in ((skill.get("judge") or {}).get("metrics") or [])[:1]:
                if ((records["name"] == name) & (records["metric"] == judged)).any():
                    metrics[name] = judged
        return metrics

    @cached_property
    def protocols(self) -> Json:
        """protocols.json: {protocol: what was measured, and how}."""
        return read_object(self.path / "protocols.json", {})

    def evaluation(self, key: str | None) -> Json:
        """The file of one evaluation with its items and answers, {} where it is missing."""
        if not isinstance(key, str) or not EVALUATION_KEY.fullmatch(key):
            return {}
        return read_object(evaluation_file(self.path, key), EVALUATION)

    def questions(self, protocol: object) -> dict[str, AskedQuestion]:
        """{item id: what a retention task of this protocol asked}, {} where it is not kept."""
        return read_questions(self.path, protocol)

    def evaluation_keys(self) -> set[str]:
        """Keys of all evaluations on disk."""
        place = self.path / "evaluations"
        names = os.listdir(place) if place.is_dir() else []
        return {name.removesuffix(".gz").removesuffix(".json") for name in names}

    # -- what it cost

    def runs(self) -> list[RunFolder]:
        """Every run on disk, also those of unselected points, in the order of their names.

        Raises UserError for a folder that is a copy of another, or has another's name.
        """
        place = self.path / "runs"
        runs = []
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if match := RUN_NAME.fullmatch(path.name):
                for stage in _stages(path, "records.jsonl"):
                    check_place(stage / "records.jsonl")
                runs.append(RunFolder(match[1], int(match[3]), path, match[2] or ""))
        return runs

    def provenance(self) -> list[Json]:
        """run.json of every run that has one."""
        return [read_object(path, RUN) for path in sorted(self.path.glob("runs/*/run.json"))]

    def base_stages(self) -> list[Json]:
        """stage.json of stage 0, which measures the base model, of every run that has one."""
        return [read_object(path, STAGE) for path in self.path.glob("runs/*/stage-0/stage.json")]


def read_stages(run: Path) -> list[Json]:
    """stage.json of every committed stage of a run's folder; a killed one's is not among them."""
    return [read_object(path / "stage.json", STAGE) for path in _stages(run, "stage.json")]


def read_training(run: Path, most: int) -> Iterator[tuple[int, pd.DataFrame]]:
    """(stage, training.jsonl as a table of numbers) of a run's stages, one row a step.

    At most about ``most`` rows a stage, evenly spaced. Lines that cannot be read are left out, and
    so are stages without any step. Raises UserError for a file that is not what was written.
    """
    for path in _stages(run, "training.jsonl"):
        check_sum(path / "training.jsonl", REMEDY)
        text = (path / "training.jsonl").read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.split("\n") if line.strip()]
        lines = lines[:: max(1, len(lines) // most)]
        table = pd.DataFrame(json_objects(lines)[0])
        if not table.empty and "step" in table:
            yield _stage_number(path), table.select_dtypes("number").copy()


def _stages(run: Path, file: str) -> list[Path]:
    """Folders of a run's committed stages that hold ``file``, in their order."""
    # Not a stage-2.partial, which a killed run leaves.
    return sorted((path.parent for path in run.glob(f"stage-*[0-9]/{file}")), key=_stage_number)


def _stage_number(path: Path) -> int:
    return int(re.sub(r"\D", "", path.name) or 0)


def _read_results(folder: Path) -> Json:
    """results.json of a folder. Raises UserError where it is none of this version."""
    if not folder.is_dir():
        raise UserError(folder, "is not a folder", "give a results folder, as results/quickstart")
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(
            folder,
            "is not a results folder (it has no results.json)",
            "give a folder that run_sequence.py wrote",
        )
    results = read_object(path, {})
    if results.get("version") not in READABLE:
        versions = " and ".join(map(str, READABLE))
        raise UserError(
            path,
            f"has version {short_json(results.get('version'))}, this report reads {versions}",
            "use the release that wrote it",
        )
    check_shape(path, results, HEAD, "")
    if not results["skills"]:
        raise UserError(path, "`skills` is empty", REMEDY)
    for kind in ("skills", "retention"):
        for entry in results.get(kind) or ():
            if not 0 <= (entry.get("chance") or 0.0) < 1:
                problem = f"`chance` of {entry['name']} is {short_json(entry['chance'])}"
                raise UserError(path, problem, "it is from 0 to below 1")
    return results
