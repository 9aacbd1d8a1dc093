"""The numbers behind the pictures, and their looks."""

from collections import defaultdict

import matplotlib
import numpy as np
import pandas as pd
import pytest

from harness.base import intervals, metrics
from harness.report import pictures, style
from harness.report.data import ReportData
from harness.report.pictures.accuracy_matrix import accuracy_matrices
from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.curves import (
    accuracy_curves_table,
    base_values,
    normalised_curves_table,
)
from harness.report.pictures.picture import Picture
from harness.report.pictures.plane import plane
from harness.report.pictures.training import Diagnostics
from harness.report.pictures.training import draw as draw_diagnostics
from tests.fabricate import fabricate
from tests.report.folders import TWO, raw, rewrite_records, wilson


def drawn(*folders):
    """The axis of some folders and the accuracy curves along it."""
    results = ReportData(folders)
    axis = TrainingAxis(results)
    return axis, accuracy_curves_table(results, axis)


def test_bands_of_one_seed_are_wilsons(tmp_path):
    skills = {"science": (-1.0, 0.0), "medical": (0.22, 0.3)}
    folder = fabricate(tmp_path / "zero", skills, methods=TWO, n=48)
    _, curves = drawn(folder)
    zero = curves[(curves["name"] == "science") & (curves["label"] == "sft")]
    assert zero["high"].to_numpy() == pytest.approx(0.0741, abs=1e-4)
    assert not zero["low"].any()
    some = curves[curves["name"] == "medical"]
    for value, low, high in some[["value", "low", "high"]].to_numpy():
        assert (low, high) == pytest.approx(wilson(round(48 * value), 48), abs=1e-9)


def test_whiskers_stand_where_they_are_known_and_asked_for():
    axes = style.Figure().subplots()
    look = style.Look("red", "o", "-")
    low, high = [0.0, 0.9, 0.4, np.nan], [0.07, 1.0, 0.6, np.nan]
    style.curve(axes, look, [0, 1, 2, 3], [0.0, 0.98, 0.5, 0.5], low, high, at=[0, 1, 3])
    (whiskers,) = axes.collections
    ends = {tuple(map(tuple, path.vertices.round(6))) for path in whiskers.get_paths()}
    assert ends == {((0, 0), (0, 7)), ((1, 90), (1, 100))}


def test_lines_that_coincide_are_drawn_beside_each_other_with_names_of_their_own():
    axes = style.Figure(figsize=(3.6, 2.4)).subplots()
    for colour, shift in zip(("red", "blue"), style.shifts(2), strict=True):
        style.curve(
            axes, style.Look(colour, "o", "-"), [0, 1], [0.5, 0.5], [0.4] * 2, [0.6] * 2, 1, shift
        )
    moved = [line.get_transform().transform([(1, 0.5)])[0] for line in axes.lines]
    assert moved[1][0] - moved[0][0] == pytest.approx(style.SHIFT * axes.figure.dpi / 72)
    assert moved[0][1] == moved[1][1]
    style.name_ends(axes, [("one", 0.5, "red"), ("two", 0.5, "blue"), ("three", 0.6, "green")])
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0.08
    assert sum(style.shifts(7)) == pytest.approx(0)
    assert max(style.shifts(30)) <= style.MOST_SHIFT / 2


def test_training_curves_that_coincide_are_told_apart_by_place_and_by_marks(tmp_path):
    """SFT at two rates reads the same demonstrations."""
    means = pd.concat({label: pd.Series({1: 2.0, 2: 5.0, 3: 3.0}) for label in ("one", "two")})
    means.index.names = ["label", "step"]
    look = {"one": style.Look("red", "o", "-"), "two": style.Look("blue", "s", "-")}
    table = means.to_frame("completion_tokens")
    axis = drawn(fabricate(tmp_path / "axis", methods=TWO, n=8, inside=0, retention={}))[0]
    shown = Diagnostics(axis, look, ["one", "two"], ["completion_tokens"], 1, table, 3)
    with matplotlib.rc_context(style.STYLE):
        axes = draw_diagnostics(shown, style.WIDE).axes[0]
    one, two = (line for line in axes.lines if len(line.get_xdata()) == 3)
    first, second = (line.get_transform().transform([(1, 2.0)])[0] for line in (one, two))
    assert second[0] - first[0] == pytest.approx(style.SHIFT * axes.figure.dpi / 72)
    assert (one.get_marker(), two.get_marker()) == ("o", "s")
    low, high = axes.get_ylim()
    assert low < 2 and high > 5


@pytest.mark.parametrize(
    "colour", [style.GREY, *style.OTHERS, *(look[0] for look in style.FIXED.values())]
)
def test_a_method_s_colour_is_seen_on_white_and_on_black(colour):
    def luminance(name):
        parts = np.array([int(name[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        parts = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(parts @ [0.2126, 0.7152, 0.0722])

    assert colour not in style.DARK
    for paper in (style.PAPER, style.DARK[style.PAPER]):
        dark, light = sorted((luminance(colour), luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_bands_hold_questions_and_seeds_and_stay_in_the_unit_interval(tmp_path):
    skills = {"science": (-1.0, 0.0), "medical": (0.02, 0.05)}
    folder = fabricate(tmp_path / "seeds", skills, TWO, seeds=(0, 1, 2), n=48, items=False)
    _, curves = drawn(folder)
    none_right = curves[curves["name"] == "science"]
    assert (none_right["high"] - wilson(0, 48)[1]).abs().max() < 1e-9
    records = pd.DataFrame(raw(folder, kind="skill", metric="exact", name="medical", method="sft"))
    medical = curves[(curves["name"] == "medical") & (curves["label"] == "sft")]
    for step, points in records.groupby("step"):
        point = medical[medical["x"] == step].iloc[0]
        spread = intervals.of_records(points["value"], points["stderr"])
        error, quantile = (spread.stderr, spread.quantile()) if spread else (np.nan, None)
        mean = points["value"].mean()
        bounds = metrics.score_interval(mean, error, 48, quantile=quantile)
        assert [point["low"], point["high"]] == pytest.approx(bounds)
    assert curves["low"].min() >= 0


@pytest.mark.parametrize("count", [1, 3])
def test_long_names_fit_into_the_legend(count, tmp_path):
    labels = [f"sdft_learning_rate_{rate}_reverse_kl_{'x' * 30 * (rate == 5)}" for rate in range(6)]
    with matplotlib.rc_context(style.STYLE):
        figure, *_ = style.grid(count)
        style.legend(figure, style.looks(labels), labels, base=True)
        style.save(figure, tmp_path, "legend")
        box = figure.legends[0].get_window_extent()
        whole = figure.bbox
    assert box.x0 >= whole.x0
    assert box.x1 <= whole.x1
    assert box.y1 <= whole.y1
    assert figure.legends[0]._ncols == (1 if count == 1 else 2)


def test_two_base_models_have_a_line_each(tmp_path):
    folders = [fabricate(tmp_path / m, methods=TWO, model=m, n=20) for m in ("a", "b")]
    rewrite_records(folders[1], lambda r: {} if r["stage"] else {"value": r["value"] + 0.25})
    results = ReportData(folders)
    curves = accuracy_curves_table(results, TrainingAxis(results))
    start = curves[(curves["name"] == "science") & (curves["stage"] == 0)]
    start = start.set_index("label")["value"]
    bases = base_values(results, start)
    assert len(bases) == 2
    assert bases.iloc[1] - bases.iloc[0] == pytest.approx(0.25)
    assert base_values(results, start[:0]).empty


def test_curves_align_methods_of_different_length(reported):
    curves = pd.read_csv(reported.page.parent / "tables" / "curves.csv")
    ends = defaultdict(set)
    for label, x in curves[["label", "x"]].itertuples(index=False):
        ends[label].add(x)
    # 12 and 18 steps a stage end at the same place.
    assert {0.0, 1.0, 2.0, 3.0} <= ends["sft"] & ends["sdft"]
    assert 0.25 in ends["sft"]


def test_curves_are_in_optimizer_steps_where_all_methods_agree(tmp_path):
    folder = fabricate(tmp_path / "equal", methods=TWO, items=False, n=10)
    axis, curves = drawn(folder)
    assert axis.in_steps
    assert axis.edges.tolist() == [0, 12, 24, 36]
    assert set(curves["x"]) == set(range(0, 37, 3))


def test_a_label_has_the_same_colour_in_every_report():
    few = style.looks(["sdft", "ewc"])
    many = style.looks(["replay", "sft", "ewc", "grpo", "sdft", *"abcde"])
    assert few["sdft"] == many["sdft"] == ("#0072B2", "s", "-")
    assert many["sft"][0] == "#D55E00"
    assert many["grpo"][0] == "#009E73"
    assert len(set(many.values())) == len(many)


def test_the_axis_is_stages_where_methods_differ_in_steps(reported):
    axis = TrainingAxis(ReportData([reported.page.parent.parent]))
    assert not axis.in_steps
    assert axis.edges.tolist() == list(range(len(axis.edges)))


def test_normalised_curves_are_0_at_the_base_and_1_at_the_best(tmp_path):
    axis, curves = drawn(fabricate(tmp_path / "one", methods=TWO, items=False, n=10))
    normalised = normalised_curves_table(curves, axis)
    for _, skill in normalised.groupby("name", observed=True):
        assert skill["value"].max() == pytest.approx(1)
        assert skill.loc[skill["x"] == 0, "value"].to_numpy() == pytest.approx(0)


def test_the_matrix_and_the_plane_show_the_arrays_of_the_results(tmp_path):
    results = ReportData([fabricate(tmp_path / "two", methods=TWO, seeds=(0, 1), n=20)])
    source = pictures.source_of(results)
    for matrix in accuracy_matrices(source).matrices:
        assert matrix.values == pytest.approx(100 * results.R[matrix.label].mean(0))
    for path in plane(source).paths:
        assert path.stages[:, 1] == pytest.approx(results.R[path.label].mean((0, 2)))


def test_a_picture_without_numbers_is_not_drawn(tmp_path):
    results = ReportData([fabricate(tmp_path / "none", methods=TWO, items=False, n=10)])

    def never(_):
        raise AssertionError("there is nothing to draw")

    nothing = Picture("nothing", "Nothing", "results", lambda _: None, never, never, never)
    assert nothing.save(pictures.source_of(results), tmp_path) == []
    assert not list(tmp_path.glob("nothing*"))
