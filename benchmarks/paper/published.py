"""The numbers that the paper prints, and those that others report of its method.

Both are facts, retyped by hand into CSV files beside this module. Nothing in them was measured by
this project.
"""

from pathlib import Path

import pandas as pd

from benchmarks.paper.form import COLUMNS
from harness.base.errors import UserError

FOLDER = Path(__file__).resolve().parent


def published_numbers() -> pd.DataFrame:
    """What arXiv 2601.19897 prints: figures 2 right, 5 left and 7, tables 1, 2 and 5, section 3.2.

    Figures 3, 5 right, 6 and 8 are curves without numbers, so there is nothing to retype. Figure 4
    plots columns of table 5.
    """
    return _read(FOLDER / "published.csv")


def reproduced_numbers() -> pd.DataFrame:
    """What independent users of the authors' code report, in metrics and settings of their own."""
    return _read(FOLDER / "reproduced.csv")


def _read(path: Path) -> pd.DataFrame:
    """A CSV file as a frame of COLUMNS. Raises UserError where it has other columns."""
    frame = pd.read_csv(path, dtype={"panel": str, "x": str, "note": str})
    if list(frame.columns) != COLUMNS:
        raise UserError(
            path, f"has other columns than {', '.join(COLUMNS)}", "see benchmarks/paper/README.md"
        )
    return frame.fillna({"panel": "", "x": "", "note": ""})
