"""Reads results folders into one table of records, refuses what cannot be compared, says what is
missing.
"""

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from harness.base import metrics
from harness.base.errors import UserError
from harness.results.formats import (
    EVALUATION,
    HEAD,
    RUN,
    SELECTION,
    STAGE,
    VERSION,
    check_shape,
    read_object,
)
from harness.results.reader import TEXTS, json_objects, read_records

DRAWS = 2000  # bootstrap draws over examples where a method has one run
# item scores of one method are read from at most so many evaluations; beyond it stderr stands in
MOST_FILES = 400
SEEDS, BOOTSTRAP, ERRORS, WILSON, APART, ALIKE = (
    "seeds",
    "bootstrap",
    "errors",
    "wilson",
    "apart",
    "alike",
)
HOW = {  # where a 95% interval comes from, or why there is none
    SEEDS: "over seeds (Student's t)",
    BOOTSTRAP: "over examples (one run; percentile bootstrap, the same resample at every stage)",
    ERRORS: "over examples (one run; normal, from standard errors, where item scores are missing or do not make up the value)",
    WILSON: "over examples (one run; Wilson's, for one accuracy, and for a mean where all answers are right or all wrong)",
    APART: "differences between stages whose item scores are missing or do not make up the values",
    ALIKE: "where all examples, or all seeds, give the same number",
}


@dataclass
class Estimate:
    """One number of the report: value and 95% bounds in the metric's own unit, and how they came
    about.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    how: str = ""  # of the interval
    detail: str = ""  # what was measured, on what
    by: str = ""  # a key of HOW
    # that it is the mean of, for differences to pair
    records: pd.DataFrame | None = field(default=None, repr=False, compare=False)


@dataclass
class Series:
    """One line of every table: a method's label, its runs (seeds pooled over folders) and its own
    order of skills.
    """

    label: str
    method: str
    config: dict
    model: str
    order: tuple
    members: list = field(default_factory=list)  # (folder index, label there)
    seeds: list = field(default_factory=list)  # expected
    selected: str = ""  # which point of a grid this is, and how it was chosen


class ReportData:
    """What one or several results folders hold. ``records`` has one row a record, with ``label``
    and ``folder`` added.

    Raises UserError for a folder that is not a results folder of this version, and where the
    folders (or the records of one) measured the same thing under two protocols, metrics or splits.
    """

    def __init__(self, folders):
        self.folders = [Path(folder) for folder in folders]
        self.heads = [_head(folder) for folder in self.folders]
        self.names = distinct(
            [
                head.get("name") or folder.name
                for head, folder in zip(self.heads, self.folders, strict=True)
            ],
            self.folders,
        )
        self.missing, frames, self.protocols = [], [], {}
        for index, folder in enumerate(self.folders):
            frame, broken = read_records(folder / "records.jsonl")
            if broken:
                self.missing.append(
                    f"{self.names[index]}: {broken} unreadable line(s) in records.jsonl left out"
                )
            if unselected := self._leave_to_selection(index):
                frame = frame[~frame["method"].isin(unselected)].copy()
            frame["folder"] = index
            frames.append(frame)
            self.protocols.update(read_object(folder / "protocols.json", {}))
        self.grader = {s["name"]: s["metric"] for head in self.heads for s in head["skills"]}
        for head, frame in zip(self.heads, frames, strict=True):
            _count_judged(head, frame)
        self.split = self._agreed(
            "split",
            lambda head: {"": (head.get("evaluate") or {}).get("split") or "test"},
            "evaluate.split",
        )[""]
        self.metric = self._agreed(
            "metric", lambda head: {s["name"]: s["metric"] for s in head["skills"]}, "skill"
        )
        self.retention = {}
        self._agreed(
            "metric",
            lambda head: {t["name"]: t["metric"] for t in head.get("retention") or []},
            "retention task",
        )
        self.skills = {}
        for head in self.heads:
            self.skills.update({s["name"]: s for s in head["skills"]})
            self.retention.update({t["name"]: t for t in head.get("retention") or []})
        self.series = self._series(frames)
        self.records = self._pool(frames)
        self._refuse_two_protocols()
        self._index()
        self._what_is_missing()

    # -- reading and comparing
    # --------------------------------------------------------------------------------------

    def _agreed(self, what, read, of):
        """One value per key over all folders. Raises UserError naming both folders where two
        differ.
        """
        agreed = {}
        for index, head in enumerate(self.heads):
            for key, value in read(head).items():
                first = agreed.setdefault(key, (value, index))
                if first[0] != value:
                    raise UserError(
                        self.folders[index],
                        f"{of} {key} counts by the {what} {value!r}, in {self.folders[first[1]]} by "
                        f"{first[0]!r}".replace("  ", " "),
                        "report them apart: such numbers are not comparable",
                    )
        return {key: value for key, (value, _) in agreed.items()}

    def _leave_to_selection(self, index):
        """Takes the points of grids that were not selected from the methods of a folder, and
        returns their labels.
        """
        methods, chosen = (
            self.heads[index]["methods"],
            read_object(self.folders[index] / "selection.json", SELECTION),
        )
        unselected = [
            label
            for label, entry in methods.items()
            if (grid := entry.get("grid")) and chosen.get(grid["of"], {}).get("selected") != label
        ]
        for grid in dict.fromkeys(methods[label]["grid"]["of"] for label in unselected):
            if not chosen.get(grid, {}).get("selected"):
                self.missing.append(
                    f"{self.names[index]}: nothing is selected from the grid of {grid} before all its points have run "
                    "with all seeds"
                )
        kept = {label: entry for label, entry in methods.items() if label not in unselected}
        for entry in kept.values():
            if grid := entry.get("grid"):
                grid.update(
                    points=len(chosen[grid["of"]]["points"]), rule=chosen[grid["of"]]["rule"]
                )
        self.heads[index]["methods"] = kept
        return unselected

    def _series(self, frames):
        """Pools a label over folders where all that was to be learned is the same and no seed is
        there twice.

        That is method, config, model and order; budget, rollout, and of each skill its prompts,
        teacher's template and training data.

        The selected point of a grid goes by the label whose grid it is.
        """
        groups = defaultdict(list)
        for index, head in enumerate(self.heads):
            order = tuple(s["name"] for s in head["skills"])
            for there, entry in head["methods"].items():
                label, selected = there, ""
                if grid := entry.get("grid"):
                    label, values = (
                        grid["of"],
                        ", ".join(f"{name} {value}" for name, value in grid["values"].items()),
                    )
                    selected = (
                        f"{label}: {values}, selected among {grid['points']} by the {grid['rule']}."
                    )
                    entry = {part: value for part, value in entry.items() if part != "grid"}
                model = head.get("model") or {}
                if isinstance(model, dict):  # where it ran is provenance and keeps no seeds apart
                    model = {k: v for k, v in model.items() if k != "device"}
                learned = [
                    [s.get(part) for part in ("prompts", "teacher_template", "train")]
                    for s in head["skills"]
                ]
                key = json.dumps(
                    [label, entry, model, order, head.get("budget"), head.get("rollout"), learned],
                    sort_keys=True,
                )
                found = set(
                    frames[index].loc[frames[index]["method"] == there, "seed"].dropna().astype(int)
                )
                seeds = set(head["seeds"]) | found
                for group in groups[label]:
                    if group["key"] == key and not group["seeds"] & seeds:
                        group["seeds"] |= seeds
                        group["members"].append((index, there))
                        break
                else:
                    groups[label].append(
                        {
                            "key": key,
                            "seeds": seeds,
                            "members": [(index, there)],
                            "order": order,
                            "entry": entry,
                            "model": _model_name(head),
                            "selected": selected,
                        }
                    )
        series = {}
        for label, found in groups.items():
            for group in found:
                name = (
                    label if len(found) == 1 else f"{label} ({self.names[group['members'][0][0]]})"
                )
                series[name] = Series(
                    name,
                    group["entry"].get("method", label),
                    group["entry"].get("config") or {},
                    group["model"],
                    group["order"],
                    group["members"],
                    sorted(group["seeds"]),
                    group["selected"],
                )
        return series

    def _pool(self, frames):
        parts = []
        for index, frame in enumerate(frames):
            labels = {
                there: s.label for s in self.series.values() for i, there in s.members if i == index
            }
            frame["label"] = pd.Categorical(
                frame["method"].map(labels).astype(object), categories=list(self.series)
            )
            parts.append(frame)
        # one set of categories, so that the parts stay categorical when joined
        for column in TEXTS:
            union = pd.Index([]).append([part[column].cat.categories for part in parts]).unique()
            for part in parts:
                part[column] = part[column].cat.set_categories(union)
        table = pd.concat(parts, ignore_index=True)
        codes = pd.DataFrame(
            {
                c: (
                    table[c].cat.codes
                    if isinstance(table[c].dtype, pd.CategoricalDtype)
                    else table[c]
                )
                for c in ("folder", "run", "stage", "step", "kind", "name", "split", "metric")
            }
        )
        return table[~codes.duplicated(keep="last")].reset_index(
            drop=True
        )  # a repeated record replaces the earlier one

    def _refuse_two_protocols(self):
        table = self.records[self.records["final"]]
        keys = ["kind", "name", "split", "metric"]
        pairs = table.drop_duplicates([*keys, "protocol"])
        twice = pairs[pairs.duplicated(keys, keep=False)]
        if twice.empty:
            return
        first = twice.iloc[0]
        second = twice[(twice[keys] == first[keys]).all(axis=1)].iloc[1]
        raise UserError(
            f"{first['name']} ({first['split']}, {first['metric']})",
            f"measured under protocol {first['protocol']} in {self.folders[first['folder']]} and under "
            f"{second['protocol']} in "
            f"{self.folders[second['folder']]}"
            + _differences(
                self.protocols.get(first["protocol"]), self.protocols.get(second["protocol"])
            ),
            "numbers of two protocols are not averaged or compared; report them apart",
        )

    def _index(self):
        table = self.records
        counting = table["metric"].astype(object) == table["name"].astype(object).map(
            {**{t: v["metric"] for t, v in self.retention.items()}, **self.metric}
        )
        is_skill = table["kind"] == "skill"
        known = table["label"].notna()
        self.skill_records = table[is_skill & counting & (table["split"] == self.split) & known]
        tasks = table[(table["kind"] == "retention") & known]
        self.retention_records = tasks[
            tasks["metric"].astype(object)
            == tasks["name"].astype(object).map({t: v["metric"] for t, v in self.retention.items()})
        ]
        finals = self.skill_records[self.skill_records["final"]]
        self.runs = {label: [] for label in self.series}
        for label, folder, seed in (
            table.loc[known, ["label", "folder", "seed"]].drop_duplicates().itertuples(index=False)
        ):
            self.runs[label].append((int(folder), int(seed)))
        for runs in self.runs.values():
            runs.sort(key=lambda run: (run[1], run[0]))
        self.R, self.D, self.keys, self.stderr, self.answers = {}, {}, {}, {}, {}
        by_label = {
            "R": dict(list(finals.groupby("label", observed=True))),
            "D": dict(
                list(
                    self.retention_records[self.retention_records["final"]].groupby(
                        "label", observed=True
                    )
                )
            ),
        }
        for label, series in self.series.items():
            for kind, columns in (("R", series.order), ("D", tuple(self.retention))):
                where = kind, label
                (
                    getattr(self, kind)[label],
                    self.stderr[where],
                    self.answers[where],
                    self.keys[where],
                ) = self._array(by_label[kind].get(label), label, columns)
        for kind in ("R", "D"):
            self._share_the_base(kind)
        self.tasks_in_mean = {
            task: metrics.in_unit_interval(
                entry["metric"],
                self.retention_records.loc[self.retention_records["name"] == task, "value"],
                entry.get("higher_is_better", True),
            )
            for task, entry in self.retention.items()
        }
        self.n = {
            (kind, name): int(n)
            for kind, name, n in pd.concat([finals, self.retention_records])
            .drop_duplicates(["kind", "name"])[["kind", "name", "n"]]
            .dropna()
            .itertuples(index=False)
        }
        self.protocol_of = {
            (kind, name): protocol
            for kind, name, protocol in pd.concat([finals, self.retention_records])
            .drop_duplicates(["kind", "name"])[["kind", "name", "protocol"]]
            .itertuples(index=False)
        }

    def _array(self, table, label, columns):
        """Values, standard errors, numbers of answers and evaluations' keys [runs, T + 1, columns]
        of one label's final records.
        """
        runs = {run: i for i, run in enumerate(self.runs[label])}
        shape = (len(runs), len(self.series[label].order) + 1, len(columns))
        values, errors, n = np.full((3, *shape), np.nan)
        keys = np.full(shape, None, object)
        if table is None or not len(columns):
            return values, errors, n, keys
        table = table[table["name"].isin(columns) & (table["stage"] < shape[1])]
        where = (
            pd.MultiIndex.from_arrays([table["folder"], table["seed"].astype(int)])
            .map(runs)
            .to_numpy(int),
            table["stage"].to_numpy(int),
            table["name"].astype(object).map({c: i for i, c in enumerate(columns)}).to_numpy(int),
        )
        values[where], errors[where], n[where] = table["value"], table["stderr"], table["n"]
        keys[where] = table["evaluation"].astype(object)
        return values, errors, n, keys

    def _share_the_base(self, kind):
        """A run whose stage 0 is not on record yet has the base of its folder: it is the same
        model.
        """
        base = {}
        for fill in (False, True):
            for label, values in getattr(self, kind).items():
                columns = self.series[label].order if kind == "R" else tuple(self.retention)
                arrays = (
                    values,
                    self.stderr[kind, label],
                    self.answers[kind, label],
                    self.keys[kind, label],
                )
                for run, (folder, _) in enumerate(self.runs[label]):
                    for i, name in enumerate(columns):
                        if not fill and np.isfinite(values[run, 0, i]):
                            base.setdefault((folder, name), [array[run, 0, i] for array in arrays])
                        if fill and np.isnan(values[run, 0, i]) and (folder, name) in base:
                            for array, known in zip(arrays, base[folder, name], strict=True):
                                array[run, 0, i] = known

    def _what_is_missing(self):
        if self.records.empty:
            self.missing.append("no records yet: nothing was measured")
        graded = self._graded()
        for label, series in self.series.items():
            started = {seed for _, seed in self.runs[label]}
            absent = [s for s in series.seeds if s not in started]
            if absent:
                self.missing.append(f"{label}: no records of seed {', '.join(map(str, absent))}")
            T = len(series.order)
            for run, (folder, seed) in enumerate(self.runs[label]):
                found = np.isfinite(self.R[label][run])
                # then gaps were asked for
                part = (self.heads[folder].get("evaluate") or {}).get("skills", "all") != "all"
                done = (
                    np.append(found[:T].any(axis=1), found[T].all()) if part else found.all(axis=1)
                )
                waiting = (
                    {(int(k), int(i)) for k, i in np.argwhere(~found)} if not done[T] else set()
                )
                if waiting and waiting <= graded.get((label, folder, seed), set()):
                    stages = ", ".join(str(k) for k in sorted({k for k, _ in waiting}))
                    self.missing.append(
                        f"{label}, seed {seed}: answers of stage {stages} have no verdicts yet: "
                        f"python -m harness.judge {self.folders[folder]}"
                    )
                elif not done[T]:
                    last = max([k for k in range(T + 1) if done[k]], default=None)
                    self.missing.append(
                        f"{label}, seed {seed}: "
                        + (
                            f"{last} of {T} stages finished"
                            if last is not None
                            else "base not finished"
                        )
                        + "; it does not count in ACC, BWT, FWT and forgetting"
                    )
                elif not done.all():
                    gaps = ", ".join(str(k) for k in np.flatnonzero(~done))
                    self.missing.append(
                        f"{label}, seed {seed}: skills not all measured after stage {gaps}"
                    )
                if self.retention:
                    gaps = [
                        t
                        for i, t in enumerate(self.retention)
                        if done[T] and np.isnan(self.D[label][run, T, i])
                    ]
                    if gaps:
                        self.missing.append(
                            f"{label}, seed {seed}: no final retention of "
                            f"{', '.join(gaps[:8])}{' ...' * (len(gaps) > 8)}"
                        )
        for index, folder in enumerate(self.folders):
            place = folder / "evaluations"
            there = (
                {name.removesuffix(".json") for name in os.listdir(place)}
                if place.is_dir()
                else set()
            )
            mine = (
                self.records.loc[
                    (self.records["folder"] == index) & self.records["final"], "evaluation"
                ]
                .dropna()
                .unique()
            )
            absent = len(set(mine) - there)
            if absent:
                self.missing.append(
                    f"{self.names[index]}: completions and item scores of {absent:,} of {len(mine):,} evaluations are "
                    f"not on disk"
                )
        strange = set(self.records.loc[self.records["label"].isna(), "method"].dropna().astype(str))
        if strange:
            self.missing.append(
                f"records of {', '.join(sorted(strange)[:5])} left out: results.json does not list the method"
            )
        absent = (
            sorted(set(self.records["protocol"].cat.categories) - set(self.protocols))
            if len(self.records)
            else []
        )
        if absent:
            self.missing.append(
                f"protocols.json does not say what {', '.join(absent[:5])} stands for"
            )

    def _graded(self):
        """{(label, folder, seed): {(stage, place of the skill)}} that a grader has measured of
        skills that a judge counts in.
        """
        found, t = {}, self.records
        judged = {
            name: grader for name, grader in self.grader.items() if grader != self.metric[name]
        }
        if judged:
            graded = t["metric"].astype(object) == t["name"].astype(object).map(judged)
            t = t[graded & t["final"] & (t["split"] == self.split) & t["label"].notna()]
            for label, folder, seed, stage, name in t[
                ["label", "folder", "seed", "stage", "name"]
            ].itertuples(index=False):
                if name in self.series[label].order:
                    found.setdefault((label, int(folder), int(seed)), set()).add(
                        (int(stage), self.series[label].order.index(name))
                    )
        return found

    # -- estimates
    # --------------------------------------------------------------------------------------------------

    def complete(self, label):
        """Number of runs whose last stage is measured on every skill."""
        R = self.R[label]
        return int(np.isfinite(R[:, -1]).all(axis=1).sum()) if R.size else 0

    def estimate(self, label, function, kind="R", detail="", difference=False):
        """``function`` of the array [..., T + 1, columns] of each run: its mean and 95% interval.

        Over seeds (Student's t) where at least two runs give a number; where one does, over its
        examples: see ``interval``.
        """
        array = getattr(self, kind)[label]
        values = np.asarray(function(array), float) if array.size else np.array([])
        good = np.flatnonzero(np.isfinite(values))
        if not len(good):
            return Estimate(np.nan, detail=detail)
        seeds = [self.runs[label][i][1] for i in good]
        each = ", ".join(f"seed {s}: {values[i]:.4g}" for s, i in zip(seeds, good, strict=True))
        if len(good) > 1:
            mean, low, high = metrics.t_interval(values[good])
            # to rounding; a spread of 0 between a few seeds is no certainty
            alike = np.ptp(values[good]) < 1e-12
            low, high, by = (np.nan, np.nan, ALIKE) if alike else (low, high, SEEDS)
            return Estimate(
                mean, low, high, f"mean of {len(good)} seeds, {_said(by)} ({each})", detail, by
            )
        low, high, by = self.interval(kind, label, int(good[0]), function, difference)
        return Estimate(
            float(values[good[0]]),
            low,
            high,
            ", ".join(filter(None, (each, _said(by)))),
            detail,
            by,
        )

    def interval(self, kind, label, run, function, difference=False):
        """(low, high, key of HOW) of ``function`` of one run, a mean of entries or a
        ``difference``: 95% over its examples.

        Wilson's interval for a single accuracy (metrics.score_interval of the record). Else a
        percentile bootstrap where all that the function needs has been resampled. Else the standard
        errors stand in, but not for a difference between stages: they know nothing of how the same
        examples fare at both, and would make it far too wide. Where every resample gives the same
        number: Wilson's interval for a mean of 0 or 1 (as if the examples of all its skills were of
        one test), and none for anything else.
        """
        drawn, joint = self.draws(kind, label, run)

        def known(where):  # the functions give NaN where they need what is not there
            return bool(np.isfinite(function(np.where(where, drawn[0], np.nan))))

        by = BOOTSTRAP if known(joint) else APART if difference else ERRORS if known(True) else ""
        if by not in (BOOTSTRAP, ERRORS):
            return np.nan, np.nan, by
        columns = self.series[label].order if kind == "R" else tuple(self.retention)
        stage, column = np.indices(joint.shape)
        stages = [k for k in range(len(joint)) if not known(stage != k)]
        needed = [i for i in range(len(columns)) if not known(column != i)]
        names = [columns[i] for i in needed]
        fractions = not difference and all(kind == "R" or self.tasks_in_mean[t] for t in names)
        if fractions and len(stages) == len(needed) == 1:
            at = run, stages[0], needed[0]
            record = (
                of[at]
                for of in (
                    getattr(self, kind)[label],
                    self.stderr[kind, label],
                    self.answers[kind, label],
                )
            )
            low, high = metrics.score_interval(*record)
            if np.isfinite(low):
                return float(low), float(high), WILSON
        draws = function(drawn)
        if np.ptp(draws) > 1e-12:
            low, high = metrics.percentile_interval(draws)
            return float(low), float(high), by
        n = [self.n.get(("skill" if kind == "R" else "retention", name), 0) for name in names]
        if not fractions or draws[0] not in (0, 1) or not all(n):
            return np.nan, np.nan, ALIKE
        return *metrics.wilson_interval(draws[0] * sum(n), sum(n)), WILSON

    @lru_cache(maxsize=64)  # noqa: B019 - a Results lives as long as its report
    def draws(self, kind, label, run):
        """Draws [DRAWS, T + 1, columns] of one run's array, and which entries [T + 1, columns] have
        been resampled jointly.

        Bootstrap: the examples of a column are resampled once for all its stages. An evaluation
        that ``together`` leaves out is drawn from Normal(value, stderr) instead, by itself.
        """
        values, errors, keys = (
            getattr(self, kind)[label][run],
            self.stderr[kind, label][run],
            self.keys[kind, label][run],
        )
        columns = self.series[label].order if kind == "R" else tuple(self.retention)
        folder = self.runs[label][run][0]
        drawn, joint = np.full((DRAWS, *values.shape), np.nan), np.zeros(values.shape, bool)
        readable = sum(1 for key in keys.ravel() if isinstance(key, str)) <= MOST_FILES
        for i, name in enumerate(columns):
            metric = self.metric[name] if kind == "R" else self.retention[name]["metric"]
            generator = np.random.default_rng([len(columns), i])
            stages = np.flatnonzero(np.isfinite(values[:, i]))
            scores, found = self.together(
                [(folder, keys[k, i], metric, values[k, i]) for k in stages if readable]
            )
            joint[stages[found], i] = True
            for k in stages[~joint[stages, i]]:
                if np.isfinite(errors[k, i]):
                    drawn[:, k, i] = values[k, i] + errors[k, i] * generator.standard_normal(DRAWS)
            if found:
                means = metrics.bootstrap_means(scores, DRAWS, seed=i)
                drawn[:, joint[:, i], i] = means[..., 0] / means[..., 1]
        return drawn, joint

    def together(self, evaluations):
        """Scores and weights [items, found, 2] of evaluations (folder, key, metric, value) of the
        same items, and which were found.

        One without items, with other ones than the first or with ones whose (weighted) mean is not
        its value is left out.
        """
        ids, tables, found = None, [], []
        for at, (folder, key, metric, value) in enumerate(evaluations):
            items = self.items(folder, key, metric)
            if items and (ids is None or set(ids) == set(items)):
                table = np.array([items[item] for item in ids or items])
                if abs(table[:, 0].sum() / table[:, 1].sum() - value) < 1e-6:
                    ids = ids or list(items)
                    tables.append(table)
                    found.append(at)
        return np.stack(tables, 1) if tables else None, found

    def items(self, folder, key, metric):
        """{item id: (score times weight, weight)} of an evaluation, None where it is not on disk or
        holds no scores.

        An item weighs 1 if it does not say its ``weight``, as how many instructions its prompt
        gave; one of bits per byte as its bytes, which are its log-likelihood (the response) over
        its score, to a factor.
        """
        try:
            found = {}
            for item in self.evaluation(folder, key).get("items") or []:
                score = float(item["score"] if "score" in item else item["scores"][metric])
                ratio = metric.partition(",")[0] == "bits_per_byte" and "response" in item
                weight = -float(item["response"]) / score if ratio else float(item.get("weight", 1))
                found[str(item["id"])] = score * weight, weight
            return found or None
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None

    def evaluation(self, folder, key):
        """The file of one evaluation, {} where it is missing."""
        if not isinstance(key, str) or not re.fullmatch(r"[\w.+=-]+", key):
            return {}
        return read_object(self.folders[folder] / "evaluations" / f"{key}.json", EVALUATION)

    def retention_mean(self, array):
        """Mean over the tasks that may be averaged, of an array [..., T + 1, tasks]: shape [..., T
        + 1].
        """
        counts = np.array([self.tasks_in_mean[t] for t in self.retention], bool)
        return array[..., counts].mean(-1) if counts.any() else np.full(array.shape[:-1], np.nan)

    def bases(self):
        """The base models: {row label: label of a series that started from it, preferring complete
        ones}.
        """
        found = {}
        for label, series in self.series.items():
            if series.model not in found or self.complete(label) > self.complete(
                found[series.model]
            ):
                found[series.model] = label
        return {
            "base" if len(found) == 1 else f"base ({model})": label
            for model, label in found.items()
        }

    def base_estimate(self, names, row, kind="R", detail=""):
        """The base model's mean over ``names`` (skills for R, tasks for D), with an interval over
        examples.

        row: one of ``bases``. There is one base model, not one a seed, so its interval is never
        over seeds.
        """
        model = self.series[self.bases()[row]].model
        for label, series in self.series.items():
            columns = list(series.order) if kind == "R" else list(self.retention)
            if series.model != model or not names or not set(names) <= set(columns):
                continue
            chosen = [columns.index(name) for name in names]
            for run in range(len(self.runs[label])):
                value = getattr(self, kind)[label][run, 0, chosen].mean()
                if np.isfinite(value):
                    low, high, by = self.interval(
                        kind, label, run, lambda a, at=chosen: a[..., 0, at].mean(-1)
                    )
                    return Estimate(float(value), low, high, _said(by), detail, by)
        return Estimate(np.nan, detail=detail)

    # -- training
    # ---------------------------------------------------------------------------------------------------

    def provenance(self):
        """run.json of every run that has one, with ``folder`` added."""
        found = []
        for index, folder in enumerate(self.folders):
            for path in (
                sorted((folder / "runs").glob("*/run.json")) if (folder / "runs").is_dir() else ()
            ):
                found.append({**read_object(path, RUN), "folder": index})
        return found

    @lru_cache(maxsize=1)  # noqa: B019
    def stages(self):
        """One row a finished stage: label, folder, seed, stage, steps, prompts, tokens, seconds per
        part, peak_memory_gib.
        """
        rows = []
        for label, folder, seed, place in self._places():
            for path in place.glob("stage-*[0-9]/stage.json"):  # not a stage-2.partial
                stage = read_object(path, STAGE)
                seconds = stage.pop("seconds", None) or {}
                rows.append(
                    {
                        "label": label,
                        "folder": folder,
                        "seed": seed,
                        **stage,
                        **{f"seconds_{part}": value for part, value in seconds.items()},
                    }
                )
        return pd.DataFrame(rows)

    def base_costs(self):
        """{row of ``bases``: seconds per part of measuring the base model, one dict a folder}.

        A folder measures it once, in whichever run comes first, be it one that a grid did not
        select: summed over all runs.
        """
        found = {}
        for row, label in self.bases().items():
            for index in dict.fromkeys(
                i
                for s in self.series.values()
                if s.model == self.series[label].model
                for i, _ in s.members
            ):
                total = defaultdict(float)
                for path in (self.folders[index] / "runs").glob("*/stage-0/stage.json"):
                    for part, seconds in (read_object(path, STAGE).get("seconds") or {}).items():
                        total[part] += seconds or 0
                found.setdefault(row, []).append(total)
        return found

    def training(self, most=400):
        """One row an optimizer step (at most about ``most`` a stage, evenly spaced): label, seed,
        stage, step, diagnostics.
        """
        parts = []
        for label, _, seed, place in self._places():
            paths = sorted(
                place.glob("stage-*[0-9]/training.jsonl"),
                key=lambda p: int(re.sub(r"\D", "", p.parent.name) or 0),
            )
            for path in paths:
                lines = [
                    line
                    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")
                    if line.strip()
                ]
                lines = lines[:: max(1, len(lines) // most)]
                frame = pd.DataFrame(json_objects(lines)[0])
                if frame.empty or "step" not in frame:
                    continue
                numbers = frame.select_dtypes("number").copy()
                numbers["label"], numbers["seed"], numbers["stage"] = (
                    label,
                    seed,
                    int(re.sub(r"\D", "", path.parent.name) or 0),
                )
                parts.append(numbers)
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def _places(self):
        """(label, folder index, seed, path) of every run on disk."""
        labels = {member: s.label for s in self.series.values() for member in s.members}
        for index, folder in enumerate(self.folders):
            root = folder / "runs"
            for place in sorted(root.iterdir()) if root.is_dir() else ():
                found = re.fullmatch(r"(.+)-seed(-?\d+)", place.name)
                if found and (index, found[1]) in labels:
                    yield labels[index, found[1]], index, int(found[2]), place


def _said(by):
    """HOW, of one number."""
    return ("no interval: " if by in (APART, ALIKE) else "95% interval ") + HOW[by] if by else ""


def _head(folder):
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
    head = read_object(path, {})
    if head.get("version") != VERSION:
        raise UserError(
            path,
            f"has version {head.get('version')!r}, this report reads version {VERSION}",
            "use the release that wrote it",
        )
    check_shape(path, head, HEAD, "")
    return head


def _count_judged(head, frame):
    """A skill that was judged counts by the judge's first metric: verdicts and grades are never
    mixed in one column.
    """
    for skill in head["skills"]:
        for metric in ((skill.get("judge") or {}).get("metrics") or [])[:1]:
            if ((frame["name"] == skill["name"]) & (frame["metric"] == metric)).any():
                skill["metric"] = metric


def _model_name(head):
    model = head.get("model") or {}
    if not isinstance(model, dict):
        return str(model)
    name, revision = str(model.get("name") or "model"), model.get("revision")
    return f"{name} {str(revision)[:8]}" if revision else name


def distinct(names, folders):
    """Names for folders: the order's, made different by the folder's where two are equal."""
    if len(set(names)) == len(names):
        return names
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _differences(one, other, most=4):
    """What two protocols differ in, as text."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return ""
    flat = [dict(_flat(one)), dict(_flat(other))]
    keys = [k for k in sorted(flat[0].keys() | flat[1].keys()) if flat[0].get(k) != flat[1].get(k)]
    shown = ", ".join(
        f"{k} {json.dumps(flat[0].get(k))[:40]} / {json.dumps(flat[1].get(k))[:40]}"
        for k in keys[:most]
    )
    return f" ({shown}{', ...' if len(keys) > most else ''})" if keys else ""


def _flat(value, prefix=""):
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
