"""Evaluate mixtures of the base model and of finished runs: WiSE-FT with several alphas.

    python -m harness.wise_ft ORDER.yaml --alpha 0 0.5 1

The runs are those of the order in its results folder, which keeps their last weights. Nothing is
trained, and the runs stay as they are: what is measured goes into the folder's ``wise_ft``.
"""

from pathlib import Path

from harness.base.console import Progress
from harness.base.errors import Parser, UserError, reported
from harness.base.files import ROOT

ALPHAS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def main(words: list[str] | None = None) -> None:
    parser = Parser(
        prog="python -m harness.wise_ft",
        description="Evaluate mixtures of the base model and of finished runs (WiSE-FT).",
    )
    parser.add_argument("order", help="the task-order file of the runs")
    parser.add_argument("--out", metavar="DIR", help="their results folder (default: results/NAME)")
    parser.add_argument(
        "--method", nargs="+", action="extend", default=[], help="only these methods"
    )
    parser.add_argument(
        "--seed", nargs="+", action="extend", type=int, default=[], help="only these seeds"
    )
    parser.add_argument(
        "--sequence", nargs="+", action="extend", default=[], help="only these of its `orders`"
    )
    parser.add_argument(
        "--alpha",
        nargs="+",
        action="extend",
        type=float,
        default=[],
        help="shares of what the run learned, from 0 to 1 (default: 0 0.2 0.4 0.6 0.8 1)",
    )
    args = parser.parse_args(words)
    with reported(args.out or ROOT / "results"):
        alphas = list(dict.fromkeys(args.alpha or ALPHAS))
        for alpha in alphas:
            if not 0 <= alpha <= 1:
                raise UserError(f"--alpha {alpha:g}", "must be from 0 to 1")
        with Progress() as progress:
            progress.show("imports PyTorch and transformers")
            from harness.runs.alpha_sweep import sweep, table
            from harness.runs.reading import read_order

            order = read_order(
                args.order, methods=args.method, seeds=args.seed, sequences=args.sequence
            )
            folder = Path(args.out) if args.out else ROOT / "results" / order.name
            if not (folder / "results.json").is_file():
                raise UserError(folder, "is no results folder", "give that of the runs with --out")
            swept = sweep(order, folder, alphas, progress)
        print(table(order, swept))


if __name__ == "__main__":
    main()
