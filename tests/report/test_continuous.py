"""Margin and probability in the report: own units, paired intervals, no mean with accuracies."""

import csv
import json
import shutil

import numpy as np
import pytest

from benchmarks.coverage.measured import measured_table
from harness.base.power import Variation
from harness.report.build import write_report
from harness.report.continuous import continuous_table
from harness.report.data import ReportData
from harness.report.estimates import IntervalSource
from harness.report.pictures import source_of
from harness.report.pictures.retention import retention_curves
from harness.report.tables import main_table, records_used, retention_table
from harness.results.formats import CONTINUOUS
from tests.fabricate import fabricate
from tests.report.folders import ONE_SKILL, TWO, raw, rewrite, row

N = 50
TASKS = {"facts": ("acc", True, 0.25, 0.6), "pairs": ("acc", True, 0.5, 0.8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two methods, one seed; the stage takes about 0.3 nats of every margin."""
    folder = fabricate(
        tmp_path_factory.mktemp("margins") / "r",
        skills=ONE_SKILL,
        methods=TWO,
        n=N,
        retention=TASKS,
        training=False,
    )
    added = []
    easy = np.random.default_rng(0).normal(2, 3, N)  # much wider than the change
    for record in raw(folder, kind="retention"):
        lost = np.random.default_rng(record["stage"]).normal(0.3, 0.1, N) * (record["stage"] > 0)
        margin = easy - lost
        scores = {"margin": margin, "probability": 1 / (1 + np.exp(-margin))}
        path = folder / "evaluations" / f"{record['evaluation']}.json"
        evaluation = json.loads(path.read_text())
        for i, item in enumerate(evaluation["items"]):
            item["scores"] = {metric: float(values[i]) for metric, values in scores.items()}
        path.write_text(json.dumps(evaluation))
        for metric, values in scores.items():
            stderr = values.std(ddof=1) / N**0.5
            added.append(record | {"metric": metric, "value": values.mean(), "stderr": stderr})
    with (folder / "records.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in added)
    return folder


def test_margins_are_in_nats_with_paired_intervals(folder):
    results = ReportData([folder])
    table = continuous_table(results)
    cell = row(table, "margin, facts (nats)")["sft/delta"]
    (base,) = raw(folder, name="facts", stage=0, metric="margin", method="sft")
    final = raw(folder, name="facts", metric="margin", method="sft", final=True)[-1]
    assert cell.value == pytest.approx(final["value"] - base["value"])
    assert cell.by == IntervalSource.ITEMS
    # paired: the spread of the change (0.1 an item), not that of the margins (3 an item)
    assert 0.02 < (cell.high - cell.low) / 2 < 0.05
    text = table.text(next(c for c in table.columns if c.key == "sft/delta"), cell)
    assert text.startswith("−0.") and "±0.0" in text  # no per cent
    mean = row(table, "margin, mean of 2 tasks (nats)")["sft/delta"]
    pairs = row(table, "margin, pairs (nats)")["sft/delta"]
    assert mean.value == pytest.approx((cell.value + pairs.value) / 2)
    told = table.note.partition("Would be told")[2]
    sizes = {}
    for name in ("margin, mean of 2 tasks (nats)", "probability, mean of 2 tasks"):
        ways = [Variation.of(row(table, name)[f"{label}/delta"].spread) for label in results.series]
        sizes[name] = min(variation.detectable(1) for variation in ways)
        assert f"{name} {sizes[name]:.3f}" in told
        # four times the questions halve the error, and know it a little better
        assert f"Half of {name}'s takes 4.0 times the questions" in told
    assert "With one seed, what another seed changes is not in it." in told
    assert told.index("With one seed") < told.index("Half of margin") < told.index("Half of prob")
    # two methods on the same questions, which were drawn alike for both
    pair = row(table, "margin, facts (nats)")["sdft − sft"]
    ends = [
        raw(folder, name="facts", metric="margin", method=method, final=True)[-1]["value"]
        for method in ("sdft", "sft")
    ]
    assert pair.value == pytest.approx(ends[0] - ends[1])
    labels = [label for label, _ in table.rows]
    assert labels[3:] == [
        "probability, mean of 2 tasks",
        "probability, facts",
        "probability, pairs",
    ]


def test_accuracies_stay_what_they_were(folder, tmp_path):
    results = ReportData([folder])
    assert results.tasks_in_mean == {
        "facts": True,
        "pairs": True,
        "facts margin": False,
        "pairs margin": False,
        "facts probability": False,
        "pairs probability": False,
    }
    lines = (folder / "records.jsonl").read_text().splitlines()
    before = [line for line in lines if json.loads(line)["metric"] not in CONTINUOUS]
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    (plain / "records.jsonl").write_text("\n".join(before) + "\n")
    without = ReportData([plain])
    assert without.continuous == {}
    for make in (main_table, retention_table):
        assert make(results).markdown() == make(without).markdown()


def test_every_place_has_them_by_their_own_name(folder, tmp_path):
    results = ReportData([folder])
    used = records_used(results)
    assert set(used["name"]) >= {"facts", "pairs"}
    assert not used["name"].str.contains("margin").any()
    assert set(used.loc[used["name"] == "facts", "metric"]) == {"acc", "margin", "probability"}
    panels = retention_curves(source_of(results)).panels
    assert [(p.task, p.metric, p.scale) for p in panels] == [
        ("facts", "accuracy (%)", 100),
        ("pairs", "accuracy (%)", 100),
        ("facts", "margin (nats)", 1),
        ("pairs", "margin (nats)", 1),
    ]
    _, page = write_report(folder, tmp_path / "report")
    assert "2 retention tasks" in page.read_text()
    with (page.parent / "tables" / "retention_continuous.csv").open() as file:
        rows = {line["measured"]: line for line in csv.DictReader(file)}
    (base,) = raw(folder, name="pairs", stage=0, metric="margin", method="sft")
    assert float(rows["margin, pairs (nats)"]["base"]) == pytest.approx(base["value"])


def test_a_task_that_is_not_there_is_named_once(folder, tmp_path):
    lines = (folder / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    kept = [
        r for r in records if not (r["name"] == "facts" and r["stage"] and r["method"] == "sft")
    ]
    for name in ("results.json", "protocols.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    missing = [line for line in ReportData([tmp_path]).missing if "retention" in line]
    assert missing == ["sft, seed 0: no final retention of facts"]


def test_measurements_from_before_margins_were_kept_are_named(folder, tmp_path):
    """All of a folder, where its protocols tell likelihoods; or some of them."""
    words = "measurements of facts, pairs are from before margins were kept"

    def said(name, **changes):
        copy = shutil.copytree(folder, tmp_path / name)
        for file, change in changes.items():
            rewrite(copy / f"{file}.json", change)
        return copy, lambda: [m for m in ReportData([copy]).missing if "before margins" in m]

    def keep(copy, wanted):
        records = [r for r in raw(copy) if wanted(r)]
        (copy / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    def by_likelihoods(protocols):
        for protocol in protocols.values():
            protocol["max_gen_toks"] = None

    def has_margin(record):
        return record["metric"] in CONTINUOUS

    copy, missing = said("whole")
    assert missing() == []
    keep(copy, lambda r: not (has_margin(r) and r["stage"] == 0))
    (line,) = missing()
    assert f"4 of 8 {words}: changes (Δ) of margin" in line
    _, page = write_report(copy, tmp_path / "report")
    assert words in page.read_text()

    old, missing = said("old", protocols=by_likelihoods)
    keep(old, lambda r: not has_margin(r))
    (line,) = missing()
    assert f": 8 of 8 {words}" in line
    # of a release that keeps margins where it knows what is right, and a task that generates
    rewrite(old / "results.json", lambda h: [t.update(reference=None) for t in h["retention"]][:0])
    assert missing() == []
    generated, missing = said("generated")
    keep(generated, lambda r: not has_margin(r))
    assert missing() == []


def test_the_power_of_margins_is_printed_in_their_own_unit(folder):
    results = ReportData([folder])
    lines = list(measured_table(results, 300, 5))
    rows = dict(row.removeprefix("| ").split(" | ", 1) for row in lines[2:])
    assert list(rows) == [
        "`facts`",
        "`pairs`",
        "`facts`, margin (nats)",
        "`pairs`, margin (nats)",
        "`facts`, probability",
        "`pairs`, probability",
        "mean of 2 accuracies",
        "mean margin of 2 tasks (nats)",
        "mean probability of 2 tasks",
        "accuracy, a pair",
    ]
    cells = row(continuous_table(results), "margin, mean of 2 tasks (nats)")
    ways = [Variation.of(cells[f"{label}/delta"].spread) for label in results.series]
    middle = min(ways, key=lambda way: way.detectable(1))
    now, more = middle.detectable(1), middle.detectable(1, 300 * 2 / 100)
    # one seed does not know what another one changes
    assert rows["mean margin of 2 tasks (nats)"] == f"100 | {now:.3f} | {more:.3f} | – |"
