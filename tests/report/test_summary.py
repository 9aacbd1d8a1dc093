"""The first screen: what was compared, and what each method learned, forgot and cost."""

import re
import shutil

import numpy as np
import pytest

from harness.base import power
from harness.report import page
from harness.report.build import write_report
from harness.report.data import ReportData
from harness.report.estimates import Estimate
from harness.report.names import MEASURES, metric_name, model_name, model_names
from harness.report.summary import _verdict, summary_table, verdicts
from harness.report.table import Table
from tests.fabricate import METHODS, fabricate
from tests.report.folders import ONE_SKILL, rewrite

LAW = {"forgets": (1.0, 0.4, 0.1), "keeps": (0.9, 1.0, 0.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = fabricate(
        tmp_path_factory.mktemp("results") / "two", methods=LAW, seeds=(0, 1), n=120, inside=0
    )
    told = {"description": "Two made-up methods", "model": {"name": "embedded", "revision": None}}
    rewrite(folder / "results.json", lambda head: head | told)
    return folder


@pytest.fixture(scope="module")
def html(folder):
    return write_report(folder)[1].read_text()


def tables_of(folder) -> tuple[ReportData, dict[str, Table]]:
    from harness.report.build import _all_tables

    results = ReportData([folder])
    return results, {table.name: table for table in _all_tables(results)}


def test_a_sentence_says_what_was_learned_forgotten_and_paid(folder):
    results, tables = tables_of(folder)
    said = {verdict.label: verdict.text for verdict in verdicts(results, tables["summary"])}
    assert re.fullmatch(
        r"learned [\d.]+ ±[\d.]+ points; forgot [\d.]+ ±[\d.]+ points of earlier skills; forgot "
        r"[\d.]+ ±[\d.]+ points of prior abilities; cost [\d:]+ minutes, [\d,]+ tokens a run\.",
        said["forgets"],
    )
    assert "no change can be told of " in said["keeps"]
    cells = dict(tables["summary"].rows)["forgets"]
    main = dict(tables["main"].rows)["forgets"]
    assert cells["bwt"] is main["bwt"]
    assert f"{-100 * cells['bwt'].value:.1f} ±" in said["forgets"]


def test_what_cannot_be_told_is_no_gain_and_no_loss(folder):
    """Its value stands in the sentence, and the smallest change that would be told in a fold."""
    results, tables = tables_of(folder)
    names = {"gain": "the skills", "bwt": "earlier skills", "retention": "prior abilities"}
    rows = dict(tables["summary"].rows)
    said = verdicts(results, tables["summary"])
    assert any(verdict.smallest for verdict in said)
    for verdict in said:
        for key, of in names.items():
            cell = rows[verdict.label][key]
            value = f"{100 * cell.value:+.1f}".replace("-", "−").replace("+0.0", "0.0")
            inside = cell.low <= 0 <= cell.high
            assert (f"{of} ({value} ±" in verdict.text) == inside
            size = f"{100 * power.detectable(cell.spread):.1f} points of {of}"
            assert (size in verdict.smallest) == inside


@pytest.mark.parametrize("value", [0.0, -0.0004])
def test_a_change_of_nothing_is_not_gained(value):
    change = Estimate(value, -0.022, 0.022)
    text = _verdict("sft", Table("summary", "", "", []), {"retention": change}).text
    assert text == "no change can be told of prior abilities (0.0 ±2.2)."


def test_without_an_end_nothing_is_said_of_what_was_learned(tmp_path):
    unfinished = fabricate(tmp_path / "half", methods={"sft": METHODS["sft"]}, n=8, inside=0)
    lines = (unfinished / "records.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"stage": 3' not in line]
    (unfinished / "records.jsonl").write_text("".join(kept))
    results, tables = tables_of(unfinished)
    assert [v.text for v in verdicts(results, tables["summary"])] == [
        "has not measured its last stage in any run."
    ]


def test_one_skill_forgets_nothing_and_many_methods_have_no_sentences(tmp_path):
    many = {f"m{i}": METHODS["sft"] for i in range(13)}
    alone = fabricate(tmp_path / "many", ONE_SKILL, many, n=8, inside=0, retention={}, items=False)
    results, tables = tables_of(alone)
    assert verdicts(results, tables["summary"]) == []
    assert np.isnan(dict(tables["summary"].rows)["m0"]["bwt"].value)


def test_a_summary_without_costs_has_the_rest(folder):
    _, tables = tables_of(folder)
    empty = Table("cost", "", "", [])
    table = summary_table(tables["main"], tables["own_stage"], empty)
    assert dict(table.rows)["keeps"]["acc"] is dict(tables["main"].rows)["keeps"]["acc"]


def test_the_page_opens_with_what_was_compared_before_any_warning(html):
    head = html.partition("<nav>")[0]
    assert "Two made-up methods" in head
    assert '<span title="embedded">SmolLM2-135M-Instruct</span>' in head
    assert "measured 5 January 2026" in head
    first = html[html.index('<section id="summary">') : html.index("</section>")]
    places = [first.index(part) for part in ("verdicts", "<table", "<figure", 'class="warn"')]
    assert places == sorted(places)
    assert first.count("<table") == first.count("<figure") == 1
    assert '<a href="#missing">1 gap</a>' in first


def test_headings_are_for_people_with_the_machine_s_name_on_demand(html):
    assert re.search(r'title="BWT: backward transfer[^"]+" [^>]*>earlier skills', html)
    assert re.search(r'<span [^>]*title="exact">\(exact match\)', html)


def test_every_measure_with_a_name_for_people_is_explained(html):
    fold = html[html.index("What the columns mean") :].partition("</details>")[0]
    assert set(MEASURES.values()) <= set(re.findall(r"<strong>([^<]+)</strong>", fold))


def test_what_is_not_set_is_no_word_of_the_page(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = {"learning_rate": 1e-4, "batch_size": None, "epochs": None}
    for path in copy.glob("runs/*/run.json"):
        rewrite(path, lambda run: run | {"config": settings})
    shown = page.render(ReportData([copy]), [], [], {}, [".."])
    assert "learning_rate 0.0001" in shown and "batch_size" not in shown.partition("<h2>Where")[2]


def test_names_for_people():
    assert model_name("embedded") == "SmolLM2-135M-Instruct"
    assert model_name("Qwen/Qwen2.5-7B 1a2b3c4d") == "Qwen2.5-7B 1a2b3c4d"
    assert model_name("/data/checkpoints/mine/") == "mine"
    assert model_names(["a/one", "b/one"]) == {"a/one": "a/one", "b/one": "b/one"}
    assert metric_name("acc,none") == "accuracy"
    assert metric_name("exact_match,flexible-extract") == "exact match (flexible-extract)"
    assert metric_name("oracle_strict") == "strict match, with the answer shown"
    assert metric_name("pass@16") == "pass@16"
    assert metric_name("my_own") == "my own"
