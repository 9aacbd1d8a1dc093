"""Training diagnostics: what training.jsonl logs at every optimizer step."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.live import LiveLine, LivePanel, numbers
from harness.report.pictures.picture import Picture, Source, only_first
from harness.report.style import (
    FURTHER,
    PAPER,
    Form,
    Look,
    extend_limits,
    further_line,
    grid,
    legend,
    moved_right,
    shifts,
)

FIRST = ["loss", "kl", "completion_tokens", "reward"]
LAST = ["grad_norm", "learning_rate"]
NO_QUANTITIES = {"step", "seconds", "tokens", "label", "seed", "stage"}
MOST_QUANTITIES = 12
SMOOTHED_PART = 40  # a long run is smoothed over this part of it
MARKS = 8  # of a line
LIVE_POINTS = 100  # of a line on the page

# -- what is shown


@dataclass(frozen=True)
class Diagnostics:
    """Curves of the logged quantities.

    logged: how many there are; means: mean over seeds by label and step, a column a quantity;
    last_step: of all methods.
    """

    axis: TrainingAxis
    looks: dict[str, Look]
    labels: list[str]
    quantities: list[str]
    logged: int
    means: pd.DataFrame
    last_step: float

    def line(self, label: str, quantity: str) -> pd.Series:
        """One method's values by step, empty where it does not log the quantity."""
        return self.means[quantity].xs(label, level="label").dropna()


def quantities_of(table: pd.DataFrame) -> list[str]:
    """The quantities that any method logs, what all log first and last; table: of all steps."""
    further = sorted(set(table.columns) - NO_QUANTITIES - {*FIRST, *LAST})
    return [
        name
        for name in [*FIRST, *further, *LAST]
        if name in table.columns and table[name].notna().any()
    ]


def diagnostics(source: Source) -> Diagnostics | None:
    """The quantities that any method logs, None where none does: a method need not log anything."""
    table = source.results.training
    if table.empty:
        return None
    quantities = quantities_of(table)
    if not quantities:
        return None
    ends = [name for name in quantities if name in LAST]
    others = [name for name in quantities if name not in LAST]
    drawn = [*others[: MOST_QUANTITIES - len(ends)], *ends]
    return Diagnostics(
        axis=source.axis,
        looks=source.looks,
        labels=[label for label in source.results.series if (table["label"] == label).any()],
        quantities=drawn,
        logged=len(quantities),
        means=table.groupby(["label", "step"], observed=True)[drawn].mean(),
        last_step=table["step"].max(),
    )


# -- how it is drawn


def draw(shown: Diagnostics, form: Form) -> Figure:
    """One panel a quantity, against each method's own optimizer steps."""
    figure, all_axes, _, columns = grid(len(shown.quantities), form, height=2.2)
    for axes, quantity in zip(all_axes, shown.quantities, strict=True):
        lines = {label: shown.line(label, quantity) for label in shown.labels}
        known = [label for label, line in lines.items() if len(line)]
        grey = [label for label in known if shown.looks[label] == FURTHER]
        for label in grey:
            further_line(axes, lines[label].index, _smooth(lines[label]))
        known = [label for label in known if label not in grey]
        for place, (label, shift) in enumerate(zip(known, shifts(len(known)), strict=True)):
            _draw_line(axes, lines[label], shown.looks[label], shift, place / len(known))
        if shown.axis.in_steps:
            shown.axis.draw_borders(axes)
        axes.set_title(quantity.replace("_", " "))
        axes.set_xlim(0, shown.last_step * 1.02)
    for axes in all_axes[-columns:]:
        axes.set_xlabel("optimizer steps")
    legend(figure, shown.looks, shown.labels)
    return figure


def _window(line: pd.Series) -> int:
    return max(1, len(line) // SMOOTHED_PART)


def _smooth(line: pd.Series) -> pd.Series:
    """The centred mean over a window, of fewer values at the ends."""
    return line.rolling(_window(line), min_periods=1, center=True).mean()


def _draw_line(axes: Axes, line: pd.Series, look: Look, shift: float, phase: float) -> None:
    """A smoothed line, and the raw one behind it where the two differ.

    shift: to the right, in points; phase: share of the way between two marks at which the first
    stands. Marks of lines that coincide take turns.
    """
    moved = moved_right(axes, shift)
    if _window(line) > 1:
        axes.plot(
            line.index,
            line,
            color=look.colour,
            linewidth=0.6,
            alpha=0.3,
            rasterized=len(line) > 2000,
            transform=moved,
        )
    every = max(1, len(line) // MARKS)
    axes.plot(
        line.index,
        _smooth(line),
        color=look.colour,
        linestyle=look.dash,
        linewidth=1.5,
        marker=look.marker,
        markersize=4,
        markevery=(int(phase * every), every),
        markeredgecolor=PAPER,
        markeredgewidth=0.5,
        transform=moved,
    )
    extend_limits(axes, line.index, line)


# -- what the caption says


def caption(shown: Diagnostics) -> str:
    return (
        "From training.jsonl, mean over seeds, smoothed over a fortieth of the run where it is "
        "long (thin: not smoothed), against each method's own optimizer steps. Lines of methods "
        "are set a little apart. "
        "The loss of one method is no yardstick for another's: each minimises its own. A method "
        "without a line has no such quantity. tables/training.csv has the means of all."
        + only_first(len(shown.quantities), shown.logged, "quantities")
    )


def alt(shown: Diagnostics) -> Iterator[str]:
    """The last value of each line."""
    for quantity in shown.quantities:
        lines = {label: shown.line(label, quantity) for label in shown.labels}
        ends = [f"{label} {line.iloc[-1]:.3g}" for label, line in lines.items() if len(line)]
        yield f"last {quantity.replace('_', ' ')}: {', '.join(ends)}"


def live(shown: Diagnostics) -> list[LivePanel]:
    """One panel a quantity: the smoothed lines."""
    axis = shown.axis
    borders = axis.edges[1:-1].tolist() if axis.in_steps and axis.has_borders else []
    return [
        LivePanel(
            quantity.replace("_", " "),
            "optimizer steps",
            quantity.replace("_", " "),
            [
                _live_line(label, line, shown.looks[label])
                for label in shown.labels
                if len(line := shown.line(label, quantity))
            ],
            borders=borders,
        )
        for quantity in shown.quantities
    ]


def _live_line(label: str, line: pd.Series, look: Look) -> LiveLine:
    """Of a long line every so many points, and the last."""
    smooth = _smooth(line)
    every = -(-len(smooth) // LIVE_POINTS)
    smooth = smooth.iloc[(len(smooth) - 1) % every :: every]
    ends = [len(smooth) - 1]
    x, y = numbers(smooth.index.to_numpy(float)), numbers(smooth)
    return LiveLine(
        label, look.colour, look.marker, look.dash != "-", x, y, ends=ends, quiet=look == FURTHER
    )


TRAINING = Picture(
    "training",
    "Training diagnostics",
    "cost",
    diagnostics,
    draw,
    caption,
    alt,
    live,
    by_sequence=True,
)
