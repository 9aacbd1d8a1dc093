"""Typed settings: a dataclass whose fields say what is allowed, filled from a mapping and refused
in one line.
"""

import dataclasses
import math
import types
import typing
from dataclasses import MISSING, field

from harness.base.errors import UserError, did_you_mean

BEYOND = 2**63  # no setting is as large; arithmetic with such numbers overflows


def option(default=MISSING, help="", *, min=None, above=None, max=None, choices=None, path=False):
    """A dataclass field with its meaning and its bounds (``above`` excludes the bound itself).
    path: names a file.
    """
    metadata = {
        "help": help,
        "min": min,
        "above": above,
        "max": max,
        "choices": choices,
        "path": path,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def build(cls, mapping, place):
    """An instance of dataclass ``cls`` from ``mapping``. Raises UserError naming ``place`` and the
    key.
    """
    if mapping is None:
        mapping = {}
    if not isinstance(mapping, dict):
        raise UserError(place, f"must be a mapping, not {_kind(mapping)}")
    fields, hints = {f.name: f for f in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            raise UserError(f"{place}: {key}", "unknown key", did_you_mean(key, fields))
    values = {}
    for name, spec in fields.items():
        if name in mapping:
            values[name] = _convert(mapping[name], hints[name], f"{place}: {name}")
            check(values[name], spec.metadata, f"{place}: {name}")
        elif spec.default is MISSING and spec.default_factory is MISSING:
            raise UserError(f"{place}: {name}", "is missing", spec.metadata.get("help", ""))
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(place, str(error)) from None


def _kind(value):
    return {
        "dict": "a mapping",
        "list": "a list",
        "str": f"the text {value!r}",
        "NoneType": "nothing",
    }.get(type(value).__name__, repr(value))


def _convert(value, hint, place):
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = typing.get_args(hint)
        if value is None and type(None) in kinds:
            return None
        kinds = [k for k in kinds if k is not type(None)]
        for kind in kinds:
            try:
                return _convert(value, kind, place)
            except UserError:
                continue
        raise UserError(place, f"must be {' or '.join(map(_wanted, kinds))}, not {_kind(value)}")
    origin = typing.get_origin(hint)
    if origin is list:
        if not isinstance(value, list):
            raise UserError(place, f"must be a list, not {_kind(value)}")
        inner = typing.get_args(hint)
        return (
            [_convert(v, inner[0], f"{place}[{i}]") for i, v in enumerate(value)]
            if inner
            else value
        )
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-4, which has no point, as a text
            return float(value)
        except (ValueError, OverflowError):
            pass
    elif origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)):
            return value
        raise UserError(
            place, f"unknown value {value!r}", did_you_mean(value, typing.get_args(hint))
        )
    elif hint in (object, typing.Any) or (
        isinstance(value, origin or hint) and not (hint is int and isinstance(value, bool))
    ):
        return value
    raise UserError(place, f"must be {_wanted(hint)}, not {_kind(value)}")


def _wanted(hint):
    name = getattr(typing.get_origin(hint) or hint, "__name__", str(hint))
    return {
        "float": "a number",
        "int": "a whole number",
        "str": "a text",
        "bool": "true or false",
        "dict": "a mapping",
        "list": "a list",
    }.get(name, name)


def check(value, rules, place):
    """Raises UserError for a value (or one of a list) that an ``option`` with ``rules`` forbids, or
    that no setting may have.
    """
    for each in value if isinstance(value, list) else [value]:
        if each is None:
            continue
        if rules.get("choices") and isinstance(each, str) and each not in rules["choices"]:
            raise UserError(place, f"unknown value {each!r}", did_you_mean(each, rules["choices"]))
        if (
            isinstance(each, str)
            and not each.isascii()
            and any("\ud800" <= c <= "\udfff" for c in each)
        ):
            raise UserError(
                place,
                f"holds half a character ({each!r})",
                "write it whole: no file can hold half of one",
            )
        if isinstance(each, (int, float)) and not isinstance(each, bool):
            if isinstance(each, float) and not math.isfinite(each):
                raise UserError(place, f"must be a finite number, not {each}")
            if abs(each) >= BEYOND:
                raise UserError(place, "is too large a number", "give one below 2^63")
            if rules.get("min") is not None and each < rules["min"]:
                raise UserError(place, f"must be at least {rules['min']}, not {each}")
            if rules.get("above") is not None and not each > rules["above"]:
                raise UserError(place, f"must be above {rules['above']}, not {each}")
            if rules.get("max") is not None and each > rules["max"]:
                raise UserError(place, f"must be at most {rules['max']}, not {each}")
