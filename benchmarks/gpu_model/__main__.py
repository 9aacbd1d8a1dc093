"""Prints what the cost model says of Qwen2.5 on GPUs of 24, 48, 80 and 141 GB.

python -m benchmarks.gpu_model                # the table of docs/how-to/gpus.md
python -m benchmarks.gpu_model --terms        # seconds of each term of a 7B's step
python -m benchmarks.gpu_model --ranks        # the table of docs/how-to/large.md

Nothing is measured: sizes are counted on the meta device, speeds are the datasheets'.
"""

from harness.base.errors import Parser, reported


def main() -> None:
    parser = Parser(prog="python -m benchmarks.gpu_model", description=__doc__)
    parser.add_argument("--terms", action="store_true", help="seconds of a 7B's step, by term")
    parser.add_argument("--ranks", action="store_true", help="one run on the ranks of torchrun")
    args = parser.parse_args()
    from benchmarks.gpu_model import ranks
    from benchmarks.gpu_model.table import table, terms

    print(ranks.table() if args.ranks else terms() if args.terms else table(), end="")


if __name__ == "__main__":
    with reported():
        main()
