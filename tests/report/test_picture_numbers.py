"""What each picture shows of a folder whose numbers are known, and what its caption says."""

import json
from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text

from harness.report import style
from harness.report.data import ReportData
from harness.report.pictures import PICTURES, draw_pictures, source_of
from harness.report.pictures.accuracy_matrix import accuracy_matrices, mean_over_seeds
from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.curves import (
    COLUMNS,
    accuracy_curves,
    caption_normalised,
    normalised_curves,
    normalised_curves_table,
)
from harness.report.pictures.picture import Source
from harness.report.pictures.plane import plane
from harness.report.pictures.retention import caption, mean_change_table, retention_curves
from harness.report.pictures.training import TRAINING, diagnostics
from harness.report.tables import retention_change
from harness.report.training_table import training_table
from tests.fabricate import METHODS, SKILLS, fabricate

TWO = {label: METHODS[label] for label in ("sft", "sdft")}
NEAR = [(0, 0), (0.02, 0.01), (0.03, 0.0), (0.5, 0.5), (0.5, 0.52), (1, 1), (0.99, 1), (0.51, 0.5)]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    """Two seeds of three methods, one of which takes more steps."""
    folder = tmp_path_factory.mktemp("results") / "two"
    fabricate(folder, seeds=(0, 1), steps={"sdft": 18}, n=20, items=False)
    return source_of(ReportData([folder]))


# -- axis and curves


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


# -- the other pictures


def test_the_plane_has_a_path_a_method_and_one_star_a_base_model(source):
    shown = plane(source)
    results = source.results
    assert [path.label for path in shown.paths] == ["sft", "sdft", "grpo"]
    assert [path.from_base for path in shown.paths] == [True, False, False]
    assert "wikitext" not in shown.tasks
    path = shown.paths[0]
    assert path.stages.shape == (4, 2)
    assert path.stages[-1, 1] == pytest.approx(path.accuracy.value)
    assert path.stages[-1, 0] - path.stages[0, 0] == pytest.approx(path.change.value)
    table = results.estimate("sft", retention_change(results), "D", difference=True)
    assert (path.change.low, path.change.high) == (table.low, table.high)
    assert path.seeds[:, 1] == pytest.approx(results.R["sft"][:, -1].mean(-1))
    assert np.isfinite([path.accuracy.low, path.accuracy.high]).all()


def test_a_method_that_has_learned_nothing_yet_is_not_in_the_plane(tmp_path):
    folder = fabricate(tmp_path / "begun", methods=TWO, n=10)
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    first = next(iter(TWO))
    begun = [r for line in lines if (r := json.loads(line))["method"] == first or not r["stage"]]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in begun))
    assert [path.label for path in plane(source_of(ReportData([folder]))).paths] == [first]


def test_the_mean_change_of_retention_begins_at_0_without_a_spread(source):
    line = mean_change_table(source.results, source.axis, "sft")
    assert line["x"].tolist() == [0, 1, 2, 3]
    assert line.loc[0, ["value", "low", "high"]].tolist() == [0, 0, 0]
    assert line["seeds"].tolist() == [2] * 4
    mean = source.results.retention_mean(source.results.D["sft"])
    assert line["value"].iloc[-1] == pytest.approx((mean[:, -1] - mean[:, 0]).mean())


def test_retention_says_which_tasks_the_mean_is_without(source):
    shown = retention_curves(source)
    assert [panel.task for panel in shown.panels] == list(source.results.retention)
    assert shown.outside == ["wikitext"]
    assert "so without wikitext. ↓: lower is better." in caption(shown)
    by_task = {panel.task: panel for panel in shown.panels}
    assert (by_task["wikitext"].scale, by_task["wikitext"].metric) == (1, "bits per byte (↓)")
    assert (by_task["hellaswag"].scale, by_task["hellaswag"].chance) == (100, 0.25)


def test_a_matrix_is_the_mean_over_the_seeds_that_have_a_number():
    R = np.array([[[0.2, np.nan]], [[0.4, np.nan]], [[np.nan, np.nan]]])
    mean = mean_over_seeds(R)
    assert mean[0, 0] == pytest.approx(30)
    assert np.isnan(mean[0, 1])


def test_all_matrices_have_one_scale_up_to_the_best_of_any_run(tmp_path):
    folder = fabricate(tmp_path / "two", methods=TWO, seeds=(0, 1), items=False, n=20, inside=0)
    results = ReportData([folder])
    results.R["sft"][1, -1, 0] = 0.95  # of the second seed alone
    shown = accuracy_matrices(source_of(results))
    assert shown.highest == pytest.approx(95)
    assert max(matrix.values.max() for matrix in shown.matrices) < 94


def test_of_many_methods_those_with_a_colour_have_a_matrix(tmp_path):
    """The best by accuracy, and SFT wherever it stands."""
    methods = {f"method_{number:02}": METHODS["sft"] for number in range(14)} | TWO
    folder = fabricate(tmp_path / "many", methods=methods, items=False, n=8, inside=0, retention={})
    results = ReportData([folder])
    source = source_of(results)
    shown = accuracy_matrices(source)
    drawn = [matrix.label for matrix in shown.matrices]
    assert set(drawn) == {label for label, look in source.looks.items() if look != style.FURTHER}
    assert len(drawn) == 10 and {"sft", "sdft"} <= set(drawn)
    best = max(results.series, key=lambda label: results.R[label][:, -1].mean())
    assert best in drawn
    matrix = next(picture for picture in PICTURES if picture.name == "accuracy_matrix")
    assert " The 10 of 16 methods are drawn that have a colour" in matrix.caption(shown)


def test_diagnostics_are_the_means_over_seeds_of_what_is_logged(source):
    shown = diagnostics(source)
    table = source.results.training
    assert shown.quantities[0] == "loss"
    step = table["step"].max()
    mean = table.loc[(table["label"] == "sdft") & (table["step"] == step), "loss"].mean()
    assert shown.line("sdft", "loss").loc[step] == pytest.approx(mean)
    assert shown.last_step == step


def test_of_many_quantities_all_are_in_the_table_and_the_caption_tells(tmp_path):
    """Gradient and learning rate keep their panels, whatever else a method logs."""
    folder = fabricate(tmp_path / "many", methods=TWO, seeds=(0, 1), n=10, items=False)
    for path in folder.glob("runs/sft-*/stage-*/training.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for k, row in enumerate(rows):
            row |= {f"quantity_{i:02}": i + k for i in range(20)} | {"yield": 0.25 * (k % 2)}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = ReportData([folder])
    shown = diagnostics(source_of(results))
    assert len(shown.quantities) == 12 < shown.logged
    assert shown.quantities[-2:] == ["grad_norm", "learning_rate"]
    assert TRAINING.caption(shown).endswith(f"The first 12 of {shown.logged} quantities are drawn.")
    cells = dict(training_table(results).rows)
    assert len({*cells["sft"], *cells["sdft"]}) == shown.logged - 1  # but the learning rate
    assert "yield" not in cells["sdft"]
    mine = results.training[results.training["label"] == "sft"]
    assert cells["sft"]["yield"] == pytest.approx(mine.groupby("seed")["yield"].mean().mean())
    assert 0.1 < cells["sft"]["yield"] < 0.15


# -- all of them


def test_every_picture_says_where_it_belongs_and_no_paper(source, tmp_path):
    files = draw_pictures(source, tmp_path)
    # The folder is of version 1, which had no drift; tests/evaluation/test_drift.py draws it. Its
    # methods have one setting each; test_frontier.py draws several. test_many_methods.py has many.
    names = [
        p.name
        for p in PICTURES
        if p.name not in ("drift", "ranking", "frontier", "frontier_likelihoods")
    ]
    assert [file.name for file in files] == names
    for file in files:
        assert file.section
        assert "arXiv" not in file.caption
        for name in (f"{file.name}.png", f"{file.name}.svg", f"dark/{file.name}.svg"):
            assert (tmp_path / name).stat().st_size > 5000


# -- looks


def test_names_are_shortened_in_the_middle():
    assert style.shorten("embedded", 8) == "embedded"
    assert style.shorten("sdft_learning_rate_1", 9) == "sdft…te_1"


def test_names_of_points_cover_neither_each_other_nor_points():
    figure, axes = style.single()
    points = [(f"method_{k}", x, y, k % 2 == 0) for k, (x, y) in enumerate(NEAR)]
    axes.plot([x for _, x, _, _ in points], [y for _, _, y, _ in points], "o")
    style.name_points(axes, points)
    figure.draw_without_rendering()
    names = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
    assert list(names) == [name for name, *_ in points]
    for one, other in combinations(names.values(), 2):
        assert not one.padded(-1).overlaps(other.padded(-1))
    for _, x, y, _ in points:
        spot = axes.transData.transform((x, y))
        assert not any(box.padded(-1).contains(*spot) for box in names.values())
    inside = axes.get_window_extent().padded(2)
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in names.values())
