"""The numbers behind the pictures, and their looks."""

from collections import defaultdict

import numpy as np
import pandas as pd
import pytest

from harness.report import figures
from harness.report.data import ReportData
from tests.fabricate import fabricate
from tests.report.folders import TWO, raw, rewrite_records, wilson


@pytest.fixture
def drawer(tmp_path):
    """A function that gives the drawer of some folders, with its axis, and the curves along it."""

    def of(*folders):
        drawer = figures.Drawer(ReportData(folders), tmp_path / "figures")
        drawer._axis()
        return drawer, drawer._curves()

    with figures.matplotlib.rc_context(figures.STYLE):
        yield of


def test_bands_of_one_seed_are_wilsons(tmp_path, drawer):
    skills = {"science": (-1.0, 0.0), "medical": (0.22, 0.3)}
    folder = fabricate(tmp_path / "zero", skills, methods=TWO, n=48)
    _, curves = drawer(folder)
    zero = curves[(curves["name"] == "science") & (curves["label"] == "sft")]
    assert zero["high"].to_numpy() == pytest.approx(0.0741, abs=1e-4)
    assert not zero["low"].any()
    some = curves[curves["name"] == "medical"]
    for value, low, high in some[["value", "low", "high"]].to_numpy():
        assert (low, high) == pytest.approx(wilson(round(48 * value), 48), abs=1e-9)


def test_a_band_ends_where_it_is_not_known():
    axes = figures.Figure().subplots()
    look = ("red", "o", "-")
    figures.curve(axes, look, [0, 1, 2], [0.0, 0.98, 0.5], [0.0, 0.9, np.nan], [0.07, 1.0, np.nan])
    band = axes.collections[0].get_paths()[0].vertices
    assert {(x, round(y, 6)) for x, y in band} == {(0, 0), (0, 7), (1, 90), (1, 100)}


def test_bands_over_seeds_stay_in_the_unit_interval_and_agreement_has_none(tmp_path, drawer):
    skills = {"science": (-1.0, 0.0), "medical": (0.02, 0.05)}
    folder = fabricate(tmp_path / "seeds", skills, TWO, seeds=(0, 1, 2), n=48, items=False)
    _, curves = drawer(folder)
    assert curves.loc[curves["name"] == "science", ["low", "high"]].isna().all(axis=None)
    records = pd.DataFrame(raw(folder, kind="skill", metric="exact", name="medical", method="sft"))
    medical = curves[(curves["name"] == "medical") & (curves["label"] == "sft")]
    cut = 0
    for step, values in records.groupby("step")["value"]:
        point = medical[medical["x"] == step].iloc[0]
        half = 4.302653 * values.std() / 3**0.5 if len(set(values)) > 1 else np.nan
        bounds = [np.maximum(0, values.mean() - half), values.mean() + half]
        assert [point["low"], point["high"]] == pytest.approx(bounds, rel=1e-6, nan_ok=True)
        cut += values.mean() < half
    assert cut


@pytest.mark.parametrize("count", [1, 3])
def test_long_names_fit_into_the_legend(count, tmp_path):
    labels = [f"sdft_learning_rate_{rate}_reverse_kl_{'x' * 30 * (rate == 5)}" for rate in range(6)]
    with figures.matplotlib.rc_context(figures.STYLE):
        figure, *_ = figures.grid(count)
        figures.legend(figure, figures.looks(labels), labels, base=True)
        figures.save(figure, tmp_path, "legend")
        box = figure.legends[0].get_window_extent()
        whole = figure.bbox
    assert box.x0 >= whole.x0
    assert box.x1 <= whole.x1
    assert box.y1 <= whole.y1
    assert figure.legends[0]._ncols == (1 if count == 1 else 2)


def test_two_base_models_have_a_line_each(tmp_path, drawer):
    folders = [fabricate(tmp_path / m, methods=TWO, model=m, n=20) for m in ("a", "b")]
    rewrite_records(folders[1], lambda r: {} if r["stage"] else {"value": r["value"] + 0.25})
    drawn, curves = drawer(*folders)
    start = curves[(curves["name"] == "science") & (curves["stage"] == 0)]
    start = start.set_index("label")["value"]
    bases = drawn._bases(start)
    assert len(bases) == 2
    assert bases.iloc[1] - bases.iloc[0] == pytest.approx(0.25)
    assert drawn._bases(start[:0]).empty


def test_curves_align_methods_of_different_length(reported):
    curves = pd.read_csv(reported.page.parent / "tables" / "curves.csv")
    ends = defaultdict(set)
    for label, x in curves[["label", "x"]].itertuples(index=False):
        ends[label].add(x)
    # 12 and 18 steps a stage end at the same place.
    assert {0.0, 1.0, 2.0, 3.0} <= ends["sft"] & ends["sdft"]
    assert 0.25 in ends["sft"]


def test_curves_are_in_optimizer_steps_where_all_methods_agree(tmp_path, drawer):
    folder = fabricate(tmp_path / "equal", methods=TWO, items=False, n=10)
    drawn, curves = drawer(folder)
    assert drawn.in_steps
    assert drawn.edges.tolist() == [0, 12, 24, 36]
    assert set(curves["x"]) == set(range(0, 37, 3))


def test_a_label_has_the_same_colour_in_every_report():
    few = figures.looks(["sdft", "ewc"])
    many = figures.looks(["replay", "sft", "ewc", "grpo", "sdft", *"abcdefgh"])
    assert few["sdft"] == many["sdft"] == ("#0072B2", "s", "-")
    assert many["sft"][0] == "#D55E00"
    assert many["grpo"][0] == "#009E73"
    assert len(set(many.values())) == len(many)
