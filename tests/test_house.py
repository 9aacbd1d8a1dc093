"""The house: imports go one way, files and functions stay small, no class has two homes."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {  # a room and the rooms that it may import
    "base": set(),
    "results": {"base"},
    "skills": {"base", "results"},
    "models": {"base", "results"},
    "sampling": {"base", "results", "skills", "models"},
    "learning": {"base", "results", "skills", "models", "sampling"},
    "evaluation": {"base", "results", "skills", "models", "sampling", "learning"},
    "runs": {"base", "results", "skills", "models", "sampling", "learning", "evaluation", "watch"},
    "report": {"base", "results"},
    "watch": {"base", "results"},
}
FILES = sorted(
    path
    for folder in ("harness", "methods", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 450, 70


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it; strings of plug-ins do not count."""
    modules = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return modules


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room):
    for path in (ROOT / "harness" / room).rglob("*.py"):
        for module in imported(path):
            top, _, rest = module.partition(".")
            assert top not in ("benchmarks", "methods"), f"{path} imports {module}"
            other = rest.partition(".")[0]
            if top == "harness" and other in ROOMS and other != room:
                assert other in ROOMS[room], f"{path.relative_to(ROOT)} imports {module}"


def test_there_are_no_other_rooms():
    folders = {p.name for p in (ROOT / "harness").iterdir() if (p / "__init__.py").exists()}
    assert folders == set(ROOMS)


def test_the_report_and_the_base_need_no_torch():
    for room in ("base", "results", "report", "watch"):
        for path in (ROOT / "harness" / room).rglob("*.py"):
            heavy = {"torch", "transformers", "lm_eval", "vllm"}
            assert not heavy & {m.partition(".")[0] for m in imported(path)}, path


def test_the_harness_does_not_know_the_paper():
    for path in (ROOT / "harness" / "report").rglob("*"):
        if path.suffix in (".py", ".html", ".js", ".css"):
            assert "2601.19897" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small_or_say_why(path):
    """A reason is the word "long" in the docstring of the file or of the function."""
    module = parsed(path)
    lines = len(path.read_text(encoding="utf-8").splitlines())
    reason = re.search(r"\blong\b", ast.get_docstring(module) or "")
    assert lines <= LINES_OF_A_FILE or reason, f"{lines} lines"
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            reason = re.search(r"\blong\b", ast.get_docstring(node) or "")
            assert length <= LINES_OF_A_FUNCTION or reason, f"{node.name} has {length} lines"


def test_no_class_has_two_homes():
    names = Counter(
        node.name
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in names.items() if count > 1]


def test_no_room_has_more_than_a_quarter_of_the_lines():
    lines = {
        room: sum(
            len(path.read_text(encoding="utf-8").splitlines())
            for path in (ROOT / "harness" / room).rglob("*.py")
        )
        for room in ROOMS
    }
    assert max(lines.values()) <= 0.25 * sum(lines.values()), lines
