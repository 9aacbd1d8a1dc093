"""Tables, pictures and a page from results folders.

python report.py RESULTS_DIR [RESULTS_DIR ...] [--paper] [--watch] [--out DIR]

With --paper the figures and tables of arXiv 2601.19897, published beside measured; with --published
the published ones alone.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from harness.base.console import Progress
from harness.base.errors import Parser, UserError, reported
from harness.base.places import check_export


def check_out(out: str | Path) -> None:
    """Raises UserError if no report can be written into ``out``, before a part of one is."""
    check_export(out, "data", "tables", "figures", "viewer")
    page = Path(out) / "index.html"
    if page.is_dir():
        raise UserError(
            page,
            "is a folder, and the report's page has this name",
            "give another folder with --out",
        )


def parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="report.py",
        description="Write tables, pictures and an HTML page from results folders.",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="RESULTS_DIR",
        help="a folder that run_sequence.py wrote; several are pooled or compared",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="draw the figures and tables of the paper; "
        "RESULTS_DIR may hold several results folders",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="draw the paper's published numbers alone; takes no RESULTS_DIR",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="show what the runs of one RESULTS_DIR do, here and on a page that redraws itself, "
        "until all are over",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where to write (default: report, with --paper paper, in the first folder; "
        "with --published results/paper/report)",
    )
    return parser


def check_options(options: Namespace) -> None:
    """Raises UserError for options that exclude each other and for an impossible --out."""
    if options.published and (options.folders or options.paper):
        raise UserError(
            "--published",
            "takes no RESULTS_DIR",
            "RESULTS_DIR --paper draws both, side by side",
        )
    if options.published and options.watch:
        raise UserError("--watch", "takes a RESULTS_DIR", "leave out --published")
    if not options.published and not options.folders:
        raise UserError(
            "RESULTS_DIR",
            "is missing",
            "give a folder that run_sequence.py wrote, or --published",
        )
    if options.watch and (len(options.folders) > 1 or options.paper):
        raise UserError("--watch", "takes one RESULTS_DIR and no --paper", "watch them one by one")
    if options.out:
        check_out(options.out)
    for folder in map(Path, options.folders):
        if not folder.is_dir():
            remedy = "give a results folder, as results/quickstart"
            raise UserError(folder, "is not a folder", remedy)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report, and prints the main table and the path of the page."""
    options = parser().parse_args(arguments)
    with reported(options.out or "the report's folder"):
        check_options(options)
        if options.watch:
            from harness.report.watch import watch

            watch(Path(options.folders[0]), options.out)
        with Progress() as progress:
            progress.show("loads what makes reports")
            if options.paper or options.published:
                from benchmarks.paper.write import write_paper

                text, page = write_paper(options.folders, options.out, progress.show)
            else:
                from benchmarks.published.numbers import published_tables
                from harness.report.build import write_report

                text, page = write_report(
                    options.folders, options.out, progress.show, published_tables
                )
        print(text)
        print(f"\nreport: {page}")


if __name__ == "__main__":
    main()
