"""What an order can name: methods, parts, presets, skills, graders, retention suites, orders.

Reads source and YAML as text where it can: nothing here imports PyTorch.
"""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.base.files import ROOT
from harness.base.registry import only_subclass
from harness.base.strict_yaml import YAML_ERRORS, parse_yaml
from harness.runs.presets import preset_files, read_preset
from harness.skills.signs import GRADERS
from harness.skills.skill import Skill

Entries = Iterator[tuple[str, str]]  # (name, what it is)


def methods() -> Entries:
    """The files of methods/, with the first paragraph of their docstring."""
    for path in _modules(ROOT / "methods"):
        source = ast.parse(path.read_text(encoding="utf-8"))
        yield path.stem, _first_paragraph(ast.get_docstring(source))


def parts() -> Entries:
    """The files of methods/parts, with the first paragraph of their docstring."""
    for path in _modules(ROOT / "methods" / "parts"):
        source = ast.parse(path.read_text(encoding="utf-8"))
        yield path.stem, _first_paragraph(ast.get_docstring(source))


def parameters() -> Entries:
    """The files of methods/parameters, with the first paragraph of their docstring."""
    for path in _modules(ROOT / "methods" / "parameters"):
        source = ast.parse(path.read_text(encoding="utf-8"))
        yield path.stem, _first_paragraph(ast.get_docstring(source))


def presets() -> Entries:
    """The files of benchmarks/presets, with their method and source."""
    for name in preset_files():
        preset = read_preset(name)
        yield name, " ".join(f"{preset['method']}: {preset['source']}".split())


def skills() -> Entries:
    """The files of benchmarks/skills, with their description; of a suite with its tasks."""
    for path in _modules(ROOT / "benchmarks" / "skills"):
        name = path.stem
        try:
            module = importlib.import_module(f"benchmarks.skills.{name}")
        except ImportError as error:  # a package that its data come from
            yield name, f"cannot be imported ({error})"
        else:
            cls = only_subclass(module, Skill, "skill", str(path))
            tasks = ", ".join(f"{name}_{task}" for task in cls.tasks)
            yield name, f"{cls.description}: {tasks}" if tasks else cls.description


def graders() -> Entries:
    """The graders for a skill of the user's own, with the first paragraph of their docstring."""
    for name, grader in GRADERS.items():
        yield name, _first_paragraph(inspect.getdoc(grader))


def suites() -> Entries:
    """The retention suites of benchmarks/retention."""
    for path in sorted((ROOT / "benchmarks" / "retention").glob("*.yaml")):
        yield path.stem, _description(path)


def orders() -> Entries:
    """The task-order files of benchmarks/orders, by their path from there."""
    folder = ROOT / "benchmarks" / "orders"
    for path in sorted(folder.rglob("*.yaml")):
        yield str(path.relative_to(folder)), _description(path)


LISTINGS: dict[str, Callable[[], Entries]] = {
    "methods": methods,
    "parts": parts,
    "parameters": parameters,
    "presets": presets,
    "skills": skills,
    "graders": graders,
    "suites": suites,
    "orders": orders,
}


def _modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _first_paragraph(docstring: str | None) -> str:
    """Of a docstring, on one line."""
    return " ".join((docstring or "").split("\n\n")[0].split())


def _description(path: Path) -> str:
    """The key ``description`` of a YAML file, on one line."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except YAML_ERRORS:
        return "is not YAML"
    description = content.get("description") if isinstance(content, dict) else None
    return " ".join(str(description or "").split())
