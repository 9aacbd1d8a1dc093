"""What each figure and table of arXiv 2601.19897 shows, taken from the records of results folders:
one row a number.

A row holds the panel, the series, the place on the axis, value, 95% interval, unit and note of
benchmarks.paper.drawing.COLUMNS, and the records that the value is the mean of. Percentages in per
cent.
"""

import math
import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd

from harness.base import metrics
from harness.report.data import Estimate
from harness.report.figures import Drawer
from harness.results.formats import ORACLE

CONTEXTS = {"demonstration": "answer only", "source": "text only", "both": "text and answer"}
# lm-eval's name: the paper's column
SAME_TASK = {"truthfulqa_mc1": "truthfulqa", "humaneval_sandboxed": "humaneval"}


def rows_of(results, *, kind="skill", name, metric, stage=None, label=None, split=None):
    """Records of one thing; without a label the base model's, which is one however many runs have
    it on record.
    """
    t = results.records
    wanted = (t["kind"] == kind) & (t["name"] == name) & (t["metric"] == metric) & t["final"]
    if kind == "skill":
        wanted &= t["split"] == (split or results.split)
    found = t[wanted & (t["stage"] == (0 if label is None else stage))]
    return found[found["label"] == label] if label is not None else found.head(1)


def estimate(rows, scale=1.0, tasks=1, fraction=None):
    """Mean and interval of records, one a seed, or ``tasks`` a seed, of which the mean is taken;
    None where no seed has all.

    The errors of several tasks are independent. fraction: whether values are in [0, 1]; if left
    out, those given in per cent.
    """
    rows = rows[rows.groupby("seed")["value"].transform("count") == tasks].dropna(subset=["value"])
    if rows.empty:
        return None
    share = scale == 100 if fraction is None else fraction
    values, n = rows.groupby("seed")["value"].mean(), rows["n"].iloc[0]
    if len(values) > 1:
        mean, low, high = metrics.t_interval(values)
        how, spread = f"{len(values)} seeds", np.ptp(values)
    else:
        mean, spread = (
            values.iloc[0],
            1.96 * math.sqrt((rows["stderr"] ** 2).sum(skipna=False)) / tasks,
        )
        low, high, how = mean - spread, mean + spread, "one model"
    if spread < 1e-12:  # none, to rounding, is no certainty
        low = high = math.nan
    if len(rows) == 1 and share:
        low, high = metrics.score_interval(mean, rows["stderr"].iloc[0], n)
    how += f", n = {int(n)}" if tasks == 1 and rows["n"].notna().all() else ""
    return Estimate(mean * scale, low * scale, high * scale, how, records=rows)


def difference(results, mine, other, scale=1.0):
    """Mean and interval of what ``mine`` has over ``other``: records of one measure, or of several
    tasks of which the mean is taken.

    Paired: by Student's t over the seeds that both have (all of them, where ``other`` is the base
    model); where that is one, by a bootstrap over the examples, which both answered, and without an
    interval where their scores are not at hand. None where no seed has both.
    """
    pairs = mine.merge(
        other,
        on=["name"] if (other["stage"] == 0).all() else ["name", "seed"],
        suffixes=("", "_other"),
    )
    pairs["gap"] = pairs["value"] - pairs["value_other"]
    pairs = pairs[pairs.groupby("seed")["gap"].transform("count") == mine["name"].nunique()]
    gaps, low, high = pairs.groupby("seed")["gap"].mean(), math.nan, math.nan
    if gaps.empty:
        return None
    if len(gaps) > 1:
        alike, how = np.ptp(gaps) < 1e-12, f"{len(gaps)} seeds, paired"
        _, low, high = metrics.t_interval(gaps)
    elif (draws := _paired_draws(results, pairs)) is not None:
        alike, how = np.ptp(draws) < 1e-12, "one seed, paired over examples"
        low, high = metrics.percentile_interval(draws)
    else:
        alike, how = False, "no interval: scores of the same examples are not at hand"
    if alike:
        low, high, how = math.nan, math.nan, f"no interval: {how}, and all differ by the same"
    return Estimate(gaps.mean() * scale, low * scale, high * scale, how)


def _paired_draws(results, pairs):
    """Bootstrap draws of the mean difference over tasks, each task's examples resampled at once for
    both; None without scores.
    """
    draws = []
    for number, pair in enumerate(pairs.itertuples()):
        # recorded so; its items have the skill's
        metric = pair.metric_other if pair.metric == "teacher_accuracy" else pair.metric
        scores, found = results.together(
            [
                (pair.folder, pair.evaluation, metric, pair.value),
                (pair.folder_other, pair.evaluation_other, metric, pair.value_other),
            ]
        )
        if len(found) < 2:
            return None
        means = metrics.bootstrap_means(scores, seed=number)
        draws.append(np.subtract(*(means[..., 0] / means[..., 1]).T))
    return np.mean(draws, axis=0)


def _number(panel, series, x, found, unit, note=""):
    """One row of the measured side, as a list of none or one."""
    if found is None:
        return []
    return [
        {
            "panel": panel,
            "series": series,
            "x": x,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "unit": unit,
            "note": "; ".join(filter(None, [found.how, note])),
            "records": found.records,
        }
    ]


def unjudged(results):
    """Skills whose answers the paper's judge grades, and here a program: by another metric, which
    panels and captions name.
    """
    return [
        s
        for s, entry in results.skills.items()
        if entry.get("judge") and results.metric[s] not in entry["judge"]["metrics"]
    ]


def learners(results, base=True):
    """(skill, its stage, label) of everything to be measured right after the stage that taught the
    skill; label None: the base.
    """
    for name in results.skills:
        if base:
            yield name, 0, None
        for label, series in results.series.items():
            if name in series.order:
                yield name, series.order.index(name) + 1, label


def skill_learning(results):
    """Table 5 and figure 4: accuracy on the task learned, every benchmark, and the mean of those
    that may be averaged.
    """
    rows, averaged = [], [t for t, counts in results.tasks_in_mean.items() if counts]
    for name, stage, label in learners(results):
        series = label or "base"
        found = estimate(
            rows_of(results, name=name, metric=results.metric[name], stage=stage, label=label), 100
        )
        rows += _number(name, series, "new_task", found, "%", results.metric[name])
        for task, entry in results.retention.items():
            share = results.tasks_in_mean[task]
            found = estimate(
                rows_of(
                    results,
                    kind="retention",
                    name=task,
                    metric=entry["metric"],
                    stage=stage,
                    label=label,
                ),
                100 if share else 1,
            )
            rows += _number(
                name,
                series,
                SAME_TASK.get(task, task),
                found,
                "%" if share else entry["metric"].split(",")[0],
                entry["metric"]
                + ("" if entry.get("higher_is_better", True) else ", lower is better"),
            )
        if averaged:
            parts = [
                rows_of(
                    results,
                    kind="retention",
                    name=t,
                    metric=results.retention[t]["metric"],
                    stage=stage,
                    label=label,
                )
                for t in averaged
            ]
            found = estimate(pd.concat(parts), 100, tasks=len(averaged))
            rows += _number(name, series, "prior_avg", found, "%", "mean of " + ", ".join(averaged))
    return rows


def knowledge(results):
    """Table 1. The oracle row is the base model with the source of each question in its prompt,
    where the order asks for it.
    """
    rows = []
    for name, stage, label in learners(results):
        counting = results.metric[name]
        on_record = set(results.records.loc[results.records["name"] == name, "metric"].astype(str))
        judge = "judged_" if "judged_strict" in on_record else ""
        columns = [
            (m, judge + m, None) for m in ("strict", "lenient") if judge + m in on_record
        ] or [(counting, counting, None)]
        for x, metric, split in [*columns, ("ood", counting, "ood")]:
            found = estimate(
                rows_of(results, name=name, metric=metric, stage=stage, label=label, split=split),
                100,
            )
            rows += _number(name, label or "base", x, found, "%", metric)
            if label is None:
                found = estimate(
                    rows_of(results, name=name, metric=ORACLE + metric, split=split), 100
                )
                rows += _number(name, "oracle_rag", x, found, "%", ORACLE + metric)
    return rows


def reasoning(results):
    """Table 2: accuracy and the length of answers."""
    rows = []
    for name, stage, label in learners(results):
        for x, metric, scale, unit in (
            ("accuracy", results.metric[name], 100, "%"),
            ("response_tokens", "response_tokens", 1, "tokens"),
        ):
            found = estimate(
                rows_of(results, name=name, metric=metric, stage=stage, label=label), scale
            )
            rows += _number(name, label or "base", x, found, unit, metric)
    return rows


def in_context(results):
    """Figure 2 right and section 3.2: what the teacher is worth, and how far it and the trained
    models are from the base policy.
    """
    rows = []
    for name, stage, label in learners(results):
        if label is None:
            teacher, split = _teacher(results, name, "teacher_accuracy")
            if teacher:
                grader = results.grader[name]  # a judge has not seen the teacher's answers
                base = estimate(rows_of(results, name=name, metric=grader, split=split), 100)
                rows += _number(name, "base", "accuracy", base, "%", f"{grader}, split {split}")
                rows += _number(
                    name,
                    "teacher",
                    "accuracy",
                    _scaled(teacher, 100),
                    "%",
                    f"{grader}, split {split}",
                )
        for x in (
            "kl_forward_token",
            "kl_reverse_token",
            "kl_forward_sequence",
            "kl_reverse_sequence",
        ):
            if label is None:
                found, split = _teacher(results, name, f"teacher_{x}")
                rows += _number(name, "teacher", x, found, "nats", f"split {split}")
            else:
                rows += _number(
                    name,
                    label,
                    x,
                    estimate(rows_of(results, name=name, metric=x, stage=stage, label=label)),
                    "nats",
                )
    return rows


def _teacher(results, name, metric):
    """What was measured of the teacher at stage 0, and on which split: it needs demonstrations,
    which a test has none of.
    """
    table = results.records
    found = table[
        (table["name"] == name) & (table["metric"] == metric) & (table["stage"] == 0)
    ].head(1)
    return estimate(found, fraction=metric == "teacher_accuracy"), (
        str(found["split"].iloc[0]) if len(found) else None
    )


def _scaled(found, scale):
    return replace(found, value=found.value * scale, low=found.low * scale, high=found.high * scale)


def model_size(results):
    """Figure 5 left: SDFT minus SFT on each skill."""
    rows = []
    for name, stage, label in learners(results, base=False):
        if label != "sdft" or "sft" not in results.series:
            continue
        mine, other = (
            rows_of(results, name=name, metric=results.metric[name], stage=stage, label=s)
            for s in ("sdft", "sft")
        )
        rows += _number(
            name,
            "sdft - sft",
            model_name(results.heads[0]),
            difference(results, mine, other, 100),
            "points",
            results.metric[name],
        )
    return rows


def pass_at_k(results):
    """Figure 5 right: pass@k, the k of the records."""
    rows, on_record = [], results.records["metric"].astype(str).unique()
    ks = sorted(int(m[1]) for m in (re.fullmatch(r"pass@(\d+)", text) for text in on_record) if m)
    for name, stage, label in learners(results):
        for k in ks:
            found = estimate(
                rows_of(results, name=name, metric=f"pass@{k}", stage=stage, label=label), 100
            )
            # a judge has not seen these answers
            rows += _number(name, label or "base", k, found, "%", results.grader[name])
    return rows


def teacher_context(results):
    """Figure 7: accuracy by what the teacher was shown."""
    rows = []
    for name, stage, label in learners(results, base=False):
        series = results.series[label]
        shown = series.config.get("teacher_context")
        found = estimate(
            rows_of(results, name=name, metric=results.metric[name], stage=stage, label=label), 100
        )
        rows += _number(
            name,
            series.method,
            CONTEXTS.get(shown, label),
            found,
            "%",
            f"{results.metric[name]}, {label}",
        )
    return rows


def _inside(results, label, name, stage):
    """(step, prompts, estimate in per cent) of a skill along the stage that teaches it, the model
    before the stage first.
    """
    t = results.skill_records
    mine = t[(t["label"] == label) & (t["name"] == name)]
    before = mine[(mine["stage"] == stage - 1) & mine["final"]]
    inside = mine[mine["stage"] == stage]
    start = (
        before[["step", "prompts"]].max() if len(before) else pd.Series({"step": 0, "prompts": 0})
    )
    for step, rows in pd.concat([before, inside]).groupby("step", observed=True):
        if (found := estimate(rows, 100)) is not None:
            yield step - start["step"], rows["prompts"].median() - start["prompts"], found


def spent(results, label, stage):
    """Prompts drawn and optimizer steps of a stage, of its final records; NaN where it is not over."""
    t = results.skill_records
    ends = t[(t["label"] == label) & t["final"]].groupby("stage")[["prompts", "step"]].median()
    return ends.reindex([stage - 1, stage]).diff().iloc[-1]


def teacher_weights(results):
    """Figure 8: accuracy along training."""
    return [
        row
        for name, stage, label in learners(results, base=False)
        for step, _, found in _inside(results, label, name, stage)
        for row in _number(name, label, int(step), found, "%", results.metric[name])
    ]


def generations(results):
    """Figure 6: accuracy by the number of answers that were sampled to learn from.

    An on-policy method samples anew for every prompt (options ``rollouts``, ``group_size``): its
    points lie along training. A method with a fixed set of teacher samples (option ``generations``,
    at most one a prompt drawn) is worth what the whole stage has made of that set: one point a run,
    at the set's size. A method that samples nothing has no place on the axis.
    """
    rows = []
    for name, stage, label in learners(results, base=False):
        series, (drawn, _) = results.series[label], spent(results, label, stage)
        each = series.config.get("rollouts") or series.config.get("group_size")  # answers a prompt
        if "generations" in series.config and math.isfinite(drawn):
            found = estimate(
                rows_of(results, name=name, metric=results.metric[name], stage=stage, label=label),
                100,
            )
            count = int(min(series.config["generations"] or drawn, drawn))
            rows += _number(name, series.method, count, found, "%", results.metric[name])
        elif each:
            for _, prompts, found in _inside(results, label, name, stage):
                rows += _number(name, label, int(prompts * each), found, "%", results.metric[name])
    return sorted(rows, key=lambda row: row["x"])


def sequence(results):
    """Figure 3: accuracy of every skill along the whole sequence, 0 = base, 1 = the best point of
    any method's mean curve.
    """
    drawer, rows = along(results), []
    for name in results.skills:
        mine = drawer.curves[drawer.curves["name"] == name] if len(drawer.curves) else drawer.curves
        best = mine["value"].max() if len(mine) else math.nan
        for label in results.series:
            one = mine[mine["label"] == label].sort_values("x")
            start = one.loc[one["x"] == drawer.edges[0], "value"]
            base = start.iloc[0] if len(start) else math.nan
            for x, seeds, *numbers in one[["x", "seeds", "value", "low", "high"]].itertuples(
                index=False
            ):
                if best > base:
                    found = Estimate(
                        *map(float, metrics.normalised(numbers, base, best)), f"seeds: {seeds}"
                    )
                    rows += _number(
                        name,
                        label,
                        float(x),
                        found,
                        "normalised",
                        f"base {base:.4g}, best {best:.4g}",
                    )
    return rows


@lru_cache(maxsize=8)
def along(results):
    """A Drawer that knows the axis of training and the curves along it."""
    drawer = Drawer(results, None)
    drawer._axis()
    drawer.curves = drawer._curves()
    return drawer


def model_name(head):
    """A model's short name; the embedded one by what it is."""
    model = head.get("model") or {}
    name = str(model.get("name", model) if isinstance(model, dict) else model)
    return "SmolLM2-135M-Instruct" if name == "embedded" else name.rstrip("/").rsplit("/", 1)[-1]
