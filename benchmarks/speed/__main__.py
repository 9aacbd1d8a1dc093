"""Measures the harness beside TRL, transformers and lm-eval: docs/explanation/speed.md."""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.speed.timing import ROOT, Result, Settings, machine
from harness.base.console import clock, padded
from harness.base.errors import Parser, UserError, did_you_mean, reported
from harness.base.files import write_json, write_text
from harness.base.places import check_folder
from harness.models.embedded import EMBEDDED
from harness.models.load import check_name, is_local

HEAD = ("work", "ours", "theirs", "ratio", "wanted", "n", "")
LEFT = (0, 4, 6)  # columns of texts
CURVES = (  # of the picture: key of a point, label, colour, key of its slope
    ("seconds", "seconds", "#0072b2", "time"),
    ("used_mib", "MiB beyond the start", "#d55e00", "memory"),
)


def cells(result: Result) -> tuple[str, ...]:
    return (
        result.work,
        f"{result.ours:.4g} {result.unit}",
        f"{result.theirs:.4g} {result.unit}",
        _ratio(result),
        result.wanted,
        str(result.n),
        {True: "reached", False: "missed", None: ""}[result.met],
    )


def _ratio(result: Result) -> str:
    if result.wanted.startswith("under") and result.wanted.endswith("%"):
        return f"{100 * result.ratio:.1f}%"
    if "slope" in result.wanted or result.wanted == "0":
        return f"{result.ratio:.2g}"
    return f"{result.ratio:.2f}x"


def terminal(results: Sequence[Result]) -> str:
    return "\n".join(padded([HEAD, *map(cells, results)], LEFT))


def markdown(results: Sequence[Result], about: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [
        "# Speed",
        "",
        f"{about['device']}, {about['threads']} threads, {about['memory_gib']} GiB, "
        f"Python {about['python']}, {packages}, revision {about['git']}",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---|---:|---:|---:|---|---:|---|",
    ]
    lines += ["| " + " | ".join(cells(r)) + " |" for r in results]
    for r in results:
        lines += ["", f"**{r.work}**", *(f"- {note}" for note in r.notes)]
    return "\n".join(lines) + "\n"


def draw(results: Sequence[Result], path: Path) -> None:
    """Growth: seconds and memory over what grows, one panel each, doubly logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with_points = [result for result in results if "points" in result.details]
    count = len(with_points)
    figure, panels = pyplot.subplots(
        1, count, figsize=(3.2 * count, 3.1), squeeze=False, layout="constrained"
    )
    for axes, result in zip(panels[0], with_points, strict=True):
        points = result.details["points"]
        xs = [point["x"] for point in points]
        for key, label, colour, slope in CURVES:
            ys = [point[key] for point in points]
            if min(ys) > 0:
                label = f"{label}, slope {result.details[slope]:.2f}"
                axes.loglog(xs, ys, "o-", color=colour, label=label)
        axes.set_xticks(xs, [f"{x:,}" for x in xs], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set_title(f"{result.work} (work: {result.details['work']})", fontsize=9)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write(results: Sequence[Result], about: Mapping[str, Any], out: Path) -> None:
    write_json(out / "speed.json", {"machine": about, "results": [asdict(r) for r in results]})
    write_text(out / "speed.md", markdown(results, about))
    if any("points" in r.details for r in results):
        draw(results, out / "growth.png")


def run(names: Sequence[str], settings: Settings, out: Path) -> list[Result]:
    """Measures the rows ``names``. After each, everything so far is written to ``out``."""
    from benchmarks.speed.rows import ROWS

    about = machine()
    results: list[Result] = []
    for number, name in enumerate(names, 1):
        settings.say(f"row {number}/{len(names)}: {name}")
        of_row = ROWS[name](settings)
        results += of_row
        for result in of_row:
            settings.say(f"{result.work}: " + ", ".join(cells(result)[1:]))
        write(results, about, out)
    return results


def arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="only these rows (see docs/explanation/speed.md)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="pairs of each short row (default 5)"
    )
    parser.add_argument(
        "--long-repeats",
        type=int,
        default=1,
        metavar="N",
        help="pairs of the rows evaluation and stage, some minutes each (default 1)",
    )
    parser.add_argument(
        "--model", default="embedded", help="a model folder instead of the embedded model"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="of our side (default: the harness's choice)",
    )
    parser.add_argument(
        "--out",
        default=str(ROOT / "results" / "bench"),
        metavar="DIR",
        help="default: results/bench",
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with reported(args.out):
        check_folder(args.out)
        from benchmarks.speed.rows import ROWS

        names = list(dict.fromkeys(args.rows or ROWS))
        for name in names:
            if name not in ROWS:
                raise UserError(f"--rows {name}", "unknown row", did_you_mean(name, ROWS))
        for option, count in (("--repeats", args.repeats), ("--long-repeats", args.long_repeats)):
            if count < 1:
                raise UserError(option, f"must be at least 1, not {count}")
        check_name(args.model, "--model")
        if args.model != EMBEDDED and not is_local(args.model):
            raise UserError(
                "--model",
                f"{args.model} is not a folder",
                "the peers load a checkpoint from the disk",
            )
        with tempfile.TemporaryDirectory(prefix="bench-") as work:
            settings = Settings(
                Path(work),
                model=args.model,
                dtype=args.dtype,
                repeats=args.repeats,
                long_repeats=args.long_repeats,
            )
            results = run(names, settings, Path(args.out))
            print(terminal(results))
            print(
                f"took {clock(time.monotonic() - settings.progress.started)}; written to {args.out}"
            )


if __name__ == "__main__":
    main()
