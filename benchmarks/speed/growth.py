"""Rows of memory and of growth: each point in a process of its own; and made-up records."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.speed.timing import Result, Settings, python

# What grows: the power of it that the work itself grows with, and the points
Axes = Mapping[str, tuple[int, Sequence[Mapping[str, Any]]]]
AXES: Axes = {
    "skills": (2, [{"kind": "order", "skills": n} for n in (2, 4, 8, 16)]),
    "training examples": (1, [{"examples": n} for n in (8, 16, 32, 64)]),
    "completion tokens": (1, [{"completion": n} for n in (64, 128, 256, 512)]),
    "vocabulary": (1, [{"vocabulary": n} for n in (8_192, 16_384, 32_768, 65_536)]),
    "model width": (2, [{"width": n} for n in (128, 256, 512, 1024)]),
}
SLACK = 0.15  # a slope may be so much above the work's


def point(**what: Any) -> dict[str, float]:
    """What benchmarks/speed/point.py measures, in a process of its own."""
    return _last_line("-m", "benchmarks.speed.point", json.dumps(what))


def _last_line(*arguments: Any) -> dict[str, Any]:
    """The JSON that a Python command prints at its end."""
    _, output = python(*arguments)
    return json.loads(output.splitlines()[-1])


def memory(settings: Settings, **changes: int) -> list[Result]:
    """Peak memory of an SDFT step with a large vocabulary, beside the same step without a loss.

    changes: of the sizes.
    """
    size = {
        "vocabulary": 150_000,
        "width": 576,
        "layers": 6,
        "completion": 1024,
        "rows": 2,
        "examples": 2,
    } | changes
    ours = point(kind="sdft", **size)
    bare = point(kind="bare", **size)
    ratio = ours["peak_mib"] / bare["peak_mib"]
    whole = size["completion"] * size["rows"] * size["vocabulary"] * 4 / 2**20
    notes = [
        f"a random model of width {size['width']}, {size['layers']} layers and a vocabulary of "
        f"{size['vocabulary']:,}, {size['rows']} completions of {size['completion']:,} tokens, "
        "float32; `theirs` is the same step without a loss on top",
        f"one float32 tensor of all tokens and the whole vocabulary would be {whole:,.0f} MiB",
    ]
    return [
        Result(
            "peak memory of the distillation loss",
            ours["peak_mib"],
            bare["peak_mib"],
            ratio,
            "at most 1.3x",
            ratio <= 1.3,
            1,
            "MiB",
            notes,
            {"ours": ours, "bare": bare},
        )
    ]


def growth(settings: Settings, axes: Axes = AXES) -> list[Result]:
    """Time and memory of small random models against what grows; log-log slopes."""
    return [_growth(settings, axis, work, changes) for axis, (work, changes) in axes.items()]


def _growth(
    settings: Settings, axis: str, work: int, changes: Sequence[Mapping[str, Any]]
) -> Result:
    points = []
    for change in changes:
        x = next(value for key, value in change.items() if key != "kind")
        measured = point(**{"kind": "sdft", **change}, folder=settings.folder)
        settings.say(f"{axis} {x}: {measured['seconds']:.3g} s, {measured['used_mib']:.0f} MiB")
        points.append({"x": x, **measured})
    first, last = points[0], points[-1]
    time, memory = slope(points, "seconds"), slope(points, "used_mib")
    note = (
        f"from {first['x']} to {last['x']}: time grows with the power {time:.2f} ({SLACK} above "
        f"the work's is allowed), memory beyond Python and the model with {memory:.2f}; `ours` is "
        "the largest point, `theirs` the smallest"
    )
    return Result(
        f"growth with {axis}",
        last["seconds"],
        first["seconds"],
        time,
        f"slope at most {work}",
        time <= work + SLACK,
        len(points),
        notes=[note],
        details={"points": points, "time": time, "memory": memory, "work": work},
    )


def slope(points: Sequence[Mapping[str, float]], key: str) -> float:
    """Least-squares slope of log ``key`` over log x; 0 where a point has nothing of it."""
    if min(point[key] for point in points) <= 0:
        return 0.0
    x, y = (
        torch.tensor([float(point[k]) for point in points], dtype=torch.float64).log()
        for k in ("x", key)
    )
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def records(settings: Settings, **changes: int) -> list[Result]:
    """The records of a large order, made up: written, read and drawn. changes: of the sizes."""
    size = {"skills": 50, "methods": 10, "seeds": 10} | changes
    skills, methods, seeds = size["skills"], size["methods"], size["seeds"]
    measured = _last_line(
        "-m", "benchmarks.speed.records", settings.work / "records", skills, methods, seeds
    )
    whole = measured["written"] + measured["drawn"]
    note = (
        f"{measured['records']:,} records: written in {measured['written']:.1f} s, read and drawn "
        f"in {measured['drawn']:.1f} s, {measured['peak_mib']:.0f} MiB at most; a further stage is "
        f"committed in {1000 * measured['commit']:.1f} ms, and records.jsonl, rebuilt in "
        f"{measured['rebuild']:.2f} s, takes a fiftieth of a run's time at most; `theirs` is the "
        "mark"
    )
    return [
        Result(
            f"records of {skills} skills x {methods} methods x {seeds} seeds",
            whole,
            60.0,
            whole / 60,
            "under 60 s and 2 GiB",
            whole < 60 and measured["peak_mib"] < 2048,
            1,
            notes=[note],
            details=measured,
        )
    ]
