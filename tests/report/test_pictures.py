"""The pictures: the numbers that they show, their looks and their captions."""

import json
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from harness.report import style
from harness.report.data import ReportData
from harness.report.pictures import PICTURES, draw_pictures, source_of
from harness.report.pictures.accuracy_matrix import accuracy_matrices, mean_over_seeds
from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.curves import (
    COLUMNS,
    accuracy_curves,
    accuracy_curves_table,
    base_values,
    caption_normalised,
    normalised_curves,
    normalised_curves_table,
)
from harness.report.pictures.picture import Source
from harness.report.pictures.plane import plane
from harness.report.pictures.retention import caption, mean_change_table, retention_curves
from harness.report.pictures.training import diagnostics
from tests.fabricate import METHODS, SKILLS, fabricate

TWO = {label: METHODS[label] for label in ("sft", "sdft")}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    """Two seeds of three methods, one of which takes more steps."""
    folder = tmp_path_factory.mktemp("results") / "two"
    fabricate(folder, seeds=(0, 1), steps={"sdft": 18}, n=20, items=False)
    return source_of(ReportData([folder]))


def curves_of(*folders: Path) -> pd.DataFrame:
    results = ReportData(folders)
    return accuracy_curves_table(results, TrainingAxis(results))


def change_records(folder: Path, change) -> None:
    """Rewrites records.jsonl; ``change`` gives the changed keys of a record."""
    path = folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record | change(record)) + "\n" for record in records))


# -- axis and curves


def test_curves_align_methods_of_different_length(source):
    ends = defaultdict(set)
    for label, x in source.curves[["label", "x"]].itertuples(index=False):
        ends[label].add(x)
    # 12 and 18 steps a stage end at the same place.
    assert {0.0, 1.0, 2.0, 3.0} <= ends["sft"] & ends["sdft"]
    assert 0.25 in ends["sft"]
    assert not source.axis.in_steps
    assert "sft 36, sdft 54, grpo 36" in source.axis.note


def test_curves_are_in_optimizer_steps_where_all_methods_agree(tmp_path):
    folder = fabricate(tmp_path / "equal", methods=TWO, items=False, n=10)
    results = ReportData([folder])
    axis = TrainingAxis(results)
    assert axis.in_steps
    assert axis.edges.tolist() == [0, 12, 24, 36]
    assert set(accuracy_curves_table(results, axis)["x"]) == set(range(0, 37, 3))


def test_a_record_of_an_unfinished_stage_lies_at_its_share_of_the_usual_steps(tmp_path):
    folder = fabricate(tmp_path / "part", methods=TWO, seeds=(0, 1), items=False, n=10)
    path = folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records = [r for r in records if not (r["seed"] == 1 and r["stage"] == 3 and r["final"])]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    results = ReportData([folder])
    table = results.skill_records
    last = table[(table["seed"] == 1) & (table["stage"] == 3)]
    assert len(last)
    assert TrainingAxis(results).place(last).tolist() == last["step"].tolist()


def test_bands_of_one_seed_are_wilsons(tmp_path):
    skills = {"science": (-1.0, 0.0), "medical": (0.22, 0.3)}
    curves = curves_of(fabricate(tmp_path / "zero", skills=skills, methods=TWO, n=48))
    zero = curves[(curves["name"] == "science") & (curves["label"] == "sft")]
    assert zero["high"].to_numpy() == pytest.approx(0.0741, abs=1e-4)
    assert not zero["low"].any()
    some = curves[curves["name"] == "medical"]
    z = 1.959963984540054
    for value, low, high in some[["value", "low", "high"]].to_numpy():
        # The two p for which (value - p)^2 = z^2 p (1 - p) / n.
        roots = np.roots([1 + z * z / 48, -2 * value - z * z / 48, value**2]).real
        assert (low, high) == pytest.approx(sorted(roots), abs=1e-9)


def test_bands_over_seeds_stay_in_the_unit_interval_and_agreement_has_none(tmp_path):
    skills = {"science": (-1.0, 0.0), "medical": (0.02, 0.05)}
    folder = tmp_path / "seeds"
    fabricate(folder, skills=skills, methods=TWO, seeds=(0, 1, 2), n=48, items=False)
    curves = curves_of(folder)
    assert curves.loc[curves["name"] == "science", ["low", "high"]].isna().all(axis=None)
    records = pd.read_json(folder / "records.jsonl", lines=True)
    records = records[(records["kind"] == "skill") & (records["metric"] == "exact")]
    records = records[(records["name"] == "medical") & (records["method"] == "sft")]
    medical = curves[(curves["name"] == "medical") & (curves["label"] == "sft")]
    cut = 0
    for step, values in records.groupby("step")["value"]:
        point = medical[medical["x"] == step].iloc[0]
        half = 4.302653 * values.std() / 3**0.5 if len(set(values)) > 1 else np.nan
        bounds = [np.maximum(0, values.mean() - half), values.mean() + half]
        assert [point["low"], point["high"]] == pytest.approx(bounds, rel=1e-6, nan_ok=True)
        cut += values.mean() < half
    assert cut


def test_no_records_make_an_empty_table_of_the_same_columns(tmp_path):
    folder = fabricate(tmp_path / "none", methods=TWO, items=False, n=10)
    (folder / "records.jsonl").unlink()
    source = source_of(ReportData([folder]))
    assert list(source.curves) == COLUMNS
    assert accuracy_curves(source) is None
    assert normalised_curves(source) is None
    assert plane(source) is None


def test_columns_of_the_curves(source):
    assert list(source.curves) == COLUMNS


def test_normalised_curves_are_0_at_the_base_and_1_at_the_best_point(source):
    table = normalised_curves_table(source.curves, source.axis)
    assert (table.loc[table["x"] == 0, "value"] == 0).all()
    assert table.groupby("name", observed=True)["value"].max().tolist() == [1.0] * len(SKILLS)
    raw = source.curves
    science = raw[raw["name"] == "science"]
    base = science.loc[science["x"] == 0, "value"].iloc[0]
    row = science[(science["label"] == "sft") & (science["x"] == 3)].index[0]
    expected = (raw.loc[row, ["value", "low", "high"]] - base) / (science["value"].max() - base)
    found = table.loc[row, ["value", "low", "high"]]
    assert found.to_list() == pytest.approx(expected.to_list())


def test_a_skill_on_which_nobody_is_above_the_base_is_named(tmp_path):
    folder = fabricate(tmp_path / "level", skills={**SKILLS, "zero": (-1.0, 0.0)}, methods=TWO)
    shown = normalised_curves(source_of(ReportData([folder])))
    assert shown.level == ["zero"]
    assert caption_normalised(shown).endswith("No method is above the base on zero.")
    assert shown.panels[-1].lines["sft"]["value"].isna().all()


def test_two_base_models_have_a_line_each(tmp_path):
    folders = [fabricate(tmp_path / m, methods=TWO, model=m, n=20) for m in ("a", "b")]
    change_records(folders[1], lambda r: {} if r["stage"] else {"value": r["value"] + 0.25})
    source = source_of(ReportData(folders))
    panel = accuracy_curves(source).panels[0]
    assert panel.bases[1] - panel.bases[0] == pytest.approx(0.25)
    assert len(panel.bases) == 2
    start = pd.Series([], index=pd.Index([], name="label"), dtype=float)
    assert base_values(source.results, start).empty


# -- the other pictures


def test_the_plane_has_a_path_a_method_and_one_star_a_base_model(source):
    shown = plane(source)
    results = source.results
    assert [path.label for path in shown.paths] == ["sft", "sdft", "grpo"]
    assert [path.from_base for path in shown.paths] == [True, False, False]
    assert "wikitext" not in shown.tasks
    path = shown.paths[0]
    assert path.stages.shape == (4, 2)
    assert path.stages[-1] == pytest.approx([path.retention.value, path.accuracy.value])
    assert path.seeds[:, 1] == pytest.approx(results.R["sft"][:, -1].mean(-1))
    assert np.isfinite([path.accuracy.low, path.accuracy.high]).all()


def test_the_mean_change_of_retention_begins_at_0_without_a_spread(source):
    line = mean_change_table(source.results, source.axis, "sft")
    assert line["x"].tolist() == [0, 1, 2, 3]
    assert line.iloc[0, 1:].tolist() == [0, 0, 0]
    mean = source.results.retention_mean(source.results.D["sft"])
    assert line["value"].iloc[-1] == pytest.approx((mean[:, -1] - mean[:, 0]).mean())


def test_retention_says_which_tasks_the_mean_is_without(source):
    shown = retention_curves(source)
    assert [panel.task for panel in shown.panels] == list(source.results.retention)
    assert shown.outside == ["wikitext"]
    assert "so without wikitext. ↓: lower is better." in caption(shown)
    by_task = {panel.task: panel for panel in shown.panels}
    assert (by_task["wikitext"].scale, by_task["wikitext"].metric) == (1, "bits_per_byte (↓)")
    assert (by_task["hellaswag"].scale, by_task["hellaswag"].chance) == (100, 0.25)


def test_a_matrix_is_the_mean_over_the_seeds_that_have_a_number():
    R = np.array([[[0.2, np.nan]], [[0.4, np.nan]], [[np.nan, np.nan]]])
    mean = mean_over_seeds(R)
    assert mean[0, 0] == pytest.approx(30)
    assert np.isnan(mean[0, 1])


def test_all_matrices_have_one_scale_up_to_the_best_of_any_run(tmp_path):
    folder = fabricate(tmp_path / "two", methods=TWO, seeds=(0, 1), items=False, n=20, inside=0)
    best = {"seed": 1, "stage": 3, "name": "tooluse", "metric": "exact", "method": "sft"}
    change_records(folder, lambda r: {"value": 0.95} if r | best == r else {})
    shown = accuracy_matrices(source_of(ReportData([folder])))
    assert shown.highest == pytest.approx(95)
    assert max(matrix.values.max() for matrix in shown.matrices) < 94


def test_only_the_first_methods_have_a_matrix(tmp_path):
    methods = {f"method_{number:02}": METHODS["sft"] for number in range(14)}
    folder = fabricate(tmp_path / "many", methods=methods, items=False, n=8, inside=0, retention={})
    shown = accuracy_matrices(source_of(ReportData([folder])))
    assert len(shown.matrices) == 12
    matrix = next(picture for picture in PICTURES if picture.name == "accuracy_matrix")
    assert matrix.caption(shown).endswith("The first 12 of 14 methods are drawn.")


def test_diagnostics_are_the_means_over_seeds_of_what_is_logged(source):
    shown = diagnostics(source)
    table = source.results.training()
    assert shown.quantities[0] == "loss"
    step = table["step"].max()
    mean = table.loc[(table["label"] == "sdft") & (table["step"] == step), "loss"].mean()
    assert shown.line("sdft", "loss").loc[step] == pytest.approx(mean)
    assert shown.last_step == step


# -- all of them


def test_every_picture_says_where_it_belongs_and_no_paper(source, tmp_path):
    files = draw_pictures(source, tmp_path)
    assert [file.name for file in files] == [picture.name for picture in PICTURES]
    for file in files:
        assert file.section
        assert "arXiv" not in file.caption
        for name in (f"{file.name}.png", f"{file.name}.svg", f"dark/{file.name}.svg"):
            assert (tmp_path / name).stat().st_size > 5000


# -- looks


def test_a_band_ends_where_it_is_not_known():
    axes = Figure().subplots()
    y, low, high = [0.0, 0.98, 0.5], [0.0, 0.9, np.nan], [0.07, 1.0, np.nan]
    style.curve(axes, style.Look("red", "o", "-"), [0, 1, 2], y, low, high)
    band = axes.collections[0].get_paths()[0].vertices
    assert {(x, round(y, 6)) for x, y in band} == {(0, 0), (0, 7), (1, 90), (1, 100)}


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


def test_a_label_has_the_same_colour_in_every_report():
    few = style.looks(["sdft", "ewc"])
    many = style.looks(["replay", "sft", "ewc", "grpo", "sdft", *"abcdefgh"])
    assert few["sdft"] == many["sdft"] == ("#0072B2", "s", "-")
    assert many["sft"].colour == "#D55E00"
    assert many["grpo"].colour == "#009E73"
    assert len(set(many.values())) == len(many)


def test_names_are_shortened_in_the_middle():
    assert style.shorten("embedded", 8) == "embedded"
    assert style.shorten("sdft_learning_rate_1", 9) == "sdft…te_1"
