"""One table of a report, and its five forms: CSV, Markdown, LaTeX, HTML, terminal."""

import csv
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Literal

import jinja2
import numpy as np
from markupsafe import Markup
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from harness.report.estimates import Estimate
from harness.report.exports import csv_cell, markdown_text, one_line
from harness.report.html import environment
from harness.report.names import measure_name, metric_name

# "%": a fraction, written times 100; "own": the metric's own unit.
Unit = Literal["%", "own", "p", "text", "count", "seconds", "GiB", "MiB"]
Cell = Estimate | str | float | None
Row = tuple[str, dict[str, Cell]]  # the label, {column key: cell}

# How numbers of a unit are written: (scale, format).
FORMATS: dict[Unit, tuple[int, str]] = {
    "%": (100, ".1f"),
    "own": (1, ".3f"),
    "p": (1, ".3f"),
    "GiB": (1, ".2f"),
    "MiB": (1, ",.2f"),
    "text": (1, ",.0f"),
    "count": (1, ",.0f"),
    "seconds": (1, ",.0f"),
}
LEAST_P = 0.001  # a p-value below it is written so: none is 0
NOTHING = "–"  # in a cell without a number
UNBOUNDED = 1_000_000  # columns of a terminal on which every table fits
TEX = {
    "\\": "\\textbackslash{}",
    "&": "\\&",
    "%": "\\%",
    "_": "\\_",
    "#": "\\#",
    "$": "\\$",
    "{": "\\{",
    "}": "\\}",
    "–": "--",
    "−": "$-$",
    "Δ": "$\\Delta$",
    "→": "$\\to$",
    "^": "\\^{}",
    "~": "\\~{}",
}


@dataclass(frozen=True)
class Column:
    """A column: ``key`` in the rows, title, group (a heading above several), what its cells hold.

    signed: positive numbers have a plus; note: what is measured, for cells without a detail; shown:
    the group as people read it, in the page; wraps: whether cells are words that the page wraps.
    """

    key: str
    title: str
    group: str = ""
    unit: Unit = "%"
    signed: bool = False
    note: str = ""
    shown: str = ""
    wraps: bool = False

    @property
    def heading(self) -> str:
        return f"{self.group} {self.title}".strip()

    @property
    def people(self) -> str:
        """The title as people read it, in the page."""
        return measure_name(self.title)

    @property
    def about(self) -> str:
        """What the heading says when it is pointed at: the machine's name too, if it is another."""
        machine = self.title if self.people != self.title else ""
        return ": ".join(filter(None, (machine, self.note)))


@dataclass(frozen=True)
class HtmlCell:
    """A cell as the template writes it.

    spread: half of its interval; style: classes of the style sheet; href: "" without a link.
    """

    value: str
    spread: str
    note: str
    style: str
    href: str


@dataclass
class Table:
    """A table; ``name`` is that of its files, ``stub`` the heading of the labels."""

    name: str
    title: str
    note: str
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)
    stub: str = "method"

    def text(self, column: Column, cell: Cell, interval: bool = True) -> str:
        """A cell as people read it: rounded, in the column's unit, with half of its interval."""
        if isinstance(cell, str):
            return cell
        estimate = cell if isinstance(cell, Estimate) else Estimate(_as_float(cell))
        if not math.isfinite(estimate.value):
            return NOTHING
        if column.unit == "p" and estimate.value < LEAST_P:
            return f"<{LEAST_P}"
        scale, form = FORMATS[column.unit]
        if column.unit == "seconds" and abs(estimate.value) < 10:
            form = ".1f"
        text = format(estimate.value * scale, ("+" if column.signed else "") + form)
        if float(text.replace(",", "")) == 0:
            text = text.lstrip("+-")
        if interval and math.isfinite(estimate.low):
            text += f" ±{format((estimate.high - estimate.low) / 2 * scale, form)}"
        return "−" + text[1:] if text.startswith("-") else text

    def _texts(self, cells: dict[str, Cell]) -> list[str]:
        return [self.text(column, cells.get(column.key)) for column in self.columns]

    def csv(self) -> str:
        """Numbers in the metric's own unit (accuracies as fractions).

        A column of estimates is followed by two with their bounds.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        bounded = {column.key for column in self.columns if self._has_estimates(column)}
        head = [self.stub]
        for column in self.columns:
            ends = ("", " low", " high") if column.key in bounded else ("",)
            head += [f"{column.heading}{end}" for end in ends]
        writer.writerow(map(csv_cell, head))
        for label, cells in self.rows:
            line = [label]
            for column in self.columns:
                numbers = _numbers(cells.get(column.key))
                line += numbers if column.key in bounded else numbers[:1]
            writer.writerow(map(csv_cell, line))
        return out.getvalue()

    def _has_estimates(self, column: Column) -> bool:
        return any(isinstance(cells.get(column.key), Estimate) for _, cells in self.rows)

    def markdown(self) -> str:
        """A Markdown table with its title above it and its note below it."""
        lines = [
            _markdown_line([self.stub, *(column.heading for column in self.columns)]),
            "|" + "|".join(["---"] + ["---:"] * len(self.columns)) + "|",
            *(_markdown_line([label, *self._texts(cells)]) for label, cells in self.rows),
        ]
        title, note = markdown_text(self.title), markdown_text(self.note)
        return f"**{title}**\n\n" + "\n".join(lines) + f"\n\n{note}\n"

    def latex(self) -> str:
        """A tabular in booktabs style (\\usepackage{booktabs})."""
        lines = [
            one_line(f"% {self.title}. {self.note}"),
            f"\\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
            "\\toprule",
        ]
        groups = self._groups()
        if any(name for name, _ in groups):
            spans = (f"\\multicolumn{{{len(of)}}}{{c}}{{{_tex(name)}}}" for name, of in groups)
            lines.append(_latex_line(["", *spans]))
        lines.append(_latex_line(map(_tex, [self.stub, *(c.title for c in self.columns)])))
        lines.append("\\midrule")
        for label, cells in self.rows:
            texts = [
                _tex(text) if isinstance(cells.get(column.key), str) else _tex_number(text)
                for column, text in zip(self.columns, self._texts(cells), strict=True)
            ]
            lines.append(_latex_line([_tex(label), *texts]))
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"

    def html(
        self,
        dot: Callable[[str], str] = lambda label: "",
        link: Callable[[str, Column], str] = lambda label, column: "",
    ) -> Markup:
        """An HTML table.

        dot: gives the markup of a label's colour mark; link: the address of a cell, "" for none.
        """
        groups = self._groups()
        grouped = []
        if any(name for name, _ in groups):
            grouped = [(of[0].shown or name, len(of), name) for name, of in groups]
        edges = {of[0].key for name, of in groups if name}
        rows = [
            {
                "label": label,
                "kind": _row_kind(label),
                "dot": Markup(dot(label)),
                "cells": [
                    self._html_cell(column, label, cells, edges, link) for column in self.columns
                ],
            }
            for label, cells in self.rows
        ]
        text = _template().render(
            stub=self.stub, groups=grouped, columns=self.columns, edges=edges, rows=rows
        )
        return Markup(text)

    def _html_cell(
        self,
        column: Column,
        label: str,
        cells: dict[str, Cell],
        edges: set[str],
        link: Callable[[str, Column], str],
    ) -> HtmlCell:
        cell = cells.get(column.key)
        value, _, spread = self.text(column, cell).partition(" ±")
        note = ""
        if column.key == "metric" and isinstance(cell, str):
            value, note = metric_name(cell), cell
        if isinstance(cell, Estimate) and math.isfinite(cell.value):
            note = _note(column, label, cell)
        href = "" if value in ("", NOTHING) else link(label, column)
        style = f"{'edge ' * (column.key in edges)}{'words' * column.wraps}".rstrip()
        return HtmlCell(value, spread, note, style, href)

    def terminal(self, width: int = 100) -> tuple[str, str]:
        """(plain text, what it leaves out); at most ``width`` columns wide where that is possible.

        Rows without any number are left out too.
        """
        console = Console(
            file=io.StringIO(), width=UNBOUNDED, color_system=None, force_jupyter=False
        )
        for columns, intervals, omitted in self._terminal_forms():
            table = self._rich(columns, intervals)
            left_out = omitted
            if console.measure(table).maximum <= width:
                break
        with console.capture() as capture:
            console.print(table)
        return "\n".join(line.rstrip() for line in capture.get().splitlines()), left_out

    def _terminal_forms(self) -> list[tuple[list[Column], bool, str]]:
        """(columns, whether with intervals, what is left out), from the widest to the narrowest."""
        brief = [column for column in self.columns if column.title != "own stage"]
        return [
            (self.columns, True, ""),
            (brief, True, "own-stage accuracies"),
            (brief, False, "own-stage accuracies, intervals"),
            ([c for c in self.columns if not c.group], True, "accuracies of each skill"),
        ]

    def _rich(self, columns: list[Column], intervals: bool) -> RichTable:
        table = RichTable(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
        )
        # Rows that are left out below count too: the labels have the same width in every form.
        widest = max((cell_len(label) for label, _ in self.rows), default=0)
        table.add_column(Text(self.stub), no_wrap=True, min_width=widest)
        for column in columns:
            final = column.group and column.title == "final"
            heading = column.group if final else column.heading
            table.add_column(Text(heading), justify="right", no_wrap=True)
        for label, cells in self.rows:
            texts = [self.text(c, cells.get(c.key), intervals).replace(" ±", "±") for c in columns]
            if set(texts) != {NOTHING}:
                table.add_row(Text(label), *map(Text, texts))
        return table

    def _groups(self) -> list[tuple[str, list[Column]]]:
        """Neighbouring columns of one group; columns without a group have the group ""."""
        return [(name, list(of)) for name, of in groupby(self.columns, lambda c: c.group)]


@lru_cache
def _template() -> jinja2.Template:
    return environment().get_template("table_markup.html")


def _as_float(cell: float | None) -> float:
    return math.nan if cell is None else float(cell)


def _row_kind(label: str) -> str:
    """The class of a row in the page: the base model, the numbers of examples, or a method."""
    if label.startswith("base"):
        return "base"
    return "foot" if label.startswith("n (") else ""


def _note(column: Column, label: str, cell: Estimate) -> str:
    """What a cell of the page says when it is pointed at: exact numbers and how they came about."""

    def number(x: float) -> str:
        return f"{100 * x:.2f}" if column.unit == "%" else f"{x:.4g}"

    unit = " %" if column.unit == "%" and not column.signed else ""
    bounds = ", no interval"
    if math.isfinite(cell.low):
        bounds = f" [{number(cell.low)}, {number(cell.high)}]"
    first = f"{label}, {column.heading}: {number(cell.value)}{unit}{bounds}"
    return "\n".join(filter(None, (first, cell.how, cell.detail or column.note)))


def _numbers(cell: Cell) -> list[str]:
    """Value and both bounds of a cell, as CSV has them."""
    if isinstance(cell, Estimate):
        return [_number(cell.value), _number(cell.low), _number(cell.high)]
    return [cell if isinstance(cell, str) else _number(cell), "", ""]


def _number(value: float | None) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _markdown_line(texts: list[str]) -> str:
    return "| " + " | ".join(map(markdown_text, texts)) + " |"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + " \\\\"


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in one_line(text))


def _tex_number(text: str) -> str:
    if text == NOTHING:
        return _tex(text)
    return "$" + text.replace(" ±", " \\pm ").replace("−", "-").replace(",", "{,}") + "$"
