"""The five forms of a table."""

import csv
import io
import math

import pytest
from rich.cells import cell_len

from harness.report.estimates import Estimate
from harness.report.table import Column, Table

ACCURACY = Column("acc", "ACC", note="mean accuracy")
CHANGE = Column("change", "Δ", signed=True)
FINAL = Column("science/final", "final", "science")
OWN = Column("science/own", "own stage", "science")


def table(*rows, columns=(ACCURACY, CHANGE, FINAL, OWN)):
    return Table("t", "A title", "A note.", list(columns), list(rows))


@pytest.mark.parametrize(
    ("column", "cell", "text"),
    [
        (ACCURACY, Estimate(0.5, 0.4, 0.62), "50.0 ±11.0"),
        (ACCURACY, 0.25, "25.0"),
        (ACCURACY, None, "–"),
        (ACCURACY, math.nan, "–"),
        (CHANGE, 0.031, "+3.1"),
        (CHANGE, -0.031, "−3.1"),
        (CHANGE, -0.0001, "0.0"),
        (CHANGE, 0.0001, "0.0"),
        (Column("n", "n", unit="count"), 1234567, "1,234,567"),
        (Column("s", "s", unit="seconds"), 9.94, "9.9"),
        (Column("s", "s", unit="seconds"), 12345.6, "12,346"),
        (Column("bits", "bits", unit="own", signed=True), -0.0312, "−0.031"),
        (Column("memory", "GiB", unit="GiB"), 2.125, "2.12"),
        (Column("device", "device", unit="text"), "cpu", "cpu"),
    ],
)
def test_a_cell_is_written_in_its_columns_unit(column, cell, text):
    assert table().text(column, cell) == text


def test_csv_has_bounds_where_a_column_has_estimates():
    cells = {"acc": Estimate(0.5, 0.4, 0.62), "change": -0.031}
    lines = list(csv.reader(io.StringIO(table(("sft", cells), ("n", {"acc": "48"})).csv())))
    head = ["method", "ACC", "ACC low", "ACC high", "Δ", "science final", "science own stage"]
    assert lines[0] == head
    assert lines[1] == ["sft", "0.5", "0.4", "0.62", "-0.031", "", ""]
    assert lines[2] == ["n", "48", "", "", "", "", ""]


def test_markdown_and_latex_escape_what_they_must():
    cells = {"acc": Estimate(0.5, 0.4, 0.62), "change": -0.031, "science/final": "50%"}
    both = table(("a|b_c", cells))
    assert "| a\\|b_c | 50.0 ±11.0 | −3.1 | 50% | – |" in both.markdown()
    lines = both.latex().splitlines()
    assert " & \\multicolumn{2}{c}{} & \\multicolumn{2}{c}{science} \\\\" in lines
    assert "a|b\\_c & $50.0 \\pm 11.0$ & $-3.1$ & 50\\% & -- \\\\" in lines


def test_html_escapes_texts_and_says_how_a_number_came_about():
    estimate = Estimate(0.5, 0.4, 0.62, how="over <seeds>", detail='"split" test')
    html = table(("<b>sft</b>", {"acc": estimate})).html(lambda label: '<i class="dot"></i>')
    assert '<th scope="row" class="stub"><i class="dot"></i>&lt;b&gt;sft&lt;/b&gt;</th>' in html
    assert '50.0<span class="ci"> ±11.0</span></td>' in html
    assert "ACC: 50.00 % [40.00, 62.00]\nover &lt;seeds&gt;\n&#34;split&#34; test" in html
    assert '<th colspan="2" scope="colgroup" class="group">science</th>' in html
    heading = (
        'title="ACC: mean accuracy" data-note class="" data-column="1">accuracy at the end</th>'
    )
    assert f'<th scope="col" {heading}' in html


def test_html_without_groups_has_one_line_of_headings():
    html = table(("base", {"acc": 0.5}), columns=[ACCURACY]).html()
    assert html.startswith('<table class="sorts">\n<thead>\n<tr><th scope="col" class="stub"')
    assert '<tr class="base"><th scope="row" class="stub">base</th>\n<td class="">50.0</td>' in html


def test_the_terminal_form_leaves_out_columns_until_it_fits():
    cells = {key: Estimate(0.5, 0.4, 0.62) for key in ("acc", "change", "science/final")}
    cells["science/own"] = Estimate(0.5, 0.4, 0.62)
    of_sft = table(("sft", cells))
    for width, left_out, heading in (
        (59, "", "science own stage"),
        (58, "own-stage accuracies", "science"),
        (39, "own-stage accuracies, intervals", "science"),
        (27, "accuracies of each skill", "Δ"),
    ):
        text, omitted = of_sft.terminal(width)
        assert omitted == left_out
        assert text.splitlines()[0].endswith(heading)
        assert max(map(len, text.splitlines())) <= max(width, 29)  # the narrowest form takes 29


def test_the_terminal_form_is_plain_text_in_columns_of_one_width():
    text, _ = table(
        ("sft[red]", {"acc": 0.5}),
        ("日本", {"acc": 0.25}),
        ("nothing measured", {}),
        columns=[ACCURACY],
    ).terminal()
    lines = text.splitlines()
    assert lines[2:] == ["sft[red]" + " " * 10 + "50.0", "日本" + " " * 14 + "25.0"]
    assert {cell_len(line) for line in lines} == {len("nothing measured") + 6}
