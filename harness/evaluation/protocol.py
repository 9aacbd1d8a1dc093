"""What a measurement depends on, as a hash."""

import functools
import hashlib
import inspect
import json
from pathlib import Path


def protocol_hash(meaning):
    """Twelve hexadecimal digits that stand for a measurement."""
    text = json.dumps(meaning, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def scorer_hash(function):
    """Eight digits of the source of the module that scores, so that a changed grader is another
    protocol.

    With it stand the modules of what the grader wraps and of the functions of benchmarks/ that it
    calls by name.
    """
    known, todo = set(), [function]
    while todo:
        one = todo.pop()
        while isinstance(one, functools.partial):
            one = one.func
        if one in known:
            continue
        known.add(one)
        todo += [one.__wrapped__] if hasattr(one, "__wrapped__") else []
        if inspect.isfunction(one):
            called = (one.__globals__.get(name) for name in _names(one.__code__))
            todo += [
                f
                for f in called
                if inspect.isfunction(f)
                and f.__module__.startswith(("benchmarks.", "harness.skills."))
            ]
    files = sorted({inspect.getfile(f if inspect.isroutine(f) else type(f)) for f in known})
    return hashlib.sha256(
        "".join(Path(f).read_text(encoding="utf-8") for f in files).encode()
    ).hexdigest()[:8]


def _names(code):
    """Names that a function's code looks up, that of comprehensions and functions within it
    included.
    """
    return {
        *code.co_names,
        *(name for inner in code.co_consts if inspect.iscode(inner) for name in _names(inner)),
    }
