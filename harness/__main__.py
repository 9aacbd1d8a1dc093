"""Lists what a task-order file can name.

    python -m harness list methods|parts|parameters|presets|skills|graders|suites|orders

Orders are listed by their path in benchmarks/orders.
"""

import argparse

from harness.base.errors import Parser, reported


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    from harness.runs.listing import LISTINGS

    parser = Parser(
        prog="python -m harness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="list", required=True)
    listing = commands.add_parser("list", help="print the name and the description of each")
    listing.add_argument("what", choices=LISTINGS, metavar="|".join(LISTINGS))
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Print the name and the description of each, in two columns."""
    args = arguments(words)
    with reported():
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


if __name__ == "__main__":
    main()
