"""Runs the cells of a notebook and writes what they print into it. Jupyter is not needed.

Each notebook has a fresh namespace, and its own folder as the current one.
"""

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

# A frame as text has the width of the terminal where nothing else is said.
SHOWN = ("display.width", 100, "display.max_columns", 20, "display.max_rows", 20)


def executed(path: Path) -> str:
    """The text of the notebook at ``path`` with the outputs of its code cells."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    space: dict[str, Any] = {"__name__": "__main__"}
    path_of_imports = list(sys.path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with contextlib.chdir(path.parent), pd.option_context(*SHOWN):
        for number, cell in enumerate(code, 1):
            cell["execution_count"] = number
            cell["outputs"] = outputs("".join(cell["source"]), space, number)
    sys.path[:] = path_of_imports  # a cell may add to it
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def outputs(source: str, space: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """What a cell prints, and the value of its last line, as notebooks hold them."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), space)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), space)
    made: list[dict[str, Any]] = []
    if text := printed.getvalue():
        made.append({"name": "stdout", "output_type": "stream", "text": lines(text)})
    if value is not None:
        data = {"text/plain": lines(repr(value))}
        if isinstance(value, pd.DataFrame):
            data = {"text/html": lines(value.to_html()), **data}
        made.append(
            {
                "data": data,
                "execution_count": number,
                "metadata": {},
                "output_type": "execute_result",
            }
        )
    return made


def lines(text: str) -> list[str]:
    """A text as notebooks hold it: a list of lines with their ends."""
    return text.splitlines(keepends=True)
