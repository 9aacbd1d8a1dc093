"""Reads an order file, and changes keys of it; ``read_sections`` does so without PyTorch."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness.base.errors import UserError, did_you_mean
from harness.base.settings import BEYOND, check
from harness.runs.sections import Sections

if TYPE_CHECKING:  # imports PyTorch
    from harness.runs.order import Order

EXAMPLE = "benchmarks/orders/quickstart.yaml"
LARGEST_FILE = 1_000_000  # bytes of an order file
MOST_NODES = 100_000  # keys, values and lists of a file, with all that its aliases repeat


def read_order(
    path: str | Path,
    changes: Iterable[str] = (),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    sequences: Sequence[str] = (),
) -> "Order":
    """Read, change and validate an order file.

    changes: texts ``key.key=value`` (the value in YAML); methods, seeds, sequences: keep only
    these. Raises UserError.
    """
    mapping = _read_mapping(Path(path), changes)
    from harness.runs.order import Order

    order = Order(mapping, path)
    if methods:
        _keep_methods(order, methods)
    for seed in seeds:
        check(seed, {"min": 0}, "--seed")
    if seeds:
        order.seeds = list(dict.fromkeys(seeds))
    if sequences:
        _keep_sequences(order, sequences)
    return order


def read_sections(path: str | Path, changes: Iterable[str] = ()) -> Sections:
    """What ``read_order`` knows of a file before it looks at skills, methods and machine.

    Raises UserError for what is wrong up to there.
    """
    return Sections(_read_mapping(Path(path), changes), path)


def _keep_methods(order: "Order", labels: Iterable[str]) -> None:
    """Keep the methods of these labels, and all points of a grid whose label is among them.

    The other points of such a grid stay in ``listed``: the grid selects among them all.
    """
    label_set = set(labels)
    specs = order.listed.values()
    names = {spec.label for spec in specs} | {spec.grid_of for spec in specs if spec.grid_of}
    for label in labels:
        if label not in names:
            raise UserError(f"--method {label}", "is not in the order", did_you_mean(label, names))
    order.methods = {
        label: spec for label, spec in order.listed.items() if label_set & {label, spec.grid_of}
    }
    grids = {spec.grid_of for spec in order.methods.values()} - {None}
    order.listed = {
        label: spec
        for label, spec in order.listed.items()
        if label in order.methods or spec.grid_of in grids
    }


def _keep_sequences(order: "Order", names: Sequence[str]) -> None:
    """Keep the sequences of these names."""
    for name in names:
        place = f"--sequence {name}"
        if "" in order.sequences:
            raise UserError(place, "the order has one sequence, without a name", "leave it out")
        if name not in order.sequences:
            raise UserError(place, "is not in the order", did_you_mean(name, order.sequences))
    order.sequences = {n: of for n, of in order.sequences.items() if n in names}


# ---- YAML ----------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML in which a repeated key is an error, and whole numbers have at most 64 bits.

    Numbers of YAML 1.1 that are others, or texts, in YAML 1.2 and to most readers are errors: octal
    ones (010 is 8) and those to the base of 60 (1:30 is 90).

    Aliases may not make it larger than any order is, nor contain themselves.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_nodes(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise _yaml_error(key, f"key {key.value!r} stands twice")
                keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) < 99:
            value = super().construct_yaml_int(node)
            _check_base(node, value)
            if abs(value) < BEYOND:
                return value
        raise _yaml_error(node, "a whole number beyond 64 bits")

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        _check_base(node, value)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _check_base(node: yaml.ScalarNode, value: float) -> None:
    """Raises a YAML error where a number is another than its digits say."""
    text = node.value[:40]
    digits = node.value.replace("_", "").lstrip("+")
    if ":" in node.value:
        problem = f"{text} is {value:g} in YAML 1.1, to the base of 60: write {value:g} or '{text}'"
        raise _yaml_error(node, problem)
    if digits.removeprefix("-").isdecimal() and int(digits) != value:
        problem = f"{text} is {value} in YAML 1.1, octal: write {value} or {int(digits)}"
        raise _yaml_error(node, problem)


def _check_nodes(root: yaml.Node) -> None:
    """Raises a YAML error where ``root`` holds too much or itself."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        key = id(node)
        if key not in counts:
            counts[key] = 0  # until it is known: what the node meets of itself inside
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                inner = [each for pair in node.value for each in pair]
            counts[key] = 1 + sum(map(count, inner))
            if counts[key] > MOST_NODES:
                raise _yaml_error(node, f"more than {MOST_NODES:,} entries, aliases counted")
        elif counts[key] == 0:
            raise _yaml_error(node, "an alias that contains itself")
        return counts[key]

    count(root)


def _yaml_error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


# A ValueError: bytes that are not UTF-8, or a date that is none. A RecursionError: lists in lists.
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


def _problem(error: Exception) -> object:
    """What is wrong with a text that is not YAML, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return getattr(error, "problem", None) or error


def _read_mapping(path: Path, changes: Iterable[str]) -> dict[str, Any]:
    """The file's keys and values, with the ``changes``."""
    if not path.is_file():
        raise UserError(path, "is not a file", f"give a task-order file, as {EXAMPLE}")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(
            path,
            f"has more than {LARGEST_FILE:,} bytes",
            "give a task-order file; data go into JSONL files that it names",
        )
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{line}", f"is not YAML ({_problem(error)})", f"see {EXAMPLE}"
        ) from None
    if not isinstance(mapping, dict):
        raise UserError(path, "must be a mapping of keys", f"see {EXAMPLE}")
    for change in changes:
        _apply(change, mapping)
    return mapping


# ---- changes ------------------------------------------------------------------------------------


def _apply(change: str, mapping: dict[str, Any]) -> None:
    """Apply one text ``key.key=value`` of --set."""
    key, equals, text = change.partition("=")
    if not equals:
        raise UserError(f"--set {change}", "must be KEY=VALUE", "as --set budget.prompts=80")
    place = f"--set {key}"
    try:
        value = yaml.load(text, _Loader)
    except _YAML_ERRORS as error:
        raise UserError(
            place, f"its value is not YAML ({_problem(error)})", "quote the value"
        ) from None
    keys = key.split(".")
    set_key(mapping, keys, value, place, named="task" if keys[0] == "retention" else "name")


def set_key(
    node: dict[str, Any] | list[Any], keys: list[str], value: Any, place: str, named: str
) -> None:
    """Set the value to which the dotted ``keys`` lead from ``node``.

    An entry of a list goes by its number or by its name, which its key ``named`` holds. Names may
    hold dots themselves. Raises UserError at ``place`` where the keys lead nowhere.
    """
    if isinstance(node, list):
        step, rest = _entry(node, keys, place, named)
        set_key(_inside(node, step, place, named), rest, value, place, named)
        return
    key, rest = _longest_name(keys, node)
    if rest:
        set_key(_inside(node, key, place, named), rest, value, place, named)
    else:
        node[key] = value


def _longest_name(keys: list[str], names: Collection[Any]) -> tuple[str, list[str]]:
    """(the longest beginning of ``keys`` that is one of ``names``, or the first key; the rest)."""
    for length in range(len(keys), 0, -1):
        name = ".".join(keys[:length])
        if name in names:
            return name, keys[length:]
    return keys[0], keys[1:]


def _entry(entries: list[Any], keys: list[str], place: str, named: str) -> tuple[int, list[str]]:
    """(position of the entry to which ``keys`` lead; the keys inside it, at least one)."""
    names = [entry.get(named) if isinstance(entry, dict) else entry for entry in entries]
    key, rest = _longest_name(keys, names)
    is_number = key.isdecimal() and int(key) < len(entries)
    if key not in names and not is_number:
        raise UserError(place, f"there is no entry {key!r}", "use its number from 0, or its name")
    if not rest:
        raise UserError(place, "points at a whole entry of a list", "name one of its keys")
    return names.index(key) if key in names else int(key), rest


def _inside(
    node: dict[str, Any] | list[Any], step: Any, place: str, named: str
) -> dict[str, Any] | list[Any]:
    """What ``node`` holds at ``step``, as something with keys; ``node`` holds that from now on."""
    inner = node[step] if isinstance(node, list) else node.get(step)
    if inner is None:
        inner = {}
    elif isinstance(inner, str) and (isinstance(node, list) or step == "model"):  # a name alone
        inner = {named: inner}
    elif isinstance(inner, str) and step == "parameters":  # a parametrisation with its defaults
        inner = {inner: {}}
    elif not isinstance(inner, dict | list):
        raise UserError(place, f"{step} holds a single value", "it has no keys of its own")
    node[step] = inner
    return inner
