"""The shipped JSON schema of an order, what --explain says of it, and completion in a shell."""

import copy
import json
import os
import re
import subprocess
import sys

import pytest
import yaml

import run_sequence
from harness.__main__ import main as small_command
from harness.base.errors import UserError
from harness.base.explain import SCHEMA, explain, keys
from harness.base.files import ROOT
from harness.runs.schema import Schema
from tests.base.test_settings import TYPES

ORDERS = sorted((ROOT / "benchmarks" / "orders").rglob("*.yaml"))
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.yaml"))
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # a text to YAML 1.1, a number to YAML 1.2


def in_yaml_1_2(value):
    """What an editor reads where PyYAML read ``value``."""
    if isinstance(value, dict):
        return {str(key): in_yaml_1_2(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(in_yaml_1_2, value))
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return float(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def schema():
    return json.loads(SCHEMA.read_text())


def read(path):
    return in_yaml_1_2(yaml.safe_load(path.read_text()))


def valid(order):
    """Whether an order meets the schema: by the package jsonschema, or by the rules below."""
    whole = schema()
    try:
        from jsonschema import Draft202012Validator
    except ModuleNotFoundError:
        return meets(order, whole, whole["$defs"])
    Draft202012Validator.check_schema(whole)
    return Draft202012Validator(whole).is_valid(order)


def meets(value, rule, definitions):
    """The keywords that the schema has, after the specification."""

    def inner(each, of):
        return meets(each, of, definitions)

    known = {"$schema", "$defs", "title", "description", "default", "type", "$ref", "anyOf", "enum"}
    known |= {"properties", "required", "additionalProperties", "maxProperties", "items"}
    known |= {"minimum", "maximum", "exclusiveMinimum"}
    assert set(rule) <= known, set(rule) - known
    if "$ref" in rule and not inner(value, definitions[rule["$ref"].removeprefix("#/$defs/")]):
        return False
    if "anyOf" in rule and not any(inner(value, each) for each in rule["anyOf"]):
        return False
    if "enum" in rule and value not in rule["enum"]:
        return False
    kind = rule.get("type")
    is_bool = isinstance(value, bool) and kind != "boolean"
    if kind and (is_bool or not isinstance(value, TYPES[kind])):
        return False
    if isinstance(value, list):
        return all(inner(each, rule.get("items", {})) for each in value)
    if isinstance(value, dict):
        named, others = rule.get("properties", {}), rule.get("additionalProperties", True)
        rules = {key: named.get(key, {} if others is True else others) for key in value}
        return (
            set(rule.get("required", ())) <= set(value)
            and len(value) <= rule.get("maxProperties", len(value))
            and all(of is not False and inner(value[key], of) for key, of in rules.items())
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            rule.get("minimum", value) <= value <= rule.get("maximum", value)
            and rule.get("exclusiveMinimum", value - 1) < value
        )
    return True


@pytest.mark.parametrize("path", [*ORDERS, *EXAMPLES], ids=lambda path: path.stem)
def test_every_shipped_order_meets_it(path):
    assert valid(read(path)), path


@pytest.mark.parametrize("path", [*ORDERS, *EXAMPLES], ids=lambda path: path.stem)
def test_every_shipped_order_names_it(path):
    first = path.read_text().splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert os.path.normpath(path.parent / named) == str(SCHEMA)


ENTRY = {
    "name": "mine",
    "skills": ["elements", {"name": "mine", "train": "a.jsonl", "prompts": 3}],
    "methods": {"sft": {"learning_rate": 1e-5}},
    "budget": {"prompts": 8},
}
GOOD = [
    ("methods.sft", None),
    ("methods.mine", {"method": "sdft", "teacher": "frozen"}),
    ("methods.mine", {"file": "mine.py", "anything": 1}),
    ("methods.sft", {"file": "mine.py", "anything": 1}),
    ("methods.mine", {"preset": "opsd"}),
    ("methods.sft", {"with": {"replay": {"ratio": 0.1}, "own": {"file": "p.py", "x": 1}}}),
    ("methods.sft", {"with": {"replay": None}, "parameters": "lora"}),
    ("methods.sft", {"parameters": {"lora": {"rank": 8}}}),
    ("model", {"name": "embedded", "dtype": "float32"}),
    ("evaluate", {"kl": {"prompts": 4}, "drift": {}, "pass_at_k": None}),
    ("retention", ["hellaswag", {"task": "piqa", "limit": 8}]),
    ("orders", "latin_square"),
    ("grid", {"sft": {"learning_rate": [1e-5, 1e-4]}}),
]
BAD = [
    ("nam", "x"),
    ("budget", {"promts": 8}),
    ("budget", {"prompts": 0}),
    ("budget", None),
    ("methods.sft", {"learning_rat": 1e-5}),
    ("methods.sft", {"teacher": "frozen"}),  # an option of sdft
    ("methods.mine", {"learning_rate": 1e-5}),  # which method?
    ("methods.mine", {"method": "sft", "teacher": "frozen"}),
    ("methods.mine", {"method": "stf"}),
    ("methods.mine", {"preset": "opds"}),
    ("methods.sft", {"with": {"replay": {"rato": 0.1}}}),
    ("methods.sft", {"with": {"replai": {}}}),
    ("methods.sft", {"parameters": {"lora": {"rank": "eight"}}}),
    ("methods.sft", {"parameters": {"lora": {}, "osf": {}}}),
    ("methods.sft", {"parameters": "lorra"}),
    ("model", {"name": "embedded", "dtype": "float33"}),
    ("evaluate", {"kl": {"promts": 4}}),
    ("skills", [{"train": "a.jsonl"}]),
    ("skills", [{"name": "mine", "trian": "a.jsonl"}]),
    ("seeds", [-1]),
    ("retention", [{"limit": 8}]),
]


def changed(key, value):
    order = copy.deepcopy(ENTRY)
    node = order
    *path, last = key.split(".")
    for word in path:
        node = node[word]
    node[last] = value
    return order


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_what_it_allows(key, value):
    assert valid(changed(key, value))


@pytest.mark.parametrize(("key", "value"), BAD)
def test_what_it_refuses(key, value):
    assert valid(ENTRY)
    assert not valid(changed(key, value))


def test_every_key_has_a_meaning():
    without = [key.path for key in keys() if not key.schema.get("description")]
    assert not without
    assert {
        "budget.prompts",
        "with.replay.ratio",
        "parameters.lora.rank",
        "evaluate.kl.prompts",
    } <= {key.path for key in keys()}
    assert set(Schema.__dataclass_fields__) <= {key.path for key in keys()}


# ---- --explain -----------------------------------------------------------------------------------


def test_a_key_is_explained():
    assert explain("budget.prompts") == (
        "budget.prompts\n"
        "  meaning  prompts drawn for each skill, the same for every method\n"
        "  values   a whole number from 1 to 10,000,000 or nothing\n"
        "  default  nothing\n"
        "  example  budget: {prompts: 128}   # benchmarks/orders/quickstart.yaml"
    )
    required = explain("skills.name").splitlines()
    assert required[3] == "  default  none, it must be given"


@pytest.mark.parametrize(
    ("asked", "title", "example"),
    [
        ("skills.elements.prompts", "skills.prompts", "skills: [{name: "),
        ("skills[0].prompts", "skills.prompts", "skills: [{name: "),
        ("methods.sdft.skip_tokens", "methods.sdft.skip_tokens", "skip_tokens: 0"),
        ("methods.my_label.skip_tokens", "methods.", "skip_tokens: "),
        ("methods.my_label.with.replay.ratio", "with.replay.ratio", "with: {replay: {ratio: "),
        ("with.replay.ratio", "with.replay.ratio", "with: {replay: {ratio: "),
        ("parameters.lora.rank", "parameters.lora.rank", "parameters: {lora: {rank: "),
        ("evaluate.kl.prompts", "evaluate.kl.prompts", "evaluate: {kl: {prompts: "),
        ("checkpoints.keep", "checkpoints.keep", "checkpoints: {keep: none}"),
        ("methods.mine.file", "methods.LABEL.file", "methods: {LABEL: {file: text}}"),
        ("rollout.top_p", "rollout.top_p", "rollout: {top_p: "),
    ],
)
def test_ways_to_ask(asked, title, example):
    said = explain(asked)
    assert said.startswith(title)
    assert example in said.splitlines()[4]


def test_a_bare_name_is_explained_wherever_it_stands():
    titles = [text.splitlines()[0] for text in explain("prompts").split("\n\n")]
    assert {"budget.prompts", "skills.prompts", "evaluate.{pass_at_k, kl}.prompts"} <= set(titles)
    rates = explain("learning_rate").split("\n\n")
    assert any(text.startswith("methods.{") and "sft" in text for text in rates)


def test_an_example_is_one_line_of_yaml_that_has_the_key():
    for key in keys():
        last = explain(key.path).split("\n\n")[0].splitlines()[4]
        example = last.removeprefix("  example  ").partition("   # ")[0]
        found = yaml.safe_load("{" + example + "}")
        assert isinstance(found, dict) and key.path.rpartition(".")[2] in str(found), key.path


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("budget.promts", "did you mean 'budget.prompts'?"),
        ("learning_rat", "did you mean 'learning_rate'?"),
        ("skills.elements.max_new_token", "did you mean 'skills.max_new_tokens'?"),
        ("zzz", "docs/reference/order.md"),
        ("", "docs/reference/order.md"),
    ],
)
def test_an_unknown_key_names_the_nearest(asked, near):
    with pytest.raises(UserError) as refused:
        explain(asked)
    said = str(refused.value)
    assert said.startswith(f"--explain {asked}: there is no such key; ") and near in said


def test_the_command_explains_without_an_order(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_sequence.py", "--explain", "seeds"])
    run_sequence.main()
    assert capsys.readouterr().out.startswith("seeds\n  meaning  one run a method and seed\n")
    monkeypatch.setattr(sys, "argv", ["run_sequence.py", "--explain", "sedes"])
    with pytest.raises(SystemExit) as caught:
        run_sequence.main()
    assert caught.value.code == 2 and "did you mean 'seeds'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["run_sequence.py", "--plan"])
    with pytest.raises(SystemExit) as caught:
        run_sequence.main()
    assert caught.value.code == 2 and "required: order" in capsys.readouterr().err


def test_the_schema_is_printed(capsys):
    small_command(["schema"])
    assert capsys.readouterr().out == SCHEMA.read_text()


# ---- completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["run_sequence.py", "--pl"], "--plan"),
        (["./run_sequence.py", "order.yaml", "--expl"], "--explain"),
        (["report.py", "--publ"], "--published"),
        (["-m", "harness", "sch"], "schema"),
        (["-m", "harness", "list", "ski"], "skills"),
        (["-m", "harness.wise_ft", "--al"], "--alpha"),
        (["run_sequence.py", "order"], ""),  # a file
        (["other.py", "--pl"], ""),
    ],
)
def test_a_shell_completes(words, found, capsys):
    small_command(["completion", "bash"])
    script = capsys.readouterr().out
    line = f"{script}\nCOMP_WORDS=({sys.executable} {' '.join(words)}); COMP_CWORD={len(words)}\n"
    said = subprocess.run(
        ["bash", "-c", line + '_harness; echo "${COMPREPLY[@]}"'],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (said.stdout.strip(), said.stderr) == (found, "")


def test_zsh_loads_the_same(capsys):
    small_command(["completion", "zsh"])
    assert capsys.readouterr().out.splitlines()[0] == "autoload -U +X bashcompinit && bashcompinit"
