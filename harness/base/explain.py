"""What a key of an order means: meaning, values, default and an example, from the shipped schema.

Nothing here imports PyTorch, and no order is validated.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness.base.errors import UserError, did_you_mean
from harness.base.files import ROOT, read_json
from harness.base.strict_yaml import read_yaml

Json = dict[str, Any]

SCHEMA = ROOT / "harness" / "order.schema.json"
ORDERS = ROOT / "benchmarks" / "orders"
FIRST = "quickstart.yaml"  # of the orders that examples come from
LISTS = ("skills", "retention")  # sections that are lists of entries
PLUGGED = ("with", "parameters")  # sections of a method
BEFORE = {"method": "methods", "part": "with", "parametrisation": "parameters"}  # by kind
LABEL = "LABEL"  # of a method, in the path of a key that has no method's name
MOST = 12  # keys of one name that are explained
LONGEST = 100  # letters of a whole section as an example
LISTED = "docs/reference/order.md and docs/reference/methods.md list all"
SOME = {"integer": 1, "number": 0.5, "string": "text", "array": [], "object": {}}


class OrderKey(NamedTuple):
    """A key of an order: its dotted path, its schema, and whether it must be given.

    An entry of a list has no name in the path. An option of a part is with.PART.OPTION, one of a
    method methods.METHOD.OPTION.
    """

    path: str
    schema: Json
    is_required: bool


def explain(asked: str) -> str:
    """Meaning, values, default and an example of every key that ``asked`` may mean.

    asked: a dotted key as for --set, or its last part alone. Raises UserError for an unknown one.
    """
    words = [word for word in asked.replace("[", ".").replace("]", "").split(".") if word]
    found = _found(words)
    if not found:
        raise UserError(f"--explain {asked}", "there is no such key", _remedy(words))
    texts = [_text(alike) for alike in _alike(found)]
    if len(texts) > MOST:
        texts = [*texts[:MOST], f"... and {len(texts) - MOST} more: name the section as well"]
    return "\n\n".join(texts)


# ---- which key is meant --------------------------------------------------------------------------


@cache
def keys() -> tuple[OrderKey, ...]:
    """Every key of an order."""
    schema = read_json(SCHEMA, remedy="python docs/generate.py writes it")
    found = list(_inside(schema, ""))
    for name, each in schema["$defs"].items():
        kind, _, plugin = name.partition(".")
        if kind in BEFORE:
            found += _inside(each, f"{BEFORE[kind]}.{plugin}.")
    return (*found, *_inside(schema["$defs"]["own_file"], f"methods.{LABEL}."))


def _inside(schema: Json, before: str) -> Iterator[OrderKey]:
    """The keys of a mapping, and those inside them."""
    for name, each in schema.get("properties", {}).items():
        yield OrderKey(before + name, each, name in schema.get("required", ()))
        for form in _forms(each) if name != "methods" else ():
            yield from _inside(form, f"{before}{name}.")


def _forms(schema: Json) -> Iterator[Json]:
    """A schema, those of its alternatives, and those of a list's entries."""
    yield schema
    for form in (*schema.get("anyOf", ()), *filter(None, [schema.get("items")])):
        yield from _forms(form)


def _found(words: list[str]) -> list[OrderKey]:
    """The keys that a dotted key may mean: the one itself, or all that end with it."""
    for wanted in _spellings(words):
        path = ".".join(wanted)
        if whole := [key for key in keys() if key.path == path]:
            return whole
        if ending := [key for key in keys() if key.path.endswith(f".{path}")]:
            return ending
    return []


def _spellings(words: list[str]) -> Iterator[list[str]]:
    """A dotted key as it is, and without the names of entries."""
    if words:
        yield words
    for section in PLUGGED:
        if section in words[1:]:
            yield words[words.index(section, 1) :]
    if len(words) > 2 and words[0] in LISTS:
        yield [words[0], *words[2:]]  # skills.elements.prompts
    if len(words) == 3 and words[0] == "methods":
        yield [words[0], LABEL, words[2]]
        yield words[2:]


def _remedy(words: list[str]) -> str:
    paths = [key.path for key in keys()]
    names = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    last = (words[-1] if words else "", names)
    whole = (".".join(words), paths)
    for word, known in (whole, last) if len(words) > 1 else (last, whole):
        near, meant, _ = did_you_mean(word, known).partition(" known: ")
        if meant:
            return f"{near} {LISTED}"
    return LISTED


def _alike(found: list[OrderKey]) -> list[list[OrderKey]]:
    """Keys with the same schema together: methods share most of their options."""
    groups: dict[str, list[OrderKey]] = {}
    for key in found:
        groups.setdefault(json.dumps(key.schema, sort_keys=True), []).append(key)
    return list(groups.values())


# ---- what is said of it --------------------------------------------------------------------------


def _text(alike: list[OrderKey]) -> str:
    """The lines on keys of one schema."""
    path, schema, is_required = alike[0]
    paths = [key.path for key in alike]
    default = "none, it must be given" if is_required else yaml_line(schema.get("default"))
    lines = {
        "meaning": schema.get("description") or LISTED,
        "values": values(schema),
        "default": default,
        "example": _used(paths) or _made(path, schema),
    }
    return "\n".join([_joined(paths), *(f"  {name:<9}{text}" for name, text in lines.items())])


def _joined(paths: list[str]) -> str:
    """methods.{grpo, sft}.learning_rate of several paths that differ in one name."""
    parts = [path.split(".") for path in paths]
    first, *_ = parts
    if len(parts) == 1 or len({(part[0], *part[2:]) for part in parts}) > 1 or len(first) < 3:
        return ", ".join(paths)
    return ".".join([first[0], "{" + ", ".join(part[1] for part in parts) + "}", *first[2:]])


def values(schema: Json) -> str:
    """What a schema allows, in the words of a user of YAML."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(values, schema["anyOf"])))
    if "enum" in schema:
        return ", ".join(map(yaml_line, schema["enum"]))
    kind = schema.get("type", "object" if "$ref" in schema else "")
    if kind == "array" and "items" in schema:
        return f"a list, each {values(schema['items'])}"
    words = {
        "string": "a text",
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "array": "a list",
        "object": "a mapping",
        "null": "nothing",
    }
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
    said = [f"{word} {schema[bound]:,}" for bound, word in bounds.items() if bound in schema]
    return " ".join([words.get(kind, "any value"), *said])


def _used(paths: list[str]) -> str:
    """A key in use in a shipped order, as YAML on one line; empty where none has it."""
    for order in sorted(ORDERS.rglob("*.yaml"), key=lambda path: (path.name != FIRST, path)):
        for path in paths:
            for used in _uses(_load(order), path.split(".")):
                return f"{yaml_line(used)}   # {order.relative_to(ROOT).as_posix()}"
    return ""


@cache
def _load(order: Path) -> Any:
    return read_yaml(order, LISTED)


def _uses(order: Json, words: list[str]) -> Iterator[Json]:
    """The entries of an order that give a key."""
    section, *rest = words
    methods = {label: each or {} for label, each in (order.get("methods") or {}).items()}
    if section in PLUGGED and len(rest) == 2:
        for label, options in methods.items():
            plugged = options.get(section)
            given = plugged.get(rest[0]) if isinstance(plugged, dict) else None
            if isinstance(given, dict) and rest[1] in given:
                yield {"methods": {label: {section: {rest[0]: {rest[1]: given[rest[1]]}}}}}
    elif section == "methods" and len(rest) == 2:
        for label, options in methods.items():
            if rest[1] in options and options.get("method", label) == rest[0]:
                yield {"methods": {label: {rest[1]: options[rest[1]]}}}
    elif section in LISTS and len(rest) == 1:
        for each in order.get(section) or ():
            if isinstance(each, dict) and rest[0] in each:
                named = {name: each[name] for name in ("name", "task") if name in each}
                yield {section: [{**named, rest[0]: each[rest[0]]}]}
    else:
        node: Any = order
        for word in words:
            if not isinstance(node, dict) or word not in node:
                return
            node = node[word]
        if len(words) > 1 or len(yaml_line(node)) <= LONGEST:
            yield _nested(words, node)


def _made(path: str, schema: Json) -> str:
    """A key with a value that it may have, as YAML on one line."""
    words = path.split(".")
    if words[0] in PLUGGED:
        words = ["methods", "my_label", *words]
    elif words[0] in LISTS and len(words) > 1:
        named = {"name": "mine"} if words[0] == "skills" else {"task": "hellaswag"}
        entry = {**named, words[1]: _value(schema)}
        return yaml_line({words[0]: [entry]})
    return yaml_line(_nested(words, _value(schema)))


def _value(schema: Json) -> Any:
    """A value that a schema allows: another than the default where one is known."""
    forms = list(_forms(schema))
    default = schema.get("default")
    for form in forms:
        if others := [each for each in form.get("enum", ()) if each != default]:
            return others[0]
        if form.get("type") == "boolean":
            return not default
    if default:
        return default
    kinds = [form["type"] for form in forms if form.get("type") not in (None, "null")]
    lowest = max((form.get("minimum", 0) for form in forms), default=0)
    return lowest or SOME.get(kinds[0] if kinds else "", "text")


def _nested(words: list[str], value: Any) -> Any:
    """{word: {word: value}}."""
    for word in reversed(words):
        value = {word: value}
    return value


def yaml_line(value: Any) -> str:
    """A value as YAML on one line, a mapping of one key without braces."""
    if value is None:
        return "nothing"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...").strip()
    return text[1:-1] if isinstance(value, dict) and len(value) == 1 else text
