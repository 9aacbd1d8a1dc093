"""What a start takes over from a results folder is checked; what a method does is as well."""

import json
import os
import shutil

import pytest
import torch

from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from harness.evaluation.kept import check_kept_evaluation
from harness.models.load import load_model
from harness.results.writer import ResultsWriter
from harness.runs.checkpoints import load_memory
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from tests.conftest import read_lines, save_tiny

HEAD = """
import collections, dataclasses, torch
from harness.learning.method import Method
from harness.learning.trainer import cross_entropy, learning
from methods.sft import SFT
"""


@pytest.fixture
def started(order_file, tmp_path):
    """A function from the source of a method to what a run of it does."""

    def start(code, **changes):
        (tmp_path / "mine.py").write_text(HEAD + code)
        methods = {"mine": {"file": "mine.py", "learning_rate": 1e-3}}
        order = read_order(order_file(methods=methods, evaluate={}, **changes))
        run_order(order, tmp_path / "out")
        return order

    return start


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """(an order of one method, its finished results folder)."""
    from tests.conftest import order_file

    folder = tmp_path_factory.mktemp("finished")
    write = order_file.__wrapped__(tiny, folder)
    changes = {"methods": {"sft": {"learning_rate": 1e-3}}, "evaluate": {}}
    order = read_order(write(**changes, checkpoints={"keep": "all"}))
    run_order(order, folder / "out")
    return order, folder / "out"


@pytest.fixture
def copied(finished, tmp_path):
    order, out = finished
    shutil.copytree(out, tmp_path / "copy")
    return order, tmp_path / "copy"


def step(body):
    return (
        "class Mine(Method):\n    def learn(self, stage):\n"
        "        with learning(stage, self.config) as trainer:\n"
        "            for step in stage.steps():\n"
        "                rows = stage.demonstration_rows(step.examples)\n"
        "                found = trainer.token_mean(rows, cross_entropy)\n"
        f"                {body}\n"
    )


@pytest.mark.parametrize(
    "code, said",
    [
        (
            "class Mine(Method):\n    def learn(self, stage): pass",
            "left 3 of 3 steps of skill vowels",
        ),
        (
            "class Mine(Method):\n    def learn(self, stage): next(stage.steps())",
            "left 3 of 3 steps",
        ),
        (step("step.log(**found)"), "3 of 3 steps of skill vowels made no update"),
        (step("step.index and step.log(**trainer.update())"), "1 of 3 steps of skill vowels made"),
        (
            "class Mine(Method):\n    def learn(self, stage):\n        list(stage.steps())",
            "left the weights as they were in stage 1",
        ),
        (step("step.log(**trainer.update(), loss=float('nan'))"), "step 1: the loss is nan"),
        (step("step.log(**trainer.update(), reward=float('inf'))"), "step 1: the reward is inf"),
    ],
)
def test_a_stage_that_did_not_do_its_work_is_not_committed(code, said, started, tmp_path):
    with pytest.raises(UserError, match=said):
        started(code)
    assert not (tmp_path / "out/runs/mine-seed0/stage-1").exists()


def test_an_optimizer_of_its_own_is_welcome_and_other_numbers_may_be_nan(started, tmp_path):
    started(
        "class Mine(Method):\n    def learn(self, stage):\n"
        "        for step in stage.steps():\n"
        "            with torch.no_grad():\n"
        "                for p in stage.model.parameters(): p.mul_(0.999)\n"
        "            step.log(entropy=float('nan'))\n"
    )
    rows = read_lines(tmp_path / "out/runs/mine-seed0/stage-2/training.jsonl")
    assert len(rows) == 3 and {row["entropy"] for row in rows} == {None}


def test_a_learning_rate_of_zero_is_said(order_file, tmp_path, capsys):
    order = read_order(order_file(methods={"sft": {"learning_rate": 0}}, evaluate={}))
    run_order(order, tmp_path / "out")
    assert "the updates did not change the weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value, said",
    [
        ("collections.Counter('ab')", "Counter"),
        ("[torch.zeros(1), {'x': {1, 2}}]", "['seen'][1]['x'] is of class set"),
        ("type('Buffer', (), {})()", "['seen'] is of class Buffer"),
        ("torch.zeros(1).numpy()", "ndarray"),
    ],
)
def test_a_memory_that_only_code_could_restore_is_refused_at_the_start(
    value, said, started, tmp_path
):
    with pytest.raises(UserError, match="tensors, numbers, texts, lists and dicts") as caught:
        started(f"class Mine(SFT):\n    def state_dict(self): return {{'seen': {value}}}\n")
    assert str(caught.value).startswith("methods.mine: state_dict()") and said in str(caught.value)
    assert not (tmp_path / "out/runs/mine-seed0/stage-0").exists()


def test_what_a_method_keeps_is_refused_at_its_first_step(started, tmp_path):
    code = (
        "class Part:\n    def state_dict(self): return {'f': len}\n"
        "class Mine(SFT):\n    def learn(self, stage):\n"
        "        stage.keep(part=Part())\n        super().learn(stage)\n"
    )
    with pytest.raises(UserError, match=r"stage\.keep got as part.* is of class builtin_function"):
        started(code)


def test_plain_values_come_back_as_they_were(started, tmp_path):
    code = (
        "class Mine(SFT):\n    seen = None\n"
        "    def learn(self, stage):\n"
        "        super().learn(stage)\n"
        "        rows = [dataclasses.asdict(e) for e in stage.examples[:2]]\n"
        "        self.seen = {'rows': rows, 3: (torch.eye(2), None, 1e300, b'x')}\n"
        "    def state_dict(self): return {'seen': self.seen}\n"
    )
    started(code, checkpoints={"keep": "all"})
    run = tmp_path / "out/runs/mine-seed0"
    seen = load_memory(run / "stage-1/method.pt")["seen"]
    assert seen["rows"][1]["prompt"] == [{"role": "user", "content": "vowels train 1?"}]
    assert seen[3][1:] == (None, 1e300, b"x") and torch.equal(seen[3][0], torch.eye(2))
    assert not (run / "stage-2/method.pt").exists()  # no later stage would read it


def test_kept_weights_are_those_that_were_measured(copied, capsys):
    """Also where the hashes are gone, as in a folder that somebody copied in part: that is told."""
    order, out = copied
    shutil.rmtree(out / "runs/sft-seed0/stage-2")
    stage = out / "runs/sft-seed0/stage-1"
    path = stage / "weights/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: is not what was written"):
        run_order(order, out)
    os.unlink(stage / "SHA256SUMS")
    assert "SHA256SUMS" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"weights: are not the weights that were measured|NaN"):
        run_order(order, out)
    told = capsys.readouterr().err
    assert "runs/sft-seed0/stage-1/SHA256SUMS is gone, which results of version 2 have" in told


def test_a_kept_evaluation_is_of_what_is_asked_for(copied):
    order, out = copied
    path = sorted((out / "evaluations").iterdir())[0]
    whole = read_json(path)
    wanted = {key: whole[key] for key in ("protocol", "kind", "name", "split", "n")}
    ids = [item["id"] for item in whole["items"]]
    check_kept_evaluation(path, whole, wanted, ids)
    for change, said in (
        ({"name": "x"}, "its name is 'x', not"),
        ({"n": 3}, "its n is 3, not 4"),
        ({"protocol": "x"}, "its protocol is"),
        ({"items": whole["items"][:3]}, "its items are not those"),
        ({"items": whole["items"][::-1]}, "its items are not those"),
        ({"items": [1]}, "its items are no list of objects"),
        ({"metrics": {"token_f1": [0.75, None]}}, "its items' token_f1 is"),
        ({"metrics": {"token_f1": 0.5}}, "its metrics are not pairs"),
    ):
        with pytest.raises(UserError, match=f"{path.name}: {said}.*; remove it"):
            check_kept_evaluation(path, {**whole, **change}, wanted, ids)
    shutil.rmtree(out / "runs")
    write_json(path, {**whole, "n": 3})
    with pytest.raises(UserError, match=f"{path.name}: its n is 3, not 4"):
        run_order(order, out)


@pytest.mark.parametrize("place", ["x", "runs", "runs/sft-seed0/stage-1/weights", "evaluations"])
def test_a_folder_with_a_link_in_it_is_refused(place, copied, tmp_path):
    order, out = copied
    path = out / place
    if path.exists():
        shutil.move(path, tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"{place}: is a symbolic link"):
        run_order(order, out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("key", ["../../x", "a/b", "", "a\0b"])
def test_a_key_leads_nowhere_else(key, tmp_path):
    with pytest.raises(UserError, match="is no key of an evaluation"):
        ResultsWriter(tmp_path).evaluation(key)


def test_weights_that_hold_nan_are_refused_at_load(tmp_path):
    from safetensors.torch import load_file, save_file

    path = save_tiny(tmp_path / "model") / "model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the weights of .* hold NaN or infinity"):
        load_model(str(tmp_path / "model"), "float32", "cpu")


def test_no_json_of_a_folder_holds_nan(finished):
    def refused(text):
        raise ValueError(text)

    _, out = finished
    for path in [*out.rglob("*.json"), *out.rglob("*.jsonl")]:
        for line in (
            path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        ):
            json.loads(line, parse_constant=refused)
