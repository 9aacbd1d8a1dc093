"""Wrong input ends in one line that names the place, what is wrong and what would be right, before
anything is written.
"""

import json

import pytest
import yaml

from harness.base.errors import UserError
from harness.runs.engines import advice
from harness.runs.plan import plan
from harness.runs.reading import read_order
from tests.runs.refusals import DROP, ROW, at, refused


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
            ["skills", 0, "teacher_template"],
            [{"role": "user", "content": "{question} {demonstraton}"}],
            ["teacher_template: shows {demonstraton}", "did you mean {demonstration}?"],
        ),
        (
            ["skills", 0, "teacher_template"],
            [{"role": "user", "content": "{demonstration}"}],
            ["skills[0]: teacher_template: shows no {question}"],
        ),
        (
            ["skills", 0, "teacher_template"],
            [{"role": "user", "content": "{question}, with {a: 1}"}],
            ["skills[0]: teacher_template: shows neither {demonstration} nor {source}"],
        ),
        (
            ["skills", 0, "teacher_template"],
            [
                {"role": "user", "content": "{question}"},
                {"role": "asistant", "content": "{demonstration}"},
                {"role": "user", "content": "{question}"},
            ],
            ["skills[0]: teacher_template: must be messages of system, user and assistant"],
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
                "known: cpt, dft, gkd, grpo, in_context, offline_distillation, psft, sdft, sdpo",
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
        assert line.endswith(f"; or --set {section}.engine=transformers")
    line = refused(order_file(rollout={"engine": "vllm"}, evaluate={"engine": "vllm"}))
    assert line.endswith("--set rollout.engine=transformers evaluate.engine=transformers")
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
        ("budget:\n  prompts: 010\n", ["line 2", "(010 is 8 in YAML 1.1, octal: write 8 or 10)"]),
        ("seeds: [0, -0_12]\n", ["line 1", "-0_12 is -10 in YAML 1.1, octal: write -10 or -12"]),
        ("methods: {010: {}}\n", ["line 1", "octal: write 8 or 10"]),
        (
            "budget:\n  prompts: 1:30\n",
            ["line 2", "1:30 is 90 in YAML 1.1, to the base of 60: write 90 or '1:30'"],
        ),
        ("rollout: {temperature: 1:30.5}\n", ["1:30.5 is 90.5 in YAML 1.1", "write 90.5 or"]),
        ("name: 2024-13-45\n", ["is not YAML (no timestamp stands there: month must be in 1..12)"]),
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
        (json.dumps({**ROW, "demonstration": " \n"}), ["row 2: `demonstration` is empty"]),
        (json.dumps({**ROW, "demonstration": ""}), ["row 2: `demonstration` is empty"]),
        (json.dumps({**ROW, "prompt": "\n "}), ["row 2: `prompt` is empty; it asks what is to be"]),
        (
            json.dumps({**ROW, "prompt": [{"role": "user", "content": ""}]}),
            ["row 2: `prompt` is empty"],
        ),
        (json.dumps({**ROW, "id": {"a": 1}}), ['row 2: `id` is {"a": 1}, not a text or a number']),
        (json.dumps({**ROW, "id": True}), ["row 2: `id` is true, not a text or a number"]),
        (json.dumps({**ROW, "id": " "}), ['row 2: `id` is " ", not a text or a number']),
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


@pytest.mark.parametrize("name", ["$\\frac$", "a\nb", "<b>x</b>", "..", "=1+1"])
def test_a_name_that_cannot_be_shown_is_refused(order_file, name):
    path = order_file()
    mapping = yaml.safe_load(path.read_text())
    mapping["skills"][1]["name"] = name
    path.write_text(yaml.safe_dump(mapping))
    line = refused(path)
    assert "skills[1]: name: " in line and "is no name to show" in line
