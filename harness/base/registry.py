"""Plug-ins by name: a file of a folder holds one class, imported only when it is asked for."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from harness.base.errors import UserError, did_you_mean, plug_in

Base = TypeVar("Base")


def plugin_named(
    folder: Path, package: str, name: str, base: type[Base], kind: str, place: object
) -> type[Base]:
    """The subclass of ``base`` in ``folder/name.py``, which is the module ``package.name``.

    kind: what such a class is, for messages ("method"); place: where ``name`` is written. Raises
    UserError naming ``place`` for an unknown name, or for one whose file imports a package that is
    not installed. Files that begin with _ are no plug-ins.
    """
    names = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    if name not in names:
        raise UserError(place, f"unknown {kind} {name!r}", did_you_mean(name, names))
    with plug_in(str(place), f"the import of {folder.name}/{name}.py"):
        try:
            module = importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            raise UserError(
                place,
                f"{kind} {name!r} needs the package {error.name}, which is not installed",
                "pip install -r requirements.txt && pip install --no-deps -r requirements-data.txt",
            ) from error
    return only_subclass(module, base, kind, place)


def only_subclass(module: ModuleType, base: type[Base], kind: str, place: object) -> type[Base]:
    """The one class that ``module`` itself defines on top of ``base``.

    Classes that the module imports do not count. Raises UserError where there is not exactly one.
    """
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value is not base
        and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise UserError(
            place,
            f"{module.__file__} defines {len(classes)} {kind}s",
            f"one class on top of {base.__name__} is wanted",
        )
    return classes[0]
