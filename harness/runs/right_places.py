"""What stands in the wrong section of an order: where it belongs."""

import importlib
from dataclasses import fields
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.base.registry import only_subclass, plugin_names
from harness.learning.parametrisation import Parametrisation
from harness.learning.part import Part
from harness.runs.presets import preset_files

METHODS = ROOT / "methods"
KINDS: dict[str, tuple[str, type, Path]] = {
    "with": ("part", Part, METHODS / "parts"),
    "parameters": ("parametrisation", Parametrisation, METHODS / "parameters"),
}


def check_section(name: str, section: str, place: str) -> None:
    """Raises UserError at ``place`` for a name that belongs elsewhere than into ``section``.

    section: ``method`` for a method's name or one of its keys, ``with`` or ``parameters``. Names
    that are unknown everywhere pass.
    """
    if name in _names(section):
        return
    for other, (kind, _, _) in KINDS.items():
        if other != section and name in _names(other):
            raise UserError(place, f"{name!r} is a {kind}", f"write {other}: {{{name}: {{}}}}")
    if section != "method" and name in _names("method"):
        raise UserError(place, f"{name!r} is a method", f"write method: {name}")
    if name in preset_files():
        raise UserError(place, f"{name!r} is a preset", f"write preset: {name}")
    if section == "method" and (owners := _owners(name)):
        first, others = owners[0], ", ".join(owner for owner, _ in owners)
        raise UserError(
            place,
            f"{name!r} is no setting of the method, but of {others}",
            f"write {first[1]}: {{{first[0]}: {{{name}: ...}}}}",
        )


def _names(section: str) -> list[str]:
    return plugin_names(KINDS[section][2] if section in KINDS else METHODS)


def _owners(option: str) -> list[tuple[str, str]]:
    """(name, section) of the parts and parametrisations that have an option."""
    found = []
    for section, (kind, base, folder) in KINDS.items():
        for name in _names(section):
            module = importlib.import_module(f"methods.{folder.name}.{name}")
            config = only_subclass(module, base, kind, name).Config  # type: ignore[attr-defined]
            if option in {field.name for field in fields(config)}:
                found.append((name, section))
    return found
