"""Measure the harness beside TRL, transformers and lm-eval on this machine; docs/speed.md says how."""

import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.speed.timing import ROOT, Settings, machine
from harness.base.console import clock
from harness.base.errors import Parser, UserError, did_you_mean, reported
from harness.base.files import write_json, write_text
from harness.models.embedded import EMBEDDED
from harness.models.load import check_name, is_local

HEAD = ("work", "ours", "theirs", "ratio", "wanted", "n", "")


def cells(result):
    share = result.wanted.endswith("%")
    ratio = (
        f"{100 * result.ratio:.1f}%"
        if share
        else f"{result.ratio:.2g}"
        if "slope" in result.wanted or result.wanted == "0"
        else f"{result.ratio:.2f}x"
    )
    return (
        result.work,
        *(f"{x:.4g} {result.unit}" for x in (result.ours, result.theirs)),
        ratio,
        result.wanted,
        str(result.n),
        {True: "reached", False: "missed", None: ""}[result.met],
    )


def terminal(results):
    rows = [HEAD, *map(cells, results)]
    widths = [max(map(len, column)) for column in zip(*rows)]

    def line(row):
        return "  ".join(
            c.ljust(w) if i in (0, 4, 6) else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths))
        ).rstrip()

    return "\n".join(map(line, rows))


def markdown(results, about):
    lines = [
        "# Speed",
        "",
        f"{about['device']}, {about['threads']} threads, {about['memory_gib']} GiB, Python {about['python']}, "
        + ", ".join(f"{k} {v}" for k, v in about["packages"].items())
        + f", revision {about['git']}",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---|---:|---:|---:|---|---:|---|",
    ]
    lines += ["| " + " | ".join(cells(r)) + " |" for r in results]
    for r in results:
        lines += ["", f"**{r.work}**", *(f"- {note}" for note in r.notes)]
    return "\n".join(lines) + "\n"


def draw(results, path):
    """Growth: seconds and memory over what grows, one panel each, doubly logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [r for r in results if "points" in r.details]
    figure, panels = pyplot.subplots(
        1, len(shown), figsize=(3.2 * len(shown), 3.1), squeeze=False, layout="constrained"
    )
    for axes, r in zip(panels[0], shown):
        points = r.details["points"]
        for key, label, colour, slope in (
            ("seconds", "seconds", "#0072b2", "time"),
            ("used_mib", "MiB beyond the start", "#d55e00", "memory"),
        ):
            if min(p[key] for p in points) > 0:
                axes.loglog(
                    [p["x"] for p in points],
                    [p[key] for p in points],
                    "o-",
                    color=colour,
                    label=f"{label}, slope {r.details[slope]:.2f}",
                )
        axes.set_xticks([p["x"] for p in points], [f"{p['x']:,}" for p in points], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set_title(f"{r.work} (work: {r.details['work']})", fontsize=9)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write(results, about, out):
    write_json(out / "speed.json", {"machine": about, "results": [asdict(r) for r in results]})
    write_text(out / "speed.md", markdown(results, about))
    if any("points" in r.details for r in results):
        draw(results, out / "growth.png")


def run(names, settings, out):
    """Measure the rows ``names``; after each, everything so far is written to ``out``. Returns the
    results.
    """
    from benchmarks.speed.rows import ROWS

    about, results = machine(), []
    for number, name in enumerate(names, 1):
        settings.say(f"row {number}/{len(names)}: {name}")
        found = ROWS[name](settings)
        results += found
        for r in found:
            settings.say(f"{r.work}: " + ", ".join(cells(r)[1:]))
        write(results, about, out)
    return results


def arguments():
    parser = Parser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="only these rows (see docs/speed.md)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="pairs of each short row (default 5)"
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


def main():
    args = arguments()
    with reported(args.out):
        from benchmarks.speed.rows import ROWS

        names = list(dict.fromkeys(args.rows or ROWS))
        for name in names:
            if name not in ROWS:
                raise UserError(f"--rows {name}", "unknown row", did_you_mean(name, ROWS))
        if args.repeats < 1:
            raise UserError("--repeats", f"must be at least 1, not {args.repeats}")
        check_name(args.model, "--model")
        if args.model != EMBEDDED and not is_local(args.model):
            raise UserError(
                "--model",
                f"{args.model} is not a folder",
                "the peers load a checkpoint from the disk",
            )
        with tempfile.TemporaryDirectory(prefix="bench-") as work:
            settings = Settings(
                Path(work), model=args.model, dtype=args.dtype, repeats=args.repeats
            )
            results = run(names, settings, Path(args.out))
            print(terminal(results))
            print(
                f"took {clock(time.monotonic() - settings.progress.started)}; written to {args.out}"
            )


if __name__ == "__main__":
    sys.exit(main())
