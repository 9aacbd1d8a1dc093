"""Small commands around orders and results.

    python -m harness list methods|parts|parameters|presets|skills|graders|suites|orders
    python -m harness schema
    python -m harness completion bash|zsh
    python -m harness export RESULTS METHOD
    python -m harness pack RESULTS DIR

Orders are listed by their path in benchmarks/orders.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness.base.console import Progress
from harness.base.errors import Parser, UserError, reported

HERE = Path(__file__).parent
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command's options; ``run`` is what it does."""
    from harness.runs.listing import LISTINGS

    parser = Parser(
        prog="python -m harness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], what: str) -> Parser:
        command = commands.add_parser(name, help=what, description=what)
        command.set_defaults(run=run)
        return command

    listing = add("list", list_names, "print the name and the description of each")
    listing.add_argument("what", choices=LISTINGS, metavar="|".join(LISTINGS))
    add("schema", print_schema, "print the JSON schema of an order, for editors")
    completion = add("completion", print_completion, "print a script that completes in a shell")
    completion.add_argument("shell", choices=("bash", "zsh"), metavar="bash|zsh")
    _add_export(add("export", export_method, "write a model with its card and its numbers"))
    packing = add("pack", pack_results, "write what a report is made of, to be published")
    packing.add_argument("results", help="a folder that run_sequence.py wrote")
    packing.add_argument("out", metavar="DIR", help="where to write; it is not there yet")
    return parser.parse_args(words)


def _add_export(command: Parser) -> None:
    """The options of ``export``."""
    command.add_argument("results", help="a folder that run_sequence.py wrote")
    command.add_argument("method", help="its label in the order")
    command.add_argument(
        "--out", metavar="DIR", help="where to write (default: RESULTS/export/METHOD)"
    )
    command.add_argument("--seed", type=int, metavar="N", help="of the run whose model is taken")
    command.add_argument("--sequence", metavar="NAME", help="of the run, where there are several")
    command.add_argument(
        "--licence", metavar="ID", help="of the model, as the hub names it: apache-2.0, mit, ..."
    )
    command.add_argument(
        "--numbers",
        action="store_true",
        help="leave the model and its card out, as where no weights are kept",
    )
    command.add_argument(
        "--push", metavar="OWNER/NAME", help="push the folder to this repository of the hub"
    )
    command.add_argument("--private", action="store_true", help="make the repository private")


def list_names(args: argparse.Namespace) -> None:
    """Print the name and the description of each, in two columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.runs.listing import LISTINGS

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, description in LISTINGS[args.what]():
        table.add_row(Text(name), Text(description))  # a str would be read as markup
    Console().print(table)


def print_schema(args: argparse.Namespace) -> None:
    """Print the JSON schema of an order."""
    print((HERE / "order.schema.json").read_text(encoding="utf-8"), end="")


def print_completion(args: argparse.Namespace) -> None:
    """Print the script that a shell evaluates."""
    script = (HERE / "completion.sh").read_text(encoding="utf-8")
    print(script if args.shell == "bash" else ZSH + script, end="")


def export_method(args: argparse.Namespace) -> None:
    """Write the export, push it on request, and print where it is."""
    if args.numbers and args.push:
        raise UserError("--push", "pushes a model, and --numbers leaves it out", "leave one out")
    if args.private and not args.push:
        raise UserError("--private", "goes with --push", "leave it out")
    with Progress() as progress:
        progress.show("loads what makes reports")
        from harness.report.publish import export, push

        out = export(
            Path(args.results),
            args.method,
            Path(args.out) if args.out else None,
            args.seed,
            args.sequence,
            args.licence,
            args.push,
            args.numbers,
            progress.show,
        )
        done = [f"exported: {out}"]
        if args.push:
            progress.show(f"pushes to {args.push}")
            done.append(f"pushed: {push(out, args.push, args.private)}")
    print("\n".join(done))


def pack_results(args: argparse.Namespace) -> None:
    """Write the folder, with tables and pictures of its report, and print how large it is."""
    with Progress() as progress:
        progress.show("loads what makes reports")
        from harness.report.build import write_report
        from harness.results.pack import MOST, check_pack, pack

        out = Path(args.out)
        check_pack(Path(args.results), out)
        with tempfile.TemporaryDirectory() as temporary:
            # First: a folder without a report is not worth packing, and nothing is half-written.
            write_report([args.results], Path(temporary), progress.show)
            files = [*Path(temporary, "tables").iterdir(), *Path(temporary, "figures").iterdir()]
            shown = [file for file in files if file.suffix in (".csv", ".md", ".png")]
            size = pack(Path(args.results), out, shown, progress.show)
    print(f"packed: {out}, with {size / 1e6:.1f} MB of answers")
    if size > MOST:
        print(f"more than {MOST / 1e6:.0f} MB: publish it apart from a repository")


def main(words: list[str] | None = None) -> None:
    """Do what the command says."""
    args = arguments(words)
    with reported(getattr(args, "out", None) or "disk"):
        args.run(args)


if __name__ == "__main__":
    main()
