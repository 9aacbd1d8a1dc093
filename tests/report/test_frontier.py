"""Gain against retention over the settings of a method."""

import json
from collections import defaultdict

import matplotlib
import numpy as np
import pytest

from harness.base import metrics
from harness.base.files import ROOT
from harness.report import build
from harness.report.data import ReportData
from harness.report.estimates import Estimate
from harness.report.frontier import (
    Family,
    Frontier,
    Kept,
    Setting,
    alone_note,
    area,
    frontier_table,
    frontiers,
    matched_gain,
    retention_at,
)
from harness.report.pictures import source_of
from harness.report.pictures.frontier import FRONTIER, LIKELIHOODS, lines
from harness.report.style import STYLE, WIDE
from tests.fabricate import fabricate
from tests.report.folders import rewrite, row

LAWS = {
    "sft_slow": (0.45, 0.9, 0.002),
    "sft": (1.0, 0.7, 0.03),
    "sft_mid": (0.75, 0.8, 0.012),
    "sdft_slow": (0.3, 0.97, 0.001),
    "sdft": (0.85, 0.94, 0.006),
    "grpo": (0.7, 0.9, 0.004),
}


def with_settings(folder):
    def change(results):
        for label, entry in results["methods"].items():
            entry["method"] = label.partition("_")[0]
            entry["config"]["learning_rate"] = len(label)

    rewrite(folder / "results.json", change)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "settings"
    return with_settings(fabricate(path, methods=LAWS, n=200))


@pytest.fixture(scope="module")
def shown(folder):
    return frontiers(ReportData([folder]))[0]


def gain_and_retention(results, label):
    R, D = results.R[label], results.D[label]
    gain = (R[:, [1, 2, 3], [0, 1, 2]] - R[:, 0]).mean(-1)
    in_mean = [task != "wikitext" for task in results.retention]
    return gain, (D[:, -1] - D[:, 0])[:, in_mean].mean(-1)


def test_settings_of_one_method_are_points_by_rising_gain(folder, shown):
    results = ReportData([folder])
    found = {family.name: [point.label for point in family.points] for family in shown.families}
    assert found == {"sft": ["sft_slow", "sft_mid", "sft"], "sdft": ["sdft_slow", "sdft"]}
    for family in shown.families:
        for point in family.points:
            gain, kept = gain_and_retention(results, point.label)
            assert point.gain.value == pytest.approx(gain.mean())
            assert point.retention.value == pytest.approx(kept.mean())
    of_sft, of_sdft = (gain_and_retention(results, label)[0].mean() for label in ("sft", "sdft"))
    assert shown.matched == pytest.approx(of_sdft) and of_sdft < of_sft


def families(*ranges):
    """Families whose points have these gains."""
    nothing = Estimate(0.0)
    return [
        Family(str(i), [Setting("", Estimate(gain), nothing) for gain in gains])
        for i, gains in enumerate(ranges)
    ]


@pytest.mark.parametrize(
    "ranges, gain, who",
    [
        ([(1, 5), (2, 4), (3, 9)], 4, [0, 1, 2]),  # all: the largest that all reach
        ([(6, 9), (3, 4), (1, 3.5)], 3.5, [1, 2]),  # one learns too much for the others
        ([(6, 9), (7, 8), (0, 1), (0.2, 2)], 8, [0, 1]),  # two pairs: that of the first
        ([(6, 9), (3, 4), (0, 1)], None, []),  # nobody shares one
        ([(6, 9)], None, []),
    ],
)
def test_methods_are_compared_where_most_of_them_are(ranges, gain, who):
    found = families(*ranges)
    kept = Kept("frontier", "retention", "%", "", "", lambda D: D)
    shown = Frontier(None, kept, found, matched_gain(found), 0.0, [])
    assert shown.matched == gain and shown.compared() == [found[i] for i in who]


def test_retention_between_two_settings_is_on_their_line(shown):
    sft = shown.families[0]
    (g1, g2, g3), kept = sft.gains, [point.retention.value for point in sft.points]
    at = g2 + 0.25 * (g3 - g2)
    assert retention_at(shown, sft, at).value == pytest.approx(0.75 * kept[1] + 0.25 * kept[2])
    assert retention_at(shown, sft, g1).value == pytest.approx(kept[0])
    assert retention_at(shown, sft, g3).value == pytest.approx(kept[2])
    assert np.isnan(retention_at(shown, sft, g3 + 1e-6).value)
    assert np.isnan(retention_at(shown, sft, g1 - 1e-6).value)


def test_its_interval_is_as_wide_as_questions_drawn_again_make_it(folder, shown):
    """Interpolated again in 2,000 draws of the questions, which all settings share."""
    results = ReportData([folder])
    sft = shown.families[0]
    mid, top = (point.label for point in sft.points[1:])
    at = (sft.gains[1] + sft.gains[2]) / 2

    def scores(key, metric):
        items = json.loads((folder / f"evaluations/{key}.json").read_text())["items"]
        return np.array([item["scores"][metric] if metric else item["score"] for item in items])

    parts = {}  # of each test: what each question adds to [gain, retention] of both settings
    for k, name in enumerate(results.skills, 1):
        base = scores(f"{name}-base", "exact")
        own = [scores(f"{name}-{label}-seed0-{12 * k}", "exact") - base for label in (mid, top)]
        parts[name] = np.stack([own[0] / 3, own[1] / 3, 0 * base, 0 * base])
    for name in results.retention:
        if name != "wikitext":
            base = scores(f"{name}-base", None)
            end = [scores(f"{name}-{label}-seed0-3", None) - base for label in (mid, top)]
            parts[name] = np.stack([0 * base, 0 * base, end[0] / 4, end[1] / 4])
    rng, draws = np.random.default_rng(4), []
    for _ in range(2000):
        g1, g2, r1, r2 = sum(p[:, rng.integers(0, 200, 200)].mean(1) for p in parts.values())
        w = (at - g1) / (g2 - g1)
        draws.append((1 - w) * r1 + w * r2)
    found = retention_at(shown, sft, at)
    assert found.by == "items"
    assert (found.high - found.low) / 2 == pytest.approx(1.97 * np.std(draws), rel=0.12)


def test_the_area_is_above_the_worst_retention_of_all(folder, shown):
    results = ReportData([folder])
    points = {label: np.ravel(gain_and_retention(results, label)) for label in LAWS}
    worst = min(points[label][1] for label in LAWS if label != "grpo")
    (g1, r1), (g2, r2) = points["sdft_slow"], points["sdft"]
    by_hand = g2 * (r2 - worst) + g1 * max(0, r1 - r2)
    assert area(shown, shown.families[1]).value == pytest.approx(1e4 * by_hand)


def test_the_table_and_the_picture_have_every_setting(folder, shown):
    table = frontier_table(shown)
    assert [label for label, _ in table.rows] == [
        *("sft, all settings", "sft_slow", "sft_mid", "sft"),
        *("sdft, all settings", "sdft_slow", "sdft"),
        "grpo",
    ]
    cells = row(table, "sft, all settings")
    assert cells["gain"] == shown.matched
    assert cells["retention"] == retention_at(shown, shown.families[0], shown.matched)
    drawn = lines(source_of(ReportData([folder])), "frontier")
    assert [line.name for line in drawn.lines] == ["sft", "sdft"]
    band = drawn.lines[0].band
    assert band[0, :2] == pytest.approx(
        [shown.families[0].gains[0], shown.families[0].points[0].retention.value]
    )
    assert (np.diff(band[:, 0]) > 0).all() and (band[:, 2] < band[:, 3]).all()


def test_marks_bear_their_labels_and_the_note_says_who_is_left_out(folder, shown):
    drawn = lines(source_of(ReportData([folder])), "frontier")
    with matplotlib.rc_context(STYLE):
        (axes,) = FRONTIER.draw(drawn, WIDE).axes
    labels = [text.get_text() for text in axes.texts if text.get_text() != "matched gain"]
    assert sorted(labels) == sorted(LAWS)
    said = " With one setting, and so no line: grpo."
    assert FRONTIER.caption(drawn).endswith(said)
    assert frontier_table(shown).note.endswith(said)
    assert alone_note([]) == "" and alone_note(list("abcdefghij")).endswith("g, h and 2 more.")


def test_the_page_has_every_setting_with_its_intervals(folder, shown):
    drawn = lines(source_of(ReportData([folder])), "frontier")
    (panel,) = FRONTIER.live(drawn)
    assert panel.bases == [(0.0, 0.0)]
    found = {
        name: [getattr(line, key)[k] for key in ("x", "y", "left", "right", "low", "high")]
        for line in panel.lines
        for k, name in enumerate(line.names)
    }
    points = [p for family in shown.families for p in family.points] + shown.alone
    assert set(found) == {p.label for p in points} == set(LAWS)
    for p in points:
        kept, gain = p.retention, p.gain
        wanted = [kept.value, gain.value, kept.low, kept.high, gain.low, gain.high]
        assert found[p.label] == pytest.approx([100 * each for each in wanted], rel=1e-4)


def test_points_of_a_grid_count_though_one_is_selected(tmp_path):
    laws = {"grpo": LAWS["grpo"], "sft.lr-1": LAWS["sft_slow"], "sft.lr-2": LAWS["sft"]}
    folder = fabricate(tmp_path / "grid", methods=laws, seeds=(0, 1), n=40)

    def change(results):
        for label in list(laws)[1:]:
            results["methods"][label] |= {
                "method": "sft",
                "grid": {"of": "sft", "values": {"lr": int(label[-1])}},
            }

    rewrite(folder / "results.json", change)
    chosen = {"sft": {"selected": "sft.lr-2", "rule": "validation", "points": [{}, {}]}}
    (folder / "selection.json").write_text(json.dumps(chosen))
    results = ReportData([folder])
    assert list(results.series) == ["grpo", "sft"]
    shown, _ = frontiers(results)
    (family,) = shown.families
    assert [point.label for point in family.points] == ["sft.lr-1", "sft.lr-2"]
    selected = results.estimate("sft", lambda R: metrics.own_stage_gain(R).mean(-1))
    assert family.points[1].gain.value == pytest.approx(selected.value)
    assert shown.matched is None  # nothing to compare one method with
    tables = build._all_tables(results)
    assert [table.name for table in tables][1:4] == ["main", "comparisons", "frontier"]
    with matplotlib.rc_context(STYLE):
        FRONTIER.save(source_of(results), tmp_path)
    assert (tmp_path / "frontier.svg").exists()


def test_likelihoods_are_held_against_the_gain_as_well():
    """The committed quickstart: fewer bits per byte over six texts are more, by its records."""
    folder = ROOT / "results/measured/quickstart"
    results = ReportData([folder])
    by_accuracies, shown = frontiers(results)
    assert by_accuracies.kept.key == "frontier" and shown.kept.unit == "own"
    (family,) = shown.families
    assert sorted(point.label for point in family.points) == ["sft", "sft_5e-4"]
    assert [point.label for point in shown.alone] == ["sdft", "grpo"]
    values = defaultdict(list)
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["metric"].startswith("bits_per_byte") and record["name"].startswith("text_"):
            values[record["method"], record["stage"]].append(record["value"])
    for point in [*family.points, *shown.alone]:
        base, end = (np.array(values[point.label, stage]) for stage in (0, 2))
        assert len(base) == len(end) == 6
        assert point.retention.value == pytest.approx(base.mean() - end.mean())
    fast = next(point.retention for point in family.points if point.label == "sft_5e-4")
    slow = next(point.retention for point in family.points if point.label == "sft")
    assert fast.high < slow.low  # which accuracies do not tell
    table = frontier_table(shown)
    assert table.text(table.columns[1], fast) == f"−{-fast.value:.3f} ±{fast.high - fast.value:.3f}"
    with matplotlib.rc_context(STYLE):
        (axes,) = LIKELIHOODS.draw(lines(source_of(results), shown.kept.key), WIDE).axes
    assert axes.get_xlabel() == "text Δ (bits per byte)"
    drawn = {t.get_text(): t.xy for t in axes.texts}
    assert drawn["sft_5e-4"][0] == pytest.approx(fast.value)


def test_one_setting_a_method_or_no_retention_has_no_frontier(tmp_path, three):
    assert frontiers(ReportData([three])) == []
    bare = fabricate(tmp_path / "bare", methods=LAWS, n=10, retention={})
    assert frontiers(ReportData([with_settings(bare)])) == []


def test_what_is_trained_and_which_trainer_make_another_method(tmp_path):
    """Settings of one family differ in hyperparameters alone."""
    entries = {
        "sft": {},
        "sft_fast": {"config": {"learning_rate": 1e-3}},
        "lora": {"parameters": {"lora": {"rank": 4, "adapter": "merged"}}},
        "lora_wide": {"parameters": {"lora": {"rank": 64, "adapter": "merged"}}},
        "on": {"parameters": {"lora": {"rank": 4, "adapter": "continued"}}},
        "on_wide": {"parameters": {"lora": {"rank": 64, "adapter": "continued"}}},
        "four": {"parameters": {"lora": {"adapter": "continued", "base": "nf4"}}},
        "dora": {"parameters": {"dora": {"rank": 4}}, "with": {"ewc": {}}},
        "dora_strong": {"parameters": {"dora": {"rank": 4}}, "with": {"ewc": {"strength": 9}}},
        "near": {"with": {"anchor": {"beta": 0.5, "along": "demonstrations", "of": "stage"}}},
        "nearer": {"with": {"anchor": {"beta": 2.0, "along": "demonstrations", "of": "stage"}}},
        "wide": {"with": {"anchor": {"beta": 0.5, "along": "general_prompts", "of": "stage"}}},
        "wider": {"with": {"anchor": {"beta": 2.0, "along": "general_prompts", "of": "stage"}}},
        "of_trl": {"method": "trl", "config": {"trainer": "SFTTrainer"}},
        "dpo": {"method": "trl", "config": {"trainer": "DPOTrainer"}},
    }
    laws = {label: (0.3 + 0.05 * i, 0.9, 0.002) for i, label in enumerate(entries)}
    folder = fabricate(tmp_path / "many", methods=laws, n=30)

    def change(results):
        for label, entry in entries.items():
            results["methods"][label] |= {"method": "sft", **entry}

    rewrite(folder / "results.json", change)
    found = frontiers(ReportData([folder]))[0].families
    assert {family.name: {point.label for point in family.points} for family in found} == {
        "sft": {"sft", "sft_fast"},
        "sft, lora": {"lora", "lora_wide"},
        "sft, lora continued": {"on", "on_wide"},
        "sft, dora + ewc": {"dora", "dora_strong"},
        "sft + anchor demonstrations": {"near", "nearer"},
        "sft + anchor general_prompts": {"wide", "wider"},
    }
