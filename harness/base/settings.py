"""Typed settings: dataclasses whose fields say what is allowed, filled from mappings.

A field is made by ``option``, which states its meaning and its bounds. ``build`` fills a dataclass
from a mapping, as YAML gives it, and refuses a wrong value in one line. ``json_schema`` states the
same rules for editors and other tools.
"""

import copy
import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, field
from typing import Any, TypeVar

import yaml

from harness.base.errors import UserError, did_you_mean

BEYOND = 2**63  # no setting is as large; arithmetic with such numbers overflows
DRAFT = "https://json-schema.org/draft/2020-12/schema"
Settings = TypeVar("Settings")


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    min: float | None = None,
    above: float | None = None,
    max: float | None = None,
    choices: Collection[str] | None = None,
    path: bool = False,
    model: bool = False,
) -> Any:
    """A dataclass field with its meaning and its bounds, which hold for each entry of a list.

    default: a field without one must be given; above: a bound that is not allowed itself; choices:
    all texts that are allowed; path: the text names a file; model: it names a model. Returns
    ``Any``, so that the type checker takes the field's own annotation. Raises ValueError for a
    choice that YAML reads as something else than that text, as off, true and null.
    """
    for choice in choices or ():
        if yaml.safe_load(choice) != choice:
            raise ValueError(f"YAML reads the choice {choice!r} as no text; choose another word")
    metadata = {
        "help": help,
        "min": min,
        "above": above,
        "max": max,
        "choices": choices,
        "path": path,
        "model": model,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Checked:
    """Base of options that a method or a part has."""

    def check_effects(self) -> None:
        """Raises ValueError, by ``only_with``, for an option that does nothing beside the others.

        It is not called for a label with a grid, one value of which may leave another option idle.
        """


def only_with(config: Any, holds: object, what: str, *names: str) -> None:
    """Raises ValueError for an option of ``names`` that is set, unless ``holds``.

    what: the setting with which alone it does something.
    """
    for spec in dataclasses.fields(config):
        if spec.name in names and not holds and getattr(config, spec.name) != spec.default:
            raise ValueError(f"{spec.name} does something with {what} alone; leave it out")


# ---- from a mapping ------------------------------------------------------------------------------


def build(cls: type[Settings], mapping: Any, place: object) -> Settings:
    """An instance of the dataclass ``cls`` from ``mapping``, None for an empty one.

    Raises UserError naming ``place`` and the key, also where a default is what no value may be.
    """
    if mapping is None:
        mapping = {}
    if not isinstance(mapping, dict):
        raise UserError(place, f"must be a mapping, not {_described(mapping)}")
    fields = fields_of(cls)
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            none = f"{cls.__name__} has no options, or no @dataclass above it"
            remedy = did_you_mean(key, fields) if fields else none
            raise UserError(f"{place}: {key}", "unknown key", remedy)
    values = {}
    for name, spec in fields.items():
        if name in mapping:
            values[name] = _convert(mapping[name], hints[name], f"{place}: {name}")
            check(values[name], spec.metadata, f"{place}: {name}")
        elif _required(spec):
            raise UserError(f"{place}: {name}", "is missing", spec.metadata.get("help", ""))
        elif not dataclasses.is_dataclass(_default(spec)):
            own = f"{place}: {name}"
            check(_convert(_default(spec), hints[name], own), spec.metadata, own)
    try:
        return cls(**values)
    except ValueError as error:  # of a __post_init__
        raise UserError(place, str(error)) from None


def fields_of(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass, or of an instance, by name.

    A field that only gives another default to that of a base keeps the base's rules.
    """
    found = {}
    for spec in dataclasses.fields(cls):
        found[spec.name] = spec = copy.copy(spec)
        for base in (cls if isinstance(cls, type) else type(cls)).__mro__:
            rules = getattr(base, "__dataclass_fields__", {}).get(spec.name)
            if rules and not spec.metadata:
                spec.metadata = rules.metadata
    return found


def _default(spec: dataclasses.Field[Any]) -> Any:
    factory = spec.default_factory
    return spec.default if factory is MISSING else factory()


def _required(spec: dataclasses.Field[Any]) -> bool:
    return spec.default is MISSING and spec.default_factory is MISSING


def _convert(value: Any, hint: Any, place: str) -> Any:
    """``value`` as ``hint`` wants it. Raises UserError where it is of another type."""
    origin = typing.get_origin(hint)
    if _is_union(hint):
        return _convert_union(value, typing.get_args(hint), place)
    if _is_dataclass(hint):
        return build(hint, value, place)
    if origin is list:
        return _convert_list(value, typing.get_args(hint), place)
    if origin is typing.Literal:
        return _convert_literal(value, typing.get_args(hint), place)
    if hint is float:
        return _convert_float(value, place)
    if hint in (object, Any):
        return value
    if isinstance(value, origin or hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _wrong_type(place, [hint], value)


def _convert_union(value: Any, kinds: tuple[Any, ...], place: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    lists = [typing.get_origin(kind) for kind in kinds].count(list)
    for kind in kinds:
        # An error inside a mapping or a list is worth its own line.
        if _is_dataclass(kind) and isinstance(value, dict):
            return build(kind, value, place)
        if typing.get_origin(kind) is list and isinstance(value, list) and lists == 1:
            return _convert_list(value, typing.get_args(kind), place)
        try:
            return _convert(value, kind, place)
        except UserError:
            continue
    raise _wrong_type(place, kinds, value)


def _convert_list(value: Any, entry: tuple[Any, ...], place: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong_type(place, [list], value)
    if not entry:
        return value
    return [_convert(each, entry[0], f"{place}[{i}]") for i, each in enumerate(value)]


def _convert_literal(value: Any, choices: tuple[Any, ...], place: str) -> Any:
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    raise UserError(place, f"unknown value {value!r}", did_you_mean(value, choices))


def _convert_float(value: Any, place: str) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4, which has no point, as a text.
        except (ValueError, OverflowError):
            pass
    raise _wrong_type(place, [float], value)


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _is_dataclass(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _wrong_type(place: str, hints: Iterable[Any], value: Any) -> UserError:
    wanted = " or ".join(_named(hint) for hint in hints)
    return UserError(place, f"must be {wanted}, not {_described(value)}")


def _named(hint: Any) -> str:
    """A type in the words of a user of YAML."""
    if _is_dataclass(hint):
        return "a mapping"
    name = getattr(typing.get_origin(hint) or hint, "__name__", str(hint))
    return {
        "float": "a number",
        "int": "a whole number",
        "str": "a text",
        "bool": "true or false",
        "dict": "a mapping",
        "list": "a list",
    }.get(name, name)


def _described(value: Any) -> str:
    """A value in the words of a user of YAML."""
    names = {dict: "a mapping", list: "a list", type(None): "nothing"}
    if type(value) in names:
        return names[type(value)]
    return f"the text {value!r}" if isinstance(value, str) else reprlib.repr(value)


def check(value: Any, rules: Mapping[str, Any], place: object) -> None:
    """Raises UserError for a value that ``rules`` forbid, or that no setting may have.

    value: for a list, each of its entries is checked; rules: the metadata of an ``option``.
    """
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            _check_text(each, rules, place)
        elif isinstance(each, (int, float)) and not isinstance(each, bool):
            _check_number(each, rules, place)


def _check_text(text: str, rules: Mapping[str, Any], place: object) -> None:
    choices = rules.get("choices")
    if choices and text not in choices:
        raise UserError(place, f"unknown value {text!r}", did_you_mean(text, choices))
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(
            place, f"holds half a character ({text!r})", "write it whole: no file can hold a half"
        )


def _check_number(number: float, rules: Mapping[str, Any], place: object) -> None:
    low, above, high = (rules.get(name) for name in ("min", "above", "max"))
    if isinstance(number, float) and not math.isfinite(number):
        raise UserError(place, f"must be a finite number, not {number}")
    if abs(number) >= BEYOND:
        raise UserError(place, "is too large a number", "give one below 2^63")
    if low is not None and number < low:
        raise UserError(place, f"must be at least {low}, not {number}")
    if above is not None and not number > above:
        raise UserError(place, f"must be above {above}, not {number}")
    if high is not None and number > high:
        raise UserError(place, f"must be at most {high}, not {number}")


# ---- as a JSON schema ----------------------------------------------------------------------------


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the mappings that ``build`` accepts for ``cls``.

    It is stricter in one thing: ``build`` also takes a text that spells a number, since YAML 1.1
    reads 1e-4 as a text.
    """
    return {"$schema": DRAFT, **_object_schema(cls)}


def _object_schema(cls: type) -> dict[str, Any]:
    fields = fields_of(cls)
    hints = typing.get_type_hints(cls)
    return {
        "title": cls.__name__,
        "type": "object",
        "properties": {name: _field_schema(spec, hints[name]) for name, spec in fields.items()},
        "required": [name for name, spec in fields.items() if _required(spec)],
        "additionalProperties": False,
    }


def _field_schema(spec: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    schema = _type_schema(hint, spec.metadata)
    if spec.metadata.get("help"):
        schema["description"] = spec.metadata["help"]
    if not _required(spec):
        schema["default"] = _plain(_default(spec))
    return schema


def _type_schema(hint: Any, rules: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of one type, with the bounds of its option where they apply to that type."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if _is_union(hint):
        return {"anyOf": [_type_schema(kind, rules) for kind in arguments]}
    if _is_dataclass(hint):
        return _object_schema(hint)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _type_schema(arguments[0], rules)}
    if hint is str:
        choices = rules.get("choices")
        return {"type": "string"} | ({"enum": list(choices)} if choices else {})
    if hint in (int, float):
        return {"type": "integer" if hint is int else "number"} | _bounds(rules)
    if hint in (object, Any):
        return {}
    types_of_json = {bool: "boolean", list: "array", dict: "object", types.NoneType: "null"}
    return {"type": types_of_json[origin or hint]}


def _bounds(rules: Mapping[str, Any]) -> dict[str, float]:
    keywords = {"min": "minimum", "above": "exclusiveMinimum", "max": "maximum"}
    return {
        keyword: rules[name] for name, keyword in keywords.items() if rules.get(name) is not None
    }


def _plain(default: Any) -> Any:
    """A default as JSON holds it."""
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return dataclasses.asdict(default)
    return default
