"""Coverage of the report's intervals, on a fixed small sample of python -m benchmarks.coverage."""

import re

import numpy as np
import pytest

from benchmarks.coverage.__main__ import coverage, main, power
from benchmarks.coverage.laws import LAWS, LAWS_OF_ORDERS
from harness.base.files import ROOT
from harness.report.data import ReportData
from harness.report.power import middle
from harness.runs.power import TYPICAL

BY_NAME = {law.name: law for law in LAWS}
DRAWS = 500
ERROR = 2 * (0.95 * 0.05 / DRAWS) ** 0.5  # two standard errors of a simulated coverage


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_the_mean_of_many_draws_is_the_truth(law):
    generator = np.random.default_rng(0)
    tests = law.draw(generator, 4000, 400)
    mean = sum(test.mean() for test in tests)
    assert mean == pytest.approx(law.truth, abs=4 * (law.by_seed / 400**0.5 + 0.5 / 4000**0.5))


@pytest.mark.parametrize("name", ["accuracy", "change", "pair", "margin", "bits per byte"])
@pytest.mark.parametrize("items", [100, 300])
def test_the_reports_intervals_cover_with_three_seeds(name, items):
    [(_, found)] = coverage(BY_NAME[name], items, 3, DRAWS, ["report"]).items()
    assert 0.93 - ERROR < found.share < 0.97 + ERROR


@pytest.mark.parametrize("law", LAWS_OF_ORDERS[::3], ids=lambda law: law.name)
def test_the_mean_over_many_sequences_is_the_truth(law):
    generator = np.random.default_rng(0)
    tests = law.draw(generator, 2000, 30, 30)
    error = (law.by_seed**2 / 30 + law.by_order**2 / 30 + 0.25 / 2000) ** 0.5
    assert sum(test.mean() for test in tests) == pytest.approx(law.truth, abs=3 * error)
    assert tests[0].shape == (2000, 30, 30)


@pytest.mark.parametrize("name", ["accuracy", "change, sequences differ much"])
def test_intervals_with_sequences_as_a_level_cover_and_others_do_not(name):
    [law] = [law for law in LAWS_OF_ORDERS if law.name == name]
    found = coverage(law, 300, 3, 300, orders=3)
    error = 2 * (0.95 * 0.05 / 300) ** 0.5
    assert 0.94 - error < found["report"].share < 0.98 + error
    if "much" in name:
        assert found["runs as seeds"].share < 0.9 and found["sequences averaged"].share < 0.91


def test_few_flips_cover_and_are_not_wide():
    """One flip in 100 is a whole number: the interval covers more often than it says."""
    found = coverage(BY_NAME["change, few flips"], 300, 3, DRAWS, ["report", "two-way cluster"])
    assert 0.93 - ERROR < found["report"].share < 0.97 + ERROR
    assert found["report"].width < 0.8 * found["two-way cluster"].width
    few = coverage(BY_NAME["change, few flips"], 100, 3, DRAWS, ["report"])["report"]
    assert few.share > 0.95 and few.width < 2 * 0.035


def test_intervals_over_one_level_leave_the_other_out():
    names = ["t over seeds", "items alone", "bootstrap of seeds"]
    accuracy = coverage(BY_NAME["accuracy"], 300, 3, DRAWS, names)
    assert accuracy["t over seeds"].share < 0.85
    assert accuracy["bootstrap of seeds"].share < 0.6
    differ = coverage(BY_NAME["accuracy, seeds differ much"], 300, 3, DRAWS, names)
    assert differ["items alone"].share < 0.7


@pytest.mark.parametrize("name", ["margin", "pair", "change, mean of 5 tests"])
def test_the_smallest_difference_is_told_as_often_as_foretold(name):
    _, share = power(BY_NAME[name], 100, 3, DRAWS)
    assert share == pytest.approx(0.8, abs=0.08)


FIGURE_3 = ROOT / "results/measured/paper_embedded/figure_3"


def test_the_power_of_committed_runs_is_the_table_of_the_page(capsys):
    main(["--measured", str(FIGURE_3)])
    lines = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs/explanation/sensitivity.md").read_text(encoding="utf-8")
    assert len(lines) == 25 and "\n".join(lines) + "\n" in page


def test_what_the_plan_takes_for_typical_is_what_the_committed_figure_says(capsys):
    main(["--typical", str(FIGURE_3)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(TYPICAL)
    for line, of_key in zip(lines, TYPICAL.values(), strict=True):
        items, both, seeds = (float(n) for n in re.findall(r"(?:items|both|seeds) ([0-9.]+)", line))
        assert (items, both, round(seeds, 3)) == (of_key.items, of_key.both, of_key.seeds)


def test_the_power_of_runs_with_other_sizes(capsys):
    """The change of one task by hand, and what stays open where nothing is known."""
    results = ReportData([FIGURE_3])
    place = list(results.retention).index("embedded_knowledge")
    changes = [
        results.estimate(label, lambda D: D[..., -1, place] - D[..., 0, place], "D", "", True)
        for label in results.series
    ]
    variation, seeds = middle(changes)
    assert (variation.count, seeds) == (335, 3)
    main(["--measured", str(FIGURE_3), "--items", "335", "--seeds", "9"])
    lines = capsys.readouterr().out.splitlines()
    assert "with 335 questions | with 335, 9 seeds" in lines[0]
    (line,) = (line for line in lines if "`embedded_knowledge` |" in line)
    now, more = (f"{100 * variation.detectable(seeds):.1f}" for seeds in (3, 9))
    assert line == f"| `embedded_knowledge` | 335 | {now} | – | {more} |"


def test_a_folder_without_scores_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--measured", str(ROOT / "results/measured/search_16")])
    assert caught.value.code == 2
    assert "search_16: holds no scores of items; give a folder" in capsys.readouterr().err
