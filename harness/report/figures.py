"""The pictures of a report, PNG and SVG (and a dark SVG for the page), in one style and with one
colour a method.

Colours are Okabe & Ito's eight, which readers with any common colour blindness can tell apart;
markers repeat the difference.
"""

import zlib
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from harness.base import metrics

FIXED = {"sft": ("#D55E00", "o"), "sdft": ("#0072B2", "s"), "grpo": ("#009E73", "^")}
OTHERS = ["#CC79A7", "#E69F00", "#56B4E9", "#B8A900"]  # the yellow darkened: lines on white
MARKERS = ["D", "v", "P", "X", "<", ">", "p", "h"]
DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5))]
INK, MUTED, GRID, PAPER, BASE, SHADE = (
    "#1b1f24",
    "#59636e",
    "#e4e7eb",
    "#fefefe",
    "#5a5a5a",
    "#f3f4f6",
)
DARK = {
    INK: "#e8eaed",
    MUTED: "#a3abb5",
    GRID: "#343a42",
    PAPER: "#171a1f",
    BASE: "#b9bec5",
    SHADE: "#22272e",
    "#0072b2": "#4aa3df",
    "#d55e00": "#f08a3c",
    "#009e73": "#2fc59a",
}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "path",
    "svg.hashsalt": "report",
    "path.simplify": True,
}
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]
)
PANELS = 12  # more skills, tasks or methods than this are left to the tables
NAMED = 4  # with more skills the borders bear numbers
NUMBERS = 10  # the most skills whose heat map has its numbers written in


@dataclass
class Picture:
    name: str
    title: str
    caption: str
    width: float  # inches


def looks(labels):
    """{label: (colour, marker, dash)}: fixed for sft, sdft and grpo; any other label prefers the
    colour its name hashes to.

    A label keeps its look from report to report unless an alphabetically earlier one prefers the
    same.
    """
    chosen, taken = {}, set()
    slots = [
        (colour, MARKERS[(i + 4 * d) % len(MARKERS)], dash)
        for d, dash in enumerate(DASHES)
        for i, colour in enumerate(OTHERS)
    ]
    for label in sorted(labels):
        if label in FIXED:
            chosen[label] = (*FIXED[label], "-")
            continue
        start = zlib.crc32(label.encode()) % len(OTHERS)
        ring = [
            slots[d + (start + i) % len(OTHERS)]
            for d in range(0, len(slots), len(OTHERS))
            for i in range(len(OTHERS))
        ]
        chosen[label] = next(
            (slot for slot in ring if slot not in taken), ring[0]
        )  # plain lines first, then dashed ones
        taken.add(chosen[label])
    return chosen


def save(figure, folder, name):
    """Writes ``name`` as PNG and SVG into ``folder``, and as a dark SVG into ``folder/dark``."""
    (folder / "dark").mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(folder / f"{name}.png", dpi=160)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    text = (folder / f"{name}.svg").read_text(encoding="utf-8")
    for light, dark in DARK.items():
        text = text.replace(light.lower(), dark)
    (folder / "dark" / f"{name}.svg").write_text(text, encoding="utf-8")


def grid(count, width=3.4, height=2.35, columns=3):
    """A figure of ``count`` panels: figure, panels, rows, columns."""
    columns = min(columns, max(1, count))
    rows = -(-count // columns)
    figure = Figure(figsize=(max(5.4, width * columns), height * rows + 0.55), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.06, hspace=0.04)
    panels = figure.subplots(rows, columns, squeeze=False)
    for empty in panels.flat[count:]:
        empty.set_visible(False)
    return figure, list(panels.flat[:count]), rows, columns


def legend(figure, look, labels, base=False, markers=True):
    """Above the panels, in as many columns as the figure's width has room for; further rows make
    the figure higher.
    """
    handles = [
        Line2D(
            [],
            [],
            color=look[label][0],
            marker=look[label][1] if markers else None,
            linestyle=look[label][2],
            label=_cut(label, 54),
        )
        for label in labels
    ]
    if base:
        handles.append(
            Line2D([], [], color=BASE, linestyle=(0, (4, 2)), linewidth=1.2, label="base")
        )
    size = matplotlib.rcParams["legend.fontsize"]
    widest = max(
        (TextPath((0, 0), h.get_label(), size=size).get_extents().width for h in handles), default=0
    )
    # in points; a column: handle 2.6, gap to the text 0.8, to the next column 2 letters
    room = 72 * figure.get_figwidth() - size
    columns = max(1, min(6, len(handles), int((room + 2 * size) // (widest + 5.4 * size))))
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 1.6 * size / 72 * max(0, rows - 1))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.6)


def curve(axes, look, x, y, low, high, scale=100):
    """A line with its markers and the band from low to high, none where they are NaN; look: one of
    ``looks``.
    """
    colour, marker, dash = look
    x, (y, low, high) = (
        np.asarray(x, float),
        (np.asarray(values, float) * scale for values in (y, low, high)),
    )
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=dash,
        marker=marker if len(x) <= 40 else None,
        markersize=4,
        zorder=3,
        markeredgecolor=PAPER,
        markeredgewidth=0.5,
    )
    if np.isfinite(low).any():
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)


class Drawer:
    """Draws every picture that the records allow into ``folder``; ``pictures`` lists what was
    drawn, in the page's order.
    """

    def __init__(self, results, folder):
        self.results, self.folder, self.pictures = results, folder, []
        self.look = looks(list(results.series))
        orders = {s.order for s in results.series.values()}
        # names stand at the borders only where all agree
        self.order = next(iter(orders)) if len(orders) == 1 else None
        self.longest = max((len(order) for order in orders), default=0)

    def all(self):
        with matplotlib.rc_context(STYLE):
            self._axis()
            self.curves = self._curves()
            if len(self.curves):
                self.accuracy_curves(False)
                self.accuracy_curves(True)
            self.plane()
            self.retention_curves()
            self.heat_maps()
            self.training()
        return self.pictures

    def _save(self, figure, name, title, caption):
        save(figure, self.folder, name)
        self.pictures.append(Picture(name, title, caption, figure.get_figwidth()))

    # -- the axis of training
    # -----------------------------------------------------------------------------------------

    def _axis(self):
        """Where stages end in optimizer steps, per label; and whether all agree, so that x can be
        steps.
        """
        table = self.results.skill_records
        finals = table[table["final"]].drop_duplicates(["label", "folder", "seed", "stage"])
        ends = finals.groupby(["label", "stage"], observed=True)["step"].median()
        T = self.longest
        self.borders = {}
        for label in self.results.series:
            known = {
                0: 0.0,
                **(ends[label].to_dict() if label in ends.index.get_level_values(0) else {}),
            }
            line = np.array([known.get(k, np.nan) for k in range(T + 1)], float)
            width = np.nanmean(np.diff(line)) if np.isfinite(np.diff(line)).any() else np.nan
            for k in range(1, T + 1):  # a stage that no run has ended: as long as the others
                if np.isnan(line[k]):
                    line[k] = line[k - 1] + width
            self.borders[label] = line
        lines = [line for line in self.borders.values() if np.isfinite(line).all()]
        unequal = finals.groupby(["label", "stage"], observed=True)["step"].nunique().max() > 1
        self.in_steps = (
            bool(lines) and not unequal and all(np.array_equal(line, lines[0]) for line in lines)
        )
        self.edges = lines[0] if self.in_steps else np.arange(T + 1.0)
        self.x_note = (
            "x: optimizer steps, the same number a stage for every method."
            if self.in_steps
            else "x: stages of equal width, because methods differ in optimizer steps a stage; "
            "within a stage, the share of the run's own steps. Steps a run: "
            + ", ".join(
                f"{label} {line[-1]:,.0f}"
                for label, line in self.borders.items()
                if np.isfinite(line[-1])
            )
            + "."
        )

    def _place(self, table):
        """x of records: their share of the stage that they belong to, mapped to steps where all
        methods agree.
        """
        runs = table[["folder", "seed", "label", "stage", "step", "final"]].copy()
        ends = runs[runs["final"]].drop_duplicates(["folder", "label", "seed", "stage"])
        ends = ends.set_index(["folder", "label", "seed", "stage"])["step"]
        keys = [runs["folder"], runs["label"].astype(object), runs["seed"]]
        ends.index = ends.index.set_levels(ends.index.levels[1].astype(object), level=1)
        end = ends.reindex(pd.MultiIndex.from_arrays([*keys, runs["stage"]])).to_numpy(
            float, copy=True
        )
        start = ends.reindex(pd.MultiIndex.from_arrays([*keys, runs["stage"] - 1])).to_numpy(
            float, copy=True
        )
        usual = {
            (label, k): step for label, line in self.borders.items() for k, step in enumerate(line)
        }
        for values, shift in ((end, 0), (start, 1)):
            gaps = np.isnan(values)
            values[gaps] = [
                usual.get(key, np.nan)
                for key in zip(keys[1][gaps], (runs["stage"] - shift)[gaps], strict=True)
            ]
        with np.errstate(all="ignore"):
            share = np.clip((runs["step"].to_numpy(float) - start) / (end - start), 0, 1)
        share = np.where(runs["final"], 1.0, np.where(np.isfinite(share), share, 1.0))
        position = np.where(runs["stage"] == 0, 0.0, runs["stage"] - 1 + share)
        return np.interp(position, np.arange(self.longest + 1), self.edges)

    def _averaged(self, table, fractions):
        """Mean over seeds and 95% interval at each x: columns label, name, x, stage, value, low,
        high, seeds.

        Over seeds Student's t, NaN where all give the same number; of one seed Wilson's for an
        accuracy, else 1.96 standard errors. fractions: names whose values and bounds lie in [0, 1],
        the accuracies.
        """
        table = table.assign(x=self._place(table).round(4))
        found = table.groupby(["label", "name", "x"], observed=True).agg(
            value=("value", "mean"),
            std=("value", "std"),
            least=("value", "min"),
            most=("value", "max"),
            seeds=("value", "count"),
            stderr=("stderr", "mean"),
            n=("n", "mean"),
            stage=("stage", "max"),
        )
        quantile = {
            int(n): metrics.t_quantile(0.975, int(n) - 1) for n in found["seeds"].unique() if n > 1
        }
        several, half = (
            found["seeds"] > 1,
            found["seeds"].map(quantile) * found["std"] / np.sqrt(found["seeds"]),
        )
        half = half.where(several, 1.96 * found["stderr"])
        # no spread is no certainty
        half = half.where(np.where(several, found["most"] > found["least"], half > 0))
        bounds = np.stack([found["value"] - half, found["value"] + half])
        share = found.index.get_level_values("name").isin(list(fractions))
        bounds = np.where(
            share & ~several,
            metrics.score_interval(found["value"], found["stderr"], found["n"]),
            bounds,
        )
        found["low"], found["high"] = np.where(share, bounds.clip(0, 1), bounds)
        return found.drop(columns=["n", "std", "least", "most"]).reset_index()

    def _curves(self):
        table = self.results.skill_records
        if table.empty:
            return table
        curves = self._averaged(table, self.results.skills)
        runs = {label: len(found) for label, found in self.results.runs.items()}
        fewer = curves["seeds"] < curves["label"].astype(object).map(runs)
        self.uneven = sorted(set(curves.loc[fewer, "label"].astype(str)))
        return curves

    def _frame(self, axes, learned=None):
        """Stage borders; the stage that teaches the panel's skill is shaded."""
        if learned is not None:
            axes.axvspan(
                self.edges[learned - 1], self.edges[learned], color=SHADE, zorder=0, linewidth=0
            )
        few = self.longest <= 15
        for edge in self.edges[1:-1] if few else ():
            axes.axvline(edge, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
        if self.order and few:
            for k, name in enumerate(self.order):
                axes.text(
                    (self.edges[k] + self.edges[k + 1]) / 2,
                    1.0,
                    _cut(name, 34 // self.longest) if self.longest <= NAMED else str(k + 1),
                    transform=axes.get_xaxis_transform(),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    color=INK if learned == k + 1 else MUTED,
                    fontweight="bold" if learned == k + 1 else "normal",
                )
        span = self.edges[-1] - self.edges[0]
        axes.set_xlim(self.edges[0] - 0.015 * span, self.edges[-1] + 0.015 * span)
        if not self.in_steps and few:
            axes.set_xticks(self.edges)

    # -- pictures
    # -------------------------------------------------------------------------------------------------------

    def _bases(self, start):
        """The value of each base model; start: that of each label's runs, by label."""
        return start.groupby(
            np.array([self.results.series[label].model for label in start.index], object)
        ).mean()

    def accuracy_curves(self, normalised):
        names = list(self.results.skills)[:PANELS]
        labels = [label for label in self.results.series if (self.curves["label"] == label).any()]
        figure, panels, _, columns = grid(len(names))
        dropped = []
        for number, (axes, name) in enumerate(zip(panels, names, strict=True)):
            mine = self.curves[self.curves["name"] == name]
            start = mine[mine["x"] == self.edges[0]].set_index("label")["value"]
            best = mine["value"].max()
            bounds = []
            for label in labels:
                line = mine[mine["label"] == label].sort_values("x")
                if line.empty:
                    continue
                band = line[["value", "low", "high"]].to_numpy(float).T
                if normalised:
                    band = metrics.normalised(band, start.get(label, np.nan), best)
                curve(axes, self.look[label], line["x"], *band, 1 if normalised else 100)
                bounds.append(band.ravel())
            learned = self.order.index(name) + 1 if self.order and name in self.order else None
            self._frame(axes, learned)
            axes.set_title(_cut(name, 34), pad=13 if self.order and self.longest <= 15 else 6)
            if normalised:
                axes.axhline(0, color=BASE, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
                axes.axhline(1, color=MUTED, linewidth=0.8, zorder=1)
                if not best > start.min():
                    dropped.append(name)
                values = np.concatenate(bounds) if bounds else np.array([0, 1])
                values = values[np.isfinite(values)]
                axes.set_ylim(
                    max(-1.0, min(-0.1, values.min(initial=0) - 0.05)),
                    min(1.8, max(1.1, values.max(initial=1) + 0.05)),
                )
            else:
                for value in self._bases(start):
                    axes.axhline(
                        value * 100, color=BASE, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1
                    )
                values = np.concatenate(bounds) * 100 if bounds else np.array([0, 100])
                values = values[np.isfinite(values)]
                pad = max(2, 0.06 * np.ptp(values)) if len(values) else 2
                axes.set_ylim(
                    max(-2, values.min(initial=100) - pad), min(102, values.max(initial=0) + pad)
                )
            if number % columns == 0:
                axes.set_ylabel("normalised accuracy" if normalised else "accuracy (%)")
            if number >= len(names) - columns:
                axes.set_xlabel("optimizer steps" if self.in_steps else "stage")
        legend(figure, self.look, labels, base=True)
        caption = (
            f"Accuracy of each skill along training. {self.x_note} The shaded stage teaches the skill of the panel; "
            f"dashed lines are stage borders. "
            "Band: 95% interval over seeds (Student's t), where there is one seed over examples (Wilson's), "
            "cut to what an accuracy can be; none where all seeds give the same number."
        )
        if normalised:
            caption = (
                "The form of figure 3 of arXiv 2601.19897: linear in the accuracy, 0 = base model, 1 = the highest "
                "point of any method's mean curve on the "
                f"skill. {caption}"
                + (f" No method is above the base on {', '.join(dropped)}." if dropped else "")
            )
        if self.uneven:
            caption += f" Some points of {', '.join(self.uneven)} are means of fewer seeds: not all runs have reached them."
        if len(self.results.skills) > PANELS:
            caption += f" The first {PANELS} of {len(self.results.skills)} skills are drawn; tables/curves.csv has all."
        name = "curves_normalised" if normalised else "curves"
        self._save(
            figure,
            name,
            "Forgetting curves, normalised" if normalised else "Forgetting curves",
            caption,
        )

    def retention_curves(self):
        results = self.results
        table = (
            results.retention_records[results.retention_records["final"]]
            if len(results.retention_records)
            else results.retention_records
        )
        if table.empty:
            return
        averaged = self._averaged(
            table, [t for t, counts in results.tasks_in_mean.items() if counts]
        )
        tasks = list(results.retention)
        shown = tasks[: PANELS - 1]
        mean = any(results.tasks_in_mean.values())
        labels = [label for label in results.series if (averaged["label"] == label).any()]
        figure, panels, _, columns = grid(len(shown) + mean)
        for axes, task in zip(panels, ["", *shown] if mean else shown, strict=True):
            if not task:
                for label in labels:
                    line = self._deltas(label)
                    if len(line):
                        curve(
                            axes,
                            self.look[label],
                            line["x"],
                            line["value"],
                            line["low"],
                            line["high"],
                        )
                axes.axhline(0, color=BASE, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
                axes.set_title("mean Δ", pad=13 if self.order and self.longest <= 15 else 6)
                axes.set_ylabel("points")
                self._frame(axes)
                continue
            entry, mine = results.retention[task], averaged[averaged["name"] == task]
            scale = 100 if results.tasks_in_mean[task] else 1
            for label in labels:
                line = mine[mine["label"] == label].sort_values("x")
                if len(line):
                    curve(
                        axes,
                        self.look[label],
                        line["x"],
                        line["value"],
                        line["low"],
                        line["high"],
                        scale,
                    )
            for value in self._bases(mine[mine["x"] == self.edges[0]].set_index("label")["value"]):
                axes.axhline(
                    value * scale, color=BASE, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1
                )
            if entry.get("chance") is not None:
                low, high = axes.get_ylim()
                if low - (high - low) * 0.5 <= entry["chance"] * scale <= high:
                    axes.axhline(
                        entry["chance"] * scale, color=MUTED, linewidth=0.8, linestyle=":", zorder=1
                    )
                    axes.text(
                        0.01,
                        entry["chance"] * scale,
                        "chance",
                        transform=axes.get_yaxis_transform(),
                        ha="left",
                        va="bottom",
                        fontsize=7,
                        color=MUTED,
                    )
            axes.set_title(_cut(task, 30), pad=13 if self.order and self.longest <= 15 else 6)
            metric = entry["metric"].removesuffix(",none")  # lm-eval's name for "no filter"
            axes.set_ylabel(
                f"{metric} (%)"
                if scale == 100
                else metric + ("" if entry.get("higher_is_better", True) else " (↓)")
            )
            self._frame(axes)
        for axes in panels[-columns:]:
            axes.set_xlabel("optimizer steps" if self.in_steps else "stage")
        legend(figure, self.look, labels, base=True)
        outside = [t for t in tasks if not results.tasks_in_mean[t]]
        self._save(
            figure,
            "retention",
            "Retention along training",
            f"What the model could do before, after each stage. {self.x_note} Band: 95% interval, "
            "of one seed Wilson's for accuracies and 1.96 standard errors for all else; of the mean Δ, "
            "where there is one seed, by a bootstrap that resamples the examples of all stages together, and none where item scores "
            f"are missing or do not make up the values. Mean Δ: "
            f"final minus base over the tasks whose metric "
            f"is a fraction, higher is better{', so without ' + ', '.join(outside) if outside else ''}."
            + (
                " ↓: lower is better."
                if not all(e.get("higher_is_better", True) for e in results.retention.values())
                else ""
            )
            + (
                f" The first {PANELS - 1} of {len(tasks)} tasks are drawn."
                if len(tasks) > len(shown)
                else ""
            ),
        )

    def _deltas(self, label):
        """Mean retention change after each stage: x, value, low, high (over seeds, or over examples
        for one).
        """
        results, rows = self.results, []
        values = results.retention_mean(results.D[label])
        for k in range(values.shape[-1] if values.size else 0):
            estimate = results.estimate(
                label,
                lambda D, k=k: (
                    results.retention_mean(D)[..., k] - results.retention_mean(D)[..., 0]
                ),
                "D",
                difference=True,
            )
            if np.isfinite(estimate.value):
                # the base differs from itself by nothing
                low, high = (estimate.low, estimate.high) if k else (0.0, 0.0)
                rows.append((self.edges[k], estimate.value, low, high))
        return pd.DataFrame(rows, columns=["x", "value", "low", "high"])

    def plane(self):
        results = self.results
        if not any(results.tasks_in_mean.values()):
            return
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        axes, drawn, starts = figure.subplots(), [], []
        for label in results.series:
            D, R = results.retention_mean(results.D[label]), results.R[label]
            if not R.size:
                continue
            x, y = D * 100, R.mean(-1) * 100
            colour, marker, dash = self.look[label]
            good = np.isfinite(x) & np.isfinite(y)
            if not good.any():
                continue
            path = np.array(
                [
                    (x[good[:, k], k].mean(), y[good[:, k], k].mean())
                    for k in range(x.shape[1])
                    if good[:, k].any()
                ]
            )
            axes.plot(
                path[:, 0],
                path[:, 1],
                color=colour,
                linestyle=dash,
                linewidth=1.2,
                alpha=0.7,
                marker=marker,
                markersize=3,
                zorder=2,
            )
            last = max(k for k in range(x.shape[1]) if good[:, k].any())
            model = results.series[label].model
            if model not in starts:
                starts.append(model)
                axes.plot(
                    *path[0],
                    marker="*",
                    color=BASE,
                    markersize=14,
                    zorder=5,
                    markeredgecolor=PAPER,
                    linestyle="none",
                )
                axes.annotate(
                    "base",
                    path[0],
                    xytext=(-9, -3),
                    textcoords="offset points",
                    ha="right",
                    va="top",
                    color=BASE,
                    fontweight="bold",
                )
            drawn.append(label)
            axes.plot(
                x[good[:, last], last],
                y[good[:, last], last],
                ".",
                color=colour,
                alpha=0.45,
                markersize=5,
                zorder=3,
            )
            a = results.estimate(label, lambda D, k=last: results.retention_mean(D)[..., k], "D")
            b = results.estimate(label, lambda R, k=last: R[..., k, :].mean(-1))
            spread = [
                [(v - low) * 100, (high - v) * 100]
                for v, low, high in ((a.value, a.low, a.high), (b.value, b.low, b.high))
            ]
            error = [
                None if not np.isfinite(s).all() else np.abs(np.array(s))[:, None] for s in spread
            ]
            axes.errorbar(
                a.value * 100,
                b.value * 100,
                xerr=error[0],
                yerr=error[1],
                color=colour,
                marker=marker,
                markersize=9,
                markeredgecolor=PAPER,
                capsize=0,
                elinewidth=1.2,
                zorder=4,
                linestyle="none",
            )
        if not drawn:
            return
        axes.set_xlabel("mean retention (%)")
        axes.set_ylabel("mean accuracy over the skills (%)")
        axes.margins(0.1)
        legend(figure, self.look, drawn)
        counted = [t for t, counts in results.tasks_in_mean.items() if counts]
        self._save(
            figure,
            "plane",
            "New skills against retention",
            "The form of figure 4 of arXiv 2601.19897: up is better at the skills, right is more of what the model "
            "could do before. Large mark: after the last stage with "
            "95% intervals (over seeds; over examples for one run); dots: its seeds; thin line: the way there from "
            "the base model (star), a mark a stage. "
            f"x: mean over {_list(counted)}; y: mean over all skills of the order.",
        )

    def heat_maps(self):
        results = self.results
        labels = [label for label in results.series if np.isfinite(results.R[label]).any()][:PANELS]
        if not labels:
            return
        T = self.longest
        written = T <= NUMBERS
        columns = 3 if T <= 6 or not written else 2
        longest_name = max((len(_cut(n, 14)) for n in results.skills), default=4)
        figure, panels, rows, columns = grid(
            len(labels),
            width=3.6 if columns == 3 else 5.2,
            height=(0.9 + 0.32 * (T + 1) if written else 3.3) + 0.05 * longest_name,
            columns=columns,
        )
        top = max(np.nanmax(results.R[label]) for label in labels) * 100
        for number, (axes, label) in enumerate(zip(panels, labels, strict=True)):
            R, order = results.R[label], results.series[label].order
            with np.errstate(all="ignore"):
                count = np.isfinite(R).sum(0)
                mean = np.where(count > 0, np.nansum(R, 0) / np.maximum(count, 1), np.nan) * 100
            mesh = axes.pcolormesh(
                np.ma.masked_invalid(mean),
                cmap=HEAT,
                vmin=0,
                vmax=max(top, 1),
                edgecolors=PAPER if written else "none",
                linewidth=1.2 if written else 0,
                rasterized=not written,
            )
            axes.invert_yaxis()
            axes.grid(False)
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
            every = 1 if written else max(1, -(-len(order) // 10))
            axes.set_xticks(
                np.arange(0, len(order), every) + 0.5,
                [_cut(n, 14) for n in order[::every]],
                rotation=35 if longest_name > 8 or T > 4 else 0,
                ha="right" if longest_name > 8 or T > 4 else "center",
            )
            axes.set_yticks(
                np.arange(0, len(order) + 1, every) + 0.5,
                [
                    "base" if k == 0 else f"{k} {_cut(order[k - 1], 12)}" if written else str(k)
                    for k in range(0, len(order) + 1, every)
                ],
            )
            axes.set_title(label, color=INK)
            if number % columns == 0:
                axes.set_ylabel("after stage")
            if written:
                for k, i in np.ndindex(mean.shape):
                    if np.isfinite(mean[k, i]):
                        axes.text(
                            i + 0.5,
                            k + 0.5,
                            f"{mean[k, i]:.1f}",
                            ha="center",
                            va="center",
                            fontsize=8.5,
                            fontweight="bold" if k == i + 1 else "normal",
                            color="#fffffe" if mean[k, i] > 0.55 * top else "#111418",
                        )
            for i in range(len(order)):
                axes.plot(
                    [i, i + 1, i + 1, i, i],
                    [i + 1, i + 1, i + 2, i + 2, i + 1],
                    color="#E69F00",
                    linewidth=1.6 if written else 0.7,
                    zorder=4,
                    clip_on=False,
                )
        figure.colorbar(
            mesh,
            ax=panels,
            shrink=0.8 / rows,
            aspect=24,
            pad=0.02,
            anchor=(0, 1),
            label="accuracy (%)",
        ).outline.set_visible(False)
        self._save(
            figure,
            "accuracy_matrix",
            "Accuracy matrices",
            "Accuracy of every skill (column) after every stage (row), mean over the seeds that have it; framed: the "
            "stage that teaches the skill. Right of the frames: "
            "skills not yet learned; below: what is left of learned ones. Blank: not measured."
            + (
                f" The first {PANELS} of {len(results.series)} methods are drawn."
                if len(results.series) > PANELS
                else ""
            ),
        )

    def training(self):
        table = self.results.training()
        if table.empty:
            return
        known = ["loss", "kl", "completion_tokens", "reward", "grad_norm", "learning_rate"]
        extra = [
            c
            for c in table.columns
            if c not in {*known, "step", "seconds", "tokens", "label", "seed", "stage"}
        ]
        shown = [
            c
            for c in [*known[:4], *sorted(extra), *known[4:]]
            if c in table and table[c].notna().any()
        ][:9]
        if not shown:  # a method of one's own need not log anything
            return
        labels = [label for label in self.results.series if (table["label"] == label).any()]
        figure, panels, _, columns = grid(len(shown), height=2.2)
        means = table.groupby(["label", "step"], observed=True)[shown].mean()
        for axes, key in zip(panels, shown, strict=True):
            for label in labels:
                line = means.loc[label, key].dropna()
                if line.empty:
                    continue
                colour, _, dash = self.look[label]
                window = max(1, len(line) // 40)
                if window > 1:
                    axes.plot(
                        line.index,
                        line,
                        color=colour,
                        linewidth=0.6,
                        alpha=0.3,
                        rasterized=len(line) > 2000,
                    )
                axes.plot(
                    line.index,
                    line.rolling(window, min_periods=1, center=True).mean(),
                    color=colour,
                    linestyle=dash,
                    linewidth=1.5,
                )
            if self.in_steps and self.longest <= 15:
                for edge in self.edges[1:-1]:
                    axes.axvline(edge, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
            axes.set_title(key.replace("_", " "))
            axes.set_xlim(0, table["step"].max() * 1.02)
        for axes in panels[-columns:]:
            axes.set_xlabel("optimizer steps")
        legend(figure, self.look, labels, markers=False)
        self._save(
            figure,
            "training",
            "Training diagnostics",
            "From training.jsonl, mean over seeds, smoothed over a fortieth of the run where it is long (thin: not "
            "smoothed), against each method's own optimizer steps. "
            "The loss of one method is no yardstick for another's: each minimises its own. A method without a line "
            "has no such quantity.",
        )


def _cut(text, most):
    """At most so many letters, shortened in the middle: names of one family differ at their ends."""
    tail = (most - 1) // 2
    return text if len(text) <= most else text[: most - 1 - tail] + "…" + text[-tail:]


def _list(names, most=8):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
