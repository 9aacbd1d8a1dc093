"""References: what a sequence is compared with, made by the same method with the same settings."""

from itertools import chain

import pytest
import torch

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.learning.stage import Stage
from harness.models.load import load_model
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.runs.stage_run import SkillStage
from tests.conftest import read_lines

THREE = [f"{name}-seed0" for name in ("sft", "sft.joint", "sft.single-2")]
SFT = {"sft": {"learning_rate": 1e-2}}


@pytest.fixture
def drawn(monkeypatch):
    """{run: ids of the examples of each step}, with the skill that each belongs to."""
    seen = {}
    real = SkillStage._after_step

    def noting(self, stage, step):
        batch = [(e.skill, e.id) for e in step.examples]
        seen.setdefault((self.live.run.name, self.number), []).append(batch)
        return real(self, stage, step)

    monkeypatch.setattr(SkillStage, "_after_step", noting)
    return seen


def test_a_joint_run_learns_what_the_sequence_learns_and_a_single_one_what_its_stage_does(
    order_file, tmp_path, drawn
):
    file = order_file(methods=SFT, references=["sft"], evaluate={"every_steps": 1})
    order = read_order(file)
    assert [run.name for run in order.runs()] == THREE
    run_order(order, tmp_path / "out")
    of_stages = [list(chain(*drawn["sft-seed0", k])) for k in (1, 2)]
    joint = drawn["sft.joint-seed0", 1]
    of_both = [(skill, f"{skill}/{id}") for skill, id in of_stages[0] + of_stages[1]]
    assert sorted(chain(*joint)) == sorted(of_both)
    assert len(joint) == len(drawn["sft-seed0", 1]) + len(drawn["sft-seed0", 2])
    assert {skill for skill, _ in joint[0] + joint[1]} == {"vowels", "digits"}  # shuffled
    assert drawn["sft.single-2-seed0", 1] == drawn["sft-seed0", 2]  # the same draws, another start
    stage = read_json(tmp_path / "out/runs/sft.joint-seed0/stage-1/stage.json")
    assert (stage["prompts"], stage["steps"], stage["skill"]) == (24, 6, "vowels + digits")


def test_a_reference_measures_its_skills_once_and_says_what_it_is(order_file, tmp_path):
    drift = {"prompts": 2, "max_new_tokens": 2}
    evaluate = {"every_steps": 1, "kl": {"prompts": 2}, "drift": drift}
    order = read_order(order_file(methods=SFT, references=["sft"], evaluate=evaluate))
    run_order(order, tmp_path / "out")
    records = read_lines(tmp_path / "out/records.jsonl")
    of_references = [r for r in records if r.get("reference")]
    assert {r["run"] for r in of_references} == set(THREE[1:])
    assert all("reference" not in r for r in records if r["run"] == THREE[0])
    assert all(r["method"] != "sft" for r in of_references)
    learned = [r for r in of_references if r["stage"] == 1 and r["metric"] == "token_f1"]
    assert [(r["method"], r["reference"], r["name"], r["final"]) for r in learned] == [
        ("sft.joint", "joint", "vowels", True),
        ("sft.joint", "joint", "digits", True),
        ("sft.single-2", "single", "digits", True),
    ]
    assert {r["kind"] for r in of_references} == {"skill"}
    assert read_json(tmp_path / "out/results.json")["references"] == ["sft"]
    provenance = read_json(tmp_path / "out/runs/sft.joint-seed0/run.json")
    assert (provenance["label"], provenance["config"]["learning_rate"]) == ("sft.joint", 1e-2)
    kept = sorted(path.parent.parent.name for path in tmp_path.glob("out/runs/*/*/weights"))
    assert kept == [THREE[0]]  # nothing reads those of a reference


def test_the_first_skill_alone_is_the_first_stage(order_file, tmp_path):
    """So it is not learned twice: an order of the first skill alone gives the same weights."""
    kept = {"keep": "all"}
    full = order_file(methods=SFT, references=["sft"], evaluate={}, checkpoints=kept)
    run_order(read_order(full), tmp_path / "out")
    order = read_order(full)
    alone = order_file("alone.yaml", methods=SFT, evaluate={}, skills=_skills(full)[:1])
    run_order(read_order(alone), tmp_path / "alone")
    weights = [
        load_model(str(tmp_path / place / "weights"), "float32", "cpu")[0].state_dict()
        for place in ("out/runs/sft-seed0/stage-1", "alone/runs/sft-seed0/stage-1")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, weights), strict=True))
    single = [run for run in order.runs() if run.reference == "single"]
    assert [run.stages for run in single] == [((2,),)]


def _skills(file):
    import yaml

    return yaml.safe_load(file.read_text())["skills"]


def test_a_reference_that_was_cut_off_ends_in_the_same_numbers(order_file, tmp_path, monkeypatch):
    methods = {
        "sft": {"learning_rate": 1e-2, "with": {"replay": {"ratio": 0.5}, "ewc": {"strength": 1}}}
    }
    file = order_file(
        methods=methods, references=["sft"], evaluate={}, checkpoints={"minutes": 0, "keep": "all"}
    )
    run_order(read_order(file), tmp_path / "whole")
    real, steps = SkillStage._after_step, []

    def cutting(self, stage, step):
        real(self, stage, step)
        steps.append(self.live.run.name)
        if steps.count(self.live.run.name) == 2 and self.live.run.reference:
            raise KeyboardInterrupt

    monkeypatch.setattr(SkillStage, "_after_step", cutting)
    for _ in range(2):  # one start a reference
        with pytest.raises(KeyboardInterrupt):
            run_order(read_order(file), tmp_path / "cut")
    run_order(read_order(file), tmp_path / "cut")
    timed = ("seconds", "run")
    whole, cut = (
        [
            {key: value for key, value in record.items() if key not in timed}
            for record in read_lines(tmp_path / out / "records.jsonl")
        ]
        for out in ("whole", "cut")
    )
    assert whole == cut
    for name in ("sft.joint-seed0", "sft.single-2-seed0"):
        weights = [
            load_model(str(tmp_path / out / "runs" / name / "stage-1/weights"), "float32", "cpu")[0]
            for out in ("whole", "cut")
        ]
        pairs = zip(*(model.state_dict().values() for model in weights), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_joint_run_samples_each_skill_within_its_own_limit(order_file, tmp_path, monkeypatch):
    skills = _skills(order_file())
    skills[1]["max_new_tokens"] = 3
    asked, real = [], Stage.sample

    def sample(self, prompts, **settings):
        asked.append((self.skill.name, settings.get("max_new_tokens")))
        return real(self, prompts, **settings)

    monkeypatch.setattr(Stage, "sample", sample)
    grpo = {"grpo": {"learning_rate": 1e-3, "group_size": 2}}
    order = read_order(order_file(methods=grpo, references=["grpo"], skills=skills, evaluate={}))
    run_order(order, tmp_path / "out")
    joint = [limits for name, limits in asked if name == "vowels + digits"]
    assert len(joint) == 6 and set(chain(*joint)) == {6, 3}


def test_references_are_added_later_and_methods_choose_theirs(order_file, tmp_path):
    both = {**SFT, "dft": {"learning_rate": 1e-3}}
    run_order(read_order(order_file(methods=both, evaluate={})), tmp_path / "out")
    file = order_file(methods=both, evaluate={}, references=["sft", "dft"])
    order = read_order(file, methods=["sft"])
    assert [run.name for run in order.runs()] == THREE
    run_order(order, tmp_path / "out")
    assert read_json(tmp_path / "out/results.json")["references"] == ["sft", "dft"]
    run_order(read_order(order_file(methods=both, evaluate={})), tmp_path / "out")
    assert read_json(tmp_path / "out/results.json")["references"] == ["sft", "dft"]


def test_plan_counts_references(order_file, tmp_path):
    order = read_order(
        order_file(methods=SFT, references=["sft"], seeds=[0, 1], evaluate={"every_steps": 2})
    )
    text = plan(order, tmp_path / "out")
    assert "6 runs (1 methods x 2 seeds, 4 references of one stage), 2 stages each" in text
    rows = [line.split()[:7] for line in text.splitlines() if line.startswith("sft ")]
    assert ["sft", "joint", "all", "2", "24", "4", "6"] in rows
    assert ["sft", "single", "digits", "12", "4", "3", "1"] in rows
    # the base, and of each seed two stages with one point inside each, joint and single
    assert "evaluations: 13, " in text
    answers = 8 * (1 + 2 * (2 * 2 + 1) + 2 * 0.5)  # 8 for all skills, 4 for one
    assert f"{answers:.0f} answers in all" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"references": ["sfd"]}, "references[0]: there is no method 'sfd'; did you mean 'sft'?"),
        ({"references": ["sft", "sft"]}, "references[1]: 'sft' stands twice"),
        ({"references": "sft"}, "references: must be a list, not the text 'sft'"),
        (
            {"references": ["sft"], "methods": {"sft": {}, "sft.joint": {"method": "sft"}}},
            "references[0]: a method is called 'sft.joint', as a reference is; rename it",
        ),
        (
            {"references": ["sft"], "grid": {"sft": {"learning_rate": [1e-5, 1e-4]}}},
            "references[0]: 'sft' is a grid; name points of it, as sft.learning_rate-1e-05",
        ),
        (
            {"references": ["x" * 195], "methods": {"x" * 195: {"method": "sft"}}},
            "is too long for a label; shorten it",
        ),
    ],
)
def test_wrong_references_are_refused(order_file, changes, said):
    with pytest.raises(UserError) as error:
        read_order(order_file(**changes))
    assert said in str(error.value)


def test_an_order_of_one_skill_has_no_references(order_file):
    skills = _skills(order_file())[:1]
    order = read_order(order_file(methods=SFT, references=["sft"], skills=skills))
    assert [run.name for run in order.runs()] == ["sft-seed0"]


def test_references_follow_those_of_another_method(order_file, tmp_path):
    """Step norms are those of the same reference."""
    sft = {"method": "sft", "learning_rate": 1e-2}
    methods = {
        "slow": {**sft, "learning_rate": 1e-3, "with": {"matched_norm": {}}},
        "like": {**sft, "with": {"matched_norm": {"like": "slow"}}},
    }
    for wrong in (["like"], ["like", "slow"]):
        with pytest.raises(UserError) as error:
            read_order(order_file(methods=methods, references=wrong))
        assert "references[0]: with.matched_norm of 'like' reads the same references of 'slow'" in (
            str(error.value)
        )
    budget = {"prompts": 4, "batch_size": 2}
    file = order_file(methods=methods, references=list(methods), evaluate={}, budget=budget)
    run_order(read_order(file), tmp_path / "out")
    runs = tmp_path / "out/runs"
    for kind in (".joint", ".single-2"):
        slow, like = (
            read_lines(runs / f"{label}{kind}-seed0/stage-1/training.jsonl")
            for label in ("slow", "like")
        )
        norms = [row["update_norm"] for row in slow]
        assert len(norms) == (4 if kind == ".joint" else 2)
        assert [row["update_norm"] for row in like] == pytest.approx(norms, rel=1e-4)
