"""Methods in pairs, and what a table says that it could have told."""

import re
from collections import defaultdict

import numpy as np
import pytest

from harness.base import metrics
from harness.base.files import ROOT, read_json
from harness.base.power import Variation
from harness.report import tables
from harness.report.build import write_report
from harness.report.comparisons import (
    MOST_PAIRS,
    comparison_table,
    holm_table,
    pairs,
    variations,
)
from harness.report.data import ReportData
from harness.report.power import Told, told_note
from harness.report.table import Column, Table
from tests.fabricate import METHODS, fabricate
from tests.report.folders import TWO, raw, row


def final_values(folder, method, name, **wanted):
    records = raw(folder, method=method, name=name, stage=3, final=True, **wanted)
    return {r["seed"]: r["value"] for r in records}


def test_a_pair_is_the_difference_of_its_methods_positive_where_the_first_is_better(three):
    table = comparison_table(ReportData([three]))
    assert [label for label, _ in table.rows] == ["sdft − sft", "grpo − sft", "grpo − sdft"]
    cells = row(table, "sdft − sft")
    for name, metric in (("science", "exact"), ("hellaswag", "acc")):
        mine, other = (final_values(three, m, name, metric=metric) for m in ("sdft", "sft"))
        gap = np.mean([mine[seed] - other[seed] for seed in (0, 1, 2)])
        cell = cells[name if name == "science" else f"{name}/delta"]
        assert cell.value == pytest.approx(gap)
        assert cell.low < gap < cell.high
        assert cell.by == "both"
    # Of bits per byte less is better: SFT has lost more.
    mine, other = (final_values(three, m, "wikitext") for m in ("sdft", "sft"))
    gap = np.mean([other[seed] - mine[seed] for seed in (0, 1, 2)])
    assert gap > 0
    assert cells["wikitext/delta"].value == pytest.approx(gap)
    main = tables.main_table(ReportData([three]))
    for key in ("acc", "bwt", "retention"):
        expected = row(main, "sdft")[key].value - row(main, "sft")[key].value
        assert cells[key].value == pytest.approx(expected)


def test_of_many_methods_each_is_compared_with_the_first():
    assert pairs(["a"]) == []
    assert pairs(["a", "b", "c"]) == [("b", "a"), ("c", "a"), ("c", "b")]
    many = [f"m{i}" for i in range(9)]
    assert len(pairs(many)) == 8 <= MOST_PAIRS
    assert {earlier for _, earlier in pairs(many)} == {"m0"}


def test_the_note_says_what_each_column_could_have_told_in_its_own_unit(three):
    results = ReportData([three])
    table = tables.retention_table(results)
    told = sorted(
        Variation.of(row(table, label)["wikitext/delta"].spread).detectable(3) for label in METHODS
    )
    assert f"wikitext (bits_per_byte, lower is better) Δ {told[1]:.3f}" in table.note
    assert "Half of wikitext (bits_per_byte, lower is better) Δ's takes " in table.note
    assert table.note.count("Half of ") == 2  # and of the first accuracy
    main = tables.main_table(results)
    assert main.note.count("Half of ") == 1
    told = sorted(Variation.of(row(main, label)["bwt"].spread).detectable(3) for label in METHODS)
    assert f"Would be told (80% power, two-sided 5%): BWT {100 * told[1]:.1f}," in main.note
    assert "Half of BWT's takes " in main.note
    assert re.search(r"questions \(\d+:\d\d:\d\d", main.note)  # the time that it takes
    assert "Would be told" in tables.gain_table(results).note
    assert "Would be told" in comparison_table(results).note


def test_a_note_names_the_first_numbers_of_each_unit(three):
    variation = Variation(0.01, 0.0, 0.0, 100)
    told = [Told(f"skill{i}", f"{i}.5", "%", variation, 3, False) for i in range(10)]
    told += [Told(f"text{i}", f"0.0{i}", "own", variation, 3, True) for i in range(1, 7)]
    note = told_note(ReportData([three]), told)
    assert "skill7 7.5, text1 0.01, " in note and "skill8" not in note
    assert ", text6 0.06 and 2 more." in note
    assert note.count("Half of ") == 2 and "Half of skill0's" in note and "Half of text1's" in note
    assert told_note(ReportData([three]), []) == ""


def test_hours_are_of_the_questions_that_a_column_is_about():
    """The committed quickstart asks 100 of each skill's questions, and all of its suite's."""
    folder = ROOT / "results/measured/quickstart"
    results = ReportData([folder])
    seconds = defaultdict(float)
    for file in folder.glob("runs/*/stage-*/stage.json"):
        for part, taken in read_json(file)["seconds"].items():
            seconds[part] += taken
    for table, asked, more in (
        (tables.main_table(results), "evaluation", ""),
        (tables.retention_table(results), "retention", "; the tests have no more"),
    ):
        said = re.search(r"takes ([0-9.]+) times the questions \(([0-9:]+)(.*?)\)", table.note)
        hours, minutes, of_minute = map(int, said[2].split(":"))
        taken = 3600 * hours + 60 * minutes + of_minute
        others = sum(seconds.values()) - seconds[asked]
        assert taken == pytest.approx(others + float(said[1]) * seconds[asked], rel=0.02)
        assert said[3] == more


def test_the_note_of_one_seed_says_that_seeds_are_not_in_it(tmp_path):
    folder = fabricate(tmp_path / "one", methods=TWO, n=50)
    note = tables.main_table(ReportData([folder])).note
    assert "With one seed, what another seed changes is not in it." in note


def test_nothing_is_foretold_where_item_scores_are_missing(tmp_path):
    folder = fabricate(tmp_path / "one", methods=TWO, n=50, items=False, seeds=(0, 1))
    results = ReportData([folder])
    for table in (tables.main_table(results), comparison_table(results)):
        assert "Would be told" not in table.note
    assert variations(results) == {}


def test_variations_are_of_the_mean_change_and_of_the_pair_in_the_middle(three):
    results = ReportData([three])
    found = variations(results)
    assert {key: seeds for key, (_, seeds) in found.items()} == {"retention": 3, "skills": 3}
    told = sorted(
        Variation.of(cells["acc"].spread).detectable(3)
        for _, cells in comparison_table(results).rows
    )
    assert found["skills"][0].detectable(3) == pytest.approx(told[1])


def test_one_method_has_no_pairs(tmp_path):
    folder = fabricate(tmp_path / "one", methods=dict(list(TWO.items())[:1]), n=40, inside=0)
    write_report(folder)
    assert not (folder / "report" / "tables" / "comparisons.md").exists()
    assert list(variations(ReportData([folder]))) == ["retention"]


def test_p_values_are_adjusted_by_holm_over_the_pairs_of_a_column(three):
    table = comparison_table(ReportData([three]))
    adjusted = holm_table(table)
    assert [label for label, _ in adjusted.rows] == [label for label, _ in table.rows]
    for column in table.columns:
        cells = [cells[column.key] for _, cells in table.rows]
        p = [cell.spread.p_value(cell.value) for cell in cells]
        for value, cell in zip(p, cells, strict=True):
            assert (value < 0.05) == (not cell.low <= 0 <= cell.high)
        wanted = metrics.holm(p)
        assert [of[column.key] for _, of in adjusted.rows] == pytest.approx(wanted)
        named = f"{column.heading}: " in table.note.partition("by Holm over the 3 pairs")[2]
        assert named == (column.key in ("acc", "bwt", "retention") and (wanted < 0.05).any())


def test_one_pair_needs_no_correction_and_one_without_variance_has_no_p(tmp_path):
    folder = fabricate(tmp_path / "r", methods=TWO, n=20, items=False)
    table = comparison_table(ReportData([folder]))
    assert "Holm" not in table.note
    assert np.isnan(holm_table(table).rows[0][1]["acc"])


def test_no_p_value_is_written_as_0():
    column = Column("acc", "ACC", unit="p")
    table = Table("holm", "", "", [column], [("b − a", {"acc": 3e-11}), ("c − a", {"acc": 0.0012})])
    assert [table.text(column, cells["acc"]) for _, cells in table.rows] == ["<0.001", "0.001"]
    assert r"\<0.001" in table.markdown() and "$<0.001$" in table.latex()
    assert "&lt;0.001" in table.html() and "3e-11" in table.csv()
