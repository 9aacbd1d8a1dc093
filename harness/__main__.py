"""Small commands around orders and results.

    python -m harness list methods|parts|parameters|presets|skills|graders|suites|orders
    python -m harness schema
    python -m harness completion bash|zsh

Orders are listed by their path in benchmarks/orders.
"""

import argparse
from collections.abc import Callable

from harness.base.errors import Parser, reported
from harness.base.files import ROOT

RUNS = ROOT / "harness" / "runs"
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
    return parser.parse_args(words)


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
    print((RUNS / "order.schema.json").read_text(encoding="utf-8"), end="")


def print_completion(args: argparse.Namespace) -> None:
    """Print the script that a shell evaluates."""
    script = (RUNS / "completion.sh").read_text(encoding="utf-8")
    print(script if args.shell == "bash" else ZSH + script, end="")


def main(words: list[str] | None = None) -> None:
    """Do what the command says."""
    args = arguments(words)
    with reported():
        args.run(args)


if __name__ == "__main__":
    main()
