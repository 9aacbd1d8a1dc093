"""A grid of an order: a method for every combination of hyperparameters."""

import copy
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.base.errors import UserError, did_you_mean
from harness.base.files import spelling
from harness.runs.methods import MethodSpec
from harness.runs.sections import names_folder

MOST_POINTS = 1_000  # of one grid: more than anybody trains


def expand_grid(
    methods: Mapping[str, MethodSpec],
    label: str,
    values: object,
    options: Mapping[str, Any],
    build: Callable[[str, Mapping[str, Any], str], MethodSpec],
    place: str,
) -> dict[str, MethodSpec]:
    """``methods`` with a method for every combination of a grid instead of the one of ``label``.

    values: {hyperparameter: list of values}; options: the hyperparameters that the order gives the
    label otherwise; build: makes a method of (label, hyperparameters, place). Raises UserError.
    """
    grid = _checked(methods, label, values, place)
    count = math.prod(map(len, grid.values()))
    if count > MOST_POINTS:
        raise UserError(place, f"has {count:,} points", f"give at most {MOST_POINTS:,}")
    result = {name: spec for name, spec in methods.items() if name != label}
    spellings = set(map(spelling, result))
    for combination in itertools.product(*grid.values()):
        point = dict(zip(grid, combination, strict=True))
        spec = build(label, _with_point(options, point), place)
        spec.grid_of = label
        settings = spec.settings()
        spec.values = {name: settings[name] for name in grid}
        spec.label = _point_label(label, spec.values)
        if not names_folder(spec.label):
            raise UserError(
                place,
                f"{spec.label!r} is too long for a label",
                "take fewer hyperparameters, or a shorter label",
            )
        if spelling(spec.label) in spellings:
            raise UserError(place, f"{spec.label} stands twice", "give different values")
        spellings.add(spelling(spec.label))
        result[spec.label] = spec
    return result


def check_effects(points: Sequence[MethodSpec]) -> None:
    """Raises UserError where no point of a grid gives all of its options an effect.

    One value of a grid may leave another option idle.
    """
    for number, spec in enumerate(points, 1):
        try:
            return spec.check_effects()
        except UserError:
            if number == len(points):
                raise


def _checked(
    methods: Mapping[str, MethodSpec], label: str, values: object, place: str
) -> dict[str, list[Any]]:
    if label not in methods:
        raise UserError(place, f"there is no method {label!r}", did_you_mean(label, methods))
    if not isinstance(values, dict) or not values:
        raise UserError(place, "must be a mapping from hyperparameters to lists of values")
    hyperparameters = list(methods[label].settings())
    for name, each in values.items():
        if name not in hyperparameters:
            raise UserError(f"{place}: {name}", "unknown key", did_you_mean(name, hyperparameters))
        if not isinstance(each, list) or not each:
            raise UserError(f"{place}: {name}", "must be a list of values", "as [1e-5, 5e-5]")
    return values


def _with_point(options: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options at a point; ``with.PART.OPTION`` and the like go down."""
    result = copy.deepcopy(dict(options))
    for name, value in point.items():
        where, *path = result, *name.split(".")
        for key in path[:-1]:
            inner = where.get(key)
            if not isinstance(inner, dict):  # a part with its defaults, or `parameters: lora`
                where[key] = {} if inner is None else {inner: {}}
            where = where[key]
        where[path[-1]] = value
    return result


def _point_label(label: str, values: Mapping[str, Any]) -> str:
    """sft.learning_rate-1e-05.epochs-1; what no folder may be called becomes an underscore."""
    parts = [f"{name}-{_short(value)}" for name, value in values.items()]
    return re.sub(r"[^A-Za-z0-9._-]", "_", ".".join([label, *parts]))


def _short(value: Any) -> Any:
    """Whole numbers without their point: epochs: 1 and 1.0 are the same value."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
