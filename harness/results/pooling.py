"""Pools results folders into one table and one series a method; refuses what is not comparable."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from harness.base.errors import UserError
from harness.results.folders import Json, ResultsFolder, open_results
from harness.results.formats import CONTINUOUS, JOINT, RELEARN, SINGLE
from harness.results.reader import TEXTS
from harness.results.sequences import check_orders, of_sequence, with_singles

# A record is repeated where all of these are equal; the later one replaces the earlier one.
RECORD_KEY = ("folder", "run", "stage", "step", "kind", "name", "split", "metric")
MEASURE_KEY = ["kind", "name", "split", "metric"]  # what may have one protocol alone
# What the method of a reference run has behind the label
REFERENCE = rf"\.(?:{JOINT}|(?:{SINGLE}|{RELEARN})-\d+)$"
MOST_DIFFERENCES = 4  # keys of two protocols that an error names


@dataclass
class Series:
    """One line of every table: a method's label, its runs (seeds pooled over folders), its order.

    members: (folder index, label there); selected: which point of a grid this is and how it was
    chosen, empty for a method without a grid. orders: {name: skills} of several sequences, {} of
    one; expected: (seed, name of the sequence or "") of all runs.
    """

    label: str
    method: str
    config: dict[str, Any]
    model: str
    order: tuple[str, ...]
    members: list[tuple[int, str]]
    selected: str = ""
    orders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    expected: list[tuple[int, str]] = field(default_factory=list)

    def order_of(self, sequence: str) -> tuple[str, ...]:
        """The skills in a run's sequence."""
        return self.orders.get(sequence, self.order)


@dataclass(frozen=True)
class Pool:
    """Several results folders as one, after all refusals.

    heads: results.json of each folder, with the methods that count and each skill's counting
    metric; unreadable: lines of each records.jsonl; grader: each skill's metric before any judge;
    metric: the metric that counts; skills, retention: their entries in results.json by name, and
    one more for each continuous metric of a task (see ``_continuous``); records: one row a record,
    with ``label`` (NaN where no head lists the method) and ``folder``; references: the same of
    reference runs, with the label of the series that they are references of; sequence: the one of
    ``orders`` that is all of the pool, None where it has every run.
    """

    folders: list[ResultsFolder]
    names: list[str]
    heads: list[Json]
    unreadable: list[int]
    protocols: Json
    grader: dict[str, str]
    metric: dict[str, str]
    split: str
    skills: dict[str, Json]
    retention: dict[str, Json]
    series: dict[str, Series]
    records: pd.DataFrame
    references: pd.DataFrame
    sequence: str | None = None

    def labels(self) -> dict[tuple[int, str], str]:
        """{(folder index, label there): label of the series}."""
        return {member: s.label for s in self.series.values() for member in s.members}


def open_pool(paths: list[Path], every_point: bool = False, sequence: str | None = None) -> Pool:
    """Reads and pools results folders; every_point: as for ``open_results``.

    sequence: take the runs of this sequence alone, as if it were the folders' only one. Raises
    UserError for a folder that is no results folder of this version, and where the folders (or the
    records of one) measured the same thing under two protocols, metrics or splits.
    """
    folders = [open_results(path, every_point) for path in paths]
    tables, unreadable, heads = [], [], []
    protocols: Json = {}
    for index, folder in enumerate(folders):
        table, lines = folder.read_records()
        tables.append(table.assign(folder=index))
        unreadable.append(lines)
        protocols.update(folder.protocols)
    for index, (folder, table) in enumerate(zip(folders, tables, strict=True)):
        head = _head(folder, table)
        check_orders(head, table, folder.path)
        if head.get("orders"):
            tables[index] = with_singles(head, table)
        if sequence is not None:
            head, tables[index] = of_sequence(head, tables[index], sequence)
        heads.append(head)
    split = _agreed(paths, "split", [{"": f.split} for f in folders], "evaluate.split")[""]
    metric = _agreed(paths, "metric", [_metrics(head["skills"]) for head in heads], "skill")
    _agreed(paths, "metric", [_metrics(f.retention) for f in folders], "retention task")
    names = distinct([folder.name for folder in folders], paths)
    series = _pool_series(heads, tables, names)
    records = _pool_records(tables, series)
    is_reference = records["reference"].notna()
    references = _labelled_references(records[is_reference], series)
    records = records[~is_reference].reset_index(drop=True)
    retention = {task["name"]: task for folder in folders for task in folder.retention}
    pool = Pool(
        folders=folders,
        names=names,
        heads=heads,
        unreadable=unreadable,
        protocols=protocols,
        grader={name: m for folder in folders for name, m in _metrics(folder.skills).items()},
        metric=metric,
        split=split,
        skills={skill["name"]: skill for head in heads for skill in head["skills"]},
        retention=retention | _continuous(retention, records),
        series=series,
        records=records,
        references=references,
        sequence=sequence,
    )
    _refuse_two_protocols(pool)
    return pool


def _continuous(retention: dict[str, Json], records: pd.DataFrame) -> dict[str, Json]:
    """Entries of what likelihood tasks are measured by beside the metric that counts.

    {"TASK METRIC": {name, of: the task, metric, higher_is_better}}, for each such metric on record.
    """
    of_tasks = records[records["kind"] == "retention"]
    pairs = of_tasks[["name", "metric"]].drop_duplicates().itertuples(index=False)
    on_record = {(str(name), str(metric)) for name, metric in pairs}
    return {
        f"{task} {metric}": {
            "name": f"{task} {metric}",
            "of": task,
            "metric": metric,
            "higher_is_better": True,
        }
        for metric in CONTINUOUS
        for task, entry in retention.items()
        if (task, metric) in on_record and entry["metric"] != metric
    }


def distinct(names: list[str], folders: list[Path]) -> list[str]:
    """Names for folders: the order's, or the folder's where two orders have the same."""
    if len(set(names)) == len(names):
        return names
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _head(folder: ResultsFolder, records: pd.DataFrame) -> Json:
    """results.json with the methods that count and the metric that counts of each skill."""
    metrics = folder.counting_metrics(records)
    skills = [{**skill, "metric": metrics[skill["name"]]} for skill in folder.skills]
    return {**folder.results, "methods": folder.methods, "skills": skills}


def _metrics(entries: list[Json]) -> dict[str, str]:
    return {entry["name"]: entry["metric"] for entry in entries}


def _agreed(paths: list[Path], what: str, values: list[dict[str, str]], of: str) -> dict[str, str]:
    """One value a key over all folders. Raises UserError naming both folders where two differ."""
    agreed: dict[str, tuple[str, Path]] = {}
    for path, by_key in zip(paths, values, strict=True):
        for key, value in by_key.items():
            first, where = agreed.setdefault(key, (value, path))
            if first != value:
                subject = f"{of} {key}".strip()
                raise UserError(
                    path,
                    f"{subject} counts by the {what} {value!r}, in {where} by {first!r}",
                    "report them apart: such numbers are not comparable",
                )
    return {key: value for key, (value, _) in agreed.items()}


# -- series


@dataclass
class _Group:
    """Runs of one setting: what was learned is the same, and no seed x sequence is there twice."""

    setting: str
    entry: Json
    order: tuple[str, ...]
    model: str
    selected: str
    members: list[tuple[int, str]]
    runs: set[tuple[int, str]]
    orders: dict[str, tuple[str, ...]]


def _pool_series(
    heads: list[Json], tables: list[pd.DataFrame], names: list[str]
) -> dict[str, Series]:
    """Pools a label over the folders in which all that is learned is the same.

    That is method, config, model and order; budget, rollout, and of each skill its prompts,
    teacher's template, training data and reward. Results of two versions are apart: their hashes do
    not mean the same. A folder with a seed and sequence that is there already is a series of its
    own, and so is one with another sequence of the same name, or with `orders` where the other
    has none. The selected point of a grid has the grid's label.
    """
    groups: dict[str, list[_Group]] = defaultdict(list)
    mixed = len({head["version"] for head in heads}) > 1
    for index, (head, table) in enumerate(zip(heads, tables, strict=True)):
        for label_there, entry in head["methods"].items():
            label, selected = _grid_label(label_there, entry)
            mine = table[table["method"] == label_there]
            on_record = zip(mine["seed"].astype(int), mine["sequence"].astype(str), strict=True)
            orders = {name: tuple(of) for name, of in (head.get("orders") or {}).items()}
            entry = {key: value for key, value in entry.items() if key != "grid"}
            group = _Group(
                setting=f"{head['version']} {_setting(head, label, entry)}",
                entry=entry,
                order=tuple(skill["name"] for skill in head["skills"]),
                model=_model_name(head) + f" (results version {head['version']})" * mixed,
                selected=selected,
                members=[(index, label_there)],
                runs={*product(head["seeds"], orders or [""]), *on_record},
                orders=orders,
            )
            _join(groups[label], group)
    series = {}
    for label, settings in groups.items():
        for group in settings:
            first_folder, _ = group.members[0]
            name = label if len(settings) == 1 else f"{label} ({names[first_folder]})"
            series[name] = Series(
                label=name,
                method=group.entry.get("method", label),
                config=group.entry.get("config") or {},
                model=group.model,
                order=group.order,
                members=group.members,
                selected=group.selected,
                orders=group.orders,
                expected=sorted(group.runs),
            )
    return series


def _grid_label(label: str, entry: Json) -> tuple[str, str]:
    """The label that a method has in the report, and what was selected where it is of a grid."""
    grid = entry.get("grid")
    if not grid:
        return label, ""
    values = ", ".join(f"{name} {value}" for name, value in grid["values"].items())
    chosen = f"selected among {grid['points']} by the {grid['rule']}."
    return grid["of"], f"{grid['of']}: {values}, {chosen}"


def _join(groups: list[_Group], new: _Group) -> None:
    """Adds runs to the first group of their setting without their runs, or as a new group."""
    for group in groups:
        same = all(  # names, and what they stand for
            (name == other) == (of == known)
            for name, of in new.orders.items()
            for other, known in group.orders.items()
        )
        if group.setting == new.setting and same and not group.runs & new.runs:
            group.runs |= new.runs
            group.members += new.members
            group.orders |= new.orders
            return
    groups.append(new)


def _setting(head: Json, label: str, entry: Json) -> str:
    """All that a run learns from, as text; runs of one setting differ in seed and sequence."""
    model = head.get("model") or {}
    if isinstance(model, dict):  # Where it ran is provenance: seeds of two devices are pooled.
        model = {key: value for key, value in model.items() if key != "device"}
    learned = [
        [skill.get(key) for key in ("prompts", "teacher_template", "train", "reward")]
        for skill in head["skills"]
    ]
    order = [skill["name"] for skill in head["skills"]]
    # How many answers are sampled at once goes by the device, and changes last digits alone.
    rollout = {k: v for k, v in (head.get("rollout") or {}).items() if k != "batch_size"}
    several = bool(head.get("orders"))
    return json.dumps(
        [label, entry, model, order, head.get("budget"), rollout, learned, several],
        sort_keys=True,
    )


def _model_name(head: Json) -> str:
    model = head.get("model") or {}
    if not isinstance(model, dict):
        return str(model)
    name = str(model.get("name") or "model")
    revision = model.get("revision")
    return f"{name} {str(revision)[:8]}" if revision else name


# -- records


def _pool_records(tables: list[pd.DataFrame], series: dict[str, Series]) -> pd.DataFrame:
    """The records of all folders in one table, each once, with the label of their series."""
    for index, table in enumerate(tables):
        labels = {there: s.label for s in series.values() for i, there in s.members if i == index}
        of_methods = table["method"].map(labels).astype(object)
        table["label"] = pd.Categorical(of_methods, categories=list(series))
    # One set of categories, so that the columns stay categorical when the tables are joined.
    for column in TEXTS:
        categories = [table[column].cat.categories for table in tables]
        union = pd.Index([]).append(categories).unique()
        for table in tables:
            table[column] = table[column].cat.set_categories(union)
    records = pd.concat(tables, ignore_index=True)
    codes = pd.DataFrame({column: _codes(records[column]) for column in RECORD_KEY})
    return records[~codes.duplicated(keep="last")].reset_index(drop=True)


def _labelled_references(records: pd.DataFrame, series: dict[str, Series]) -> pd.DataFrame:
    """Records of reference runs with the label of their series; without those that have none."""
    labels = {member: s.label for s in series.values() for member in s.members}
    methods = records["method"].astype(str).str.replace(REFERENCE, "", regex=True)
    pairs = zip(records["folder"], methods, strict=True)
    found = pd.Series([labels.get(pair) for pair in pairs], records.index, dtype=object)
    return records.assign(label=found)[found.notna()].reset_index(drop=True)


def _codes(column: pd.Series) -> pd.Series:
    """A column as numbers, which are compared faster than texts."""
    return column.cat.codes if isinstance(column.dtype, pd.CategoricalDtype) else column


def _refuse_two_protocols(pool: Pool) -> None:
    """Raises UserError naming both protocols of the first thing that was measured under two."""
    records = pd.concat([pool.records, pool.references]) if len(pool.references) else pool.records
    versions = records["folder"].map(lambda index: pool.folders[index].version)
    final = records.assign(version=versions)[records["final"]]
    measured = [*MEASURE_KEY, "version"]
    pairs = final.drop_duplicates([*measured, "protocol"])
    twice = pairs[pairs.duplicated(measured, keep=False)]
    if twice.empty:
        return
    first = twice.iloc[0]
    same = (twice[measured] == first[measured]).all(axis=1)
    second = twice[same].iloc[1]
    one, other = (pool.protocols.get(record["protocol"]) for record in (first, second))
    raise UserError(
        f"{first['name']} ({first['split']}, {first['metric']})",
        f"measured under protocol {first['protocol']} in {pool.folders[first['folder']].path} "
        f"and under {second['protocol']} in {pool.folders[second['folder']].path}"
        f"{_differences(one, other)}",
        "numbers of two protocols are not averaged or compared; report them apart",
    )


def _differences(one: object, other: object) -> str:
    """What two protocols differ in, as text in brackets; empty where that is unknown."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return ""
    left, right = dict(_flat(one)), dict(_flat(other))
    keys = [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)]
    if not keys:
        return ""
    texts = [f"{key} {_brief(left.get(key))} / {_brief(right.get(key))}" for key in keys]
    more = ", ..." if len(keys) > MOST_DIFFERENCES else ""
    return f" ({', '.join(texts[:MOST_DIFFERENCES])}{more})"


def _brief(value: object) -> str:
    return json.dumps(value)[:40]


def _flat(value: Json, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(key with the keys above it, value) of nested objects."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
