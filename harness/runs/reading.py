"""Reads an order file, and changes keys of it; ``read_sections`` does so without PyTorch."""

import copy
import errno
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from harness.base.errors import UserError, did_you_mean
from harness.base.settings import check
from harness.base.strict_yaml import YAML_ERRORS, parse_yaml, read_yaml, yaml_problem
from harness.runs.sections import Sections

if TYPE_CHECKING:  # imports PyTorch
    from harness.runs.order import Order

EXAMPLE = "benchmarks/orders/quickstart.yaml"
IN_SCRIPT = "order"  # the place of an order that a script makes, in messages
LARGEST_FILE = 1_000_000  # bytes of an order file
NO_PATHS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP}
Changes = Iterable[str] | Mapping[str, Any]  # of keys: texts key=value, or {key: value}


def read_order(
    path: str | Path,
    changes: Changes = (),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    sequences: Sequence[str] = (),
) -> "Order":
    """Read, change and validate an order file.

    changes: texts ``key.key=value`` (the value in YAML), or {key.key: value}; methods, seeds,
    sequences: keep only these. Raises UserError.
    """
    from harness.runs.order import Order

    return Order(path, changes=changes, methods=methods, seeds=seeds, sequences=sequences)


def read_source(
    source: object, path: str | Path | None, changes: Changes = ()
) -> tuple[object, str | Path]:
    """(keys and values with the ``changes``, where they come from) of a file or a mapping.

    path: where a mapping comes from; it stays as it is. Raises UserError for a file without any.
    """
    if isinstance(source, str | Path) and path is None:
        return _read_mapping(Path(source), changes), source
    mapping = copy.deepcopy(source)
    if isinstance(mapping, dict):
        _apply_all(changes, mapping)
    return mapping, IN_SCRIPT if path is None else path


Options = ParamSpec("Options")
Made = TypeVar("Made")


def naming_keys(
    init: Callable[Concatenate[Made, object, Options], None],
) -> Callable[Concatenate[Made, object, Options], None]:
    """Let ``Order.__init__`` raise UserError with the key whose path the system cannot look at."""

    @functools.wraps(init)
    def wrapped(
        self: Made, source: object, /, *args: Options.args, **options: Options.kwargs
    ) -> None:
        try:
            init(self, source, *args, **options)
        except OSError as error:
            path: Any = args[0] if args else options.get("path")
            changes: Any = options.get("changes", ())
            mapping, place = read_source(source, path, changes)
            given = dict(_texts(mapping, ""))
            keys = [key for key, text in given.items() if _is_of(error.filename, text)]
            if error.errno not in NO_PATHS or not keys:
                raise
            key = max(keys, key=lambda key: len(given[key]))  # another one may be a part of it
            problem = f"cannot be looked at ({os.strerror(error.errno)}): {given[key]}"
            raise UserError(f"{place}: {key}", problem, "give another path") from None

    return wrapped


def _texts(value: object, key: str) -> Iterator[tuple[str, str]]:
    """(key, text) of all texts in an order, the key as ``--set`` and messages write it."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _texts(inner, f"{key}[{i}]")


def _is_of(path: object, text: str) -> bool:
    """Whether a text is the path that the system was asked for, or the end of it."""
    return bool(text) and isinstance(path, str | bytes) and str(Path(text)) in os.fsdecode(path)


def read_sections(path: str | Path, changes: Changes = ()) -> Sections:
    """What ``read_order`` knows of a file before it looks at skills, methods and machine.

    Raises UserError for what is wrong up to there.
    """
    return Sections(_read_mapping(Path(path), changes), path)


def keep(
    order: "Order", methods: Sequence[str], seeds: Sequence[int], sequences: Sequence[str]
) -> None:
    """Keep these methods, seeds and sequences of an order, all where none is named."""
    if methods:
        _keep_methods(order, methods)
    for seed in seeds:
        check(seed, {"min": 0}, "--seed")
    if seeds:
        order.seeds = list(dict.fromkeys(seeds))
    if sequences:
        _keep_sequences(order, sequences)


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


def _read_mapping(path: Path, changes: Changes) -> dict[str, Any]:
    """The file's keys and values, with the ``changes``."""
    if not path.is_file():
        raise UserError(path, "is not a file", f"give a task-order file, as {EXAMPLE}")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(
            path,
            f"has more than {LARGEST_FILE:,} bytes",
            "give a task-order file; data go into JSONL files that it names",
        )
    mapping = read_yaml(path, f"see {EXAMPLE}")
    if not isinstance(mapping, dict):
        raise UserError(path, "must be a mapping of keys", f"see {EXAMPLE}")
    _apply_all(changes, mapping)
    return mapping


# ---- changes ------------------------------------------------------------------------------------


def _apply_all(changes: Changes, mapping: dict[str, Any]) -> None:
    """Apply changes in their order."""
    if isinstance(changes, Mapping):
        for key, value in changes.items():
            _set(mapping, str(key), copy.deepcopy(value))
        return
    for change in [changes] if isinstance(changes, str) else changes:
        _apply(change, mapping)


def _apply(change: str, mapping: dict[str, Any]) -> None:
    """Apply one text ``key.key=value`` of --set."""
    key, equals, text = change.partition("=")
    if not equals:
        raise UserError(f"--set {change}", "must be KEY=VALUE", "as --set budget.prompts=80")
    place = f"--set {key}"
    try:
        value = parse_yaml(text)
    except YAML_ERRORS as error:
        problem = f"its value is not YAML ({yaml_problem(error)})"
        raise UserError(place, problem, "quote the value") from None
    _set(mapping, key, value)


def _set(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key."""
    keys = key.split(".")
    named = "task" if keys[0] == "retention" else "name"
    set_key(mapping, keys, value, f"--set {key}", named)


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
    is_number = key in map(str, range(len(entries)))
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
