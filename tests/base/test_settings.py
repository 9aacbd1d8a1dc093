"""Settings from mappings, and their JSON schema: both accept and refuse the same mappings."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.base.settings import build, fields_of, json_schema, option
from harness.evaluation.settings import KL, Evaluate, PassAtK
from harness.runs.schema import Budget, Checkpoints, ModelSpec, Schema, SkillSpec
from harness.sampling.settings import Rollout, VLLMConfig


@dataclass(frozen=True)
class Schedule:
    kind: str = option("cosine", "shape of the learning rate", choices=("cosine", "constant"))
    warmup: int = option(10, "steps", min=0)


@dataclass
class Learning:
    rate: float = option(help="peak learning rate", above=0, max=1)
    seeds: list[int] = option([0], "one run a seed", min=0)
    epochs: float | None = option(None, "passes over the data", above=0)
    model: str | dict = option("embedded", "a name or a mapping")
    names: str | list[str] = option([], "of whom", choices=("a", "b"))
    masters: typing.Literal["device", 32] = option("device")
    tail: bool = option(True)
    schedule: Schedule | None = option(Schedule(), "of the learning rate")
    notes: Any = option(None)


def test_the_schema_says_what_the_options_say():
    schema = json_schema(Learning)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    assert schema["required"] == ["rate"]
    assert schema["properties"] == {
        "rate": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "peak learning rate",
        },
        "seeds": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "description": "one run a seed",
            "default": [0],
        },
        "epochs": {
            "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}],
            "description": "passes over the data",
            "default": None,
        },
        "model": {
            "anyOf": [{"type": "string"}, {"type": "object"}],
            "description": "a name or a mapping",
            "default": "embedded",
        },
        "names": {
            "anyOf": [
                {"type": "string", "enum": ["a", "b"]},
                {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
            ],
            "description": "of whom",
            "default": [],
        },
        "masters": {"enum": ["device", 32], "default": "device"},
        "tail": {"type": "boolean", "default": True},
        "schedule": {
            "anyOf": [
                {
                    "title": "Schedule",
                    "type": "object",
                    "properties": {
                        "kind": {
                            "type": "string",
                            "enum": ["cosine", "constant"],
                            "description": "shape of the learning rate",
                            "default": "cosine",
                        },
                        "warmup": {
                            "type": "integer",
                            "minimum": 0,
                            "description": "steps",
                            "default": 10,
                        },
                    },
                    "required": [],
                    "additionalProperties": False,
                },
                {"type": "null"},
            ],
            "description": "of the learning rate",
            "default": {"kind": "cosine", "warmup": 10},
        },
        "notes": {"default": None},
    }


GOOD = [
    {"rate": 0.5},
    {"rate": 1, "seeds": [], "epochs": 2, "model": {"name": "x"}, "names": "a"},
    {"rate": 0.1, "names": ["b", "a"], "masters": 32, "tail": False, "notes": {"any": [1]}},
    {"rate": 0.1, "schedule": {"kind": "constant", "warmup": 0}, "epochs": None},
    {"rate": 0.1, "schedule": None},
]
BAD = [
    ({}, "x: rate: is missing; peak learning rate"),
    ({"rate": 0}, "x: rate: must be above 0, not 0.0"),
    ({"rate": 1.5}, "x: rate: must be at most 1, not 1.5"),
    ({"rate": True}, "x: rate: must be a number, not True"),
    ({"rate": 0.1, "seeds": 3}, "x: seeds: must be a list, not 3"),
    ({"rate": 0.1, "seeds": [0, -1]}, "x: seeds: must be at least 0, not -1"),
    ({"rate": 0.1, "seeds": [0, "one"]}, "x: seeds[1]: must be a whole number, not the text 'one'"),
    ({"rate": 0.1, "epochs": 0}, "x: epochs: must be above 0, not 0.0"),
    ({"rate": 0.1, "model": 3}, "x: model: must be a text or a mapping, not 3"),
    ({"rate": 0.1, "names": ["c"]}, "x: names: unknown value 'c'; known: a, b"),
    ({"rate": 0.1, "masters": 16}, "x: masters: unknown value 16; known: 32, device"),
    ({"rate": 0.1, "tail": "yes"}, "x: tail: must be true or false, not the text 'yes'"),
    (
        {"rate": 0.1, "schedule": {"warm_up": 1}},
        "x: schedule: warm_up: unknown key; did you mean 'warmup'? known: kind, warmup",
    ),
    ({"rate": 0.1, "schedule": 3}, "x: schedule: must be a mapping, not 3"),
    (
        {"rate": 0.1, "rates": 1},
        "x: rates: unknown key; did you mean 'rate'? "
        "known: epochs, masters, model, names, notes, rate, schedule, seeds, tail",
    ),
]


@pytest.mark.parametrize("mapping", GOOD)
def test_a_good_mapping(mapping):
    settings = build(Learning, mapping, "x")
    assert valid(mapping, json_schema(Learning))
    values = dataclasses.asdict(settings)
    assert values == {**dataclasses.asdict(Learning(rate=0)), **mapping}
    assert valid(values, json_schema(Learning))


@pytest.mark.parametrize(("mapping", "line"), BAD)
def test_a_bad_mapping(mapping, line):
    with pytest.raises(UserError) as refused:
        build(Learning, mapping, "x")
    assert str(refused.value) == line
    assert not valid(mapping, json_schema(Learning))


@pytest.mark.parametrize(
    "section",
    [ModelSpec, Budget, Checkpoints, SkillSpec, Schema, Rollout, VLLMConfig, Evaluate, KL, PassAtK],
)
def test_every_section_of_an_order_has_a_schema_that_its_defaults_meet(section):
    schema = json_schema(section)
    defaults = {
        name: each["default"] for name, each in schema["properties"].items() if "default" in each
    }
    assert set(defaults) | set(schema["required"]) == {f.name for f in dataclasses.fields(section)}
    assert valid(defaults, {**schema, "required": []})
    assert all(each["description"] for each in schema["properties"].values())


# ---- a validator ---------------------------------------------------------------------------------


def valid(value, schema):
    """Whether ``value`` meets ``schema``: by the package jsonschema, or by the rules below."""
    try:
        from jsonschema import Draft202012Validator
    except ModuleNotFoundError:
        return meets(value, schema)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema).is_valid(value)


TYPES = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def meets(value, schema):
    """The keywords that ``json_schema`` writes, after the specification."""
    if "anyOf" in schema and not any(meets(value, each) for each in schema["anyOf"]):
        return False
    if "enum" in schema and not any(value == c and type(value) is type(c) for c in schema["enum"]):
        return False
    if kind := schema.get("type"):
        if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
            return False
        if kind == "array":
            return all(meets(each, schema.get("items", {})) for each in value)
        if kind == "object" and "properties" in schema:
            return meets_properties(value, schema)
        if kind in ("number", "integer"):
            return (
                value >= schema.get("minimum", value)
                and value <= schema.get("maximum", value)
                and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            )
    return True


def meets_properties(value, schema):
    properties = schema["properties"]
    return (
        set(schema["required"]) <= set(value)
        and set(value) <= set(properties)
        and all(meets(each, properties[name]) for name, each in value.items())
    )


def test_another_default_keeps_the_rules_of_the_base():
    """A user's ``Config`` may give a default anew; that, too, has to be a value that is allowed."""

    @dataclass
    class Base:
        size: int = option(8, "how many", min=1)
        file: str | None = option(None, "a file", path=True)

    @dataclass
    class Own(Base):
        size: int = -1

    @dataclass
    class Right(Base):
        size: int = 4

    with pytest.raises(UserError, match="mine: size: must be at least 1, not -1"):
        build(Own, {}, "mine")
    assert build(Own, {"size": 2}, "mine").size == 2
    assert build(Right, {}, "mine").size == 4
    with pytest.raises(UserError, match="mine: size: must be at least 1, not 0"):
        build(Right, {"size": 0}, "mine")
    assert fields_of(Right)["file"].metadata["path"]
    assert json_schema(Right)["properties"]["size"] == {
        "type": "integer",
        "minimum": 1,
        "description": "how many",
        "default": 4,
    }
    assert not Right.__dataclass_fields__["size"].metadata  # the class stays as it is
