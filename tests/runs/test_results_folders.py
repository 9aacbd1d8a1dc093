"""A results folder goes on with the same order alone: what may differ, and what must not."""

import json
import re

import pytest
import torch

from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from harness.results.formats import LATER
from harness.results.writer import ResultsWriter
from harness.runs.reading import read_order
from tests.conftest import write_rows
from tests.runs.refusals import ROW


@pytest.fixture
def about(order_file):
    """A function from changed keys to what results.json would hold."""
    return lambda *changes, **keys: read_order(order_file(**keys), changes).about()


def test_results_folder_of_another_order(about, tmp_path):
    results = ResultsWriter(tmp_path / "out")
    results.open(about())
    results.open(about())  # the same again is welcome
    before = (tmp_path / "out/results.json").read_text()
    for change, key, old, new in (
        ("budget.prompts=13", "budget.prompts", "12", "13"),
        ("evaluate.temperature=0.5", "evaluate.temperature", "0.0", "0.5"),
        ("rollout.top_p=0.9", "rollout.top_p", "1.0", "0.9"),
        ("model.dtype=bfloat16", "model.dtype", '"float32"', '"bfloat16"'),
        ("skills.digits.prompts=4", "skills[1].prompts", "12", "4"),
        (
            "skills.digits.teacher_template=three_turn",
            "skills[1].teacher_template",
            '"paper"',
            '"three_turn"',
        ),
        ("methods.sft.learning_rate=0.5", "methods.sft.learning_rate", "0.001", "0.5"),
    ):
        with pytest.raises(UserError) as caught:
            results.open(about(change))
        assert f"out/results.json: `{key}` was {old} and is now {new}; give " in str(caught.value)
    assert (tmp_path / "out/results.json").read_text() == before


def test_changed_training_data_are_another_order(order_file, tmp_path):
    results, path = ResultsWriter(tmp_path / "out"), order_file()
    results.open(read_order(path).about())
    write_rows(tmp_path / "digits-train.jsonl", [ROW] * 12)
    with pytest.raises(UserError, match=r"`skills\[1\].train` was .* and is now "):
        results.open(read_order(path).about())


def test_a_changed_measurement_is_another_order(order_file, tmp_path, monkeypatch):
    """Questions, graders and a retention task's settings: what the report would refuse at the end
    is refused at the start.
    """
    results, path = (
        ResultsWriter(tmp_path / "out"),
        order_file(retention=[{"task": "embedded_facts", "metric": "acc,none"}]),
    )

    def stops(key, *changes):
        with pytest.raises(
            UserError,
            match=f"results.json: `{re.escape(key)}` was .* and is now .*; "
            "give another folder with --out",
        ):
            results.open(read_order(path, changes).about())

    results.open(read_order(path).about())
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert [set(skill["evaluated"]) for skill in found["skills"]] == [{"test"}] * 2
    assert set(read_order(path, ["evaluate.teacher=true"]).about()["skills"][0]["evaluated"]) == {
        "test",
        "validation",
    }
    for key, value in (
        ("limit", 8),
        ("num_fewshot", 0),
        ("max_gen_toks", 9),
        ("chat_template", "true"),
    ):
        stops(f"retention[0].{key}", f"retention.0.{key}={value}")
    rows = (tmp_path / "digits-test.jsonl").read_text()
    write_rows(tmp_path / "digits-test.jsonl", [ROW] * 4)
    stops("skills[1].evaluated.test")
    (tmp_path / "digits-test.jsonl").write_text(rows)
    with monkeypatch.context() as patch:
        patch.setattr("harness.runs.order.scorer_hash", lambda function: "changed")
        stops("skills[0].graders.token_f1")
    results.open(read_order(path).about())


def test_a_folder_from_before_a_key_was_written_is_gone_on_with(order_file, tmp_path):
    """It is compared by what it has, and holds the rest from then on."""
    results, path = ResultsWriter(tmp_path / "out"), order_file(retention=["embedded_facts"])
    about = read_order(path).about()
    short = {
        part: [{k: v for k, v in entry.items() if k not in LATER} for entry in about[part]]
        for part in ("skills", "retention")
    }
    write_json(tmp_path / "out/results.json", {**about, **short})
    with pytest.raises(UserError, match=r"`retention\[0\].metric` was"):
        results.open(
            read_order(
                order_file(retention=[{"task": "embedded_facts", "metric": "acc_norm,none"}])
            ).about()
        )
    results.open(read_order(order_file(retention=["embedded_facts"])).about())
    assert read_json(tmp_path / "out/results.json") == json.loads(json.dumps(about))


def test_changed_code_is_another_method(order_file, tmp_path):
    """The content of a method's own file and of a file that it reads counts; where they lie, and
    what words describe, does not.
    """
    (tmp_path / "mine.py").write_text(
        "from methods.sft import SFT\n\n\nclass Mine(SFT):\n    pass\n"
    )
    write_rows(tmp_path / "general.jsonl", [{"prompt": "Hello?"}])
    methods = {"mine": {"file": "mine.py"}, "sft_reinvoke": {"general_prompts": "general.jsonl"}}
    results, path = ResultsWriter(tmp_path / "out"), order_file(methods=methods)
    results.open(read_order(path).about())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        about = read_order(path.name).about()  # by another way to the same files
    about["skills"] = [{**skill, "description": "reworded"} for skill in about["skills"]]
    results.open(about)
    for name, text, key in (
        (
            "mine.py",
            "from methods.sft import SFT\n\n\nclass Mine(SFT):\n    needs = ()\n",
            "methods.mine.files.file",
        ),
        ("general.jsonl", '{"prompt": "Bye?"}\n', "methods.sft_reinvoke.files.general_prompts"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"`{key}` was .* and is now "):
            results.open(read_order(path).about())
        (tmp_path / name).write_text(before)


def test_auto_must_mean_the_same_dtype(about, tmp_path, monkeypatch):
    results = ResultsWriter(tmp_path / "out")
    results.open(about("model.dtype=auto"))
    meant = json.loads((tmp_path / "out/results.json").read_text())["model"]["dtype"]
    other = {"float32": torch.bfloat16, "bfloat16": torch.float32}[meant]
    monkeypatch.setattr("harness.runs.order.resolve_dtype", lambda *_: other)
    with pytest.raises(UserError, match=f'`model.dtype` was "{meant}" and is now '):
        results.open(about("model.dtype=auto"))


def test_methods_and_seeds_may_be_added(about, tmp_path):
    results = ResultsWriter(tmp_path / "out")
    results.open(about(methods={"sft": {}}, seeds=[2]))
    results.open(about(methods={"sdft": {}}, seeds=[0]))
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert list(found["methods"]) == ["sft", "sdft"] and found["seeds"] == [0, 2]
    results.open(about(methods={"sdft": {}, "sft": {}}, seeds=[0]))
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert list(found["methods"]) == ["sdft", "sft"]  # the order's own, once it has all


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("results.json", '{"version": 1}', "is of version 1, not 2"),
        ("results.json", "[1]", "is not a JSON object"),
        ("results.json", '{"version": 2, "methods": {}}', "`skills` is null, not a list"),
        ("results.json", "", "is not JSON"),
        (
            "results.json",
            '{"version": 2, "skills": [], "methods": {"sft": null}, "seeds": [0]}',
            "`methods.sft` is null, not an object",
        ),
        (
            "results.json",
            '{"version": 2, "skills": [], "methods": {}, "seeds": [0], "orders": 5}',
            "`orders` is 5, not an object",
        ),
        ("results.json", "{", "is not JSON"),
        ("thesis.tex", "mine", "is not empty and holds no results.json"),
    ],
)
def test_foreign_folder(name, text, said, about, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        ResultsWriter(tmp_path / "out").open(about())
    assert "--out" in str(caught.value) or "move the folder away" in str(caught.value)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name] and (
        tmp_path / "out" / name
    ).read_text() == text


@pytest.mark.parametrize(
    "name, said",
    [
        ("out", "out: is a file; give a folder with --out"),
        ("out/sub", "sub: cannot be a folder|out: is a file"),
        (f"new/{'x' * 300}/y", "y: cannot be a folder .File name too long"),
    ],
)
def test_results_folder_that_cannot_be(name, said, about, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=said):
        ResultsWriter(tmp_path / name).open(about())
    assert not (tmp_path / "new").exists()
