"""From results folders to the measured side of each item.

A results folder says in ``experiment`` which figures and tables its order is for. Folders that
measure one setting are pooled; several settings of one experiment are a picture each, or go into
one picture where the item joins them.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.paper.form import COLUMNS
from benchmarks.paper.items import ITEMS, Item
from benchmarks.paper.measured import model_name, unjudged
from harness.base.errors import UserError
from harness.report.data import ReportData
from harness.results.formats import LATER, read_object
from harness.results.pooling import distinct


@dataclass(frozen=True)
class MeasuredSide:
    """The measured side of one picture or table."""

    results: list[ReportData]  # one an order
    numbers: pd.DataFrame  # COLUMNS, and where each number comes from: ``results``, ``records``


@dataclass(frozen=True)
class Collection:
    """What results folders hold of the paper's experiments."""

    # Of an item (by its key): one a picture; none for an item without results
    sides: dict[str, list[MeasuredSide]] = field(default_factory=dict)
    without_experiment: list[Path] = field(default_factory=list)  # their order names none
    missing: list[str] = field(default_factory=list)  # one line a gap in the records


def collect(folders: Iterable[Path]) -> Collection:
    """What the results folders hold of each item.

    Raises UserError for a folder that holds no results or broken ones, and where no order names an
    experiment.
    """
    by_experiment, without_experiment = _by_experiment(results_folders(folders))
    sides = {}
    for key, item in ITEMS.items():
        of_item = _sides(item, by_experiment.get(item.experiment, []))
        if of_item:
            sides[key] = of_item
    # Results are of several experiments where their order names several.
    every = dict.fromkeys(results for group in by_experiment.values() for results in group)
    missing = [line for results in every for line in results.missing]
    return Collection(sides, without_experiment, missing)


def results_folders(folders: Iterable[Path]) -> list[Path]:
    """The results folders among ``folders`` and one level below them, each once.

    Raises UserError for a folder that has none.
    """
    unique = {}
    for folder in map(Path, folders):
        inside = [folder] if _has_results(folder) else _below(folder)
        if not inside:
            raise UserError(
                folder,
                "holds no results" if folder.is_dir() else "is not a folder",
                "give a folder that run_sequence.py wrote, or one that holds such folders",
            )
        unique.update({path.resolve(): path for path in inside})
    return list(unique.values())


def _has_results(folder: Path) -> bool:
    return (folder / "results.json").is_file()


def _below(folder: Path) -> list[Path]:
    return sorted(filter(_has_results, folder.iterdir())) if folder.is_dir() else []


def _by_experiment(
    folders: Sequence[Path],
) -> tuple[dict[str, list[ReportData]], list[Path]]:
    """The results of each experiment, from the smallest model to the largest, and other folders.

    Folders of one experiment that differ in methods and seeds alone are pooled.
    """
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    without_experiment = []
    for folder in folders:
        head = read_object(folder / "results.json", {"experiment?": [str]})
        experiments = head.get("experiment") or []
        if not experiments:
            without_experiment.append(folder)
        for experiment in experiments:
            groups[experiment, _setting(head)].append(folder)
    if not groups:
        raise UserError(
            folders[0],
            "its order does not say which figure or table it is for",
            "set `experiment` in the order (docs/how-to/paper.md), or leave --paper out",
        )
    opened: dict[tuple[Path, ...], ReportData] = {}
    by_experiment: dict[str, list[ReportData]] = defaultdict(list)
    for (experiment, _), members in groups.items():
        pool = tuple(members)
        if pool not in opened:
            opened[pool] = ReportData(members)
        by_experiment[experiment].append(opened[pool])
    for results in by_experiment.values():
        results.sort(key=_model_size)
    return by_experiment, without_experiment


def _setting(head: dict[str, Any]) -> str:
    """All of a results.json that pooled folders have in common, as text to compare."""
    model = head.get("model")
    if isinstance(model, dict):
        model = {key: value for key, value in model.items() if key != "device"}
    parts = ("skills", "retention", "evaluate", "budget", "rollout")
    return json.dumps([model, *(_without_later(head.get(part)) for part in parts)], sort_keys=True)


def _without_later(part: Any) -> Any:
    """A list of skills or tasks without the keys that older folders lack.

    Where they differ, the protocols do too, and ReportData refuses to pool two of those.
    """
    if not isinstance(part, list):
        return part
    return [
        {key: value for key, value in entry.items() if key not in LATER}
        if isinstance(entry, dict)
        else entry
        for entry in part
    ]


def _model_size(results: ReportData) -> float:
    """Parameters of the model as its name says them, in billions; 0 where it does not."""
    name = model_name(results.heads[0])
    sizes = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)([BM])\b", name, re.IGNORECASE)
    parts_of_billion = {"b": 1, "m": 1000}
    return max(
        (float(number) / parts_of_billion[unit.lower()] for number, unit in sizes), default=0.0
    )


def _sides(item: Item, of_experiment: list[ReportData]) -> list[MeasuredSide]:
    """What was measured of an item, of all results of its experiment."""
    sources = distinct(
        [" and ".join(results.names) for results in of_experiment],
        [results.folders[0] for results in of_experiment],
    )
    sides = []
    for results, source in zip(of_experiment, sources, strict=True):
        numbers = _numbers(item, results, source)
        if len(numbers):
            sides.append(MeasuredSide([results], numbers))
    if item.joined and sides:
        every = [results for side in sides for results in side.results]
        return [MeasuredSide(every, _joined([side.numbers for side in sides]))]
    return sides


def _numbers(item: Item, results: ReportData, source: str) -> pd.DataFrame:
    """The numbers of an item; a metric that is not the paper's is named in the panel."""
    panels = {
        skill: f"{skill} ({results.metric[skill]}, not judged)" for skill in unjudged(results)
    }
    rows = [
        {
            **number,
            "panel": panels.get(number["panel"], number["panel"]),
            "experiment": item.experiment,
            "source": source,
            "results": results,
        }
        for number in item.measure(results)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, "results", "records"])


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """The frames of several orders as one.

    The name of a task gets its order's where two orders have the task under the same series.
    """
    keys = pd.concat([frame[["panel", "series", "x"]].drop_duplicates() for frame in frames])
    shared = set(keys.loc[keys.duplicated(), "panel"])
    joined = pd.concat(frames, ignore_index=True)
    clash = joined["panel"].isin(shared)
    joined.loc[clash, "panel"] += " (" + joined.loc[clash, "source"] + ")"
    return joined
