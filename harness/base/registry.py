"""Plug-ins by name: a file of a folder holds one class, imported only when it is asked for."""

import importlib.util

from harness.base.errors import UserError, did_you_mean


def plugin_named(folder, package, name, base, kind, place):
    """The subclass of ``base`` in ``folder/name.py``: found by file name, imported only when asked
    for.
    """
    names = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    if name not in names:
        raise UserError(place, f"unknown {kind} {name!r}", did_you_mean(name, names))
    return only_subclass(importlib.import_module(f"{package}.{name}"), base, kind, place)


def only_subclass(module, base, kind, place):
    """The one class that ``module`` itself defines on top of ``base``. Raises UserError where there
    is not exactly one.
    """
    found = [
        c
        for c in vars(module).values()
        if isinstance(c, type)
        and issubclass(c, base)
        and c is not base
        and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(
            place,
            f"{module.__file__} defines {len(found)} {kind}s",
            f"one class on top of {base.__name__} is wanted",
        )
    return found[0]
