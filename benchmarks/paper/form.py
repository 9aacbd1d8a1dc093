"""The form of a number: the columns that the published and the measured side share.

One row is one number. README.md in this folder says what each column holds. Percentages are in per
cent. A bound of an interval is NaN where there is no interval.
"""

from typing import TypedDict

import pandas as pd

PAPER = "arXiv 2601.19897"
COLUMNS = ["experiment", "panel", "series", "x", "value", "low", "high", "unit", "source", "note"]
# What a value of column ``x`` is called in pictures, tables and sentences; others bear their name.
TITLES = {
    "new_task": "new task",
    "prior_avg": "prior average",
    "ood": "out of distribution",
    "response_tokens": "response tokens",
    "kl": "KL to the base policy",
    "kl_forward_token": "KL(base ‖ model), a token",
    "kl_reverse_token": "KL(model ‖ base), a token",
    "kl_forward_sequence": "KL(base ‖ model), an answer",
    "kl_reverse_sequence": "KL(model ‖ base), an answer",
}


class Number(TypedDict):
    """One measured number, and the records that it is the mean of.

    Experiment and source are those of the whole side; benchmarks.paper.collect adds them.
    """

    panel: str
    series: str
    x: str | float
    value: float
    low: float
    high: float
    unit: str
    note: str
    records: pd.DataFrame | None
