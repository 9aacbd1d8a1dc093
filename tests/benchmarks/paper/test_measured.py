"""What each figure and table shows of made-up results, against numbers computed by hand."""

import numpy as np
import pytest

from benchmarks.paper.collect import collect
from tests.benchmarks.paper.folders import (
    BOTH,
    T2,
    context_folder,
    further_folder,
    generations_folder,
    numbers,
    sequence_folder,
    value,
    write_results,
)


def test_figure_3_is_normalised_by_the_best_mean_over_the_methods_with_bands_over_seeds(tmp_path):
    frame = numbers(sequence_folder(tmp_path / "seq"), "figure_3")
    assert value(frame, panel="a", series="sft", x=0.0)["value"] == 0
    assert value(frame, panel="a", series="sdft", x=10.0)["value"] == pytest.approx(1)
    # The mean 0.4 is 0.4 of the way from 0.2 to 0.7. An accuracy of 0, where bounds end, is -0.4.
    row = value(frame, panel="a", series="sft", x=20.0)
    over_seeds = T2 * np.std([0.3, 0.3, 0.6], ddof=1) / 3**0.5 / 0.5
    assert row["value"] == pytest.approx(0.4)
    # Of an accuracy: cut to what it can be, and a little wider, for the questions.
    assert -0.4 < row["low"] < 0.4 < row["high"]
    assert (row["high"] - row["low"]) / 2 == pytest.approx(over_seeds, rel=0.3)
    assert "3" in row["note"]
    assert value(frame, panel="b", series="sft", x=20.0)["value"] == pytest.approx(1)


def test_figure_3_has_no_numbers_before_a_stage_is_over(tmp_path):
    write_results(tmp_path / "r", "figure_3", ["a", "b"], BOTH, {})
    assert "figure_3" not in collect([tmp_path / "r"]).sides


def test_table_5_and_figure_4_join_the_orders_of_one_task_each(drawn):
    folder = drawn[1].parent.parent
    frame = numbers(folder, "table_5")
    # The mean is of facts and grammar; code has no accuracy.
    row = value(frame, panel="elements", series="sft", x="prior_avg")
    half = 1.96 * 0.02 * 2**0.5 / 2 * 100
    assert (row["value"], row["low"]) == pytest.approx((60, 60 - half))
    assert "facts, grammar" in row["note"]
    row = value(frame, panel="tools", series="sft", x="new_task")
    assert row["value"] == pytest.approx(40)
    assert row["high"] > 40 + 100 * T2 * 0.1 / 3**0.5 * 0.95  # seeds and questions
    assert value(frame, panel="tools", series="base", x="facts")["value"] == pytest.approx(80)
    assert value(frame, panel="elements", series="sdft", x="code")["unit"] == "bits_per_byte"


def test_pass_at_k_and_the_teacher(tmp_path):
    folder = further_folder(tmp_path / "r")
    frame = numbers(folder, "figure_5_right")
    assert frame[frame["series"] == "sft"]["x"].tolist() == [1, 2, 16]
    assert value(frame, series="base", x=16)["value"] == pytest.approx(30)
    assert value(frame, series="sdft", x=2)["value"] == pytest.approx(40)
    frame = numbers(folder, "figure_2_right")
    # The base on the split that the teacher is measured on.
    assert value(frame, series="base", x="accuracy")["value"] == pytest.approx(20)
    assert value(frame, series="teacher", x="accuracy")["value"] == pytest.approx(90)
    assert value(frame, series="teacher", x="kl_forward_token")["value"] == pytest.approx(0.4)
    assert value(frame, series="sft", x="kl_forward_token")["value"] == pytest.approx(1.2)


def test_figure_6_counts_answers_to_learn_from(tmp_path):
    frame = numbers(generations_folder(tmp_path / "r"), "figure_6")
    points = {
        series: list(zip(rows["x"], rows["value"].round(6), strict=True))
        for series, rows in frame.groupby("series")
    }
    assert points == {
        "sdft": [(0, 10), (160, 30), (320, 50)],
        "offline_distillation": [(40, 20), (160, 40)],
        "sft_from_teacher": [(80, 15), (160, 60)],
        "grpo": [(0, 10), (640, 30), (1280, 70)],
    }  # without sft, which samples nothing


def test_figures_7_and_8_and_the_tables_of_knowledge_and_length(tmp_path):
    folder = context_folder(tmp_path / "r")
    frame = numbers(folder, "figure_7")
    assert frame.set_index("x")["value"].round(6).to_dict() == {
        "answer only": 30,
        "text only": 60,
        "text and answer": 80,
    }
    frame = numbers(folder, "figure_8")
    points = frame[frame["series"] == "sdft_both"][["x", "value"]].round(6).values.tolist()
    assert points == [[0, 0], [5, 20], [10, 80]]
    frame = numbers(folder, "table_1")
    assert value(frame, series="sdft_both", x="ood")["value"] == pytest.approx(70)
    assert value(frame, series="base", x="lenient")["value"] == pytest.approx(10)
    oracle = frame[frame["series"] == "oracle_rag"].set_index("x")
    assert oracle["value"].round(6).to_dict() == {"lenient": 100, "ood": 70}
    assert "oracle_lenient" in oracle.loc["lenient", "note"]
    frame = numbers(folder, "table_2")
    assert value(frame, series="sdft_source", x="response_tokens")["value"] == 20.5
