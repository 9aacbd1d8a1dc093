"""Wrong input ends in one line that names the place, what is wrong and what would be right, before
anything is written.
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
import yaml

import run_sequence
from harness.base.errors import UserError, reported
from harness.base.files import write_json
from harness.base.settings import build, option
from harness.results.formats import LATER
from harness.results.writer import ResultsWriter
from harness.runs.engines import advice
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from tests.conftest import write_rows

ROOT = Path(__file__).resolve().parents[2]


def refused(path, **kwargs):
    """The one line that read_order refuses ``path`` with."""
    with pytest.raises(UserError) as caught:
        read_order(path, **kwargs)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    return line


def at(mapping, keys, value):
    *path, last = keys
    for key in path:
        mapping = mapping[key]
    if value is DROP:
        del mapping[last]
    else:
        mapping[last] = value


DROP = object()
ROW = {"prompt": "p", "demonstration": "d", "reference": "r"}


# where in the order, what stands there, what the line must say (after the file's name)
@pytest.mark.parametrize(
    "keys, value, said",
    [
        (["budgets"], {}, ["budgets: unknown key", "did you mean 'budget'?"]),
        (["budget", "prompt"], 3, ["budget: prompt: unknown key", "did you mean 'prompts'?"]),
        (
            ["evaluate", "example"],
            3,
            ["evaluate: example: unknown key", "did you mean 'examples'?"],
        ),
        (["rollout"], {"temp": 1}, ["rollout: temp: unknown key", "temperature"]),
        (
            ["rollout"],
            {"engine": "vlm"},
            ["rollout: engine: unknown value 'vlm'", "did you mean 'vllm'?"],
        ),
        (
            ["vllm"],
            {"kv_cache": 1},
            ["vllm: kv_cache: unknown key", "did you mean 'kv_cache_gib'?"],
        ),
        (
            ["checkpoints"],
            {"keep": "best"},
            ["checkpoints: keep: unknown value 'best'", "known: all, last, none"],
        ),
        (["model", "dtype"], "float16", ["model: dtype: unknown value 'float16'", "bfloat16"]),
        (["model", "nme"], "x", ["model: nme: unknown key", "did you mean 'name'?"]),
        (["model"], 5, ["model: must be a text or a mapping, not 5"]),
        (["model", "name"], "./nowhere", ["model: ./nowhere is not a folder", "save_pretrained"]),
        (
            ["skills", 0, "grader"],
            "tokenf1",
            ["skills[0]: grader: unknown grader 'tokenf1'", "did you mean 'token_f1'?"],
        ),
        (
            ["skills", 0, "grader"],
            DROP,
            ["skills[0]: grader: is missing", "harness/skills/graders.py"],
        ),
        (["skills", 0, "test"], DROP, ["skills[0]: test: is missing", "JSONL"]),
        (
            ["skills", 1, "train"],
            "nowhere.jsonl",
            ["skills[1]: train: ", "nowhere.jsonl is not a file", "give the path"],
        ),
        (["skills", 1, "name"], "vowels", ["skills[1]: skill 'vowels' stands twice"]),
        (
            ["skills", 1],
            "elementz",
            ["skills[1]: name: unknown skill 'elementz'", "did you mean 'elements'?"],
        ),
        (
            ["skills", 1],
            {"name": "elements", "grader": "contains"},
            ["skills[1]: grader: goes with a skill of your own"],
        ),
        (["skills", 1], 7, ["skills[1]: must be a mapping, not 7"]),
        (["skills", 1], ["elements"], ["skills[1]: must be a mapping, not a list"]),
        (
            ["skills", 0, "teacher_template"],
            "papr",
            ["skills[0]: teacher_template: unknown template 'papr'", "did you mean 'paper'?"],
        ),
        (
            ["skills", 0, "teacher_template"],
            [{"role": "user"}],
            ["skills[0]: teacher_template: must be messages"],
        ),
        (
            ["skills", 0, "max_new_tokens"],
            0,
            ["skills[0]: max_new_tokens: must be at least 1, not 0"],
        ),
        (["skills"], [], ["skills: is empty", "at least one"]),
        (["skills"], "elements", ["skills: must be a list, not the text 'elements'"]),
        (["skills"], DROP, ["skills: is missing"]),
        (
            ["methods", "dpo"],
            {},
            [
                "methods.dpo: unknown method 'dpo'",
                "known: cpt, dft, grpo, offline_distillation, sdft, sft",
            ],
        ),
        (
            ["methods", "sft", "learning_rat"],
            1e-4,
            ["methods.sft: learning_rat: unknown key", "did you mean 'learning_rate'?"],
        ),
        (
            ["methods", "sft", "learning_rate"],
            "fast",
            ["methods.sft: learning_rate: must be a number, not the text 'fast'"],
        ),
        (
            ["methods", "sft", "learning_rate"],
            -1.0,
            ["methods.sft: learning_rate: must be at least 0, not -1.0"],
        ),
        (
            ["methods", "sft", "learning_rate"],
            float("nan"),
            ["methods.sft: learning_rate: must be a finite number"],
        ),
        (
            ["methods", "sft", "learning_rate"],
            float("inf"),
            ["methods.sft: learning_rate: must be a finite number"],
        ),
        (
            ["methods", "grpo", "scale_rewards"],
            1,
            ["methods.grpo: scale_rewards: must be true or false, not 1"],
        ),
        (
            ["methods", "grpo", "group_size"],
            2.5,
            ["methods.grpo: group_size: must be a whole number, not 2.5"],
        ),
        (
            ["methods", "sdft", "divergence"],
            "backward",
            ["methods.sdft: divergence: unknown value 'backward'", "forward"],
        ),
        (
            ["methods", "my sft"],
            {"method": "sft"},
            ["methods.my sft: 'my sft' is no label", "letters"],
        ),
        (
            ["methods", "mine"],
            {"file": "nowhere.py"},
            ["methods.mine: ", "nowhere.py is not a file", "Python file"],
        ),
        (["methods"], ["sft"], ["methods: must be a mapping, not a list"]),
        (["methods"], {}, ["methods: is empty", "at least one"]),
        (["methods", "sft"], 3, ["methods.sft: must be a mapping of hyperparameters, not 3"]),
        (["budget", "prompts"], -5, ["budget: prompts: must be at least 1, not -5"]),
        (
            ["budget", "prompts"],
            "many",
            ["budget: prompts: must be a whole number, not the text 'many'"],
        ),
        (["budget", "prompts"], True, ["budget: prompts: must be a whole number, not True"]),
        (["budget", "epochs"], 2, ["budget: wants exactly one of `prompts` and `epochs`"]),
        (["budget"], {}, ["budget: wants exactly one of `prompts` and `epochs`"]),
        (["budget"], DROP, ["budget: is missing", "prompts"]),
        (["seeds"], [0, 0], ["seeds: must be one or more different whole numbers"]),
        (["seeds"], 3, ["seeds: must be a list, not 3"]),
        (["seeds"], ["a"], ["seeds[0]: must be a whole number, not the text 'a'"]),
        (
            ["retention"],
            "embeded",
            ["retention: unknown retention suite 'embeded'", "did you mean 'embedded'?"],
        ),
        (["retention"], ["no_such_task"], ["retention, task 1", "no_such_task"]),
        (
            ["model", "device"],
            "tpu",
            ["model: device: unknown device 'tpu'", "known: auto, cpu, cuda"],
        ),
        (
            ["model", "device"],
            "cuda:x",
            ["model: device: unknown device 'cuda:x'", "known: auto, cpu, cuda"],
        ),
        (["model", "device"], "cuda:99", ["model: device: there is no cuda:99", "use auto or cpu"]),
        (
            ["methods", "mine"],
            {"file": "vowels-test.jsonl"},
            ["methods.mine: ", "vowels-test.jsonl is not a Python file"],
        ),
        (["methods", ".."], {"method": "sft"}, ["methods...: '..' is no label"]),
        (
            ["methods", "sft", "epochs"],
            1e308,
            ["methods.sft: epochs: is too large a number", "2^63"],
        ),
        (["budget"], {"epochs": "1e308"}, ["budget: epochs: is too large a number", "2^63"]),
        (
            ["grid"],
            {
                "sft": {
                    **{
                        k: [1 / 81000]
                        for k in ("learning_rate", "epochs", "weight_decay", "max_grad_norm")
                    },
                    **{k: [10**18] for k in ("batch_size", "warmup_steps", "micro_batch_tokens")},
                }
            },
            ["grid.sft: ", "is too long for a label"],
        ),
        (
            ["judge"],
            {"base_url": "http://[::1", "model": "m"},
            ["judge: base_url: 'http://[::1' is no address", "http://localhost:8000/v1"],
        ),
        (
            ["judge"],
            {"base_url": "http://host:99999/v1", "model": "m"},
            ["judge: base_url: ", "is no address"],
        ),
        (
            ["judge"],
            {"base_url": "http://a b/v1", "model": "m"},
            ["judge: base_url: ", "is no address"],
        ),
        (
            ["retention"],
            [{"task": "embedded_facts", "chance": float("nan")}],
            ["retention: chance: must be a finite number, not nan"],
        ),
        (["name"], "a/b", ["name: 'a/b' is no folder name", "letters"]),
        (["name"], "..", ["name: '..' is no folder name", "letters"]),
        (["name"], "x" * 300, ["is no folder name", "at most 200"]),
        (["description"], "\ud800", ["description: holds half a character ('\\ud800')"]),
        (["description"], 3, ["description: must be a text, not 3"]),
    ],
)
def test_wrong_key_or_value(keys, value, said, order_file):
    path = order_file()
    mapping = yaml.safe_load(path.read_text())
    at(mapping, keys, value)
    path.write_text(yaml.safe_dump(mapping))
    line = refused(path)
    assert line.startswith(f"{path}: ")
    for part in said:
        assert part in line, line


def test_an_engine_is_there_and_fits(order_file, monkeypatch):
    monkeypatch.setattr("harness.runs.order.version", lambda: None)
    for section in ("rollout", "evaluate"):
        line = refused(order_file(**{section: {"engine": "vllm"}}))
        assert (
            f"{section}.engine: vLLM is not installed; pip install -r requirements-vllm.txt" in line
        )
    # nor in what was written before there were two
    assert "engine" not in read_order(order_file()).about()["rollout"]
    monkeypatch.setattr("harness.runs.order.version", lambda: "vllm 0")
    assert read_order(order_file(rollout={"engine": "vllm"})).about()["rollout"]["engine"] == "vllm"
    assert read_order(order_file(rollout={"engine": "vllm", "top_p": 0.9})).rollout.top_p == 0.9
    assert "before top-p" in refused(
        order_file(rollout={"engine": "vllm", "top_p": 0.9, "temperature": 0.7})
    )
    exact = {"sdft": {"estimator": "rao_blackwell"}}
    assert "set importance_cap to 0" in refused(
        order_file(rollout={"engine": "vllm"}, methods=exact)
    )
    exact["sdft"]["importance_cap"] = 0
    assert (
        read_order(order_file(rollout={"engine": "vllm"}, methods=exact))
        .methods["sdft"]
        .config.importance_cap
        == 0
    )


def test_what_vllm_costs_and_would_spare_is_said(order_file, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.runs.order.version", lambda: "vllm 0")
    plain = read_order(order_file())
    assert "vLLM" not in plan(plain, tmp_path / "out") and advice(plain, "cpu") is None
    assert advice(plain, "cuda").startswith(
        "rollouts are sampled by transformers; vLLM is faster on a GPU: rollout.engine=vllm"
    )
    order = read_order(
        order_file(
            rollout={"engine": "vllm"}, evaluate={"engine": "vllm"}, vllm={"kv_cache_gib": 3}
        )
    )
    assert (
        "vLLM for rollouts and evaluation: 3.0 GiB on top" in plan(order, tmp_path / "out")
        and advice(order, "cuda") is None
    )


@pytest.mark.parametrize(
    "text, said",
    [
        ("skills: [a\nmethods: {", ["line 2", "is not YAML"]),
        ("budget: {prompts: 1}\nbudget: {prompts: 2}\n", ["line 2", "key 'budget' stands twice"]),
        ("", ["must be a mapping of keys"]),
        ("- elements\n", ["must be a mapping of keys", "quickstart.yaml"]),
        (b"name: \xff\xfe", ["is not YAML (not UTF-8)"]),
        ("? [a, b]\n: c\n", ["line 1", "is not YAML (found unhashable key)"]),
        (
            "name: x\nbudget: {prompts: 1" + 400 * "0" + "}\n",
            ["line 2", "a whole number beyond 64 bits"],
        ),
        ("budget: {prompts: 1" + 5000 * "0" + "}\n", ["line 1", "a whole number beyond 64 bits"]),
        ("name: 2024-13-45\n", ["is not YAML (month must be in 1..12)"]),
        (5000 * "[", ["is not YAML"]),
    ],
)
def test_order_that_cannot_be_read(text, said, tmp_path):
    path = tmp_path / "order.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refused(path)
    assert line.startswith(str(path))
    for part in said:
        assert part in line, line


def test_missing_order_file(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        assert (
            refused(path) == f"{path}: is not a file; give a task-order file, "
            "as benchmarks/orders/quickstart.yaml"
        )


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"prompt": "p"', ["row 2: is not JSON"]),
        ("[1]", ["row 2: is not a JSON object"]),
        (json.dumps({**ROW, "prompt": 3}), ["row 2: `prompt` must be a text or chat messages"]),
        (json.dumps({**ROW, "prompt": []}), ["row 2: `prompt` must be"]),
        (
            json.dumps({**ROW, "prompt": [{"role": "assistant", "content": "x"}]}),
            ["row 2: `prompt` must", "end in a user turn"],
        ),
        (json.dumps({**ROW, "demonstration": None}), ["row 2: `demonstration` must be a text"]),
        (json.dumps({"prompt": "p", "demonstration": "d"}), ["row 2: has no `reference`"]),
        (
            json.dumps({**ROW, "reference": []}),
            ["row 2: `reference` is an empty list", "at least one"],
        ),
        (
            json.dumps({**ROW, "demonstration": "x\ud800"}),
            ["row 2: holds half a character ('\\ud800')", "both halves"],
        ),
        (f'{{"reference": 1{5000 * "0"}}}', ["row 2: cannot be read (Exceeds the limit"]),
        (9999 * "[", ["row 2: cannot be read (maximum recursion depth"]),
    ],
)
def test_wrong_row(line, said, order_file, tmp_path):
    path = order_file()
    (tmp_path / "digits-train.jsonl").write_text(json.dumps(ROW) + "\n" + line + "\n")
    found = refused(path)
    assert found.startswith(f"{tmp_path}/digits-train.jsonl, ")
    for part in said:
        assert part in found, found


def test_file_without_rows_or_text(order_file, tmp_path):
    path = order_file()
    (tmp_path / "vowels-test.jsonl").write_text("\n\n")
    assert refused(path) == f"{tmp_path}/vowels-test.jsonl: has no rows"
    (tmp_path / "vowels-test.jsonl").write_bytes(b"\xff\xfe")
    assert "vowels-test.jsonl: cannot be read" in refused(path)


@pytest.mark.parametrize(
    "change, said",
    [
        ("budget.promts=3", ["budget: promts: unknown key", "did you mean 'prompts'?"]),
        ("budget.prompts", ["--set budget.prompts: must be KEY=VALUE"]),
        ("budget.prompts=[", ["--set budget.prompts: its value is not YAML", "quote the value"]),
        (
            "budget.prompts=1" + 5000 * "0",
            ["--set budget.prompts: its value is not YAML (a whole number beyond 64 bits)"],
        ),
        ("name=" + 300 * "x", ["is no folder name", "at most 200"]),
        (
            "retention.embedded_facts.limit=8",
            ["retention: must be a text or a list, not a mapping"],
        ),
        ("budget.prompts=-1", ["budget: prompts: must be at least 1, not -1"]),
        ("name.first=x", ["name: must be a text, not a mapping"]),
        ("budget.prompts.x=3", ["--set budget.prompts.x: prompts holds a single value"]),
        ("skills.9.prompts=3", ["--set skills.9.prompts: there is no entry '9'"]),
        ("skills.vowels=3", ["--set skills.vowels: points at a whole entry"]),
        ("methods.dpo.learning_rate=1", ["methods.dpo: unknown method 'dpo'"]),
        ("nonsense=1", ["nonsense: unknown key", "known: "]),
    ],
)
def test_wrong_change(change, said, order_file):
    line = refused(order_file(), changes=[change])
    for part in said:
        assert part in line, line


def test_wrong_method_option(order_file):
    assert refused(order_file(), methods=["sdtf"]) == (
        "--method sdtf: is not in the order; did you mean 'sdft'? known: grpo, sdft, sft"
    )


@pytest.mark.parametrize("seed", [-3, 10**400])
def test_wrong_seed(seed, order_file):
    assert refused(order_file(), seeds=[0, seed]).startswith("--seed: ")


def test_a_gpu_that_is_not_there(order_file, monkeypatch):
    path = order_file(model={"name": "embedded", "device": "cuda"})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert (
        "model: device: there is no cuda: this machine has no GPU that PyTorch sees; "
        "use auto or cpu" in refused(path)
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert read_order(path).model.device == "cuda"
    assert "there is no cuda:1: this machine has 1 GPU that" in refused(
        path, changes=["model.device=cuda:1"]
    )


@pytest.mark.parametrize("entry", ["embedded_facts", {"task": "embedded_facts", "limit": 3}])
def test_a_change_finds_its_retention_task(entry, order_file):
    order = read_order(
        order_file(retention=["embedded_commonsense", entry]),
        ["retention.embedded_facts.limit=8", "retention.0.limit=4"],
    )
    assert [(t.task, t.limit) for t in order.suite.tasks] == [
        ("embedded_commonsense", 4),
        ("embedded_facts", 8),
    ]


def test_a_change_finds_a_label_with_dots(order_file):
    methods = {
        "a": {"method": "sft", "learning_rate": 1.0},
        "a.b": {"method": "sft", "learning_rate": 1.0},
    }
    order = read_order(
        order_file(methods=methods), ["methods.a.b.learning_rate=0.5", "methods.a.weight_decay=0.1"]
    )
    found = {
        label: (m.config.learning_rate, m.config.weight_decay) for label, m in order.methods.items()
    }
    assert found == {"a": (1.0, 0.1), "a.b": (0.5, 0.0)}


def test_changes_take_effect(order_file):
    changes = [
        "budget.prompts=7",
        "skills.digits.prompts=3",
        "methods.sft.learning_rate=1e-4",
        "evaluate.examples=2",
    ]
    order = read_order(order_file(), changes, ["sdft", "sft"], [3, 3, 1])
    assert [order.prompts(s) for s in order.skills] == [7, 3]
    assert order.methods["sft"].config.learning_rate == 1e-4 and order.evaluate.examples == 2
    assert [run.name for run in order.runs()] == [
        "sft-seed3",
        "sdft-seed3",
        "sft-seed1",
        "sdft-seed1",
    ]


@pytest.mark.parametrize(
    "code, said",
    [
        ("raise RuntimeError('two\\nlines')", ["cannot be imported (RuntimeError: two lines)"]),
        ("def broken(:", ["cannot be imported (SyntaxError: "]),
        ("import sys\nsys.exit(0)", ["cannot be imported (SystemExit: 0)"]),
        ("x = 1", ["defines 0 methods", "one class on top of Method is wanted"]),
        (
            "from harness.learning.method import Method\n"
            "class A(Method): pass\nclass B(Method): pass",
            ["defines 2 methods", "one class"],
        ),
    ],
)
def test_method_file(code, said, order_file, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    line = refused(order_file(methods={"mine": {"file": "mine.py"}}))
    assert "methods.mine: " in line and "mine.py" in line
    for part in said:
        assert part in line, line


def test_a_method_file_is_one_module_for_all_its_labels(order_file, tmp_path):
    """pickle finds a class by its name; another file of that name is another module."""
    code = (
        "from harness.learning.method import Method\n"
        "class Memory: pass\n"
        "class Mine(Method):\n"
        "    def state_dict(self): return {'m': Memory()}\n"
    )
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        (folder / "mine.py").write_text(code)
    order = read_order(
        order_file(
            methods={
                "a": {"file": "mine.py"},
                "b": {"file": "mine.py"},
                "c": {"file": "other/mine.py"},
            },
            grid={"a": {"learning_rate": [1e-4, 1e-3]}},
        )
    )
    made = [spec.cls(spec.config) for spec in order.methods.values()]
    assert len({type(m) for m in made}) == 2 and len(made) == 4
    for method in made:
        assert type(pickle.loads(pickle.dumps(method.state_dict()))["m"]) is type(
            method.state_dict()["m"]
        )


@pytest.mark.parametrize(
    "change",
    [
        "model=~unknown/x",
        "skills.vowels.train=~unknown/x.jsonl",
        "methods.sft={file: ~unknown/x.py}",
    ],
)
def test_the_home_of_an_unknown_user_is_one_line(change, order_file):
    with pytest.raises(UserError, match="~unknown/x"):
        read_order(order_file(), [change]).about()


def test_demonstrations_are_asked_for_before_anything_starts(order_file):
    path = order_file(skills=["elements"], methods={"sft": {}})
    read_order(path)  # has them


# ---- models and results folders ------------------------------------------------------------------


TEMPLATES = {
    "broken template": "{% for m in messages %}",
    "template that refuses": "{{ raise_exception('no user here') }}",
    "template that adds": "{{ messages[0].content + none }}",
    "no system": "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ m.content }}{% endfor %}",
}
CONFIGS = {
    "a list": None,
    "nothing": None,
    "unknown type": {"model_type": "no-such-model"},
    "t5": {"model_type": "t5"},
    "negative size": {"hidden_size": -1},
    "no size": {"hidden_size": "wide"},
}


def damaged(tiny, folder, how):
    shutil.copytree(tiny, folder)
    weights = folder / "model.safetensors"
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "half weights":
        weights.write_bytes(weights.read_bytes()[:9000])
    elif how == "other sizes":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    elif how == "a layer more":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    elif how == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
    elif how == "no chat template":
        (folder / "chat_template.jinja").unlink()
    elif how in TEMPLATES:
        (folder / "chat_template.jinja").write_text(TEMPLATES[how])
    elif how in CONFIGS:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps(
                {**config, **CONFIGS[how]} if CONFIGS[how] else [] if how == "a list" else {}
            )
        )
    return folder


@pytest.mark.parametrize(
    "how, said",
    [
        ("no config", "is not a model folder"),
        ("no weights", "cannot be loaded"),
        ("half weights", "cannot be loaded"),
        ("other sizes", "do not fit its config.json"),
        ("a layer more", "do not fit its config.json"),
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
    for start in (run_order, plan) if how in TEMPLATES or how in CONFIGS else (run_order,):
        with pytest.raises(UserError) as caught:
            start(read_order(path), out)
        line = str(caught.value)
        assert (
            line.startswith(f"{path}: model: ")
            and (str(folder) in line or how in TEMPLATES)
            and said in line
            and "\n" not in line
        )
        assert not out.exists()


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
    first, *errors = done.stderr.splitlines()
    assert first == f"[0:00] reads {path}" and len(errors) == 1 and not out.exists()


def test_hub_model_that_cannot_be_reached(order_file, tmp_path):
    line = "model: no-such-user/no-such-model cannot be loaded"
    with pytest.raises(UserError, match=line):
        run_order(read_order(order_file(model="no-such-user/no-such-model")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    assert json.loads((tmp_path / "out/results.json").read_text()) == json.loads(json.dumps(about))


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


def test_labels_that_the_report_has_itself(order_file):
    for label in ("base", "teacher", "oracle_rag"):
        with pytest.raises(
            UserError,
            match=f"methods.{label}: '{label}' is what the report calls a row of its own; "
            "choose another label",
        ):
            read_order(order_file(methods={label: {"method": "sft"}}))


def test_the_teacher_needs_what_its_template_shows(order_file):
    with pytest.raises(UserError, match=r"skill vowels, example .* has no source"):
        read_order(
            order_file(evaluate={"teacher": True}), ["skills.vowels.teacher_template=paper_source"]
        )


def test_methods_and_seeds_may_be_added(about, tmp_path):
    results = ResultsWriter(tmp_path / "out")
    results.open(about(methods={"sft": {}}, seeds=[2]))
    results.open(about(methods={"sdft": {}}, seeds=[0]))
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert list(found["methods"]) == ["sft", "sdft"] and found["seeds"] == [0, 2]


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("results.json", '{"version": 2}', "is of version 2, not 1"),
        ("results.json", "[1]", "is not a JSON object"),
        ("results.json", '{"version": 1, "methods": {}}', "has no `methods` and `seeds`"),
        ("results.json", "", "is not JSON"),
        (
            "results.json",
            '{"version": 1, "methods": {"sft": null}, "seeds": [0]}',
            "has no `methods` and `seeds`",
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


@pytest.mark.parametrize("options", [["--sead", "1"], ["--seed", "one"], ["--set"]])
def test_wrong_options_are_one_line(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_sequence.py", "order.yaml", *options])
    with pytest.raises(SystemExit) as caught:
        run_sequence.main()
    said = capsys.readouterr().err
    assert (
        caught.value.code == 2
        and said.startswith("error: run_sequence.py: ")
        and said.count("\n") == 1
        and options[0] in said
    )


def test_a_full_gpu_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught, reported():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: CUDA out of memory. Tried to allocate 2.00 GiB; docs/methods.md, Memory, "
    )


@pytest.mark.parametrize("how", [(), ("--check-teacher",), ("--plan",)])
def test_out_is_looked_at_before_a_model_is(how, order_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "run_sequence.py",
            str(order_file(model="no-such/model")),
            "--out",
            str(tmp_path / "out/sub"),
            *how,
        ],
    )
    with pytest.raises(SystemExit) as caught:
        run_sequence.main()
    found = capsys.readouterr()
    assert (
        caught.value.code == 2
        and found.out == ""
        and found.err == f"error: {tmp_path}/out: is a file; give a folder with --out\n"
    )


# ---- the command ---------------------------------------------------------------------------------


def start(*arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run_sequence.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


def test_command_prints_one_line_and_exits_with_2(order_file, tmp_path):
    done = start(order_file(budget={"prompts": 0}), "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"error: {tmp_path}/tiny.yaml: budget: prompts: must be at least 1, not 0\n"
    )
    assert not (tmp_path / "out").exists()


def test_command_with_a_damaged_model(tiny, order_file, tmp_path):
    folder = damaged(tiny, tmp_path / "model", "half weights")
    done = start(order_file(model=str(folder)), "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    first, *errors = done.stderr.splitlines()
    assert first == f"[0:00] reads {tmp_path}/tiny.yaml" and len(errors) == 1
    assert errors[0].startswith(f"error: {tmp_path}/tiny.yaml: model: {folder} cannot be loaded")
    assert not (tmp_path / "out").exists()


def exit_code(error):
    with pytest.raises(SystemExit) as caught, reported():
        raise error
    return caught.value.code


def test_reported(capsys):
    assert exit_code(UserError("a file", "two\nlines", "mend it")) == 2
    assert capsys.readouterr().err == "error: a file: two lines; mend it\n"
    assert exit_code(KeyboardInterrupt()) == 130
    assert (
        capsys.readouterr().err
        == "stopped; the same command goes on from the last committed point\n"
    )
    assert exit_code(OSError(28, "No space left on device", "x.json")) == 2
    assert capsys.readouterr().err.startswith("error: x.json: No space left on device; make room")
    for kind, number in (
        (NotADirectoryError, 20),
        (IsADirectoryError, 21),
        (FileExistsError, 17),
        (OSError, 36),
    ):
        assert exit_code(kind(number, "", "x.json")) == 2
        assert (
            capsys.readouterr().err == f"error: x.json: {os.strerror(number)}; give another path, "
            "or move away what stands there\n"
        )
    # bugs keep their traceback
    for bug in (ValueError("a bug"), FileNotFoundError(2, "No such file", "y")):
        with pytest.raises(type(bug)), reported():
            raise bug


def test_texts_become_numbers_where_yaml_reads_a_text():
    import dataclasses

    @dataclasses.dataclass
    class Config:
        rate: float = option(0.1, min=0)
        count: int | None = option(None, min=1)

    assert build(Config, {"rate": "1e-4"}, "x") == Config(rate=1e-4)
    assert build(Config, {"count": None}, "x") == Config()
    Choice = dataclasses.make_dataclass("Choice", [("kind", typing.Literal["a", "b"], option("a"))])
    assert build(Choice, {"kind": "b"}, "x").kind == "b"
    with pytest.raises(UserError, match="x: kind: unknown value 'c'; known: a, b"):
        build(Choice, {"kind": "c"}, "x")
    assert build(Config, None, "x") == Config()
