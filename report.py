"""Tables, pictures and a page from one or several results folders: python report.py RESULTS_DIR [RESULTS_DIR ...] [--out DIR]."""

import argparse

from harness.errors import reported


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="report.py", description="Write tables, pictures and an HTML page from results folders."
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="RESULTS_DIR",
        help="a folder that run_sequence.py wrote; several are pooled or compared",
    )
    parser.add_argument("--out", metavar="DIR", help="where to write (default: report in the first folder)")
    options = parser.parse_args(arguments)
    with reported():
        from harness.report import write_report

        text, page = write_report(options.folders, options.out)
        print(text)
        print(f"\nreport: {page}")


if __name__ == "__main__":
    main()
