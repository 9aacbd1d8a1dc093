"""Texts of others in files that programs read: CSV, Markdown, links.

Names come from results folders, which anybody may have written. A spreadsheet runs a cell that
begins like a formula, Markdown and HTML may show a picture from elsewhere, a link may be a script.
"""

import re
import urllib.parse
from pathlib import Path

import pandas as pd

# With the forms in full width that some spreadsheets read alike.
FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?%?")
# What is markup in Markdown of GitHub; an underscore inside a word is none.
MARKUP = re.compile(r"[\\`*\[\]<>|$~&]|(?<![^\W_])_|_(?![^\W_])")


def one_line(text: str) -> str:
    return " ".join(text.splitlines())


def csv_cell(text: str) -> str:
    """A cell of a CSV file that a spreadsheet shows as the text that it is."""
    is_formula = FORMULA.match(text) and not NUMBER.fullmatch(text)
    return "'" + text if is_formula else text


def write_csv(frame: pd.DataFrame, path: Path, columns: list[str] | None = None) -> None:
    """``frame`` as a CSV file, without its index; columns: those that are written, all if None."""
    frame = frame[columns].copy() if columns else frame.copy()
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            cells = frame[name].astype(object)
            frame[name] = cells.map(lambda cell: csv_cell(cell) if isinstance(cell, str) else cell)
    frame.rename(columns=csv_cell).to_csv(path, index=False, errors="replace")


def markdown_text(text: str) -> str:
    """A text of one line that Markdown shows as it is."""
    return MARKUP.sub(r"\\\g<0>", one_line(text))


def link(path: str) -> str:
    """A relative path as a link: never an address or a script, whatever the path begins with."""
    return "./" + urllib.parse.quote(path)
