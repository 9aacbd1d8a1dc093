"""How far the model has gone from the base policy along training: an early sign of forgetting."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from harness.report.data import ReportData
from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.curves import draw_lines, lines_of, name_lines
from harness.report.pictures.live import LivePanel, training_lines, training_panel
from harness.report.pictures.picture import Picture, Source
from harness.report.style import Form, Look, base_line, can_be_named, grid, legend

METRIC = "kl_forward_token"

# -- what is shown


@dataclass(frozen=True)
class DriftCurves:
    """lines: {label: x, value, low, high}, in nats a token; prompts: how many the base answered."""

    axis: TrainingAxis
    looks: dict[str, Look]
    lines: dict[str, pd.DataFrame]
    prompts: int


def drift_records(results: ReportData) -> pd.DataFrame:
    """The records of KL(base || model) on general prompts, a token, of all steps."""
    records = results.records
    chosen = (records["kind"] == "drift") & (records["metric"] == METRIC)  # new, old have others
    return records[chosen & records["label"].notna()]


def drift_curves(source: Source) -> DriftCurves | None:
    """The curves of all methods, None where no order asked for the drift."""
    records = drift_records(source.results)
    if records.empty:
        return None
    table = source.axis.average(records, ())
    lines = lines_of(table, list(source.results.series))
    return DriftCurves(source.axis, source.looks, lines, int(records["n"].iloc[0]))


# -- how it is drawn


def draw(shown: DriftCurves, form: Form) -> Figure:
    figure, (axes, *_), _, _ = grid(1, form)
    draw_lines(axes, shown.axis, shown.looks, shown.lines, 1)
    base_line(axes, 0)
    axes.set_title("KL(base ‖ model)", pad=shown.axis.title_pad)
    axes.set_ylabel("nats a token")
    axes.set_xlabel(shown.axis.title)
    shown.axis.frame(axes)
    labels = list(shown.lines)
    if can_be_named(labels):
        name_lines(axes, shown.looks, shown.lines, 1, [0.0])
    else:
        legend(figure, shown.looks, labels, base=True)
    return figure


# -- what the caption says


def caption(shown: DriftCurves) -> str:
    return (
        f"How far the model has gone from the base policy on {shown.prompts} general prompts that "
        f"no skill teaches, whatever became of its answers' quality. {shown.axis.note} The base "
        "answered once, at temperature 1; estimated from the log-probabilities of its tokens "
        "(Schulman's k3). Whiskers: 95% interval over seeds and answers."
    )


def alt(shown: DriftCurves) -> Iterator[str]:
    """Where each line ends."""
    for label, line in shown.lines.items():
        yield f"{label} ends at {line['value'].iloc[-1]:.2f} nats a token"


def live(shown: DriftCurves) -> list[LivePanel]:
    lines = training_lines(shown.axis, shown.looks, shown.lines, 1)
    title, levels = "KL(base ‖ model)", [("base", 0.0)]
    return [training_panel(shown.axis, title, "nats a token", lines, levels)]


DRIFT = Picture(
    "drift",
    "Drift from the base along training",
    "retention-section",
    drift_curves,
    draw,
    caption,
    alt,
    live,
)
