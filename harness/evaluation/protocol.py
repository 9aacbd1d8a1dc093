"""What a measurement depends on, as a hash."""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

from harness.base.files import ROOT


def protocol_hash(meaning: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that name a measurement; meaning: all that it depends on, JSON."""
    text = json.dumps(meaning, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def evaluation_key(weights: str, protocol: str, prompts: str = "") -> str:
    """The key of an evaluation.

    weights: the model's fingerprint; prompts: hash of those that a method has of its own.
    """
    own = [prompts[:12]] if prompts else []
    return "-".join([weights[:16], protocol, *own])


def key_under(key: str, protocol: str) -> str:
    """The key of what ``key`` is of, the same answers, measured by another protocol."""
    weights, _, *own = key.split("-")
    return evaluation_key(weights, protocol, *own)


def scorer_hash(function: Callable[..., Any]) -> str:
    """Eight digits of the source that scores, so that a changed grader is another protocol.

    The source is the module of the function, the modules of the functions that it wraps, and those
    of the functions of benchmarks/ and harness/skills that it calls by name.
    """
    scorers: set[Callable[..., Any]] = set()
    pending = [function]
    while pending:
        scorer = pending.pop()
        while isinstance(scorer, functools.partial):
            scorer = scorer.func
        if scorer not in scorers:
            scorers.add(scorer)
            pending += _parts(scorer)
    files = {inspect.getfile(f if inspect.isroutine(f) else type(f)) for f in scorers}
    source = "".join(text for _, text in sorted(map(_placed, files)))
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def _placed(file: str) -> tuple[tuple[int, str], str]:
    """(place among the files, text) of a source file, wherever the checkout stands.

    The project's files come first, by their path in it, then others by their name.
    """
    path = Path(file).resolve()
    text = path.read_text(encoding="utf-8")
    if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
        return (0, str(path.relative_to(ROOT))), text
    return (1, path.name), text


def _parts(scorer: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The function that ``scorer`` wraps, and the project's functions that it calls by name."""
    parts = [scorer.__wrapped__] if hasattr(scorer, "__wrapped__") else []
    if not inspect.isfunction(scorer):
        return parts
    for name in _names(scorer.__code__):
        value = scorer.__globals__.get(name)
        if inspect.isfunction(value) and value.__module__.startswith(
            ("benchmarks.", "harness.skills.")
        ):
            parts.append(value)
    return parts


def _names(code: CodeType) -> set[str]:
    """Names that a function's code looks up, with those of the functions inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names |= _names(constant)
    return names
