"""From results folders to the measured side of an item."""

import json
import re

import numpy as np
import pytest

from benchmarks.paper.items import ITEMS
from benchmarks.paper.published import published_numbers
from benchmarks.paper.write import write_paper
from harness.base.files import read_json
from tests.benchmarks.paper.folders import T2, numbers, skill_folder, value


def test_a_task_of_two_orders_is_named_with_its_order(tmp_path):
    for name, budget in (("short", 10), ("long", 20)):
        skill_folder(
            tmp_path / name,
            {"sft": [0.5], "sdft": [budget / 100]},
            {"sft": [0.6], "sdft": [0.8]},
            prompts=budget,
        )
    frame = numbers(tmp_path, "table_5")
    assert set(frame["panel"]) == {"elements (short)", "elements (long)"}
    assert value(frame, panel="elements (short)", series="sdft", x="new_task")["value"] == 10


def test_a_task_of_one_order_in_two_folders_is_named_with_its_folder(tmp_path):
    for name, budget in (("a", 10), ("b", 20)):
        folder = skill_folder(
            tmp_path / name,
            {"sft": [0.5], "sdft": [budget / 100]},
            {"sft": [0.6], "sdft": [0.8]},
            prompts=budget,
        )
        head = read_json(folder / "results.json") | {"name": "table_5_elements"}
        (folder / "results.json").write_text(json.dumps(head))
    frame = numbers(tmp_path, "table_5")
    assert set(frame["panel"]) == {"elements (a)", "elements (b)"}
    assert value(frame, panel="elements (b)", series="sdft", x="new_task")["value"] == 20


def test_seeds_and_methods_of_one_setting_are_pooled(tmp_path):
    for seed, accuracy in enumerate((0.2, 0.4)):
        folder = skill_folder(
            tmp_path / f"seed{seed}", {"sft": [accuracy]}, {"sft": [0.6]}, (seed,)
        )
    head = read_json(folder / "results.json")
    # A later version writes these keys.
    head["skills"][0]["evaluated"] = {"test": "0123"}
    head["retention"][0]["limit"] = None
    (folder / "results.json").write_text(json.dumps(head))
    row = value(numbers(tmp_path, "table_5"), series="sft", x="new_task")
    assert row["value"] == pytest.approx(30)
    assert row["note"].startswith("2 seeds")


def test_figure_5_left_pairs_the_seeds_and_joins_the_models(tmp_path):
    skill_folder(
        tmp_path / "small",
        {"sft": [0.5, 0.3, 0.4], "sdft": [0.4, 0.3, 0.2]},
        {"sft": [0.8] * 3, "sdft": [0.8] * 3},
        (0, 1, 2),
        ["table_5", "figure_5_left"],
    )
    skill_folder(
        tmp_path / "other",
        {"sft": [0.2], "sdft": [0.5]},
        {"sft": [0.8], "sdft": [0.8]},
        experiment="figure_5_left",
        model="x/gemma",
    )
    frame = numbers(tmp_path, "figure_5_left")
    row = value(frame, x="SmolLM2-135M-Instruct")  # differences -10, 0, -20
    assert (row["value"], row["high"]) == pytest.approx((-10, -10 + T2 * 10 / 3**0.5))
    row = value(frame, x="gemma")
    assert row["value"] == pytest.approx(30)
    assert np.isnan(row["low"])
    assert "no interval: scores" in row["note"]
    printed = published_numbers()
    printed = printed[printed["experiment"] == "figure_5_left"]
    gemma, smollm = ITEMS["figure_5_left"].signs(printed, frame)
    assert "sign of its smallest model" in smollm.sentence
    assert "sign of its larger models" in gemma.sentence


def test_figure_5_left_goes_from_the_small_model_to_the_large_one(tmp_path):
    for name, model in (
        ("a", "Qwen/Qwen2.5-14B-Instruct"),
        ("b", "Qwen/Qwen2.5-3B-Instruct"),
        ("c", "embedded"),
        ("d", "Qwen2.5-7B"),
    ):
        skill_folder(
            tmp_path / name,
            {"sft": [0.5], "sdft": [0.4]},
            {"sft": [0.8], "sdft": [0.8]},
            experiment="figure_5_left",
            model=model,
        )
    sizes = [re.search(r"\d+[BM]", model)[0] for model in numbers(tmp_path, "figure_5_left")["x"]]
    assert sizes == ["135M", "3B", "7B", "14B"]


def test_an_answer_that_no_judge_has_seen_is_another_metric(tmp_path):
    """Panels and captions name the metric, and no sign is compared with the paper's."""
    judge = {"rubric": "medical", "metrics": ["judged_accuracy"]}
    skill_folder(
        tmp_path / "r",
        {"sft": [0.5], "sdft": [0.4]},
        {"sft": [0.6], "sdft": [0.8]},
        skill="medical",
        judge=judge,
    )
    _, index = write_paper([tmp_path / "r"])
    html = index.read_text()
    assert set(numbers(tmp_path / "r", "table_5")["panel"]) == {"medical (accuracy, not judged)"}
    assert "sdft − sft on new task" not in html
    assert html.count("medical: accuracy, not judged") >= 2
    table = (index.parent / "tables" / "measured_table_5.md").read_text()
    assert "medical: accuracy, not judged" in table
