"""What plug-ins refuse, read from their code: the errors that they raise, and their answers."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from generator.text import names
from harness.learning.method import Method
from harness.learning.parametrisation import Parametrisation
from harness.learning.part import Part, lacking
from harness.runs.methods import ALONE

Plugin = type[Method] | type[Part] | type[Parametrisation]
HOOKS = ("check", "refuses", "trained")  # of a plug-in that refuse an order
RULES = ("__post_init__", "check_effects")  # of its options
PLACES = ("harness.learning", "methods")  # packages whose functions are followed
UNKNOWN = "…"  # a value that an error names


def errors_of(plugin: Plugin, shared: Sequence[type] = ()) -> list[str]:
    """The errors of a plug-in's own hooks and options as entries of a list, in source order.

    shared: classes of options that are described elsewhere.
    """
    found: list[str] = []
    seen: set[object] = set()
    config: type = plugin.Config
    for cls, hooks in ((config, RULES), (plugin, HOOKS)):
        for base in reversed(cls.__mro__):
            if base in shared or not base.__module__.startswith(PLACES):
                continue
            for hook in hooks:
                if hook in vars(base):
                    found += errors_in(vars(base)[hook], cls, seen)
    return list(dict.fromkeys(found))


def errors_in(function: object, owner: type, seen: set[object]) -> Iterator[str]:
    """What a function says where it raises, and the functions of PLACES that it calls."""
    function = inspect.unwrap(getattr(function, "fget", None) or function)  # type: ignore[arg-type]
    if not inspect.isfunction(function) or function in seen:
        return
    seen.add(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call | ast.Return)]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(node, ast.Return):
            said = text_of(node.value) if function.__name__ == "refuses" else ""
        else:
            said = error_of(node)
            yield from errors_in(called(node, function, owner), owner, seen)
        if len(re.findall(r"[a-z]{2,}", said)) > 2:  # and no wrapper of another error
            yield said


def error_of(node: ast.Call) -> str:
    """The words of an error that a call makes; "" for another call, or where they are not there."""
    name, given = ast.unparse(node.func), node.args
    if name == "UserError" and len(given) > 1:
        words = [text_of(each) for each in given[1:3]]
        return "; ".join(filter(None, words)) if words[0] else ""
    if name == "ValueError" and given:
        return text_of(given[0])
    if name == "only_with":
        options = names(ast.literal_eval(each) for each in given[3:])
        return f"{options} without {text_of(given[2]) or UNKNOWN}"
    return ""


def text_of(node: ast.AST | None) -> str:
    """A text as the code writes it, UNKNOWN for each value in it; "" where it has no words."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [text_of(each) or UNKNOWN for each in node.values]
        return "" if set(parts) == {UNKNOWN} else "".join(parts)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + (text_of(node.right) or UNKNOWN)
    return ""


def called(node: ast.Call, function: Callable[..., object], owner: type) -> object:
    """The function that a call means, where it is one of PLACES; else None."""
    match node.func:
        case ast.Name(id=name):
            found = function.__globals__.get(name)  # type: ignore[attr-defined]
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            found = inspect.getattr_static(owner, name, None)
        case _:
            return None
    home = getattr(found, "__module__", None) or ""
    return found if inspect.isfunction(found) and home.startswith(PLACES) else None


# ---- what joins what -----------------------------------------------------------------------------


def joins(part: type[Part], method: type[Method]) -> tuple[str, str]:
    """("no", "some" or "", why) of a part with its defaults."""
    if lack := lacking(part, method):
        return "no", lack
    why = part(part.Config()).refuses(method)
    return ("some", why) if why else ("", "")


def goes_with(part: type[Part], trained: type[Parametrisation]) -> tuple[str, str]:
    """As ``joins`` of a part with its defaults beside a parametrisation with its own.

    "some": with another word for one of its options.
    """
    why = part(part.Config()).wants_weights() if trained.makes else ""
    if not why:
        return "", ""
    reached = any(not part(config).wants_weights() for config in _other_words(part.Config))
    return ("some" if reached else "no"), why


def _other_words(config: Any) -> Iterator[Any]:
    """Options with another word for one of them, where the others' defaults go with it."""
    for field in fields(config):
        for word in field.metadata.get("choices") or ():
            with suppress(ValueError):
                yield config(**{field.name: word})


def grouped(answers: Mapping[str, str]) -> dict[str, list[str]]:
    """{answer: names that have it}, without the empty answer."""
    groups: dict[str, list[str]] = {}
    for name, answer in answers.items():
        if answer:
            groups.setdefault(answer, []).append(name)
    return groups


def entries(answers: Mapping[str, str]) -> list[str]:
    """An entry of a list for each answer."""
    return [f"{names(group)}: {why}" for why, group in grouped(answers).items()]


def beside(name: str, parts: Mapping[str, type[Part]]) -> list[str]:
    """Entries on the other parts that cannot join beside a part."""
    part, found = parts[name], []
    for hook, what in ALONE.items():
        others = [other for other in parts if other != name and parts[other].has(hook)]
        if part.has(hook) and others:
            found.append(f"{names(others)} beside it: both {what}")
    apart = {other: part.apart.get(other) or parts[other].apart.get(name, "") for other in parts}
    return found + [f"{names(group)} beside it: {why}" for why, group in grouped(apart).items()]
