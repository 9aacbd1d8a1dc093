"""What the results folders lack, in one line each: for the terminal and the top of the page."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from harness.report.crossing import crossing
from harness.report.measurements import PooledMeasurements, RunId
from harness.results.folders import Json
from harness.results.formats import CONTINUOUS, JOINT, SINGLE
from harness.results.pooling import Pool, Series
from harness.results.status import read_failure

MOST_NAMES = 5  # of methods or protocols in a line
MOST_TASKS = 8

Cell = tuple[int, int]  # (stage, place of the skill) in the array R


def missing(pool: Pool, measurements: PooledMeasurements) -> list[str]:
    """All that is missing, one line each."""
    lines = [*_versions(pool), *_unread(pool), *_failed(pool)]
    if pool.records.empty:
        lines.append("no records yet: nothing was measured")
    graded = _graded(pool)
    for label, series in pool.series.items():
        lines += _absent_runs(series, measurements.runs[label])
        whole = []
        for i, run in enumerate(measurements.runs[label]):
            finished, line = _skills(pool, measurements, label, i, graded[label, run])
            lines += [f"{label}, {run.text}: {line}"] if line else []
            if finished:
                whole.append(run)
                lines += _absent_retention(pool, measurements, label, i)
        lines += _uncrossed(label, whole)
    lines += _absent_references(pool, measurements)
    lines += _absent_margins(pool, measurements)
    lines += _absent_evaluations(pool)
    lines += _unknown_methods(pool)
    lines += _unknown_protocols(pool)
    return lines


def _versions(pool: Pool) -> Iterator[str]:
    """Folders of several versions, and folders whose files have no hashes to check."""
    by_version: dict[int, list[str]] = defaultdict(list)
    for folder, name in zip(pool.folders, pool.names, strict=True):
        by_version[folder.version].append(name)
    if len(by_version) > 1:
        parts = [f"{version} ({_list(names)})" for version, names in sorted(by_version.items())]
        yield (
            f"results of versions {' and '.join(parts)} are drawn apart: their hashes of models "
            "and measurements do not mean the same"
        )
    for folder, name in zip(pool.folders, pool.names, strict=True):
        if gone := folder.gone_sums:
            yield f"{name}: {gone}"
        elif not folder.has_sums:
            yield (
                f"{name}: results version {folder.version} without SHA-256 of its files: damage to "
                "them would not be noticed"
            )


def _unread(pool: Pool) -> Iterator[str]:
    """Unreadable lines and undecided grids of every folder."""
    for folder, name, unreadable in zip(pool.folders, pool.names, pool.unreadable, strict=True):
        if unreadable:
            yield f"{name}: {unreadable} unreadable line(s) in records.jsonl left out"
        for grid in folder.undecided_grids:
            yield (
                f"{name}: nothing is selected from the grid of {grid} before all its points have "
                "run with all seeds"
            )


def _failed(pool: Pool) -> Iterator[str]:
    """Runs whose last start ended in an error of their own."""
    labels = pool.labels()
    for index, folder in enumerate(pool.folders):
        for run in folder.runs():
            if reason := read_failure(run.path):
                label = labels.get((index, run.label), run.label)
                where = RunId(index, run.seed, run.sequence).text
                yield f"{label}, {where}: failed ({reason}); the next start tries it again"


def _absent_runs(series: Series, runs: list[RunId]) -> Iterator[str]:
    started = {run.key for run in runs}
    absent = [
        f"{seed} {name}".strip() for seed, name in series.expected if (seed, name) not in started
    ]
    if absent:
        yield f"{series.label}: no records of seed {', '.join(absent)}"


def _uncrossed(label: str, runs: list[RunId]) -> Iterator[str]:
    """Finished runs that no mean has: not every seed has every sequence."""
    kept = crossing(runs).places
    left = [run.text for i, run in enumerate(runs) if i not in kept]
    if left:
        more = " ..." if len(left) > MOST_NAMES else ""
        yield (
            f"{label}: means leave out {_list(left[:MOST_NAMES])}{more}: not every seed has run "
            "with every sequence"
        )


def _skills(
    pool: Pool, measurements: PooledMeasurements, label: str, i: int, graded: set[Cell]
) -> tuple[bool, str]:
    """Whether the i-th run of a label has finished its last stage, and what its skills lack."""
    run = measurements.runs[label][i]
    on_record = np.isfinite(measurements.arrays["R", label].values[i])
    T = len(on_record) - 1
    measured_stages = on_record.all(axis=1)
    # An order may measure only some skills at each stage: gaps are then what it asked for.
    if (pool.heads[run.folder].get("evaluate") or {}).get("skills", "all") != "all":
        measured_stages[:T] = on_record[:T].any(axis=1)
    finished = bool(measured_stages[T])
    gaps = {(int(k), int(skill)) for k, skill in np.argwhere(~on_record)}
    if not finished and gaps <= graded:
        stages = _list(sorted({stage for stage, _ in gaps}))
        return finished, (
            f"answers of stage {stages} have no verdicts yet: "
            f"python -m harness.judge {pool.folders[run.folder].path}"
        )
    if not finished:
        done = np.flatnonzero(measured_stages)
        progress = f"{done[-1]} of {T} stages finished" if len(done) else "base not finished"
        return finished, f"{progress}; it does not count in ACC, BWT, FWT and forgetting"
    if not measured_stages.all():
        stages = _list(np.flatnonzero(~measured_stages))
        return finished, f"skills not all measured after stage {stages}"
    return finished, ""


def _graded(pool: Pool) -> dict[tuple[str, RunId], set[Cell]]:
    """{(label, run): cells of R that a grader has measured, of skills in which a judge counts}."""
    cells: dict[tuple[str, RunId], set[Cell]] = defaultdict(set)
    judged = {name: grader for name, grader in pool.grader.items() if grader != pool.metric[name]}
    if not judged:
        return cells
    records = pool.records
    graded = records["metric"].astype(object) == records["name"].astype(object).map(judged)
    graded &= records["final"] & (records["split"] == pool.split) & records["label"].notna()
    columns = records.loc[graded, ["label", "folder", "seed", "sequence", "stage", "name"]]
    for label, folder, seed, sequence, stage, name in columns.itertuples(index=False):
        order = pool.series[label].order_of(sequence)
        if name in order:
            run = RunId(int(folder), int(seed), sequence)
            cells[label, run].add((int(stage), order.index(name)))
    return cells


def _absent_retention(
    pool: Pool, measurements: PooledMeasurements, label: str, i: int
) -> Iterator[str]:
    """Retention tasks that the i-th run of a label lacks after its last stage."""
    D = measurements.arrays["D", label]
    tasks = [
        task
        for task, value in zip(D.columns, D.values[i, -1], strict=True)
        if np.isnan(value) and "of" not in pool.retention[task]
    ]
    if tasks:
        run = measurements.runs[label][i]
        more = " ..." if len(tasks) > MOST_TASKS else ""
        yield f"{label}, {run.text}: no final retention of {_list(tasks[:MOST_TASKS])}{more}"


def _absent_references(pool: Pool, measurements: PooledMeasurements) -> Iterator[str]:
    """Runs whose order asks for references that are not on record."""
    labels = pool.labels()
    asked = {
        (index, labels.get((index, label)))
        for index, head in enumerate(pool.heads)
        for label in head.get("references") or ()
    }
    told: set[tuple[str, int, int]] = set()  # one line for all sequences of a seed
    for label, series in pool.series.items():
        arrays = measurements.arrays.get(("R+", label))
        for i, run in enumerate(measurements.runs[label]):
            if (run.folder, label) not in asked or len(series.order) < 2:
                continue
            if (label, run.folder, run.seed) in told:
                continue
            told.add((label, run.folder, run.seed))
            rows = np.full((2, 1), np.nan) if arrays is None else arrays.values[i, -2:]
            names = zip((JOINT, SINGLE), np.isfinite(rows).all(axis=1), strict=True)
            if absent := [name for name, is_there in names if not is_there]:
                yield f"{label}, seed {run.seed}: reference not finished: {_list(absent)}"


def _absent_margins(pool: Pool, measurements: PooledMeasurements) -> Iterator[str]:
    """Folders with measurements of likelihood tasks from before margins were kept."""
    records = pool.records[pool.records["final"] & (pool.records["kind"] == "retention")]
    others = {entry["of"] for entry in pool.retention.values() if "of" in entry}
    for index, (folder, name) in enumerate(zip(pool.folders, pool.names, strict=True)):
        mine = records[records["folder"] == index]
        kept = mine["metric"].isin(CONTINUOUS)
        places = pd.MultiIndex.from_frame(mine[["run", "stage", "name"]])
        without = mine[~places.isin(places[kept])]
        tasks = [
            entry["name"]
            for entry in folder.retention
            if (without["name"] == entry["name"]).any()
            and (entry["name"] in others or _is_before_margins(pool, measurements, entry))
        ]
        if tasks:
            count, of = (int(rows["name"].isin(tasks).sum()) for rows in (without, mine[~kept]))
            named = _list(tasks[:MOST_TASKS]) + (" ..." if len(tasks) > MOST_TASKS else "")
            yield (
                f"{name}: {count:,} of {of:,} measurements of {named} are from before margins were "
                "kept: changes (Δ) of margin and probability are left out"
            )


def _is_before_margins(pool: Pool, measurements: PooledMeasurements, entry: Json) -> bool:
    """Whether a task of results.json is an accuracy by likelihoods, of a release without margins.

    Later releases write what they know of a ``reference``.
    """
    name = entry["name"]
    protocol = pool.protocols.get(measurements.protocol_of.get(("retention", name), ""))
    by_likelihoods = isinstance(protocol, dict) and protocol.get("max_gen_toks", "?") is None
    return "reference" not in entry and by_likelihoods and measurements.tasks_in_mean[name]


def _absent_evaluations(pool: Pool) -> Iterator[str]:
    for index, (folder, name) in enumerate(zip(pool.folders, pool.names, strict=True)):
        mine = (pool.records["folder"] == index) & pool.records["final"]
        keys = pool.records.loc[mine, "evaluation"].dropna().unique()
        absent = len(set(keys) - folder.evaluation_keys())
        if absent:
            yield (
                f"{name}: completions and item scores of {absent:,} of {len(keys):,} evaluations "
                "are not on disk"
            )


def _unknown_methods(pool: Pool) -> Iterator[str]:
    methods = pool.records.loc[pool.records["label"].isna(), "method"].dropna()
    unknown = sorted(set(methods.astype(str)))
    if unknown:
        yield (
            f"records of {_list(unknown[:MOST_NAMES])} left out: "
            "results.json does not list the method"
        )


def _unknown_protocols(pool: Pool) -> Iterator[str]:
    if pool.records.empty:
        return
    unknown = sorted(set(pool.records["protocol"].cat.categories) - set(pool.protocols))
    if unknown:
        yield f"protocols.json does not say what {_list(unknown[:MOST_NAMES])} stands for"


def _list(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
