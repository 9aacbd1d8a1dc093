"""New skills against retention: better at the skills is up, more of what was there is right."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.estimates import Estimate
from harness.report.pictures.live import LiveLine, LivePanel, numbers
from harness.report.pictures.picture import Picture, Source
from harness.report.style import BASE, FURTHER, PAPER, Form, Look, further_mark, legend, single

MOST_TASKS = 8  # the caption names at most so many

# -- what is shown


@dataclass(frozen=True)
class MethodPath:
    """One method's way through the plane; x: mean retention, y: mean accuracy, both fractions.

    stages: mean over seeds [stages, 2], from the base model on; seeds: each seed [seeds, 2] after
    the last stage that any has finished; change: of the mean retention since the base model, on the
    same questions, with its 95% interval; accuracy: the mean with its own; n: questions a run
    behind x and y; from_base: whether this path draws the star of its base model, as one path of
    each model does.
    """

    label: str
    stages: np.ndarray
    seeds: np.ndarray
    change: Estimate
    accuracy: Estimate
    n: tuple[float, float]
    from_base: bool


@dataclass(frozen=True)
class Plane:
    """The paths of all methods that have one; tasks: whose mean x is."""

    looks: dict[str, Look]
    paths: list[MethodPath]
    tasks: list[str]


def plane(source: Source) -> Plane | None:
    """The paths, None where no method has both a mean retention and a mean accuracy."""
    results = source.results
    tasks = results.in_mean
    if not tasks:
        return None
    paths: list[MethodPath] = []
    models: set[str] = set()
    for label, series in results.series.items():
        path = _path(source, label, from_base=series.model not in models)
        if path is not None:
            models.add(series.model)
            paths.append(path)
    return Plane(source.looks, paths, tasks) if paths else None


def _path(source: Source, label: str, from_base: bool) -> MethodPath | None:
    results = source.results
    if not results.R[label].size:
        return None
    retention = results.retention_mean(results.D[label])
    points = np.stack([retention, results.R[label].mean(-1)], axis=-1)  # [runs, T + 1, 2]
    measured = np.isfinite(points).all(axis=-1)
    stages = np.flatnonzero(measured.any(axis=0))
    if not stages.any():  # nothing behind the base model
        return None
    last = int(stages[-1])

    def change(D: np.ndarray) -> np.ndarray:
        mean = results.retention_mean(D)
        return mean[..., last] - mean[..., 0]

    def last_accuracy(R: np.ndarray) -> np.ndarray:
        return R[..., last, :].mean(-1)

    return MethodPath(
        label,
        stages=np.array([points[measured[:, k], k].mean(axis=0) for k in stages]),
        seeds=points[measured[:, last], last],
        change=results.estimate(label, change, "D", difference=True),
        accuracy=results.estimate(label, last_accuracy),
        n=(
            results.asked("retention", results.in_mean),
            results.asked("skill", results.series[label].order),
        ),
        from_base=from_base,
    )


# -- how it is drawn


def draw(shown: Plane, form: Form) -> Figure:
    """All paths in one panel, in per cent."""
    figure, axes = single()
    for path in shown.paths:
        look = shown.looks[path.label]
        if path.from_base:
            _draw_base(axes, path.stages[0] * 100)
        if look == FURTHER:
            further_mark(axes, *path.stages[-1] * 100)
            continue
        _draw_way(axes, path, look)
        _draw_end(axes, path, look)
    axes.set_xlabel("prior abilities, mean retention (%)")
    axes.set_ylabel("skills, mean accuracy (%)")
    axes.margins(0.1)
    legend(figure, shown.looks, [path.label for path in shown.paths])
    return figure


def _draw_way(axes: Axes, path: MethodPath, look: Look) -> None:
    """A thin line from the base model on, with a mark a stage."""
    axes.plot(
        path.stages[:, 0] * 100,
        path.stages[:, 1] * 100,
        color=look.colour,
        linestyle=look.dash,
        linewidth=1.2,
        alpha=0.7,
        marker=look.marker,
        markersize=3,
        zorder=2,
    )


def _draw_base(axes: Axes, point: np.ndarray) -> None:
    """A star where the base model is."""
    x, y = point
    axes.plot(
        x,
        y,
        marker="*",
        color=BASE,
        markersize=14,
        zorder=5,
        markeredgecolor=PAPER,
        linestyle="none",
    )
    axes.annotate(
        "base",
        (x, y),
        xytext=(-9, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        color=BASE,
        fontweight="bold",
    )


def _draw_end(axes: Axes, path: MethodPath, look: Look) -> None:
    """A dot a seed after the last stage, and a large mark with error bars at their mean."""
    axes.plot(
        path.seeds[:, 0] * 100,
        path.seeds[:, 1] * 100,
        ".",
        color=look.colour,
        alpha=0.45,
        markersize=5,
        zorder=3,
    )
    axes.errorbar(
        path.stages[-1, 0] * 100,
        path.accuracy.value * 100,
        xerr=_error_bar(path.change),
        yerr=_error_bar(path.accuracy),
        color=look.colour,
        marker=look.marker,
        markersize=9,
        markeredgecolor=PAPER,
        capsize=0,
        elinewidth=1.2,
        zorder=4,
        linestyle="none",
    )


def _error_bar(estimate: Estimate) -> np.ndarray | None:
    """Lengths [2, 1] below and above the value in per cent, None where there is no interval."""
    below = (estimate.value - estimate.low) * 100
    above = (estimate.high - estimate.value) * 100
    return np.abs([[below], [above]]) if np.isfinite([below, above]).all() else None


# -- what the caption says


def caption(shown: Plane) -> str:
    tasks = ", ".join(shown.tasks[:MOST_TASKS])
    if len(shown.tasks) > MOST_TASKS:
        tasks += f" and {len(shown.tasks) - MOST_TASKS} more"
    return (
        "Up: better at the skills; right: more of what the model could do before. Large mark: "
        "after the last stage with 95% intervals (over questions and seeds; across, of the change "
        "from the base model on the same questions); dots: its seeds; thin line: the way there "
        "from the base model (star), a mark a stage. "
        f"x: mean over {tasks}; y: mean over all skills of the order."
    )


# -- in words, and for the page's script


def alt(shown: Plane) -> Iterator[str]:
    """Where each path ends."""
    for path in shown.paths:
        x, y = path.stages[-1] * 100
        yield f"{path.label} ends at {y:.1f} % of the skills and {x:.1f} % of prior abilities"


def live(shown: Plane) -> list[LivePanel]:
    """One panel; only the last point has intervals, that of x is of the change from the base."""
    lines = []
    for path in shown.paths:
        x, y = path.stages.T
        before: list[float | None] = [None] * (len(x) - 1)
        change, accuracy = path.change, path.accuracy
        start = x[-1] - change.value
        ends = (accuracy.low, accuracy.high, start + change.low, start + change.high)
        low, high, left, right = ([*before, *numbers([end], 100)] for end in ends)
        lines.append(
            LiveLine(
                path.label,
                shown.looks[path.label].colour,
                shown.looks[path.label].marker,
                shown.looks[path.label].dash != "-",
                numbers(x, 100),
                numbers(y, 100),
                low,
                high,
                left,
                right,
                n_across=numbers([path.n[0]] * len(x)),
                n=numbers([path.n[1]] * len(x)),
                runs=[*before, float(len(path.seeds))],
                ends=[len(x) - 1],
                quiet=shown.looks[path.label] == FURTHER,
            )
        )
    bases = [tuple(numbers(path.stages[0], 100)) for path in shown.paths if path.from_base]
    return [LivePanel("", "prior abilities (%)", "skills (%)", lines, bases=bases)]


PLANE = Picture(
    "plane", "New skills against prior abilities", "summary", plane, draw, caption, alt, live
)
