"""Several sequences of the same skills in one order: each a run, beside method and seed."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.models.load import load_model
from harness.results.agreement import continued
from harness.results.selection import grid_selection
from harness.runs.alpha_sweep import sweep
from harness.runs.latin_square import latin_square
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sections import Sections
from harness.runs.sequence import run_order
from harness.runs.stage_run import SkillStage
from tests.conftest import read_lines

BOTH = {"forward": ["vowels", "digits"], "backward": ["digits", "vowels"]}
SFT = {"method": "sft", "learning_rate": 1e-2}
# (run, stage, step) behind which the process is killed
CUT = [("slow@backward-seed0", 2, 1)]
METHODS = {
    "slow": {**SFT, "learning_rate": 1e-3, "with": {"matched_norm": {}}},
    "like": {**SFT, "with": {"matched_norm": {"like": "slow"}}},
}


def sections(orders, skills=("a", "b", "c"), methods=("sft",)):
    mapping = {
        "skills": list(skills),
        "methods": dict.fromkeys(methods),
        "budget": {"prompts": 8},
        "orders": orders,
    }
    return Sections(mapping, "my.yaml")


@pytest.mark.parametrize("count", range(2, 9))
def test_a_latin_square_has_each_skill_once_at_each_place(count):
    """Of an even number each also follows each other one once (Williams 1949), of an odd one each
    second pair twice.
    """
    square = latin_square(count)
    everything = list(range(1, count + 1))
    assert square[0] == tuple(everything)
    assert [sorted(row) for row in square] == [everything] * count
    assert [sorted(place) for place in zip(*square, strict=True)] == [everything] * count
    follows = Counter(pair for row in square for pair in pairwise(row))
    pairs = count * (count - 1)
    assert (len(follows), set(follows.values())) == (
        (pairs, {1}) if count % 2 == 0 else (pairs // 2, {2})
    )


def test_sequences_are_named_listed_or_a_latin_square():
    named = {"forward": ["a", "b", "c"], 2: ["c", "b", "a"]}
    assert sections(named).sequences == {"forward": (1, 2, 3), "2": (3, 2, 1)}
    assert sections([["b", "a", "c"], ["a", "b", "c"]]).sequences == {
        "1": (2, 1, 3),
        "2": (1, 2, 3),
    }
    assert sections("latin_square").sequences == {"1": (1, 2, 3), "2": (2, 3, 1), "3": (3, 1, 2)}
    assert sections(None).sequences == {"": (1, 2, 3)}
    assert sections(None, skills=["a"]).sequences == {"": (1,)}


ABC = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("orders", "said"),
    [
        ({"x": ABC, "y": ["c", "b"]}, "orders.y: 'a' is not in it; a sequence has every skill"),
        ({"x": ABC, "y": ["c", "b", "b"]}, "orders.y: 'b' stands twice"),
        ({"x": ABC, "y": ["c", "b", "A"]}, "orders.y: there is no skill 'A'; known: a, b, c"),
        ({"x": ABC, "y": [*ABC, "d"]}, "orders.y: there is no skill 'd'"),
        ({"x": ABC, "y": ABC}, "orders.y: is the same sequence as x; leave one out"),
        ([ABC, ABC], "orders[2]: is the same sequence as 1"),
        ({"x": ABC}, "orders: has one sequence; name two or more"),
        ({}, "orders: has no sequence"),
        ([], "orders: has no sequence"),
        ({"x": ABC, "X": ABC[::-1]}, "orders.X: 'X' and 'x' are one folder on some file systems"),
        ({"x": ABC, "a/b": ABC[::-1]}, "orders.a/b: 'a/b' is no name of a folder"),
        ({"x": ABC, "..": ABC[::-1]}, "orders...: '..' is no name of a folder"),
        ({"x": ABC, "": ABC[::-1]}, "orders.: '' is no name of a folder"),
        ({"x": ABC, "y" * 31: ABC[::-1]}, "is no name of a folder; use letters, digits, - and _"),
        ({"x": ABC, "y": "latin_square"}, "orders.y: must be a list of skills"),
        ({"x": ABC, "y": [["a"], "b", "c"]}, "orders.y: there is no skill"),
        ({"x": ABC, "y": None}, "orders.y: must be a list of skills, not None"),
        ("latin", "orders: 'latin' is no design; write latin_square"),
        (3, "orders: must be"),
    ],
)
def test_what_is_no_sequence_is_told_in_one_line(orders, said):
    with pytest.raises(UserError) as error:
        sections(orders)
    assert said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 260


@pytest.mark.parametrize("orders", ["latin_square", {"x": ["a"], "y": ["a"]}])
def test_one_skill_has_no_sequences(orders):
    with pytest.raises(UserError, match="there is one skill, which has one sequence; leave"):
        sections(orders, skills=["a"])


def names(order):
    return [run.name for run in order.runs()]


def test_runs_are_methods_seeds_and_sequences_and_references_are_none_of_a_sequence(order_file):
    file = order_file(
        methods={"sft": SFT}, seeds=[0, 1], orders=BOTH, references=["sft"], relearning=["sft"]
    )
    sequences = [f"sft@{name}-seed{seed}" for seed in (0, 1) for name in BOTH]
    # Each skill begins a sequence, so that each is learned alone there.
    joint = ["sft.joint-seed0", "sft.joint-seed1"]
    again = [
        f"sft.relearn-{k}@{name}-seed{seed}"
        for seed in (0, 1)
        for name, k in (("forward", 1), ("backward", 2))
    ]
    assert names(read_order(file)) == [*sequences, *joint, *again]
    of_one = read_order(file, seeds=[0], sequences=["backward"])
    assert names(of_one) == ["sft@backward-seed0", "sft.relearn-2@backward-seed0"]
    assert of_one.about()["orders"] == {"backward": ["digits", "vowels"]}
    assert names(read_order(file, seeds=[1], sequences=["forward"])) == [
        "sft@forward-seed1",
        "sft.joint-seed1",
        "sft.relearn-1@forward-seed1",
    ]
    for wanted, said in ((["back"], "did you mean 'backward'?"), (["FORWARD"], "known: backward")):
        with pytest.raises(UserError) as error:
            read_order(file, sequences=wanted)
        assert said in str(error.value)
    with pytest.raises(UserError, match="the order has one sequence, without a name"):
        read_order(order_file(), sequences=["forward"])


def test_a_skill_that_begins_no_sequence_has_a_single_run(order_file):
    skills = read_yaml(order_file())["skills"]
    skills.append({**skills[0], "name": "letters"})
    orders = [["vowels", "digits", "letters"], ["vowels", "letters", "digits"]]
    order = read_order(
        order_file(skills=skills, methods={"sft": SFT}, orders=orders, references=["sft"])
    )
    assert names(order) == [
        "sft@1-seed0",
        "sft@2-seed0",
        "sft.joint-seed0",
        "sft.single-2-seed0",
        "sft.single-3-seed0",
    ]
    of_second = [[s.name for s in order.evaluated(k, sequence="2")] for k in (1, 2, 3)]
    assert of_second[0] == ["vowels", "digits", "letters"]  # all, by default
    order.evaluate.skills = "seen"
    assert [s.name for s in order.evaluated(2, sequence="2")] == ["vowels", "letters"]
    assert [s.name for s in order.evaluated(2, sequence="1")] == ["vowels", "digits"]


def read_yaml(file):
    import yaml

    return yaml.safe_load(file.read_text())


def test_the_plan_has_a_line_for_each_stage_of_each_sequence(order_file, tmp_path):
    file = order_file(methods={"sft": SFT}, orders=BOTH, seeds=[0, 1], references=["sft"])
    text = plan(read_order(file), tmp_path / "out").splitlines()
    assert "6 runs (1 methods x 2 seeds x 2 sequences, 2 references of one stage)" in text[0]
    rows = [line.split()[:2] for line in text if line.startswith("sft")]
    assert rows == [
        ["sft@forward", "vowels"],
        ["sft@forward", "digits"],
        ["sft@backward", "digits"],
        ["sft@backward", "vowels"],
        ["sft", "joint"],
    ]
    said = [line for line in text if line.startswith("sequence ")]
    assert said[0].startswith("sequence forward: vowels, digits; 2 runs, about ")
    assert said[1].startswith("sequence backward: digits, vowels; 2 runs, about ")
    plain = plan(read_order(order_file(methods={"sft": SFT})), tmp_path / "plain")
    assert "sequence" not in plain and "@" not in plain


def without_times(records):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in records]


def test_a_killed_order_of_two_sequences_ends_in_the_same_numbers(
    order_file, tmp_path, monkeypatch
):
    """And: parts follow the run of their own sequence, references are made once, the base is
    shared, relearning and WiSE-FT go by sequence.
    """
    file = order_file(
        methods=METHODS,
        orders=BOTH,
        references=["slow"],
        relearning=["slow"],
        evaluate={},
        budget={"prompts": 4, "batch_size": 2},
        checkpoints={"minutes": 0},
    )
    run_order(read_order(file), tmp_path / "whole")
    records = read_lines(tmp_path / "whole/records.jsonl")
    by_run = {
        (row["run"], row["method"], row.get("sequence"), row.get("reference")) for row in records
    }
    assert by_run == {
        *((f"{m}@{name}-seed0", m, name, None) for m in METHODS for name in BOTH),
        ("slow.joint-seed0", "slow.joint", None, "joint"),
        ("slow.relearn-1@forward-seed0", "slow.relearn-1", "forward", "relearn"),
        ("slow.relearn-2@backward-seed0", "slow.relearn-2", "backward", "relearn"),
    }
    taught = {
        (row["sequence"], row["stage"], row["skill"])
        for row in records
        if row["method"] == "slow" and row["stage"]
    }
    assert taught == {
        (name, stage, skill) for name, of in BOTH.items() for stage, skill in enumerate(of, 1)
    }
    base = {row["evaluation"] for row in records if row["stage"] == 0 and "reference" not in row}
    assert len(base) == 4  # two skills, two splits: once for all runs
    about = read_json(tmp_path / "whole/results.json")
    assert about["orders"] == BOTH and [s["name"] for s in about["skills"]] == BOTH["forward"]
    runs = tmp_path / "whole/runs"
    assert read_json(runs / "slow@backward-seed0/run.json")["sequence"] == "backward"
    for name in BOTH:
        for stage in (1, 2):
            slow, like = (
                [row["update_norm"] for row in read_lines(path)]
                for path in (
                    runs / f"{m}@{name}-seed0/stage-{stage}/training.jsonl" for m in METHODS
                )
            )
            assert like == pytest.approx(slow, rel=1e-4)
    firsts = [read_lines(runs / f"slow@{n}-seed0/stage-1/training.jsonl") for n in BOTH]
    assert firsts[0][0]["loss"] != firsts[1][0]["loss"]

    real, killed = SkillStage._after_step, []

    def cutting(self, stage, step):
        real(self, stage, step)
        here = self.live.run.name, self.number, stage.step
        if here in CUT and here not in killed:
            killed.append(here)
            raise KeyboardInterrupt

    monkeypatch.setattr(SkillStage, "_after_step", cutting)
    for _ in CUT:
        with pytest.raises(KeyboardInterrupt):
            run_order(read_order(file, methods=["slow"]), tmp_path / "cut")
    run_order(read_order(file, methods=["slow"]), tmp_path / "cut")
    of_slow = [row for row in records if row["run"].startswith("slow")]
    assert without_times(read_lines(tmp_path / "cut/records.jsonl")) == without_times(of_slow)
    for name in BOTH:
        last = f"runs/slow@{name}-seed0/stage-2/weights"
        first, second = (
            load_model(str(tmp_path / place / last), "float32", "cpu")[0].state_dict()
            for place in ("whole", "cut")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)

    order = read_order(file, methods=["slow"])
    swept = sweep(order, tmp_path / "whole", [1.0])
    assert [(row["method"], row["sequence"]) for row in swept["rows"]] == [
        ("slow", "forward"),
        ("slow", "backward"),
    ]
    at_end = [r for r in records if r["stage"] == 2 and r["method"] == "slow"]
    by_validation = [r for r in at_end if (r["split"], r["metric"]) == ("validation", "token_f1")]
    ends = {
        name: {r["name"]: r["value"] for r in by_validation if r["sequence"] == name}
        for name in BOTH
    }
    for row in swept["rows"]:
        scores = {
            name: splits["validation"]["token_f1"][0] for name, splits in row["skills"].items()
        }
        assert scores == ends[row["sequence"]]


def about(**changes):
    shared = dict.fromkeys(("model", "budget", "rollout", "evaluate", "retention"))
    return {"version": 2, "skills": [], "methods": {}, "seeds": [0], **shared, **changes}


def test_sequences_may_be_added_to_a_folder_and_none_changed(tmp_path):
    one, two = {"x": ["a", "b"]}, {"y": ["b", "a"]}
    assert continued(about(orders=one), about(orders=two), tmp_path)["orders"] == {**one, **two}
    assert "orders" not in continued(about(), about(), tmp_path)
    for old, new, said in (
        (about(orders=one), about(orders={"x": ["b", "a"]}), "orders.x"),
        (about(orders=one), about(orders={"z": ["a", "b"]}), "`orders.z` is in it under another"),
        (about(), about(orders=one), "`orders` was none and is now x"),
        (about(orders=two), about(), "`orders` was y and is now none"),
    ):
        with pytest.raises(UserError) as error:
            continued(old, new, tmp_path)
        assert said in str(error.value)


def test_a_grid_selects_by_the_mean_over_seeds_and_sequences():
    scores = {"p": {"x": 0.9, "y": 0.1}, "q": {"x": 0.6, "y": 0.6}}

    def record(point, name, skill):
        return {
            "method": point, "seed": 0, "sequence": name, "final": True, "kind": "skill",
            "split": "validation", "name": skill, "skill": skill, "metric": "exact",
            "value": scores[point][name],
        }  # fmt: skip

    records = [record(p, name, skill) for p in scores for name in ("x", "y") for skill in "ab"]
    grid = {p: {"grid": {"of": "sft", "values": {}}} for p in scores}
    asked = about(
        methods=grid,
        skills=[{"name": "a", "metric": "exact"}, {"name": "b", "metric": "exact"}],
        orders={"x": ["a", "b"], "y": ["b", "a"]},
    )
    choice = grid_selection(asked, records)["sft"]
    assert choice["selected"] == "q"
    assert choice["points"][0]["runs"] == {"0@x": 0.9, "0@y": 0.1}
    assert grid_selection(asked, records[:-2])["sft"]["selected"] is None
