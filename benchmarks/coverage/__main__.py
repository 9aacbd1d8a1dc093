"""Prints coverage and width of 95% intervals, and the power that was foretold, by simulation.

python -m benchmarks.coverage --draws 2000
python -m benchmarks.coverage --seeds 2 --items 300 --estimators report
python -m benchmarks.coverage --orders 3        # with several sequences of skills as a level
python -m benchmarks.coverage --measured results/NAME     # what the runs of a folder tell
python -m benchmarks.coverage --typical results/NAME      # how they vary, for --plan of others
"""

import zlib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from benchmarks.coverage.estimators import ESTIMATORS, ESTIMATORS_OF_ORDERS, report
from benchmarks.coverage.laws import LAWS, LAWS_OF_ORDERS, Law
from benchmarks.coverage.measured import measured_table, typical_lines
from harness.base.errors import Parser, UserError, did_you_mean, reported
from harness.base.intervals import spread
from harness.base.power import Variation
from harness.report.data import ReportData


class Coverage(NamedTuple):
    """Of one estimator on one law: share of intervals with the truth in them, and mean width."""

    share: float
    width: float


def coverage(
    law: Law, items: int, seeds: int, draws: int, names: Sequence[str] = (), orders: int = 0
) -> dict[str, Coverage]:
    """{estimator: its coverage of the law's truth}; the same draws for every estimator.

    names: all if left out; orders: sequences of skills, 0 for runs of one.
    """
    known = ESTIMATORS_OF_ORDERS if orders else ESTIMATORS
    names = names or list(known)
    key = [zlib.crc32(law.name.encode()), items, seeds, *([orders] if orders else [])]
    generator = np.random.default_rng(key)
    bounds = np.empty((draws, len(names), 2))
    for draw in range(draws):
        tests = law.draw(generator, items, seeds, orders)
        bounds[draw] = [known[name](tests, law) for name in names]
    slack = 1e-12  # the truth may be 0, and so may a bound
    inside = (bounds[..., 0] <= law.truth + slack) & (law.truth - slack <= bounds[..., 1])
    width = (bounds[..., 1] - bounds[..., 0]).mean(0)
    return {
        name: Coverage(float(inside[:, i].mean()), float(width[i])) for i, name in enumerate(names)
    }


def lines(
    items: Sequence[int], seeds: int, draws: int, names: Sequence[str], orders: int = 0
) -> Iterator[str]:
    """The table in Markdown: coverage in per cent / half of the mean width."""
    yield "| law | items | " + " | ".join(names) + " |"
    yield "|---|---:|" + "---:|" * len(names)
    for law in LAWS_OF_ORDERS if orders else LAWS:
        for n in items:
            scale, form = (100, ".1f") if law.is_fraction else (1, ".3f")
            cells = [
                f"{100 * cell.share:.1f} / {cell.width / 2 * scale:{form}}"
                for cell in coverage(law, n, seeds, draws, names, orders).values()
            ]
            yield f"| {law.name} | {n} | " + " | ".join(cells) + " |"


def variation(law: Law, items: int) -> Variation:
    """How the law's number varies with so many items a test, from a large sample."""
    generator = np.random.default_rng(0)
    parts = []
    for _ in range(5):
        tests = law.draw(generator, 4000, 60)
        found = spread(tests)
        assert found is not None
        parts.append(Variation.of(found))
    times = 4000 / items
    return Variation(
        items=float(np.mean([part.items for part in parts])) * times,
        seeds=float(np.mean([part.seeds for part in parts])),
        both=float(np.mean([part.both for part in parts])) * times,
        count=items * law.tests,
    )


def power(law: Law, items: int, seeds: int, draws: int) -> tuple[float, float]:
    """(the smallest difference that is told, as foretold; share of draws that tell it)."""
    smallest = variation(law, items).detectable(seeds)
    low, high = -1.0, 3.0  # shifts of the latent number, by bisection
    for _ in range(50):
        middle = (low + high) / 2
        if replace(law, shift=middle).truth < smallest:
            low = middle
        else:
            high = middle
    shifted = replace(law, shift=high)
    generator = np.random.default_rng([zlib.crc32(law.name.encode()), items, seeds])
    told = [report(shifted.draw(generator, items, seeds), shifted)[0] > 0 for _ in range(draws)]
    return smallest, float(np.mean(told))


def power_table(items: Sequence[int], seeds: int, draws: int) -> Iterator[str]:
    """The table in Markdown: the foretold difference, and the share of draws that tell it."""
    yield "| law | items | smallest difference | told |"
    yield "|---|---:|---:|---:|"
    for law in LAWS:
        if law.of != "accuracy" and "few" not in law.name:
            for n in items:
                smallest, share = power(law, n, seeds, draws)
                scale, form = (100, ".1f") if law.is_fraction else (1, ".3f")
                yield f"| {law.name} | {n} | {smallest * scale:{form}} | {100 * share:.0f}% |"


def _names(args: Namespace) -> list[str]:
    """The estimators that are asked for. Raises UserError for one that is not there."""
    known = ESTIMATORS_OF_ORDERS if args.orders else ESTIMATORS
    if args.orders < 0 or args.orders == 1:
        raise UserError(f"--orders {args.orders}", "is no number of sequences", "give 2 or more")
    for name in args.estimators or ():
        if name not in known:
            raise UserError(f"--estimators {name}", "is none of them", did_you_mean(name, known))
    return args.estimators or list(known)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000, help="of each law (default: 1000)")
    parser.add_argument(
        "--seeds", type=int, help="runs of each draw (default: 3), or of the last column (5)"
    )
    parser.add_argument("--items", type=int, nargs="+", default=[100, 300], help="of each test")
    parser.add_argument("--orders", type=int, default=0, help="sequences of the skills, 2 or more")
    parser.add_argument("--estimators", nargs="+", metavar="NAME", help="all if left out")
    parser.add_argument("--power", action="store_true", help="power instead of coverage")
    parser.add_argument(
        "--measured",
        nargs="+",
        metavar="FOLDER",
        help="results folders: the power of their runs, now and with the last of --items",
    )
    parser.add_argument(
        "--typical", nargs="+", metavar="FOLDER", help="how the differences of their runs vary"
    )
    args = parser.parse_args(arguments)
    with reported(None):
        if args.orders and (args.measured or args.typical or args.power):
            raise UserError("--orders", "goes with the coverage alone", "leave it out")
        if args.measured:
            found = measured_table(ReportData(args.measured), args.items[-1], args.seeds or 5)
        elif args.typical:
            found = typical_lines(ReportData(args.typical))
        elif args.power:
            found = power_table(args.items, args.seeds or 3, args.draws)
        else:
            found = lines(args.items, args.seeds or 3, args.draws, _names(args), args.orders)
        for line in found:
            print(line, flush=True)


if __name__ == "__main__":
    main()
