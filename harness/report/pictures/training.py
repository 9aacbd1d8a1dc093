"""Training diagnostics: what training.jsonl logs at every optimizer step."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.picture import Picture, Source
from harness.report.style import Form, Look, grid, legend

FIRST = ["loss", "kl", "completion_tokens", "reward"]
LAST = ["grad_norm", "learning_rate"]
NO_QUANTITIES = {"step", "seconds", "tokens", "label", "seed", "stage"}
MOST_QUANTITIES = 9
SMOOTHED_PART = 40  # a long run is smoothed over this part of it

# -- what is shown


@dataclass(frozen=True)
class Diagnostics:
    """Curves of the logged quantities.

    means: mean over seeds by label and step, a column a quantity; last_step: of all methods.
    """

    axis: TrainingAxis
    looks: dict[str, Look]
    labels: list[str]
    quantities: list[str]
    means: pd.DataFrame
    last_step: float

    def line(self, label: str, quantity: str) -> pd.Series:
        """One method's values by step, empty where it does not log the quantity."""
        return self.means[quantity].xs(label, level="label").dropna()


def diagnostics(source: Source) -> Diagnostics | None:
    """The quantities that any method logs, None where none does: a method need not log anything."""
    table = source.results.training()
    if table.empty:
        return None
    further = sorted(set(table.columns) - NO_QUANTITIES - {*FIRST, *LAST})
    quantities = [
        name
        for name in [*FIRST, *further, *LAST]
        if name in table.columns and table[name].notna().any()
    ][:MOST_QUANTITIES]
    if not quantities:
        return None
    return Diagnostics(
        axis=source.axis,
        looks=source.looks,
        labels=[label for label in source.results.series if (table["label"] == label).any()],
        quantities=quantities,
        means=table.groupby(["label", "step"], observed=True)[quantities].mean(),
        last_step=table["step"].max(),
    )


# -- how it is drawn


def draw(shown: Diagnostics, form: Form) -> Figure:
    """One panel a quantity, against each method's own optimizer steps."""
    figure, all_axes, _, columns = grid(len(shown.quantities), form, height=2.2)
    for axes, quantity in zip(all_axes, shown.quantities, strict=True):
        for label in shown.labels:
            _draw_line(axes, shown.line(label, quantity), shown.looks[label])
        if shown.axis.in_steps:
            shown.axis.draw_borders(axes)
        axes.set_title(quantity.replace("_", " "))
        axes.set_xlim(0, shown.last_step * 1.02)
    for axes in all_axes[-columns:]:
        axes.set_xlabel("optimizer steps")
    legend(figure, shown.looks, shown.labels, markers=False)
    return figure


def _draw_line(axes: Axes, line: pd.Series, look: Look) -> None:
    """A smoothed line, and the raw one behind it where the two differ."""
    if line.empty:
        return
    window = max(1, len(line) // SMOOTHED_PART)
    if window > 1:
        axes.plot(
            line.index,
            line,
            color=look.colour,
            linewidth=0.6,
            alpha=0.3,
            rasterized=len(line) > 2000,
        )
    smooth = line.rolling(window, min_periods=1, center=True).mean()
    axes.plot(line.index, smooth, color=look.colour, linestyle=look.dash, linewidth=1.5)


# -- what the caption says


def caption(shown: Diagnostics) -> str:
    return (
        "From training.jsonl, mean over seeds, smoothed over a fortieth of the run where it is "
        "long (thin: not smoothed), against each method's own optimizer steps. "
        "The loss of one method is no yardstick for another's: each minimises its own. A method "
        "without a line has no such quantity."
    )


def alt(shown: Diagnostics) -> Iterator[str]:
    """The last value of each line."""
    for quantity in shown.quantities:
        lines = {label: shown.line(label, quantity) for label in shown.labels}
        ends = [f"{label} {line.iloc[-1]:.3g}" for label, line in lines.items() if len(line)]
        yield f"last {quantity.replace('_', ' ')}: {', '.join(ends)}"


TRAINING = Picture(
    "training", "Training diagnostics", "cost", diagnostics, draw, caption, alt, by_sequence=True
)
