"""Presets: settings of a method under the name of the paper or code that they come from.

A preset is one file in ``benchmarks/presets``: the method, its source, and its settings. An order
names it as ``preset``, and overrides single settings beside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import UserError, did_you_mean
from harness.base.files import ROOT
from harness.base.strict_yaml import read_yaml

FOLDER = ROOT / "benchmarks" / "presets"
KEYS = {"method": (str, "text"), "source": (str, "text"), "settings": (dict, "mapping")}
KEYS_ARE = "its keys are method and source, texts, and settings, a mapping"


def preset_files() -> dict[str, Path]:
    """The file of each preset by its name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_preset(name: str) -> dict[str, Any]:
    """{"method", "source", "settings"} of a preset. Raises UserError for a file without them."""
    path = preset_files()[name]
    preset = read_yaml(path, KEYS_ARE)
    if not isinstance(preset, dict) or set(preset) != set(KEYS):
        raise UserError(path, "is no preset", KEYS_ARE)
    for key, (kind, word) in KEYS.items():
        if not isinstance(preset[key], kind):
            raise UserError(path, f"its {key} is not a {word}", KEYS_ARE)
    for key in ("preset", "method", "file"):
        if key in preset["settings"]:
            raise UserError(path, f"its settings hold {key}", KEYS_ARE)
    parts = preset["settings"].get("with", {})
    if not isinstance(parts, dict) or not all(isinstance(o, dict) for o in parts.values()):
        raise UserError(path, "its settings' with is no mapping of parts to options", KEYS_ARE)
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
    if "with" in own and (parts := settings.get("with")):
        own["with"] = _joined(name, parts, own["with"], f"{place}: with")
    return {"method": preset["method"], **settings, **own}


def _joined(name: str, preset: Mapping[str, Any], own: object, place: str) -> dict[str, Any]:
    """The parts of the preset ``name`` and of ``own``, single options of ``own`` over the preset's.

    Raises UserError for what may be meant to switch a part of the preset off: results would still
    say that they are the preset's.
    """
    places = {place: own}
    if isinstance(own, dict):
        places = {f"{place}.{part}": own[part] for part in preset if part in own}
    for where, given in places.items():
        if not isinstance(given, dict):
            raise UserError(
                where,
                f"is no mapping of options, and preset {name} has parts",
                "write options, {} for the preset's own; without its parts name the method instead",
            )
    assert isinstance(own, dict)
    return {**preset, **own, **{p: {**preset[p], **own[p]} for p in preset if p in own}}
