"""Teach a model the skills of a task-order file one after the other, with each method, and evaluate
after every stage.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import Parser, UserError, exit_if_failed, reported

if TYPE_CHECKING:
    from harness.base.console import Progress

ROOT = Path(__file__).resolve().parent
_OF_ORDER = ("order", "out", "set", "method", "seed", "sequence", "quiet")
USES = {  # options that change what the command does, and those that each makes use of
    "explain": (),
    "status": ("order", "out", "set"),
    "plan": (*_OF_ORDER, "gpus"),
    "check_teacher": _OF_ORDER,
    "workers": (*_OF_ORDER, "gpu_share"),
}
LAUNCHER = "TORCHELASTIC_RUN_ID"  # in the environment of what torchrun starts


def arguments() -> argparse.Namespace:
    """The command's options."""
    parser = Parser(
        description=__doc__,
        epilog="python -m harness list methods|parts|parameters|presets|skills|graders|suites|"
        "orders prints what an order can name.",
    )
    parser.add_argument(
        "order", nargs="?", help="task-order file, as benchmarks/orders/quickstart.yaml"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="results folder (default: results/<name of the order>)"
    )
    parser.add_argument(
        "--method",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="only these methods of the order",
    )
    parser.add_argument(
        "--seed",
        nargs="+",
        action="extend",
        type=int,
        default=[],
        metavar="N",
        help="these seeds instead of the order's",
    )
    parser.add_argument(
        "--sequence",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="only these sequences of the order's `orders`",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the order, as budget.prompts=80 or methods.sdft.learning_rate=1e-5",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--plan",
        action="store_true",
        help="print runs, steps, evaluations, time and disk; train nothing",
    )
    parser.add_argument(
        "--gpus",
        metavar="NxGB",
        help="with --plan: what one run takes on N GPUs of so many GB under torchrun, as 8x80",
    )
    instead.add_argument(
        "--check-teacher",
        action="store_true",
        help="print the accuracy of the base model and of the demonstration-conditioned teacher; "
        "train nothing",
    )
    parser.add_argument(
        "--fail-fast",
        action="store_true",
        help="end at the first run that fails; without it the other runs go on",
    )
    look = parser.add_mutually_exclusive_group()
    look.add_argument("--quiet", action="store_true", help="print errors and the last line alone")
    look.add_argument(
        "--live", action="store_true", help="also draw learning curves in the terminal"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="for the I-th of N jobs of an array: begin with every N-th run, go past what another "
        "job works on, then take up what is left",
    )
    parser.add_argument(
        "--workers",
        metavar="auto|N|HOST:PORT",
        help="work on many runs at once by Ray: on all GPUs, in N processes, or on a running "
        "cluster",
    )
    parser.add_argument(
        "--gpu-share",
        type=float,
        metavar="X",
        help="with --workers: how much of a GPU a run takes (default: 1, one run a GPU)",
    )
    instead.add_argument(
        "--status",
        action="store_true",
        help="print which runs wait, go on, are done or have failed, and the time left; start none",
    )
    instead.add_argument(
        "--explain",
        metavar="KEY",
        help="print what a key of an order means, as budget.prompts or learning_rate; takes no "
        "order",
    )
    args = parser.parse_args()
    if args.order is None and args.explain is None:
        parser.error("the following arguments are required: order")
    if args.gpus and not args.plan:
        parser.error("--gpus is of --plan")
    if args.gpu_share is not None and not args.workers:
        parser.error("--gpu-share is of --workers")
    for what, used in USES.items():
        if getattr(args, what) not in (None, False):
            parser.check_use(args, f"--{what.replace('_', '-')}", {what, *used})
    return args


def main() -> None:
    """The command. It imports PyTorch, which takes seconds, after the first line on the screen."""
    args = arguments()
    failed: dict[str, str] = {}
    if LAUNCHER in os.environ:
        among_ranks(args)
        return
    with reported(args.out or ROOT / "results", goes_on=True):
        if args.explain is not None:
            from harness.base.explain import explain

            print(explain(args.explain))
            return
        from harness.base.console import Progress
        from harness.base.places import check_folder
        from harness.runs.reading import read_sections
        from harness.watch.log import LogFile

        sections = read_sections(args.order, args.set)
        out = Path(args.out) if args.out else ROOT / "results" / sections.name
        check_folder(out / "teacher_check" if args.check_teacher else out)
        if args.status:
            from harness.results.status import status_of

            found = status_of(out)
            print("\n".join([*found.lines(), found.summary()]))
            return
        with Progress(quiet=args.quiet) as progress:
            progress.listeners.append(LogFile())
            progress.say(f"reads {args.order}")
            said, runs = work(args, out, progress, failed)
        print(said)
    exit_if_failed(failed, runs)


def work(
    args: argparse.Namespace, out: Path, progress: "Progress", failed: dict[str, str]
) -> tuple[str, int]:
    """Do what the options say; returns what is printed at the end, and the number of runs.

    failed: gets {run: reason} of runs that fail while the others go on.
    """
    progress.show("imports PyTorch and transformers")
    from harness.runs.reading import read_order

    order = read_order(args.order, args.set, args.method, args.seed, args.sequence)
    runs = order.runs()
    if args.gpus:
        from harness.runs.ranks_plan import plan_on_ranks

        return plan_on_ranks(order, args.gpus), len(runs)
    if args.plan:
        progress.show("plans")
        from harness.runs.plan import plan

        return plan(order, out, measured_variations(out)), len(runs)
    from harness.runs.script import try_prompts

    try_prompts(order, progress)
    if args.check_teacher:
        from harness.runs.teacher_check import check_teacher

        rows = check_teacher(order, out / "teacher_check", progress)
        return teachers(rows), len(runs)
    from harness.runs.sequence import run_order
    from harness.runs.shards import Shard

    listen(args, out, progress, (runs[-1].name, len(runs[-1].stages)))
    if args.workers:
        run_on_workers(args, order, out, progress, failed)
    else:
        shard = Shard.read(args.shard) if args.shard else None
        run_order(order, out, progress, None if args.fail_fast else failed.__setitem__, shard)
    text = report(out, progress)
    last_line = text.rpartition("\n")[2]
    progress.say(f"finished: {len(runs) - len(failed)} of {len(runs)} runs; {last_line}")
    return last_line if args.quiet else text, len(runs)


def run_on_workers(
    args: argparse.Namespace, order: Any, out: Path, progress: "Progress", failed: dict[str, str]
) -> None:
    """The runs of the order by Ray."""
    from harness.runs import cluster
    from harness.runs.worker import Start

    share = 1.0 if args.gpu_share is None else args.gpu_share
    if not 0 < share <= 1:
        raise UserError(f"--gpu-share {share}", "must be above 0 and at most 1")
    start = Start(
        order=args.order,
        out=out.absolute(),
        folder=os.getcwd(),
        changes=tuple(args.set),
        methods=tuple(args.method),
        seeds=tuple(args.seed),
        sequences=tuple(args.sequence),
    )
    workers = cluster.Workers.read(args.workers)
    cluster.run_on_workers(order, start, workers, share, progress, failed.__setitem__)


def listen(
    args: argparse.Namespace, out: Path, progress: "Progress", last: tuple[str, int]
) -> None:
    """Let the page, and curves where they are wanted, hear of the order.

    last: run and number of the order's last stage.
    """
    from harness.watch.page import PageRedrawer

    # Of many jobs each would draw it; report.py --watch shows their state.
    if not args.shard and not args.workers:
        progress.listeners.append(PageRedrawer(out, last, progress))
    if args.live:
        from harness.watch.curves import Curves

        curves = Curves()
        progress.listeners.append(curves)
        if not progress.show_below(curves):
            progress.say("--live: there is no terminal to draw in, so there are lines alone")


def among_ranks(args: argparse.Namespace) -> None:
    """The command as one of the ranks that torchrun has started; see docs/how-to/large.md."""
    with reported(args.out or ROOT / "results", goes_on=True):
        from harness.models import ranks

        with ranks.joined():
            from harness.base.console import Progress
            from harness.base.places import check_folder
            from harness.runs.mirror import folder_of_rank
            from harness.runs.on_ranks import check_options, check_order
            from harness.runs.reading import read_order
            from harness.runs.script import try_prompts
            from harness.runs.sequence import run_order
            from harness.watch.log import LogFile

            check_options(args)
            with Progress(quiet=args.quiet or bool(ranks.index())) as progress:
                progress.listeners += [] if ranks.index() else [LogFile()]
                progress.say(f"reads {args.order}, on {ranks.count()} ranks")
                order = read_order(args.order, args.set, args.method, args.seed, args.sequence)
                out = Path(args.out) if args.out else ROOT / "results" / order.name
                check_folder(out)
                check_order(order, ranks.on_machine())
                try_prompts(order, progress)
                runs = order.runs()
                if not ranks.index():
                    listen(args, out, progress, (runs[-1].name, len(runs[-1].stages)))
                with folder_of_rank(out.resolve()) as folder:
                    run_order(order, folder, progress)
                if not ranks.index():
                    print(report(out, progress))


def measured_variations(out: Path) -> dict[str, Any]:
    """How differences vary in the finished runs of a results folder, {} where nobody knows."""
    if not (out / "results.json").exists():
        return {}
    try:
        from harness.report.comparisons import variations
        from harness.report.data import ReportData

        return variations(ReportData([out]))
    except (ModuleNotFoundError, UserError):  # the plan itself does not need them
        return {}


def report(out: Path, progress: "Progress") -> str:
    """The main table and the path of the page; a line where a package for reports is missing."""
    progress.show("writes the report")
    try:
        from benchmarks.published.numbers import published_tables
        from harness.report.build import write_report
    except ModuleNotFoundError as error:
        return (
            f"no table and no page: {error.name} is not installed; "
            f"pip install -r requirements.txt && python report.py {out}"
        )
    table, page = write_report([out], show=progress.show, further=published_tables)
    progress.reported(page)
    return f"{table}\nreport: {os.path.relpath(page)}"


def teachers(rows: list[dict[str, Any]]) -> str:
    """The table of --check-teacher."""
    from harness.base.console import padded

    cells = [["skill", "split", "n", "base", "teacher", ""]]
    for row in rows:
        is_better = row["teacher"] > row["base"]
        cells.append(
            [
                row["skill"],
                row["split"],
                str(row["n"]),
                f"{row['base']:.3f}",
                f"{row['teacher']:.3f}",
                "" if is_better else "the teacher is no better: change teacher_template",
            ]
        )
    return "\n".join(padded(cells, left=(0, 1, 5)))


if __name__ == "__main__":
    main()
