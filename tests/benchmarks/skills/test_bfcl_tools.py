"""The skill bfcl_tools against the benchmark's own checker, and its data, splits and reward."""

import importlib
import itertools
import json
import random
import sys
import types

import pytest

from benchmarks.skills import bfcl_tools
from harness.base.errors import UserError
from harness.skills.registry import get_skill
from harness.skills.skill import examples_fingerprint

SKILL = get_skill("bfcl_tools")
EXAMPLES = {split: SKILL.examples(split) for split in SKILL.splits}
EVERY = [e for rows in EXAMPLES.values() for e in rows]


def call(name, arguments):
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return f"Action: {name}\nAction Input: {text}"


@pytest.fixture(scope="module")
def bfcl():
    """f(name, arguments, reference) -> bool: the benchmark's own ast_checker, imported from the
    installed package.

    Its only heavy import is a table of API models, of which it reads one flag (whether a model's
    API forbids dots in names); that table is given here, everything else is the package's.
    """
    table = types.ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {"plain": types.SimpleNamespace(underscore_to_dot=False)}
    before = set(sys.modules)
    sys.modules[table.__name__] = table
    try:
        checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("bfcl_eval"):
                del sys.modules[name]
    python = checker.Language.PYTHON

    def check(name, arguments, declaration, answer):
        try:
            result = checker.ast_checker(
                [declaration],
                [{name: arguments}],
                [{declaration["name"]: answer}],
                python,
                "simple",
                "plain",
            )
        except (
            TypeError,
            AttributeError,
            OverflowError,
        ):  # it stumbles over a value: not a right one
            return False
        return result["valid"]

    return check


ROWS = bfcl_tools._read(bfcl_tools.CATEGORIES + bfcl_tools.FURTHER)
DECLARATIONS = {row["id"]: row["tool"] for row in ROWS}
ODD = [
    None,
    True,
    False,
    0,
    1,
    -1,
    1.0,
    2.5,
    1e400,
    10**400,
    "",
    " ",
    "None",
    "é",
    "北京",
    "\ud800",
    "a, b",
    "'x'",
    '"x"',
    [],
    [[]],
    [""],
    [1],
    [1.0],
    [True],
    ["a", 1],
    [{}],
    [None],
    [[1, 2]],
    {},
    {"a": 1},
    {"": ""},
    {"a": {"b": [1]}},
]


def spoil(value, pick):
    """A value near ``value``: another type, case, punctuation, order, length or member."""
    if isinstance(value, bool):
        return pick([not value, int(value), str(value), str(value).lower(), value])
    if isinstance(value, (int, float)):
        if abs(value) > 1e300:
            return value
        return pick(
            [float(value), int(value), value + 1, -value, str(value), [value], bool(value), value]
        )
    if isinstance(value, str):
        return pick(
            [
                value.upper(),
                value.replace(" ", ""),
                value + ".",
                f" {value}-",
                value.replace("'", '"'),
                value[:-1],
                f"*{value}^",
                value + "x",
                [value],
                {value: value},
                value,
            ]
        )
    if isinstance(value, list):
        inner = [spoil(v, pick) for v in value]
        return pick(
            [
                inner,
                value[::-1],
                value[:-1],
                value + value[:1],
                tuple(value),
                [value],
                value,
                *([[*value[:-1], spoil(value[-1], pick)]] if value else []),
            ]
        )
    if isinstance(value, dict):
        key = pick(list(value)) if value else "k"
        return pick(
            [
                {**value, key: spoil(value.get(key, 1), pick)},
                {k: v for k, v in value.items() if k != key},
                {**value, "unknown": 1},
                {key.upper(): value.get(key)},
                list(value.items()),
                value,
            ]
        )
    return pick(ODD)


def awkward(example, rng):
    """Arguments for an example: right ones, or changed in one to three places."""
    answer = example.reference["answer"]
    arguments = {}
    for name, values in answer.items():
        value = rng.choice(values)
        if value != "" or rng.random() < 0.1:
            arguments[name] = bfcl_tools._first_value([value])
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        name = rng.choice([*answer, "unknown"])
        change = rng.random()
        if change < 0.6:
            arguments[name] = spoil(arguments.get(name), rng.choice)
        elif change < 0.75:
            arguments[name] = rng.choice(ODD)
        elif change < 0.9:
            arguments.pop(name, None)
        else:
            arguments[rng.choice(["unknown", name.upper(), *example.reference["types"]])] = (
                rng.choice(ODD)
            )
    return arguments


def test_grade_equals_the_benchmarks_own_checker(bfcl):
    rng, right, seen = random.Random(0), 0, 0
    for _ in range(60):
        for example in EVERY:
            declaration, reference = DECLARATIONS[example.id], example.reference
            text = json.dumps(awkward(example, rng), ensure_ascii=rng.random() < 0.5)
            name = (
                reference["name"]
                if rng.random() < 0.95
                else rng.choice([reference["name"].upper(), "other", reference["name"] + "x"])
            )
            try:
                arguments = json.loads(text, parse_constant=lambda c: 1 / 0)
            except (ZeroDivisionError, ValueError):
                assert SKILL.grade(call(name, text), reference) == 0
                continue
            wanted = bfcl(name, arguments, declaration, reference["answer"])
            assert SKILL.grade(call(name, text), reference) == wanted, (example.id, text, reference)
            assert (SKILL.reward(call(name, text), reference) == 1) == wanted
            seen, right = seen + 1, right + wanted
    assert seen > 20000 and 0.1 < right / seen < 0.9


# possible values as the benchmark writes them, also of types that few of its rows have
FAMILIES = {
    "text": ["New York", "NY", "it's", "a-b"],
    "int": [1, 2, 0, 10**30],
    "float": [1.0, 2.5, 0.0],
    "bool": [True, False],
    "texts": [["a b", "C"], ["x"], []],
    "ints": [[1, 2], [0], []],
    "floats": [[1.0, 2.5], [0.5]],
    "lists": [[[1, 2], [3]], [["a"]]],
    "dict": [{"k": [1, ""], "m": ["x y"]}, {"k": [True]}, {"l": [["a b"], [1]]}],
    "dicts": [[{"k": [1, ""]}, {"m": ["x y"]}], [{"k": [2]}], []],
}
KINDS = [
    ("string", None),
    ("integer", None),
    ("float", None),
    ("boolean", None),
    ("dict", None),
    ("any", None),
    *(
        (outer, inner)
        for outer in ("array", "tuple")
        for inner in ("string", "integer", "float", "boolean", "dict", "array")
    ),
]


def test_checker_rules_on_declarations_of_every_type(bfcl):
    """Every declared type with possible values of every type, fitting or not (BFCL then takes them
    for variables).
    """
    rng, outcomes = random.Random(1), [0, 0]
    values = [v for v in ODD if v != float("inf")]
    for _ in range(30000):
        kind, inner = rng.choice(KINDS)
        family = FAMILIES[rng.choice(list(FAMILIES))]
        possible = rng.sample(family, rng.randint(1, len(family))) + rng.choice([[], [""]])
        rng.shuffle(possible)
        declared = {"type": kind, **({"items": {"type": inner}} if inner else {})}
        required = rng.choice([[], ["p"]])
        near = bfcl_tools._first_value([rng.choice(possible)])
        value = rng.choice([near, spoil(near, rng.choice), rng.choice(values)])
        arguments = json.loads(json.dumps({"p": value} if rng.random() < 0.95 else {}))
        wanted = bfcl(
            "f",
            arguments,
            {"name": "f", "parameters": {"properties": {"p": declared}, "required": required}},
            {"p": possible},
        )
        reference = {
            "name": "f",
            "required": required,
            "types": {"p": [kind, inner]},
            "answer": {"p": possible},
        }
        assert bfcl_tools._call_is_right(arguments, reference) == wanted, (arguments, reference)
        outcomes[wanted] += 1
    assert min(outcomes) > 2000


REFERENCE = {
    "name": "f.g",
    "required": ["a"],
    "types": {"a": ["string", None], "b": ["dict", None], "n": ["float", None]},
    "answer": {
        "a": ["New York", "NY", "Action: h", "a\nAction: h"],
        "b": ["", {"k": [1, ""], "m": ["x y"]}],
        "n": ["", 2.0],
    },
}


@pytest.mark.parametrize(
    "text, grade",
    [
        (call("f.g", {"a": "new-york."}), 1),
        (call("f.g", {"a": "NY", "b": {"m": "XY"}, "n": 2}), 1),
        ('Sure!\n  Action:   f.g  \nAction Input:\n\n{\n "a": "NY"\n}\nDone.', 1),
        # the paper's extraction knows no order either
        ('Action Input: {"a": "NY"}\nAction: f.g', 1),
        (
            call("f.g", '{"a": "x", "a": "NY"}'),
            1,
        ),  # a JSON decoder keeps the last of two equal keys
        (call("f.g", {"a": "Action: h"}), 1),  # a line of its own is meant
        (call("f.g", {"a": "a\nAction: h"}), 1),
        (call("f.g", {"a": "NY", "b": {"k": 1}}), 0),  # m is missing
        (call("f.g", {"a": "NY", "n": True}), 0),
        (call("f.g", {"a": "NY", "n": "2.0"}), 0),
        (call("f.g", {"b": {"m": "xy"}}), 0),
        (call("f.g", {"a": "NY", "c": 1}), 0),
        (call("F.G", {"a": "NY"}), 0),
        (call("f.g", '{"a": "NY"'), 0),
        (call("f.g", "{'a': 'NY'}"), 0),
        (call("f.g", '{"a": “NY”}'), 0),
        (call("f.g", '{"a": "NY", "n": NaN}'), 0),
        (call("f.g", '["a", "NY"]'), 0),
        (call("f.g", '{"a": ' + "[" * 100000), 0),
        (call("f.g", '{"a": "NY", "n": ' + "9" * 5000 + "}"), 0),
        # two calls where one is right, as in BFCL
        (call("f.g", {"a": "NY"}) + "\n" + call("f.g", {"a": "NY"}), 0),
        (call("f.g", {"a": "NY"}) + "\nAction: h", 0),
        (call("f.g", {"a": "NY"}) + '\nAction Input: {"a": "NY"}', 0),
        ('Action: f.g {"a": "NY"}', 0),
        ("f.g(a='NY')", 0),
        ("", 0),
    ],
)
def test_what_counts_as_one_call(text, grade):
    assert SKILL.grade(text, REFERENCE) == grade
    reward = SKILL.reward(text, REFERENCE)
    assert reward == 1 if grade else 0 <= reward < 1


def test_reward_parts():
    ladder = [
        ("no idea", 0.0),
        ("Action: h", 0.1),
        ("Action: f.g", 0.3),
        ("Action: f.g\nAction Input: {broken", 0.4),
        ("Action: h\nAction Input: {}", 0.3),
        (call("f.g", {}), 0.5),
        (call("f.g", {"z": 1}), 0.5),
        (call("f.g", {"a": "Oslo", "z": 1}), 0.6),  # one of two argument names, its value wrong
        (call("f.g", {"a": "Oslo"}), 0.7),
        (call("f.g", {"a": "NY", "n": 3}), 0.8),
        (call("f.g", {"a": "NY"}), 1.0),
    ]
    for text, wanted in ladder:
        assert SKILL.reward(text, REFERENCE) == pytest.approx(wanted), text
    twice = call("f.g", {"a": "NY"}) + "\n" + call("f.g", {"a": "NY"})
    assert SKILL.reward(twice, REFERENCE) == pytest.approx(0.9)


def test_splits_are_large_enough_and_share_no_tool_and_no_question():
    sizes = {split: len(rows) for split, rows in EXAMPLES.items()}
    assert sizes["train"] >= 200 and sizes["validation"] >= 48 and sizes["test"] >= 200
    tools = {
        split: {"".join(filter(str.isalnum, e.reference["name"].lower())) for e in rows}
        for split, rows in EXAMPLES.items()
    }
    questions = {
        split: {e.prompt[-1]["content"].rsplit("\n\n", 1)[1].lower() for e in rows}
        for split, rows in EXAMPLES.items()
    }
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not tools[a] & tools[b] and not questions[a] & questions[b]
    assert len({e.id for e in EVERY}) == len(EVERY)
    assert not any(e.reference["name"] == "get_time" for e in EVERY)  # the tool of the earlier turn


def test_first_test_examples_stand_for_all():
    """Shares of sources and mean sizes of the first 48 are within 2.5 standard errors of those of
    all, but for the further category, which stands behind them.
    """
    rows = [e for e in EXAMPLES["test"] if not e.id.startswith("live_multiple")]
    assert rows == EXAMPLES["test"][: len(rows)] and len(rows) == 154
    for value in (
        lambda e: e.id.startswith("live"),
        lambda e: e.id.startswith("multiple"),
        lambda e: len(e.prompt[-1]["content"]),
        lambda e: len(e.demonstration),
        lambda e: len(e.reference["required"]),
    ):
        every = [float(value(e)) for e in rows]
        mean = sum(every) / len(every)
        spread = (sum((v - mean) ** 2 for v in every) / len(every) / 48) ** 0.5
        assert abs(sum(every[:48]) / 48 - mean) < 2.5 * spread


def test_demonstrations_are_right_and_short_and_leave_optional_arguments_out():
    for example in EVERY:
        assert (
            SKILL.grade(example.demonstration, example.reference)
            == SKILL.reward(example.demonstration, example.reference)
            == 1
        )
        assert len(example.demonstration) < 230 and bfcl_tools.size(example.demonstration) <= 56
        given = json.loads(example.demonstration.split("Action Input: ")[1])
        left_out = {k for k, v in example.reference["answer"].items() if "" in v} - set(
            example.reference["required"]
        )
        assert not left_out & set(given)
        assert example.reference["name"] in example.prompt[-1]["content"]


def test_other_demonstrations_are_wrong():
    """The grade depends on the question: a neighbour's call is not right."""
    rows = EXAMPLES["test"]
    assert not any(SKILL.grade(b.demonstration, a.reference) for a, b in itertools.pairwise(rows))


def test_data_are_pinned(monkeypatch):
    assert {
        split: examples_fingerprint(rows) for split, rows in EXAMPLES.items()
    } == SKILL.checksums
    monkeypatch.setattr(bfcl_tools, "QUESTION_SIZE", 100)
    with pytest.raises(UserError, match="SHA-256"):
        bfcl_tools.BfclTools().examples("test")


def test_missing_or_broken_package_is_a_user_error(monkeypatch, tmp_path):
    monkeypatch.setattr(bfcl_tools.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps bfcl-eval==2026\.3\.23"):
        bfcl_tools.BfclTools().examples("test")
    monkeypatch.setattr(
        bfcl_tools.importlib.util,
        "find_spec",
        lambda name: types.SimpleNamespace(submodule_search_locations=[tmp_path]),
    )
    with pytest.raises(UserError, match="cannot be read"):
        bfcl_tools.BfclTools().examples("test")


def test_package_is_not_imported():
    assert "bfcl_eval" not in vars(bfcl_tools) and not any(
        name.startswith("bfcl_eval") for name in sys.modules
    )
