"""What the hooks of a user's own class return, held against what the base class says.

Without it a hook that forgets its ``return`` gives None to whoever called it, far from the hook.
"""

import collections.abc
import functools
import inspect
import numbers
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from harness.base.errors import WrongAnswer, shortened

HOOK = types.FunctionType
LISTS = (list, tuple, collections.abc.Sequence, set)  # of which the entries are looked at
DICTS = (dict, collections.abc.Mapping)


def check_answers(cls: type, base: type, file: str) -> None:
    """Let every hook of ``cls`` that ``base`` has raise WrongAnswer where it returns another kind.

    file: that defines the class, and perhaps some of those that it is made of.
    """
    for owner in cls.__mro__:
        is_own = owner.__module__ == cls.__module__ and owner is not base
        own = vars(owner).items() if is_own else ()
        for name, hook in list(own):
            kept = inspect.getattr_static(base, name, None)
            is_hook = isinstance(hook, HOOK) and isinstance(kept, HOOK) and name[0] != "_"
            if is_hook and not hasattr(hook, "__wrapped__"):
                place = f"{file}: {owner.__name__}.{name}()"
                setattr(owner, name, _checked(hook, _returned(kept), place))


def own_hooks(cls: type, base: type) -> list[str]:
    """Names of the hooks of ``base`` that ``cls`` or a class between them defines."""
    return [
        name
        for name, kept in vars(base).items()
        if isinstance(kept, HOOK)
        and name[0] != "_"
        and inspect.getattr_static(cls, name) is not kept
    ]


def _returned(kept: Any) -> tuple[Any, str]:
    """(kind, in words) of what a function is annotated to return; Any where that is not known."""
    words = kept.__annotations__.get("return", Any)
    if not isinstance(words, str):
        return words, inspect.formatannotation(words)
    try:
        return eval(words, vars(sys.modules[kept.__module__])), words
    except NameError:  # of an import for type checkers alone
        return Any, words


def _checked(hook: Callable[..., Any], wanted: tuple[Any, str], place: str) -> Callable[..., Any]:
    kind, words = wanted

    @functools.wraps(hook)
    def asked(*given: Any, **named: Any) -> Any:
        answer = hook(*given, **named)
        if kind is None:
            # It changes what it is given. Who returns a new tensor instead has changed nothing.
            if hasattr(answer, "dtype") and not any(answer is each for each in given):
                raise WrongAnswer(place, "returns a tensor", "change what it is given in place")
        elif not fits(answer, kind):
            raise WrongAnswer(
                place, f"returns {shortened(_shown(answer), 80)}", f"{words} is wanted"
            )
        return answer

    return asked


def _shown(answer: Any) -> str:
    try:
        return repr(answer)
    except Exception:  # of a class of the user's
        return f"a {type(answer).__name__}"


def fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of a kind, as annotations write it; of lists and dicts every entry.

    A whole number is a number, true is none, and a list may be a tuple. Iterators are not read.
    """
    if kind is Any or isinstance(kind, typing.TypeVar):
        return True
    if kind is None or kind is types.NoneType:
        return value is None
    origin: Any = typing.get_origin(kind)
    inner = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is collections.abc.Callable:
        return callable(value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is None:
        return not isinstance(kind, type) or isinstance(value, kind)
    if not isinstance(origin, type):  # as Literal, whose kind is not looked at
        return True
    entries: Any = value
    if not isinstance(value, (list, tuple) if origin is list else origin):
        return False
    if isinstance(value, DICTS):
        return all(fits(key, inner[0]) and fits(each, inner[1]) for key, each in entries.items())
    if origin is tuple and inner[-1] is not ...:
        return len(entries) == len(inner) and all(map(fits, entries, inner))
    return origin not in LISTS or all(fits(each, inner[0]) for each in entries)
