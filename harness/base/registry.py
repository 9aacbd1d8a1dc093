"""Plug-ins by name: a file of a folder holds one class, imported only when it is asked for.

A user's own file holds a class or a function.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from harness.base.answers import check_answers, own_hooks
from harness.base.errors import UserError, did_you_mean, plug_in, text_of
from harness.base.moved import CHANGE_IMPORTS, moved_imports

Base = TypeVar("Base")
# Kinds of what a class of the user's may set, in words; whether is first, for it is a number too.
KINDS = {
    bool: "true or false",
    int: "a whole number",
    tuple: "a tuple of texts",
    Mapping: "a dict",
    type: "a class",
}


def plugin_names(folder: Path) -> list[str]:
    """The plug-ins of a folder. Files that begin with _ are none."""
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def plugin_named(
    folder: Path, package: str, name: str, base: type[Base], kind: str, place: object
) -> type[Base]:
    """The subclass of ``base`` in ``folder/name.py``, which is the module ``package.name``.

    kind: what such a class is, for messages ("method"); place: where ``name`` is written. Raises
    UserError naming ``place`` for an unknown name, or for one whose file imports a package that is
    not installed.
    """
    names = plugin_names(folder)
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
        # Not isinstance(): it asks an object that is no class for its __class__.
        if issubclass(type(value), type)
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


def class_of_file(file: str | Path, base: type[Base], kind: str, place: str) -> type[Base]:
    """The one class on top of ``base`` that a user's file defines.

    Raises UserError if there is none, and if ``file`` imports names of the first edition.
    """
    path = Path(os.path.expanduser(file))  # which leaves the home of an unknown user as it is
    if not path.is_file() or path.suffix != ".py":
        raise UserError(
            place,
            f"{file} is not a {'Python ' if path.is_file() else ''}file",
            f"give the path of a Python file with one class on top of {base.__name__}",
        )
    found = only_subclass(_import_file(path, kind, place), base, kind, place)
    _check_attributes(found, base, place, path.name)
    if not own_hooks(found, base):
        problem = f"{path.name}: {found.__name__} has no function of a {kind}'s"
        raise UserError(place, problem, _hooks(base, vars(found)))
    check_answers(found, base, path.name)
    return found


def _hooks(base: type, own: Iterable[str]) -> str:
    """The hooks of ``base`` as a remedy; own: names in a class that has none of them."""
    hooks = [name for name, hook in vars(base).items() if inspect.isfunction(hook)]
    known = [name for name in hooks if not name.startswith("_")]
    near = [name for each in own for name in difflib.get_close_matches(each, known, n=1)]
    return (f"did you mean {near[0]!r}? " if near else "") + "known: " + ", ".join(known)


def _check_attributes(cls: type, base: type, place: str, file: str) -> None:
    """Raises UserError where an attribute of ``cls`` is of another kind than that of ``base``."""
    for name, default in vars(base).items():
        kinds = [kind for kind in KINDS if isinstance(default, kind)]
        if name.startswith("_") or not kinds:
            continue
        value = inspect.getattr_static(cls, name)
        wanted = KINDS[kinds[0]]
        fits = isinstance(value, property) or (
            isinstance(value, kinds[0]) and (kinds[0] is not int or not isinstance(value, bool))
        )
        if fits and isinstance(value, tuple):
            fits = all(isinstance(entry, str) for entry in value)
        if not fits:
            problem = f"{file}: {name} of {cls.__name__} is {repr(value)[:60]}"
            raise UserError(place, problem, f"{wanted} is wanted, as {repr(default)[:60]}")


def _import_file(path: Path, kind: str, place: str) -> ModuleType:
    """The module of a user's file, imported once for each content of each path.

    A plug-in may be in an order under several labels, whose classes are then the same objects.
    """
    source = path.read_bytes()
    key = hashlib.sha256(str(path.resolve()).encode() + source).hexdigest()[:12]
    name = f"{kind}_file_{path.stem}_{key}"
    if name in sys.modules:
        return sys.modules[name]
    if moved := moved_imports(source):
        raise UserError(place, f"{path.name} imports {moved}", CHANGE_IMPORTS)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(place, f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # the user's file may raise anything
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(
            place, f"{path} cannot be imported ({type(error).__name__}: {text_of(error)})"
        ) from error
    return module


def function_of_file(named: str, kind: str, place: str, find: Callable[[str], Path]) -> Any:
    """The function of a user's file: FILE.py with one public function, or FILE.py:NAME.

    find: finds a file that an order names. Raises UserError if there is none.
    """
    file, _, name = named.partition(".py:")
    path = find(file if not name else f"{file}.py")
    if not path.is_file():
        raise UserError(place, f"{path} is not a file", f"write FILE.py or FILE.py:{kind}")
    module = _import_file(path, kind, place)
    own = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and value.__name__ == key
        and not key.startswith("_")
    }
    if name and name not in own:
        problem = f"{path} defines no function {name!r}"
        raise UserError(place, problem, did_you_mean(name, own) if own else "")
    if not name and len(own) != 1:
        which = f"{len(own)} public functions" if own else "no public function"
        remedy = "name the one that is meant, as FILE.py:NAME"
        raise UserError(place, f"{path} defines {which}", remedy)
    return own[name or next(iter(own))]
