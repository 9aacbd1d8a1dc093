"""A skill of the user's own: JSONL files that the order names, and a grader by name. No code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import UserError, did_you_mean
from harness.base.files import read_jsonl
from harness.skills.graders import check_reference
from harness.skills.signs import GRADERS
from harness.skills.skill import Example, Metric, Skill
from harness.skills.templates import Message, is_chat


class FileSkill(Skill):
    """A skill from one JSONL file a split and the name of a grader.

    A row has ``prompt`` (a text or chat messages), ``demonstration`` (a text, optional outside
    train), ``reference`` (any JSON value) and optionally ``id`` and ``source``.
    """

    def __init__(
        self, name: str, files: Mapping[str, str | Path], grader: str, place: str = "order"
    ) -> None:
        """Raises UserError at ``place`` for an unknown grader or a path that is not a file."""
        if grader not in GRADERS:
            raise UserError(place, f"unknown grader {grader!r}", did_you_mean(grader, GRADERS))
        self.name = name
        self.files = {split: Path(path) for split, path in files.items()}
        self.splits = tuple(files)
        self.description = f"{name}, from " + ", ".join(path.name for path in self.files.values())
        self._metrics = {grader: GRADERS[grader]}
        for path in self.files.values():
            if not path.is_file():
                raise UserError(place, f"{path} is not a file", "give the path of a JSONL file")

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return self._metrics

    def reference(self, row: Mapping[str, Any], place: str) -> Any:
        reference = super().reference(row, place)
        check_reference(reference, self.metric, place)
        return reference

    def load(self, split: str) -> list[Example]:
        path = self.files[split]
        examples = [
            self._example(row, split, number, f"{path}, row {number}")
            for number, row in read_jsonl(path)
        ]
        if not examples:
            raise UserError(path, "has no rows")
        return examples

    def _example(self, row: Mapping[str, Any], split: str, number: int, place: str) -> Example:
        prompt = chat_prompt(row, place)
        if "reference" not in row:
            raise UserError(place, "has no `reference`", "the grader compares the answer with it")
        demonstration = row.get("demonstration")
        optional = demonstration is None and split != "train"
        if not isinstance(demonstration, str) and not optional:
            raise UserError(
                place, "`demonstration` must be a text", "a train row shows a good response"
            )
        if isinstance(demonstration, str) and not demonstration.strip():
            raise UserError(place, "`demonstration` is empty", "it shows a good response")
        source = row.get("source")
        if not isinstance(source, str | None):
            raise UserError(place, "`source` must be a text")
        return Example(
            id=str(number if row.get("id") is None else row["id"]),
            prompt=prompt,
            demonstration=demonstration,
            reference=self.reference(row, place),
            source=source,
        )


def chat_prompt(row: Mapping[str, Any], place: str) -> list[Message]:
    """The ``prompt`` of a JSONL row as chat messages.

    Raises UserError at ``place`` if it is neither a text nor messages that end in a user turn.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not is_chat(prompt) or not prompt or prompt[-1]["role"] != "user":
        raise UserError(place, "`prompt` must be a text or chat messages that end in a user turn")
    return prompt
