"""Methods and sections of an order, as results.json and run.json hold them."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from harness.evaluation.settings import Drift
from harness.learning.moments import FLOAT32
from harness.runs.methods import MethodSpec


def about_method(spec: MethodSpec) -> dict[str, Any]:
    """A method with its options, parts and what it trains."""
    config = {**asdict(spec.config), **spec.written}
    if config.get("moments") == FLOAT32:  # folders from before the option do not have it
        del config["moments"]
    about: dict[str, Any] = {"method": spec.method, "config": config}
    if spec.preset:
        about["preset"] = spec.preset
    if spec.parts:
        about["with"] = {part.name: {**asdict(part.config), **part.written} for part in spec.parts}
    if trained := spec.parameters:
        about["parameters"] = {trained.name: {**asdict(trained.config), **trained.written}}
    if spec.files:
        about["files"] = spec.files
    if spec.grid_of:
        about["grid"] = {"of": spec.grid_of, "values": spec.values}
    return about


def about_section(
    section: Any, without: Iterable[str] = (), optional: Iterable[str] = ()
) -> dict[str, Any]:
    """A section as results.json holds it.

    without: keys that are left out; optional: keys that are left out at their default, since
    folders from before they existed do not have them.
    """
    default = {field.name: field.default for field in fields(section)}
    about = {
        key: value
        for key, value in asdict(section).items()
        if key not in without and (key not in optional or value != default[key])
    }
    if about.get("drift", {}).get("along") == Drift().along:
        del about["drift"]["along"]
    return about
