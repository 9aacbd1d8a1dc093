"""A model that cannot be had or does not fit is refused in one line, before a folder is made."""

import re

import pytest

from harness.base.console import STAMP
from harness.base.errors import UserError
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from tests.conftest import write_rows
from tests.runs.refusals import CONFIGS, ROW, TEMPLATES, damaged, start


@pytest.mark.parametrize(
    "how, said",
    [
        ("no config", "is not a model folder"),
        ("no weights", "cannot be loaded"),
        ("half weights", "cannot be loaded"),
        ("other sizes", "do not fit its config.json"),
        ("a layer more", "do not fit its config.json"),
        ("a layer less", "do not fit its config.json"),
        ("no tokenizer", "cannot be loaded"),
        ("no chat template", "has no chat template"),
        *((how, "chat template fails on messages of user") for how in list(TEMPLATES)[:3]),
        *((how, "cannot be loaded (") for how in CONFIGS),
    ],
)
def test_damaged_model_folder(how, said, tiny, order_file, tmp_path):
    """Refused in one line, by --plan too where it reads what is damaged, and no results folder is
    left that would stand in the way of the mended order.
    """
    folder = damaged(tiny, tmp_path / "model", how)
    path, out = order_file(model=str(folder)), tmp_path / "out"
    for begin in (run_order, plan) if how in TEMPLATES or how in CONFIGS else (run_order,):
        with pytest.raises(UserError) as caught:
            begin(read_order(path), out)
        line = str(caught.value)
        assert (
            line.startswith(f"{path}: model: ")
            and (str(folder) in line or how in TEMPLATES)
            and said in line
            and "\n" not in line
        )
        assert not out.exists()


def test_a_revision_is_of_the_hub_alone(tiny, order_file):
    for name in (str(tiny), "embedded"):
        with pytest.raises(UserError, match="model: revision: is of a repository of the hub, and"):
            read_order(order_file(model={"name": name, "revision": "main"}))


def test_prompts_are_tried_before_a_model_is_loaded(tiny, order_file, tmp_path):
    """A role that the chat template refuses, and a limit that no prompt keeps, in --plan and at the
    start.
    """
    path, out = (
        order_file(model=str(damaged(tiny, tmp_path / "model", "no system"))),
        tmp_path / "out",
    )
    plan(read_order(path), out)
    rows = [
        ROW,
        {**ROW, "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
        ROW,
    ]
    write_rows(tmp_path / "digits-test.jsonl", rows)
    for changes, said in (
        (
            (),
            "skill digits, split test: the model's chat template fails on messages of system, user "
            "(TemplateError: System role not supported); use messages that it takes",
        ),
        (
            ["rollout.max_prompt_tokens=5"],
            "skill vowels: no training example has a prompt of at most 5 tokens; raise ",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            plan(read_order(path, changes), out)
    (tmp_path / "model/model.safetensors").unlink()  # it would be missed
    done = start(path, "--out", out)
    assert (done.returncode, done.stdout) == (
        2,
        "",
    ) and "skill digits, split test: the model's chat template fails" in done.stderr
    first, *more = done.stderr.splitlines()
    errors = [line for line in more if not STAMP.match(line)]
    assert first[19:] == f" reads {path}" and len(errors) == 1 and not out.exists()


def test_hub_model_that_cannot_be_reached(order_file, tmp_path):
    line = "model: no-such-user/no-such-model cannot be loaded"
    with pytest.raises(UserError, match=line):
        run_order(read_order(order_file(model="no-such-user/no-such-model")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_with_a_damaged_model(tiny, order_file, tmp_path):
    folder = damaged(tiny, tmp_path / "model", "half weights")
    done = start(order_file(model=str(folder)), "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    first, *more = done.stderr.splitlines()
    errors = [line for line in more if not STAMP.match(line)]
    assert first[19:] == f" reads {tmp_path}/tiny.yaml" and len(errors) == 1
    assert errors[0].startswith(f"error: {tmp_path}/tiny.yaml: model: {folder} cannot be loaded")
    assert not (tmp_path / "out").exists()
