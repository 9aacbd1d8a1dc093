"""The page: every table and picture has a place on it, and what a model wrote is never markup."""

import re

import jinja2
import pytest

from harness.report import page
from harness.report.data import ReportData
from harness.report.html import environment
from harness.report.pictures.picture import PictureFile
from harness.report.style import looks
from harness.report.tables import Column, Table, main_table
from tests.fabricate import METHODS, SKILLS, fabricate


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> ReportData:
    folder = tmp_path_factory.mktemp("results") / "one"
    skills = dict(list(SKILLS.items())[:2])
    methods = {"sft": METHODS["sft"]}
    fabricate(folder, skills=skills, methods=methods, n=8, inside=0, retention={}, training=False)
    return ReportData([folder])


def render(results: ReportData, tables=(), pictures=()) -> str:
    return page.render(results, [*tables], [*pictures], looks(results.series), [".."])


def ids(html: str) -> list[str]:
    """Ids of the sections and pictures in the page's order."""
    return re.findall(r'<(?:section|figure) id="([^"]+)"', html)


def test_a_picture_and_a_table_that_the_page_does_not_know_have_sections_of_their_own(results):
    tables = [
        main_table(results),
        Table("speed", "Speed", "Note of the table.", [Column("x", "x")], [("sft", {"x": 0.5})]),
    ]
    pictures = [
        PictureFile(
            "interference", "Interference", "transfer_between", "A caption.", "Numbers.", 5
        ),
        PictureFile("curves", "Curves", "results", "Another. More.", "a 1 %", 9),
    ]
    html = render(results, tables, pictures)
    assert ids(html) == [
        *("summary", "results", "curves"),
        *("samples", "measured", "provenance"),
        *("speed", "transfer_between", "interference"),
    ]
    assert "<h2>Transfer between</h2>" in html
    assert "Note of the table." in html
    assert "tables/speed.csv" in html
    assert 'class="wide" style="max-width:864px" src="figures/curves.svg" alt="a 1 %">' in html
    assert re.search(
        r"Another\..*<details[^>]*><summary>[^<]+</summary>More\.</details>", html, re.S
    )
    assert (
        '<img decoding="async" class="" style="max-width:480px" src="figures/interference.svg"'
        in html
    )
    for key in ("speed", "transfer_between", "results"):
        assert f'<a href="#{key}">' in html


def test_a_table_without_rows_and_a_section_without_content_are_left_out(results):
    html = render(results, [Table("cost", "Cost", "No costs.", [])])
    assert ids(html) == ["summary", "samples", "measured", "provenance"]
    assert "No costs." not in html


def test_every_text_is_escaped(results):
    name = "<script>alert(1)</script>"
    html = render(results, pictures=[PictureFile("x", name, "results", f'"{name}"', name, 5)])
    assert name not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert 'alt="&lt;script&gt;' in html


def test_a_name_that_a_template_misspells_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ lable }}").render(label="sft")


def test_a_users_template_comes_before_the_harness_s(tmp_path):
    (tmp_path / "table.html").write_text("mine")
    assert environment(tmp_path).get_template("table.html").render() == "mine"
    assert environment().get_template("layout.html").render().startswith("<!doctype html>")
