"""Names of others in tables, links and pictures: shown, never run."""

import csv
import io
import re
from html import unescape
from urllib.parse import unquote

import pandas as pd
import pytest

from harness.base.errors import UserError
from harness.report.build import write_report
from harness.report.exports import csv_cell, link, markdown_text, write_csv
from harness.report.table import Column, Table
from harness.runs.sections import check_plain, is_plain
from tests.fabricate import METHODS, fabricate

EVIL = {
    "=cmd|' calc'!A0": (0.1, 0.5),
    "+1+2": (0.1, 0.5),
    "$\\frac$": (0.2, 0.4),
    "$\\frac{1}{2}$ of <b>two<b>": (0.2, 0.3),
    "![x](p.png)\nline": (0.2, 0.3),
}


@pytest.mark.parametrize(
    "text, cell",
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("＝1", "'＝1"),
        ("-", "'-"),
        ("-5", "-5"),
        ("+.5e-3", "+.5e-3"),
        ("-3.1%", "-3.1%"),
        ("1=1", "1=1"),
        ("–", "–"),
        ("", ""),
    ],
)
def test_a_cell_of_a_spreadsheet(text, cell):
    assert csv_cell(text) == cell


def test_frames_keep_numbers_and_categories(tmp_path):
    frame = pd.DataFrame({"=n": [-1.5, 2], "t": pd.Categorical(["=a", "b"]), "o": ["-x", None]})
    write_csv(frame, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "'=n,t,o\n-1.5,'=a,'-x\n2.0,b,\n"
    write_csv(frame, tmp_path / "t.csv", ["t"])
    assert (tmp_path / "t.csv").read_text() == "t\n'=a\nb\n"


def test_markdown_shows_a_name_as_it_is():
    assert markdown_text("bfcl_tools, +5.0 (a-b)") == "bfcl_tools, +5.0 (a-b)"
    assert markdown_text("_a_ `b` *c* [d](e) <f> g|h $i$ &lt;\nj") == (
        r"\_a\_ \`b\` \*c\* \[d\](e) \<f\> g\|h \$i\$ \&lt; j"
    )


@pytest.mark.parametrize(
    "path", ["javascript:alert(1)", "a#b?c%d", "../x y/é", "data:text/html,1", "//host/x", "a\"'<"]
)
def test_a_link_leads_to_a_file_and_nowhere_else(path):
    assert re.fullmatch(r"\./[\w./%~-]*", link(path))
    assert unquote(link(path)) == "./" + path


def test_latex_has_one_line_a_row():
    table = Table(
        "t", "a\nb", "c\rd", [Column("x", "x\n% y", unit="text")], [("l\nm", {"x": "n\n"})]
    )
    assert len(table.latex().splitlines()) == 8


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """The report of a folder whose names and place are meant to do harm."""
    place = tmp_path_factory.mktemp("evil")
    folder = place / "javascript:alert(1)#?%20é"
    methods = {"sft": METHODS["sft"], "=sdft": METHODS["sdft"]}
    fabricate(folder, skills=EVIL, methods=methods, n=12)
    text, page = write_report(folder, place / "out")
    return text, page


def test_a_report_of_harmful_names_runs_nothing(evil):
    text, page = evil
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    for path in (page.parent / "tables").glob("*.csv"):
        for row in csv.reader(io.StringIO(path.read_text(), newline="")):
            for cell in row:
                assert csv_cell(cell) == cell, path.name
    for path in (page.parent / "tables").glob("*.md"):
        markdown = path.read_text()
        assert not re.search(r"(?<!\\)<b>|(?<!\\)\]\(|(?<!\\)\$", markdown), path.name
    html = page.read_text()
    assert "<b>two<b>" not in html and "&lt;b&gt;two" in html


def test_its_links_lead_to_its_files(evil):
    _, page = evil
    targets = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.read_text())
    paths = [unescape(target).partition("#")[0] for target in targets]
    files = [unquote(path) for path in paths if path]
    assert len([file for file in files if "javascript:" in file]) > 2
    for file in files:
        assert not re.match(r"\w+:", file) and (page.parent / file).is_file(), file


@pytest.mark.parametrize(
    "name", [*EVIL, ".", "...", "", " a", "a\u2028b", "a\u202eb", "a&lt;b", "—", "x" * 201]
)
def test_an_order_refuses_names_that_cannot_be_shown(name):
    with pytest.raises(UserError, match=r"skills\[0\]: name: .* is no name to show") as error:
        check_plain(name, "skills[0]: name")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "name",
    ["vowels", "my skill (v2.1)", "Q&A", "C++", "数学", "हिन्दी", "a/b", "50%", "a=b", "_x", "1"],
)
def test_other_names_stay(name):
    assert is_plain(name)
