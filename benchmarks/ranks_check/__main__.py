"""Several ranks of torchrun compute what one process computes, and go on when one is killed.

python -m benchmarks.ranks_check                 # 2 and 4 ranks on this machine's CPU
python -m benchmarks.ranks_check --ranks 2 --only sft grpo

Random weights of a tiny size, float32, gloo. Every method teaches two skills in one process and on
ranks: all that training logs may differ by 1e-5. Then one rank is killed at a checkpoint, and the
same command goes on: to the bit on the same number of ranks, to rounding on another.
"""

import sys
import tempfile
from pathlib import Path

from harness.base.errors import Parser, reported


def main() -> None:
    parser = Parser(prog="python -m benchmarks.ranks_check", description=__doc__)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4], metavar="N")
    parser.add_argument("--only", nargs="+", default=[], metavar="LABEL", help="these methods")
    args = parser.parse_args()
    from benchmarks.ranks_check.check import CASES, check

    if unknown := sorted(set(args.only) - set(CASES)):
        parser.error(f"--only: unknown {unknown[0]}; known: {', '.join(CASES)}")
    labels = args.only or list(CASES)
    with reported("the temporary folder"), tempfile.TemporaryDirectory() as temporary:
        faults = check(Path(temporary), labels, args.ranks)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
