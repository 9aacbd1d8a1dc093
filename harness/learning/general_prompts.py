"""Prompts that have nothing to do with a skill: the project's own, or those of a file."""

from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import ROOT, read_jsonl
from harness.skills.files import chat_prompt

DEFAULT_PROMPTS = ROOT / "methods" / "general_prompts.jsonl"  # written for this project


def general_prompts(file: str | Path | None) -> list[list[dict[str, str]]]:
    """The chat messages of each row of ``file``, or of the project's own prompts.

    Raises UserError naming a row that is wrong.
    """
    path = Path(file or DEFAULT_PROMPTS)
    prompts = [chat_prompt(row, f"{path}, row {number}") for number, row in read_jsonl(path)]
    if not prompts:
        raise UserError(path, "has no rows")
    return prompts
