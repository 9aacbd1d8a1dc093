"""Whether an order may go on in a results folder: what its numbers depend on must be the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.results.formats import HEAD, LATER, VERSION, check_shape

# What all runs of a folder share. Methods, seeds, sequences and references may be added.
SHARED = ("model", "budget", "rollout", "evaluate", "skills", "retention")
OTHER_FOLDER = "give another folder with --out, or move this one away"
OTHER_LABEL = "give the changed method another label, or another folder with --out"
START_AGAIN = "move the folder away and start again"


def continued(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What results.json becomes if the order ``new`` goes on where ``old`` began.

    old: what ``path`` holds; new: what it holds for the order. Raises UserError naming the first
    key in which they differ and must not.
    """
    _check_form(old, path)
    for part in SHARED:
        before = _without_descriptions(old.get(part))
        now = _without_descriptions(_without_later(new[part], old.get(part)))
        _check_equal(before, now, part, path, OTHER_FOLDER)
    orders = _sequences(old, new, path)
    methods = old["methods"]
    for label in set(methods) & set(new["methods"]):
        _check_method(methods[label], new["methods"][label], label, path)
    asked = {
        key: list(dict.fromkeys([*old.get(key, []), *new.get(key, [])]))
        for key in ("references", "relearning")
    }
    has_all = set(methods) <= set(new["methods"])
    return {
        **new,
        # Tables have the methods as the order has them, whichever began first.
        "methods": new["methods"] if has_all else {**methods, **new["methods"]},
        "seeds": sorted({*old["seeds"], *new["seeds"]}),
        **{key: labels for key, labels in asked.items() if labels},
        **({"orders": orders} if orders else {}),
    }


def _sequences(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The sequences of both. Raises UserError where a name has two, or one side has none."""
    before, now = old.get("orders") or {}, new.get("orders") or {}
    if bool(before) != bool(now):
        was, is_now = (", ".join(of) if of else "none" for of in (before, now))
        raise UserError(path, f"`orders` was {was[:80]} and is now {is_now[:80]}", OTHER_FOLDER)
    for name, of in now.items():
        if name in before:
            _check_equal(before[name], of, f"orders.{name}", path, OTHER_FOLDER)
        elif of in before.values():
            problem = f"`orders.{name}` is in it under another name"
            raise UserError(path, problem, OTHER_FOLDER)
    return {**before, **now}


def _check_form(old: Mapping[str, Any], path: Path) -> None:
    """Raises UserError unless ``old`` is of this version and has its form."""
    if old.get("version") != VERSION:
        raise UserError(
            path,
            f"is of version {old.get('version')}, not {VERSION}",
            "report.py reads it; to run, move it away or give another folder with --out",
        )
    check_shape(path, dict(old), HEAD, "", START_AGAIN)


def _check_method(old: Mapping[str, Any], new: Mapping[str, Any], label: str, path: Path) -> None:
    key = f"methods.{label}"
    _check_equal(old.get("method"), new.get("method"), f"{key}.method", path, OTHER_LABEL)
    config = _without_later([new.get("config")], [old.get("config")])[0]
    _check_equal(old.get("config"), config, key, path, OTHER_LABEL)
    for section in ("with", "parameters"):
        _check_equal(old.get(section), new.get(section), f"{key}.{section}", path, OTHER_LABEL)
    _check_equal(old.get("files"), new.get("files"), f"{key}.files", path, OTHER_LABEL)


def _without_descriptions(part: Any) -> Any:
    """A part of results.json without the descriptions of its entries: words for the reader."""
    if not isinstance(part, list):
        return part
    return [
        {key: value for key, value in entry.items() if key != "description"}
        if isinstance(entry, dict)
        else entry
        for entry in part
    ]


def _without_later(new: Any, old: Any) -> Any:
    """Entries of results.json without the keys of LATER that those of ``old`` do not have."""
    if not (isinstance(new, list) and isinstance(old, list) and len(new) == len(old)):
        return new
    return [
        {key: value for key, value in entry.items() if key not in LATER or key in before}
        if isinstance(before, dict)
        else entry
        for entry, before in zip(new, old, strict=True)
    ]


def _check_equal(old: Any, new: Any, key: str, path: Path, remedy: str) -> None:
    """Raises UserError naming the first key whose value differs."""
    new = json.loads(json.dumps(new, default=str))  # As results.json would give it back.
    if isinstance(old, dict) and isinstance(new, dict) and set(old) == set(new):
        for name in new:
            _check_equal(old[name], new[name], f"{key}.{name}", path, remedy)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (before, now) in enumerate(zip(old, new, strict=True)):
            _check_equal(before, now, f"{key}[{i}]", path, remedy)
    elif old != new:
        raise UserError(path, f"`{key}` was {_short(old)} and is now {_short(new)}", remedy)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 90 else text[:87] + "..."
