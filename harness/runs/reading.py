"""Reads an order file, and changes keys of it."""

from pathlib import Path

import yaml

from harness.base.errors import UserError, did_you_mean
from harness.base.settings import BEYOND, check
from harness.runs.order import Order


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the loss of the first, and whole
    numbers have 64 bits.
    """

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        if len(node.value) < 99 and abs(value := super().construct_yaml_int(node)) < BEYOND:
            return value
        raise yaml.constructor.ConstructorError(
            None, None, "a whole number beyond 64 bits", node.start_mark
        )


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_order(path, changes=(), methods=(), seeds=()):
    """Read, change and validate an order file.

    changes: texts ``key.key=value`` (the value in YAML); methods, seeds: keep only these. Raises
    UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            path, "is not a file", "give a task-order file, as benchmarks/orders/quickstart.yaml"
        )
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # a ValueError: bytes that are no text, a date that is none
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = (
            "not UTF-8"
            if isinstance(error, UnicodeDecodeError)
            else getattr(error, "problem", None) or error
        )
        raise UserError(
            f"{path}{where}", f"is not YAML ({problem})", "see benchmarks/orders/quickstart.yaml"
        ) from None
    if not isinstance(mapping, dict):
        raise UserError(path, "must be a mapping of keys", "see benchmarks/orders/quickstart.yaml")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}", "must be KEY=VALUE", "as --set budget.prompts=80")
        try:
            value = yaml.load(value, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            problem = getattr(error, "problem", None) or error
            raise UserError(
                f"--set {key}", f"its value is not YAML ({problem})", "quote the value"
            ) from None
        keys = key.split(".")
        set_key(mapping, keys, value, f"--set {key}", "task" if keys[0] == "retention" else "name")
    order = Order(mapping, path)
    known = {name for spec in order.methods.values() for name in (spec.label, spec.grid_of) if name}
    for label in methods:
        if label not in known:
            raise UserError(f"--method {label}", "is not in the order", did_you_mean(label, known))
    if methods:
        order.methods = {
            label: spec
            for label, spec in order.listed.items()
            if {label, spec.grid_of} & set(methods)
        }
        grids = {spec.grid_of for spec in order.methods.values()} - {None}
        order.listed = {
            label: spec
            for label, spec in order.listed.items()
            if label in order.methods or spec.grid_of in grids
        }
    for seed in seeds:
        check(seed, {"min": 0}, "--seed")
    if seeds:
        order.seeds = list(dict.fromkeys(seeds))
    return order


def set_key(node, keys, value, place, named):
    """Put ``value`` where the dotted ``keys`` lead. A name may hold dots itself: the longest that
    is there counts. In a list a number picks an entry, a name the entry whose key ``named`` it is.
    """
    listed = isinstance(node, list)
    names = [e.get(named) if isinstance(e, dict) else e for e in node] if listed else list(node)
    length = next((n for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in names), 1)
    key, rest = ".".join(keys[:length]), keys[length:]
    if listed:
        if key not in names and not (key.isdecimal() and int(key) < len(node)):
            raise UserError(
                place, f"there is no entry {key!r}", "use its number from 0, or its name"
            )
        if not rest:
            raise UserError(place, "points at a whole entry of a list", "name one of its keys")
        key = names.index(key) if key in names else int(key)
    if not rest:
        node[key] = value
        return
    inner = node[key] if listed else node.get(key)
    if inner is None:
        node[key] = {}
    elif isinstance(inner, str) and (
        listed or key == "model"
    ):  # a name alone stands for the entry of that name
        node[key] = {named: inner}
    elif not isinstance(inner, (dict, list)):
        raise UserError(place, f"{key} holds a single value", "it has no keys of its own")
    set_key(node[key], rest, value, place, named)
