"""A grid: its points, the choice by validation records alone, and what the report makes of it."""

import json
import random

import numpy as np
import pytest
import yaml

from harness.base import metrics
from harness.base.errors import UserError
from harness.base.files import read_json
from harness.report.build import write_report
from harness.report.data import ReportData
from harness.results.selection import grid_selection
from harness.results.writer import ResultsWriter
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from tests.conftest import read_lines, write_rows

GRID = {"sft": {"learning_rate": ["1e-2", 1e-5], "epochs": [0.5]}}
POINTS = ["sft.learning_rate-0.01.epochs-0.5", "sft.learning_rate-1e-05.epochs-0.5"]


def test_an_option_that_no_point_uses_is_refused(order_file):
    methods = {"grpo": {"inner_epochs": 2}}
    both = {"clip": ["ppo", "cispo"], "clip_low": [0.1, 0.3]}
    assert len(read_order(order_file(methods=methods, grid={"grpo": both})).methods) == 4
    idle = {"clip": ["cispo"], "clip_low": [0.1, 0.3]}
    with pytest.raises(UserError, match="clip_low does something with clip: ppo alone"):
        read_order(order_file(methods=methods, grid={"grpo": idle}))


def test_points_are_methods_with_values_of_their_own(order_file):
    order = read_order(
        order_file(grid={"sft": {"learning_rate": ["1e-2", 1e-5], "batch_size": [2, 3, 4]}})
    )
    assert list(order.methods)[:2] == ["sdft", "grpo"] and len(order.methods) == 2 + 6
    spec = order.methods["sft.learning_rate-1e-05.batch_size-3"]
    assert (spec.method, spec.config.learning_rate, spec.config.batch_size) == ("sft", 1e-5, 3)
    assert spec.grid_of == "sft" and spec.values == {"learning_rate": 1e-5, "batch_size": 3}
    assert order.batch_size(spec.config) == 3
    order = read_order(
        order_file(
            grid={
                "sft": {
                    "learning_rate": [5e-6, 1e-5, 5e-5],
                    "batch_size": [16, 32],
                    "epochs": [1, 2],
                }
            }
        )
    )
    # as docs/reference/order.md says
    assert "sft.learning_rate-1e-05.batch_size-16.epochs-1" in order.methods
    assert [
        s.label for s in read_order(order_file(grid=GRID), methods=["sft"]).methods.values()
    ] == POINTS
    assert list(read_order(order_file(grid=GRID), methods=[POINTS[1], "grpo"]).methods) == [
        "grpo",
        POINTS[1],
    ]
    assert (
        list(read_order(order_file(grid=GRID), ["grid.sft.learning_rate=[0.5]"]).methods)[-1]
        == "sft.learning_rate-0.5.epochs-0.5"
    )


def test_a_grid_keeps_what_the_method_has(order_file):
    order = read_order(
        order_file(
            methods={"a": {"method": "sdft", "ema_alpha": 0.2}},
            grid={"a": {"teacher": ["ema", "frozen"]}},
        )
    )
    assert list(order.methods) == ["a.teacher-ema", "a.teacher-frozen"]
    assert all(s.method == "sdft" and s.config.ema_alpha == 0.2 for s in order.methods.values())


def test_epochs_of_a_method_replace_the_budget(order_file):
    order = read_order(
        order_file(
            methods={"sft": {"epochs": 2}, "sdft": {}}, budget={"prompts": 5, "batch_size": 4}
        )
    )
    assert [order.prompts(order.skills[0], spec.config) for spec in order.methods.values()] == [
        24,
        5,
    ]


@pytest.mark.parametrize(
    "changes, problem",
    [
        (
            {"grid": {"sdtf": {"ema_alpha": [0.1]}}},
            "grid.sdtf: there is no method 'sdtf'; did you mean 'sdft'?",
        ),
        (
            {"grid": {"sdft": {"ema_alhpa": [0.1]}}},
            "grid.sdft: ema_alhpa: unknown key; did you mean 'ema_alpha'?",
        ),
        ({"grid": {"sdft": {"method": ["sft"]}}}, "grid.sdft: method: unknown key"),
        (
            {"grid": {"sdft": {"ema_alpha": 0.1}}},
            "grid.sdft: ema_alpha: must be a list of values; as [1e-5, 5e-5]",
        ),
        ({"grid": {"sdft": {"ema_alpha": []}}}, "grid.sdft: ema_alpha: must be a list of values"),
        (
            {"grid": {"sdft": {"ema_alpha": [0.1, 2]}}},
            "grid.sdft: ema_alpha: must be at most 1, not 2",
        ),
        (
            {"grid": {"sdft": {"ema_alpha": [0.1, "0.1"]}}},
            "grid.sdft: sdft.ema_alpha-0.1 stands twice; give different values",
        ),
        (
            {"grid": {"sdft": {}}},
            "grid.sdft: must be a mapping from hyperparameters to lists of values",
        ),
        ({"grid": ["sdft"]}, "grid: must be a mapping, not a list"),
        (
            {"grid": GRID, "evaluate": {"split": "validation"}},
            "grid: selects on the validation split, and evaluate.split is validation",
        ),
        (
            {"evaluate": {"pass_at_k": {"sample": 3}}},
            "evaluate.pass_at_k: sample: unknown key; did you mean 'samples'?",
        ),
        (
            {"evaluate": {"pass_at_k": {"top_p": 0}}},
            "evaluate.pass_at_k: top_p: must be above 0, not 0",
        ),
        ({"evaluate": {"kl": 3}}, "evaluate: kl: must be a mapping, not 3"),
        ({"evaluate": {"kl": {"prompts": 0}}}, "evaluate.kl: prompts: must be at least 1, not 0"),
        ({"evaluate": {"teacher": 1}}, "evaluate: teacher: must be true or false, not 1"),
        (
            {"rollout": {"max_prompt_tokens": 0}},
            "rollout: max_prompt_tokens: must be at least 1, not 0",
        ),
    ],
)
def test_refused(changes, problem, order_file):
    path = order_file(**changes)
    with pytest.raises(UserError) as caught:
        read_order(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: {problem}") and "\n" not in line, line


def test_a_grid_wants_validation_data(order_file):
    files = {
        "name": "vowels",
        "train": "vowels-train.jsonl",
        "test": "vowels-test.jsonl",
        "grader": "contains",
    }
    read_order(order_file(skills=[files]))
    with pytest.raises(UserError, match=r"skills\[0\]: validation: is missing"):
        read_order(order_file(skills=[files], grid=GRID))


# ---- the choice ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny):
    """(order, results folder) of a grid of two points with two seeds on two skills.

    The tiny model has some success in them.
    """
    folder = tmp_path_factory.mktemp("grid")
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    for skill in ("vowels", "digits"):
        for split, count in (("train", 12), ("validation", 9), ("test", 6)):
            write_rows(
                folder / f"{skill}-{split}.jsonl",
                [
                    {
                        "prompt": f"{skill} {split} {i}?",
                        "demonstration": f"{skill[0]}{i}",
                        "reference": letters,
                    }
                    for i in range(count)
                ],
            )
    (folder / "grid.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"name": str(tiny), "dtype": "float32", "device": "cpu"},
                "skills": [
                    {
                        "name": s,
                        **{
                            split: f"{s}-{split}.jsonl" for split in ("train", "validation", "test")
                        },
                        "grader": "contains",
                        "max_new_tokens": 10,
                    }
                    for s in ("vowels", "digits")
                ],
                "methods": {"sft": {}, "sdft": {"learning_rate": 1e-3}},
                "grid": GRID,
                "seeds": [0, 1],
                "budget": {"prompts": 12, "batch_size": 4},
                "evaluate": {"every_steps": 1},
            },
            sort_keys=False,
        )
    )
    order = read_order(folder / "grid.yaml")
    run_order(order, folder / "out")
    return order, folder / "out"


def naive(about, records, points):
    """The rule, spelled out."""
    worth = {}
    for label in points:
        values = [
            r["value"]
            for r in records
            if r["method"] == label
            and r["final"]
            and r["split"] == "validation"
            and r["metric"] == "contains"
            and r["name"] == r["skill"]
        ]
        assert len(values) == 2 * len(about["seeds"])
        worth[label] = sum(values) / len(values)
    return worth


def test_the_choice_is_on_record(searched):
    _, out = searched
    about, records = read_json(out / "results.json"), read_lines(out / "records.jsonl")
    chosen = read_json(out / "selection.json")
    assert chosen == grid_selection(about, records) and list(chosen) == ["sft"]
    assert [p["label"] for p in chosen["sft"]["points"]] == POINTS
    worth = naive(about, records, POINTS)
    for point in chosen["sft"]["points"]:
        assert point["validation"] == pytest.approx(worth[point["label"]]) and set(
            point["runs"]
        ) == {"0", "1"}
        assert point["values"]["learning_rate"] in (1e-2, 1e-5)
    assert chosen["sft"]["selected"] == max(worth, key=worth.get)
    assert len(set(worth.values())) == 2


def test_test_data_never_select(searched):
    """Permuted, inverted or absent test scores change nothing, nor do points inside a stage.

    Validation scores do.
    """
    _, out = searched
    about, records = read_json(out / "results.json"), read_lines(out / "records.jsonl")
    chosen = grid_selection(about, records)
    generator = random.Random(0)
    counts = [
        r
        for r in records
        if r["split"] == "validation"
        and r["final"]
        and r["name"] == r["skill"]
        and r["metric"] == "contains"
    ]
    others = [r for r in records if r not in counts]
    assert any(r["split"] == "test" for r in others) and any(
        r["split"] == "validation" and not r["final"] for r in others
    )
    for _ in range(20):
        values = [r["value"] for r in others]
        generator.shuffle(values)
        changed = [{**r, "value": v} for r, v in zip(others, values, strict=True)] + counts
        generator.shuffle(changed)
        assert grid_selection(about, changed) == chosen
    best = chosen["sft"]["selected"]
    for shift in (-10, 10):  # a test result that would settle the matter
        assert (
            grid_selection(
                about,
                [{**r, "value": r["value"] + shift * (r["method"] == best)} for r in others]
                + counts,
            )
            == chosen
        )
    assert grid_selection(about, counts) == chosen
    turned = grid_selection(about, others + [{**r, "value": 1 - r["value"]} for r in counts])
    assert turned["sft"]["selected"] not in (best, None)


def test_a_start_of_one_point_knows_the_others(searched, tmp_path):
    """With --method the grid still selects among all of its points, in its own order."""
    order, _ = searched
    for label in reversed(POINTS):
        alone = read_order(order.path, methods=[label])
        assert list(alone.methods) == [label] and list(alone.about()["methods"]) == POINTS
    ResultsWriter(tmp_path / "out").open(alone.about())
    (chosen,) = grid_selection(read_json(tmp_path / "out/results.json"), []).values()
    assert [p["label"] for p in chosen["points"]] == POINTS and chosen["selected"] is None


def test_nothing_is_selected_before_all_points_have_run(searched):
    _, out = searched
    about, records = read_json(out / "results.json"), read_lines(out / "records.jsonl")
    for run in [f"{label}-seed{seed}" for label in POINTS for seed in (0, 1)]:
        for others in (
            [r for r in records if r["run"] != run],
            [r for r in records if r["run"] != run or r["stage"] < 2],
        ):
            choice = grid_selection(about, others)["sft"]
            assert choice["selected"] is None
            assert [p["validation"] is None for p in choice["points"]].count(True) == 1
    assert grid_selection({**about, "seeds": [0, 1, 2]}, records)["sft"]["selected"] is None


def test_the_report_shows_the_selected_point_alone(searched):
    _, out = searched
    results = ReportData([out])
    chosen = read_json(out / "selection.json")["sft"]["selected"]
    assert sorted(results.series) == ["sdft", "sft"] and results.series["sft"].members == [
        (0, chosen)
    ]
    mine = [
        r
        for r in read_lines(out / "records.jsonl")
        if r["method"] == chosen
        and r["split"] == "test"
        and r["final"]
        and r["metric"] == "contains"
        and r["stage"] == 2
    ]
    finals = [np.mean([r["value"] for r in mine if r["seed"] == seed]) for seed in (0, 1)]
    assert results.R["sft"].shape == (2, 3, 2) and results.R["sft"][:, 2].mean(1) == pytest.approx(
        finals
    )
    estimate = results.estimate("sft", metrics.average_accuracy)
    assert estimate.value == pytest.approx(np.mean(finals))
    assert 0 <= estimate.low < estimate.value < estimate.high <= 1
    text, page = write_report([out])
    assert "sft" in text and POINTS[0] not in text and POINTS[1] not in text
    assert "selected among 2 by the highest mean own-stage validation accuracy" in page.read_text()


def test_the_report_says_that_nothing_is_selected_yet(searched, tmp_path):
    _, out = searched
    for name in ("results.json", "records.jsonl", "protocols.json"):
        (tmp_path / name).write_text((out / name).read_text())
    results = ReportData([tmp_path])
    assert sorted(results.series) == ["sdft"]
    assert sum("nothing is selected from the grid of sft" in line for line in results.missing) == 1
    about = read_json(out / "results.json")
    (tmp_path / "results.json").write_text(
        json.dumps({**about, "methods": {p: about["methods"][p] for p in POINTS}})
    )
    text, _ = write_report([tmp_path])  # with nothing to show but that
    assert "nothing is selected" in text


def test_a_finished_grid_goes_on_where_it_stopped(searched, monkeypatch, capsys):
    order, out = searched
    before = (out / "records.jsonl").read_text(), (out / "selection.json").read_text()
    monkeypatch.setattr(
        "harness.runs.sequence.load_order_model", lambda *a: pytest.fail("nothing is left to do")
    )
    run_order(order, out)
    assert ((out / "records.jsonl").read_text(), (out / "selection.json").read_text()) == before
    assert "is selected among 2, validation 0." in capsys.readouterr().err


def test_plan_counts_the_points(order_file, tmp_path):
    text = plan(
        read_order(order_file(methods={"sft": {}}, grid=GRID, seeds=[0, 1])), tmp_path / "out"
    )
    assert "4 runs (2 methods x 2 seeds)" in text and "grid of sft: 2 points" in text
    row = next(line.split() for line in text.splitlines() if line.startswith(POINTS[0]))
    assert row[1:5] == ["vowels", "6", "4", "2"]  # half an epoch of 12 examples


def test_a_judge_selects_where_there_is_one():
    """Judged accuracies count once there are any; while a point has none, nothing is selected."""

    def record(label, metric, value):
        return {
            "method": label,
            "seed": 0,
            "final": True,
            "kind": "skill",
            "split": "validation",
            "name": "s",
            "skill": "s",
            "metric": metric,
            "value": value,
        }

    about = {
        "skills": [
            {
                "name": "s",
                "metric": "token_f1",
                "judge": {"rubric": "medical", "metrics": ["judged_accuracy"]},
            }
        ],
        "seeds": [0],
        "methods": {
            p: {"grid": {"of": "sft", "values": {"learning_rate": float(p)}}} for p in ("1", "2")
        },
    }
    graded = [record("1", "token_f1", 0.9), record("2", "token_f1", 0.2)]
    assert grid_selection(about, graded)["sft"]["selected"] == "1"
    judged = [record("1", "judged_accuracy", 0.3), record("2", "judged_accuracy", 0.8)]
    assert grid_selection(about, graded + judged[:1])["sft"]["selected"] is None
    assert grid_selection(about, graded + judged)["sft"]["selected"] == "2"
    # Eight of ten right would be 0.8, were seven of the ten not without a verdict: they count as
    # wrong.
    chosen = grid_selection(
        about, [*judged, record("1", "judge_errors", 0.0), record("2", "judge_errors", 0.7)]
    )["sft"]
    assert chosen["selected"] == "1" and chosen["points"][1]["validation"] == pytest.approx(0.24)
