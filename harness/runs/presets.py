"""Presets: settings of a method under the name of the paper or code that they come from.

A preset is one file in ``benchmarks/presets``: the method, its source, and its settings. An order
names it as ``preset``, and overrides single settings beside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from harness.base.errors import UserError, did_you_mean
from harness.base.files import ROOT

FOLDER = ROOT / "benchmarks" / "presets"
KEYS = {"method", "source", "settings"}


def preset_files() -> dict[str, Path]:
    """The file of each preset by its name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_preset(name: str) -> dict[str, Any]:
    """{"method", "source", "settings"} of a preset. Raises UserError for a file without them."""
    path = preset_files()[name]
    preset = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(preset, dict) or set(preset) != KEYS:
        raise UserError(path, "is no preset", "its keys are " + ", ".join(sorted(KEYS)))
    return preset


def expanded(options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A method's options with those of its preset below them, and without the key ``preset``.

    Raises UserError for an unknown preset, and for one beside another method.
    """
    own = dict(options)
    name = own.pop("preset", None)
    if name is None:
        return own
    known = preset_files()
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{place}: preset", f"unknown preset {name!r}", did_you_mean(name, known))
    preset = read_preset(name)
    other = own.get("file") or own.get("method")
    if other not in (None, preset["method"]):
        raise UserError(
            f"{place}: preset",
            f"{name} is a preset of {preset['method']}, not of {other}",
            "leave out the method, or the preset",
        )
    settings = dict(preset["settings"])
    if isinstance(parts := own.get("with"), dict):
        own["with"] = _joined(settings.get("with", {}), parts)
    return {"method": preset["method"], **settings, **own}


def _joined(preset: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of both, single options of ``own`` over those of the preset."""
    parts = {name: own.get(name, options) for name, options in preset.items()} | dict(own)
    for name, options in preset.items():
        given = own.get(name) or {}
        if isinstance(given, dict):
            parts[name] = {**options, **given}
    return parts
