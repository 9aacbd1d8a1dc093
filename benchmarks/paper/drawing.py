"""The figures and tables of arXiv 2601.19897: the published numbers and the measured ones, in one
form, side by side.

Both sides are tables of the same columns, one row a number (COLUMNS; benchmarks/paper/README.md
says what each is), and go through the same drawing. The published side is read from the CSV files
beside this one; the measured side comes from results folders whose order names an ``experiment``.
Percentages in per cent; an interval is 95%: over seeds (Student's t; none where all give the same
number), where there is one seed over examples (Wilson's for an accuracy, else 1.96 standard
errors). A difference of two methods is paired, over seeds or of one seed over examples: see
benchmarks.paper.measured.
"""

import html
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from benchmarks.paper.measured import (
    along,
    difference,
    generations,
    in_context,
    knowledge,
    learners,
    model_name,
    model_size,
    pass_at_k,
    reasoning,
    sequence,
    skill_learning,
    spent,
    teacher_context,
    teacher_weights,
    unjudged,
)
from harness.base.errors import UserError
from harness.report import page
from harness.report.build import made_beside
from harness.report.data import Estimate, ReportData, distinct
from harness.report.figures import BASE, INK, MUTED, PAPER, STYLE, curve, grid, legend, looks, save
from harness.report.tables import Column, Table
from harness.results.formats import LATER, read_object

ROOT = Path(__file__).resolve().parent.parent.parent
NUMBERS = ROOT / "benchmarks" / "paper"
COLUMNS = ["experiment", "panel", "series", "x", "value", "low", "high", "unit", "source", "note"]
TITLES = {
    "new_task": "new task",
    "prior_avg": "prior average",
    "ood": "out of distribution",
    "response_tokens": "response tokens",
    "kl": "KL to the base policy",
    "kl_forward_token": "KL(base ‖ model), a token",
    "kl_reverse_token": "KL(model ‖ base), a token",
    "kl_forward_sequence": "KL(base ‖ model), an answer",
    "kl_reverse_sequence": "KL(model ‖ base), an answer",
}


def _spread(rows):
    """Error bars [2, rows] of values in ``rows``; 0 where there is no interval."""
    return np.nan_to_num(
        np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]], float)
    ).clip(0)


def _axis(unit):
    return {
        "%": "accuracy (%)",
        "points": "sdft − sft (points)",
        "normalised": "normalised accuracy",
    }.get(unit, unit)


def bars(frame, look, panel, bar):
    """One panel a value of column ``panel``, one bar a value of column ``bar``; a number stands at
    each.
    """
    names = list(dict.fromkeys(frame[panel]))
    most = max(len(frame[frame[panel] == name]) for name in names)
    figure, panels, _, _ = grid(
        len(names), width=max(2.7, 1.0 + 0.85 * most), columns=2 if most < 5 else 1
    )
    for axes, name in zip(panels, names, strict=True):
        rows = frame[frame[panel] == name]
        colours = [look[s][0] if s in look else BASE for s in rows["series"]]
        spread = _spread(rows)
        axes.bar(range(len(rows)), rows["value"], width=0.62, color=colours, zorder=2)
        axes.errorbar(
            range(len(rows)),
            rows["value"],
            yerr=spread,
            fmt="none",
            ecolor=INK,
            elinewidth=1.1,
            zorder=3,
        )
        axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
        for at, (value, below, above) in enumerate(zip(rows["value"], *spread)):
            up = value >= 0
            text = f"{value:.3g}" if rows["unit"].iloc[0] == "nats" else f"{value:.1f}"
            axes.annotate(
                text.replace("-", "−"),
                (at, value + above if up else value - below),
                xytext=(0, 3 if up else -3),
                textcoords="offset points",
                ha="center",
                va="bottom" if up else "top",
                fontsize=8.5,
            )
        axes.set_xticks(
            range(len(rows)), [_broken(text) for text in rows[bar].astype(str)], color=INK
        )
        axes.tick_params(axis="x", length=0)
        axes.margins(y=0.16)
        middle, half = (len(rows) - 1) / 2, max(len(rows), 2.4) / 2
        axes.set_xlim(middle - half, middle + half)
        axes.grid(axis="x", visible=False)
        axes.set_title(TITLES.get(name, name))
        axes.set_ylabel(_axis(rows["unit"].iloc[0]))
    return figure


def _broken(text, width=13):
    """A label in lines of about ``width`` letters, broken at blanks, hyphens and underscores."""
    lines = [""]
    for part in re.findall(r"[^\s_-]+[\s_-]?", text):
        if lines[-1] and len(lines[-1] + part.strip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def lines(frame, look, axis, up=None, log=False, drawer=None):
    """One panel a task, one line a series with its band; axis, up: labels of x and y; drawer: of a
    sequence, for the borders of its stages.
    """
    names, labels = list(dict.fromkeys(frame["panel"])), list(dict.fromkeys(frame["series"]))
    figure, panels, _, columns = grid(
        len(names), width=3.4 if len(names) > 1 else 5.4, height=2.5 if len(names) > 1 else 3.1
    )
    for number, (axes, name) in enumerate(zip(panels, names, strict=True)):
        for label in labels:
            rows = frame[(frame["panel"] == name) & (frame["series"] == label)].sort_values(
                "x", key=lambda x: x.astype(float)
            )
            if len(rows):
                bounds = (
                    (
                        rows[["low", "high"]].clip(0, 100)
                        if rows["unit"].iloc[0] == "%"
                        else rows[["low", "high"]]
                    )
                    .to_numpy(float)
                    .T
                )
                curve(axes, look[label], rows["x"].astype(float), rows["value"], *bounds, scale=1)
        if log:
            axes.set_xscale("log", base=2)
            ticks = sorted({int(x) for x in frame["x"]})
            axes.set_xticks(ticks, [str(k) for k in ticks])
            axes.minorticks_off()
        if drawer:
            drawer._frame(
                axes,
                drawer.order.index(name) + 1 if drawer.order and name in drawer.order else None,
            )
            axes.axhline(0, color=BASE, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
            axes.axhline(1, color=MUTED, linewidth=0.8, zorder=1)
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -1), min(high, 1.8))
        axes.set_title(name, pad=13 if drawer else 6)
        if number % columns == 0:
            axes.set_ylabel(up or _axis(frame["unit"].iloc[0]))
        if number >= len(names) - columns:
            axes.set_xlabel(axis)
    legend(figure, look, labels)
    return figure


def plane(frame, look):
    """Figure 4: one panel a task; up: the new task, right: the mean of the prior capabilities; a
    dashed cross at the base.
    """
    frame = frame[frame["x"].isin(["new_task", "prior_avg"])]
    names, labels = (
        list(dict.fromkeys(frame["panel"])),
        [s for s in dict.fromkeys(frame["series"]) if s != "base"],
    )
    figure, panels, _, columns = grid(
        len(names), width=3.4 if len(names) > 1 else 5.4, height=2.7 if len(names) > 1 else 3.3
    )
    for number, (axes, name) in enumerate(zip(panels, names, strict=True)):
        points = frame[frame["panel"] == name]
        for rank, label in enumerate(["base", *labels]):
            mine = points[points["series"] == label].set_index("x")
            if not {"new_task", "prior_avg"} <= set(mine.index):
                continue
            colour, marker, _ = look.get(label, (BASE, "*", "-"))
            x, y = mine.loc[["prior_avg"]], mine.loc[["new_task"]]
            if label == "base":
                axes.axvline(
                    x["value"].iloc[0], color=BASE, linewidth=1, linestyle=(0, (4, 2)), zorder=1
                )
                axes.axhline(
                    y["value"].iloc[0], color=BASE, linewidth=1, linestyle=(0, (4, 2)), zorder=1
                )
            axes.errorbar(
                x["value"],
                y["value"],
                xerr=_spread(x),
                yerr=_spread(y),
                color=colour,
                marker=marker,
                linestyle="none",
                # where two coincide the one below shows
                markersize=max(7, 13 - 1.5 * rank),
                markeredgecolor=PAPER,
                markeredgewidth=0.6,
                elinewidth=1.1,
                zorder=4,
            )
        axes.margins(0.14)
        axes.set_title(name)
        axes.set_xlabel("mean of prior capabilities (%)")
        if number % columns == 0:
            axes.set_ylabel("accuracy on the new task (%)")
    legend(figure, {label: (*look[label][:2], "none") for label in labels}, labels, base=True)
    return figure


def table(frame, name, title, note):
    """A Table with one row a series (and task, where there are several) and one column a value of
    ``x``.
    """
    tasks, columns = list(dict.fromkeys(frame["panel"])), {}
    for x, unit in frame[["x", "unit"]].drop_duplicates("x").itertuples(index=False):
        kind = {"%": "%", "tokens": "count"}.get(unit, "own")
        columns[x] = Column(
            x, TITLES.get(x, x) + ("" if unit in ("%", "tokens") else f" ({unit})"), unit=kind
        )
    rows = defaultdict(dict)
    for row in frame.itertuples():
        scale = 0.01 if columns[row.x].unit == "%" else 1
        label = row.series if len(tasks) == 1 else f"{row.panel}: {row.series}"
        rows[label][row.x] = Estimate(
            row.value * scale, row.low * scale, row.high * scale, row.source, row.note
        )
    return Table(
        name,
        title,
        note,
        list(columns.values()),
        list(rows.items()),
        stub="method" if len(tasks) == 1 else "task: method",
    )


@dataclass(frozen=True)
class Item:
    """One figure or table. experiment: of the orders whose results it shows; measure: Results ->
    rows; draw: (frame, look, results or None) -> figure, None for a table; joined: results of
    several orders go into one picture; absent: why nothing is drawn of the published side; signs:
    (series, other series, x) whose difference is compared with the published one.
    """

    title: str
    experiment: str
    what: str
    measure: object
    draw: object = None
    joined: bool = False
    absent: str = ""
    signs: tuple = ()


CURVES_ONLY = "the paper shows curves and prints no numbers"
ITEMS = {
    "figure_2_right": Item(
        "Figure 2 right",
        "figure_2_right",
        "Distance to the base policy of the demonstration-conditioned teacher and of trained models; "
        "and the teacher's accuracy (section 3.2).",
        in_context,
        lambda f, look, _: bars(f, look, "x", "series"),
        signs=(("teacher", "base", "accuracy"),),
    ),
    "figure_3": Item(
        "Figure 3",
        "figure_3",
        "One model learns the skills in turn. Accuracy of each skill, linear, 0 = base model, 1 = the highest "
        "point of any compared method's mean curve on that skill. Dashed: stage borders; shaded: the stage that teaches the panel's skill.",
        sequence,
        lambda f, look, r: lines(
            f, look, "optimizer steps" if along(r).in_steps else "stage", drawer=along(r)
        ),
        absent=CURVES_ONLY,
    ),
    "figure_4": Item(
        "Figure 4",
        "table_5",
        "New task against prior capabilities, after learning one task; the dashed cross is the base model. The "
        "numbers are those of table 5.",
        skill_learning,
        lambda f, look, _: plane(f, look),
        joined=True,
        signs=(("sdft", "sft", "new_task"), ("sdft", "sft", "prior_avg")),
    ),
    "figure_5_left": Item(
        "Figure 5 left",
        "figure_5_left",
        "Accuracy on the new task, SDFT minus SFT, by model. Where the models are of several families, "
        "or their budgets differ, nothing is said about size.",
        model_size,
        lambda f, look, _: bars(f, look, "panel", "x"),
        joined=True,
    ),
    "figure_5_right": Item(
        "Figure 5 right",
        "figure_5_right",
        "pass@k, the unbiased estimator.",
        pass_at_k,
        lambda f, look, _: lines(f, look, "k", "pass@k (%)", log=True),
        absent=CURVES_ONLY,
    ),
    "figure_6": Item(
        "Figure 6",
        "figure_6",
        "On-policy or not: accuracy by the number of answers sampled to learn from. SDFT samples its own anew, "
        "along training; the others learn from a fixed set of the teacher's, a point a run, at the same number of optimizer steps.",
        generations,
        lambda f, look, _: lines(f, look, "answers sampled to learn from"),
        absent=CURVES_ONLY,
    ),
    "figure_7": Item(
        "Figure 7",
        "figure_7",
        "New knowledge by what the teacher is shown.",
        teacher_context,
        lambda f, look, _: bars(f, look, "panel", "x"),
        signs=(("text and answer", "text only", None), ("text only", "answer only", None)),
    ),
    "figure_8": Item(
        "Figure 8",
        "figure_8",
        "Weights of the teacher: average, frozen base, live student. The paper finds the frozen teacher stable and "
        "worse, and that the live one diverges.",
        teacher_weights,
        lambda f, look, _: lines(f, look, "optimizer steps"),
        absent=CURVES_ONLY,
    ),
    "table_1": Item(
        "Table 1",
        "table_1",
        "New knowledge.",
        knowledge,
        joined=True,
        signs=(("sdft", "sft", "strict"), ("sdft", "sft", "ood"), ("sft", "cpt", "strict")),
    ),
    "table_2": Item(
        "Table 2",
        "table_2",
        "A reasoning model learns from demonstrations that are answers alone.",
        reasoning,
        joined=True,
        signs=(("sdft", "sft", "accuracy"), ("sft", "base", "accuracy")),
    ),
    "table_5": Item(
        "Table 5",
        "table_5",
        "One model a task: accuracy on the task and on prior capabilities.",
        skill_learning,
        joined=True,
        signs=(("sdft", "sft", "new_task"), ("sdft", "sft", "prior_avg")),
    ),
}


@dataclass
class Shown:
    """One side of an item as it was drawn: a picture (name of its files) or a table, and its
    caption.
    """

    name: str
    caption: str
    table: Table | None = None
    width: float = 0.0


def published():
    """(published, reproduced): the numbers of published.csv and reproduced.csv as frames of
    COLUMNS; x a number where all of an experiment's are.
    """
    frames = [
        pd.read_csv(NUMBERS / f"{name}.csv", dtype={"panel": str, "x": str, "note": str}).fillna(
            {"panel": "", "x": "", "note": ""}
        )
        for name in ("published", "reproduced")
    ]
    if any(list(frame.columns) != COLUMNS for frame in frames):
        raise UserError(
            NUMBERS,
            f"a file has other columns than {', '.join(COLUMNS)}",
            "see benchmarks/paper/README.md",
        )
    return frames


def find(folders):
    """Results folders among ``folders`` and one level below them. Raises UserError for a folder
    that has none.
    """
    found = {}
    for folder in map(Path, folders):
        inside = (
            [folder]
            if (folder / "results.json").is_file()
            else sorted(
                f
                for f in (folder.iterdir() if folder.is_dir() else ())
                if (f / "results.json").is_file()
            )
        )
        if not inside:
            raise UserError(
                folder,
                "holds no results" if folder.is_dir() else "is not a folder",
                "give a folder that run_sequence.py wrote, or one that holds such folders",
            )
        found.update({f.resolve(): f for f in inside})
    return list(found.values())


def groups(folders):
    """({experiment: [Results, ...]}, [folders whose order names no experiment]). Folders of one
    experiment that differ in methods and seeds alone are pooled. Raises UserError if no folder is
    of an experiment.
    """
    together, strangers = defaultdict(list), []
    for folder in folders:
        head = read_object(folder / "results.json", {"experiment?": [str]})
        asked = head.get("experiment") or []
        if not asked:
            strangers.append(folder)
        model = (
            {k: v for k, v in head["model"].items() if k != "device"}
            if isinstance(head.get("model"), dict)
            else head.get("model")
        )
        same = [
            model,
            *(
                _without_later(head.get(k))
                for k in ("skills", "retention", "evaluate", "budget", "rollout")
            ),
        ]
        for experiment in asked:
            together[experiment, json.dumps(same, sort_keys=True)].append(folder)
    if not together:
        raise UserError(
            folders[0],
            "its order does not say which figure or table it is for",
            "set `experiment` in the order (docs/paper.md), or leave --paper out",
        )
    made, opened = defaultdict(list), {}
    for (experiment, _), members in together.items():
        if tuple(members) not in opened:
            opened[tuple(members)] = ReportData(members)
        made[experiment].append(opened[tuple(members)])
    return {experiment: sorted(found, key=_size) for experiment, found in made.items()}, strangers


def _without_later(part):
    """Without the keys that older folders lack; where they differ, the protocols do too, and two of
    those are refused.
    """
    if not isinstance(part, list):
        return part
    return [
        {k: v for k, v in entry.items() if k not in LATER} if isinstance(entry, dict) else entry
        for entry in part
    ]


def _size(results):
    """Parameters of a model as its name says them, in billions; 0 where it does not."""
    found = re.findall(
        r"(?<![\d.])(\d+(?:\.\d+)?)([BM])\b", model_name(results.heads[0]), re.IGNORECASE
    )
    return max(
        (float(number) / (1000 if unit in "mM" else 1) for number, unit in found), default=0.0
    )


def measured(folders):
    """What the results folders hold of each item: ({key: [([Results, ...], frame), ...]} with one
    entry a picture, folders whose order names no experiment, what is missing). Raises UserError.
    """
    results, strangers = groups(find(folders))
    found = {}
    for key, item in ITEMS.items():
        mine = results.get(item.experiment, [])
        sources = distinct([" and ".join(r.names) for r in mine], [r.folders[0] for r in mine])
        ours = [
            ([r], frame)
            for r, source in zip(mine, sources, strict=True)
            if len(frame := _frame(item, r, source))
        ]
        if item.joined and ours:
            ours = [([r for (r,), _ in ours], _apart([frame for _, frame in ours]))]
        if ours:
            found[key] = ours
    return (
        found,
        strangers,
        [
            line
            for one in dict.fromkeys(r for rs in results.values() for r in rs)
            for line in one.missing
        ],
    )


def _frame(item, results, source):
    """What was measured of an item: COLUMNS, and ``measured``, where each number comes from:
    Results and records.
    """
    panels = {s: f"{s} ({results.metric[s]}, not judged)" for s in unjudged(results)}
    rows = [
        {
            **row,
            "panel": panels.get(row["panel"], row["panel"]),
            "experiment": item.experiment,
            "source": source,
            "measured": (results, row["records"]),
        }
        for row in item.measure(results)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, "measured"])


def _apart(frames):
    """The frames of several orders as one; a task that two have under the same series is named with
    its order.
    """
    keys = pd.concat([f[["panel", "series", "x"]].drop_duplicates() for f in frames])
    twice = set(keys.loc[keys.duplicated(), "panel"])
    for frame in frames:
        clash = frame["panel"].isin(twice)
        frame.loc[clash, "panel"] = (
            frame.loc[clash, "panel"] + " (" + frame.loc[clash, "source"] + ")"
        )
    return pd.concat(frames, ignore_index=True)


def write_paper(folders=(), out=None):
    """Draws the published numbers and, of results folders, the measured ones beside them.

    folders: results folders or parents of such; none for the published side alone. ``data/`` gets
    the numbers behind each picture and table, ``figures/`` pictures (PNG, SVG), ``tables/`` tables
    (CSV, Markdown, LaTeX), and ``index.html`` shows both sides. Returns (what was drawn, one line
    an item; path of the page). Raises UserError.
    """
    folders = [Path(f) for f in folders]
    ours, strangers, missing = measured(folders) if folders else ({}, [], [])
    out = (
        Path(out)
        if out
        else folders[0] / "paper"
        if folders
        else ROOT / "results" / "paper" / "report"
    )
    with made_beside(
        out, stale=rf"(published|measured)_({'|'.join(ITEMS)})(_\d+)?\.\w+"
    ) as partial:
        said = _write(partial, ours, missing, bool(folders))
    said += [f"left out: {folder} (its order names no experiment)" for folder in strangers]
    return "\n".join(said), out / "index.html"


def _write(out, ours, missing, with_measured):
    """Makes all files in ``out``; returns one line an item."""
    for part in ("data", "tables", "figures"):
        (out / part).mkdir()
    numbers, reproduced = published()
    sections, said = [], []
    for key, item in ITEMS.items():
        theirs = numbers[numbers["experiment"] == item.experiment]
        series = {
            s for frame in [theirs, *(f for _, f in ours.get(key, ()))] for s in frame["series"]
        } - {"base"}
        look = {
            **looks([s for s in series if s != "sdft - sft"]),
            "base": (BASE, "*", (0, (4, 2))),
            "sdft - sft": looks(["sdft"])["sdft"],
        }
        left = (
            [
                _show(
                    out,
                    f"published_{key}",
                    item,
                    theirs,
                    look,
                    "The numbers of " + " and ".join(dict.fromkeys(theirs["source"])) + ".",
                )
            ]
            if len(theirs) and not item.absent
            else []
        )
        right = []
        for number, (pooled, frame) in enumerate(ours.get(key, ()), 1):
            name = f"measured_{key}" + (f"_{number}" if number > 1 else "")
            right.append(_show(out, name, item, frame, look, _caption(pooled), pooled[0]))
        notes = [line for _, frame in ours.get(key, ()) for line in signs(item, theirs, frame)]
        sections.append(
            (key, item, left, right, notes, reproduced[reproduced["experiment"] == key], look)
        )
        drawn = [s.name for s in left + right]
        why = [f"published: not drawn, {item.absent}"] * bool(item.absent) + [
            "measured: no results here"
        ] * (with_measured and not right)
        said.append(f"{item.title + ':':<16}" + "; ".join([", ".join(drawn)] * bool(drawn) + why))
    (out / "index.html").write_text(_page(sections, with_measured, missing), encoding="utf-8")
    return said


def _show(out, name, item, frame, look, caption, results=None):
    """Writes one side of an item: its data, and its picture or table."""
    frame.to_csv(out / "data" / f"{name}.csv", columns=COLUMNS, index=False)
    if item.draw is None:
        made = table(frame, name, item.title, caption)
        for end, text in (("csv", made.csv()), ("md", made.markdown()), ("tex", made.latex())):
            (out / "tables" / f"{name}.{end}").write_text(text, encoding="utf-8")
        return Shown(name, caption, made)
    with matplotlib.rc_context(STYLE):
        figure = item.draw(frame, look, results)
        save(figure, out / "figures", name)
    return Shown(name, caption, width=figure.get_figwidth())


def _caption(pooled):
    """What was run, in one paragraph: model, skills, methods, seeds, split, n, decoding, KL
    direction.
    """
    parts = []
    for results in pooled:
        head = results.heads[0]
        model = head.get("model") if isinstance(head.get("model"), dict) else {}
        seeds = sorted({seed for runs in results.runs.values() for _, seed in runs})
        count = [
            f"{s} n = {results.n['skill', s]}" for s in results.skills if ("skill", s) in results.n
        ]
        protocols = [
            results.protocols.get(results.protocol_of.get(("skill", s))) or {}
            for s in results.skills
        ]
        decoding = {str(p["decoding"]) for p in protocols if p.get("decoding")}
        kl = [
            f"{label} {series.config['divergence']}"
            for label, series in results.series.items()
            if series.config.get("divergence")
        ]
        chosen = [s.selected for s in results.series.values() if getattr(s, "selected", "")]
        parts.append(
            f"{' and '.join(results.names)}: {model_name(head)}"
            + (f" ({model['dtype']})" if model.get("dtype") else "")
            + f"; skills {', '.join(_budgets(results))}; methods {', '.join(results.series)}"
            + f"; seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds)) or 'none'}; split {results.split}"
            + "".join(f", {c}" for c in count)
            + "".join(f", {d}" for d in sorted(decoding))
            + "".join(f"; {s}: {results.metric[s]}, not judged" for s in unjudged(results))
            + (f"; KL direction: {', '.join(kl)}" if kl else "")
            + "."
            + "".join(f" {c}" for c in chosen)
        )
    return (
        " ".join(parts)
        + " Intervals: 95%, over seeds (Student's t); of one run over examples (Wilson's for an accuracy, "
        "else 1.96 standard errors); of a difference of methods, paired."
    )


def _budgets(results):
    """Each skill with the prompts and steps of its stage; methods are named where they differ, by
    epochs or batches of their own.
    """
    budgets = {name: defaultdict(list) for name in results.skills}
    for name, stage, label in learners(results, base=False):
        prompts, steps = spent(results, label, stage)
        if math.isfinite(prompts):
            budgets[name][f"{prompts:.0f} prompts, {steps:.0f} steps"].append(label)
    said = {
        name: "; ".join(
            f"{', '.join(labels)}: {text}" if len(found) > 1 else text
            for text, labels in found.items()
        )
        for name, found in budgets.items()
    }
    return [f"{name} ({text})" if text else name for name, text in said.items()]


def signs(item, theirs, ours):
    """Sentences on the differences whose published sign is one: as in the paper, or another, and
    whether the error covers it.
    """
    if item.experiment == "figure_5_left":
        small, large = theirs["value"].iloc[0], theirs["value"].iloc[-1]
        return [
            f"{row.panel}, {row.x}: sdft − sft is {row.value:+.1f} points{_covered(row.low, row.high, row.note)}; in the paper "
            f"{small:+.1f} ({theirs['x'].iloc[0]}) to {large:+.1f} ({theirs['x'].iloc[-1]}): the sign of its "
            + ("smallest model." if row.value * small > 0 else "larger models.")
            for row in ours.itertuples()
            if row.value
        ]
    found = []
    for one, other, x in item.signs:
        paper, here = (_differences(frame, one, other, x) for frame in (theirs, ours))
        printed = sorted(found.value for found in paper.values())
        if not printed or printed[0] * printed[-1] <= 0:
            continue
        values = [f"{value:+.1f}" for value in printed]
        for panel, gap in here.items():
            # less is printed as 0; what the paper says, it says of another metric
            if abs(gap.value) >= 0.05 and "not judged" not in panel:
                what = f" on {TITLES.get(x, x)}" if x else ""
                found.append(
                    f"{panel}: {one} − {other}{what} is {gap.value:+.1f}{_covered(gap.low, gap.high, gap.how)}, in the paper "
                    f"{values[0] if len(values) == 1 else values[0] + ' to ' + values[-1]}: "
                    + (
                        "the same sign."
                        if gap.value * printed[0] > 0
                        else "another sign than the paper's."
                    )
                )
    return found


def _covered(low, high, how):
    """An interval as text, or why there is none."""
    if not math.isfinite(low):
        return f" ({how.split(';')[0]})"
    return f" [{low:+.1f}, {high:+.1f}]" + (" (0 is inside)" if low <= 0 <= high else "")


def _differences(frame, one, other, x):
    """{panel: Estimate of the difference} of two series at ``x``; without x, of two values of x. Of
    published ones without interval.
    """
    found, column = {}, "series" if x else "x"
    for panel, rows in (frame[frame["x"] == x] if x else frame).groupby("panel", sort=False):
        pair = [rows[rows[column] == name] for name in (one, other)]
        if all(len(p) == 1 for p in pair):
            a, b = (p.iloc[0] for p in pair)
            if "measured" not in frame:
                found[panel] = Estimate(a["value"] - b["value"])
            elif (
                a["measured"][0] is b["measured"][0]
            ):  # else of two orders: another budget, or other data
                found[panel] = difference(
                    *a["measured"], b["measured"][1], 100 if a["unit"] == "%" else 1
                )
    return {panel: gap for panel, gap in found.items() if gap is not None}


CSS = """
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));gap:0 28px;align-items:start}
.sides>div{min-width:0}main,header,nav>div{max-width:1320px}
.sides h3{color:var(--muted);font-weight:600}
"""


def _page(sections, with_measured, missing):
    e, parts, links = html.escape, [], []
    for key, item, left, right, notes, others, look in sections:
        nothing = (
            f"<p class='muted'>No results of experiment {e(item.experiment)} here; docs/paper.md names the order and the "
            "command.</p>"
        )
        sides = [
            (
                "Published",
                "".join(map(_side(look), left))
                or f"<p class='muted'>Not drawn: {e(item.absent)}.</p>",
            )
        ]
        if with_measured:
            sides.append(("Measured", "".join(map(_side(look), right)) or nothing))
        body = "".join(f"<div><h3>{name}</h3>{text}</div>" for name, text in sides)
        said = (
            f"<ul class='note'>{''.join(f'<li>{e(n)}</li>' for n in notes)}</ul>" if notes else ""
        )
        parts.append(
            f"<section id='{key}'><h2>{e(item.title)}</h2><p>{e(item.what)}</p><div class='sides'>{body}</div>{said}"
            f"{_reproduced(others)}</section>"
        )
        links.append(f"<a href='#{key}'>{e(item.title)}</a>")
    listed = "".join(f"<li>{e(line)}</li>" for line in missing)
    warn = (
        f"<div class='warn'><strong>What is missing</strong><ul>{listed}</ul></div>"
        if missing
        else ""
    )
    title = (
        "arXiv 2601.19897, published and measured"
        if with_measured
        else "arXiv 2601.19897 as published"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{e(title)}</title><style>{page.CSS}{CSS}</style></head><body>
<header><h1>{e(title)}</h1><div class="muted">Self-Distillation Enables Continual Learning, figure by figure.</div></header>
<nav><div>{"".join(links)}</div></nav><main>{warn}{"".join(parts)}</main>
<div id="why" hidden></div><script>{page.SCRIPT}</script></body></html>
"""


def _side(look):
    e = html.escape

    def dot(label):
        return f'<span class="dot" style="background:{look.get(label.rsplit(": ", 1)[-1], (BASE,))[0]}"></span>'

    def side(shown):
        data = f'<a href="data/{shown.name}.csv">data</a>'
        if shown.table is not None:
            more = " · ".join(
                f'<a href="tables/{shown.name}.{end}">{text}</a>'
                for end, text in (("md", "Markdown"), ("tex", "LaTeX"))
            )
            return f'<div class="scroll" tabindex="0">{shown.table.html(dot)}</div><p class="note">{e(shown.caption)} {data} · {more}</p>'
        files = f'{data} · <a href="figures/{shown.name}.svg">SVG</a> · <a href="figures/{shown.name}.png">PNG</a>'
        return (
            f'<figure><div class="scroll" tabindex="0"><picture><source srcset="figures/dark/{shown.name}.svg" '
            f'media="(prefers-color-scheme: dark)"><img style="max-width:{shown.width * 96:.0f}px" src="figures/{shown.name}.svg" '
            f'alt="{e(shown.caption)}"></picture></div><figcaption>{e(shown.caption)} {files}</figcaption></figure>'
        )

    return side


def _reproduced(frame):
    """What others report, folded away below an item: other metrics and settings, so never in the
    same picture.
    """
    if frame.empty:
        return ""
    columns = ["panel", "series", "x", "value", "source", "note"]
    head = "".join(f"<th>{name}</th>" for name in columns)
    cells = (
        "".join(f"<td>{html.escape(str(v))}</td>" for v in row)
        for row in frame[columns].itertuples(index=False)
    )
    rows = "".join(f"<tr>{row}</tr>" for row in cells)
    return (
        f"<details><summary>Independent reproductions ({len(frame)} numbers)</summary><div class='scroll tall' tabindex='0'>"
        f"<table class='left'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
