"""Skills of the user's own: data that the order names, and a grader by name or from a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import UserError, did_you_mean
from harness.base.files import read_jsonl
from harness.results.formats import short_json
from harness.skills.graders import check_reference
from harness.skills.signs import GRADERS
from harness.skills.skill import Example, Metric, Skill
from harness.skills.templates import PROMPT_ENDS, Message, is_prompt


class OwnSkill(Skill):
    """A skill without a class of its own.

    A row has ``prompt`` (a text or chat messages), ``demonstration`` (a text, optional outside
    train), ``reference`` (any JSON value) and optionally ``id`` and ``source``.
    """

    def __init__(
        self,
        name: str,
        splits: Sequence[str],
        grader: str | Metric,
        place: str = "order",
        reward: Metric | None = None,
    ) -> None:
        """grader: a name, or a function; reward: of answers in training, the grade if left out.

        Raises UserError at ``place`` for an unknown grader.
        """
        if isinstance(grader, str) and grader not in GRADERS:
            remedy = f"{did_you_mean(grader, GRADERS)}, or a Python file"
            raise UserError(place, f"unknown grader {grader!r}", remedy)
        self.name = name
        self.splits = tuple(splits)
        self._knows_references = isinstance(grader, str)
        function = GRADERS[grader] if isinstance(grader, str) else grader
        self._metrics = {grader if isinstance(grader, str) else grader.__name__: function}
        self.own_reward = reward

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return self._metrics

    def reward(self, completion: str, reference: Any) -> float:
        if self.own_reward is None:
            return super().reward(completion, reference)
        return self.own_reward(completion, reference)

    def reference(self, row: Mapping[str, Any], place: str) -> Any:
        reference = super().reference(row, place)
        if self._knows_references:
            check_reference(reference, self.metric, place)
        return reference

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
            id=_id(number if row.get("id") is None else row["id"], place),
            prompt=prompt,
            demonstration=demonstration,
            reference=self.reference(row, place),
            source=source,
        )


class FileSkill(OwnSkill):
    """A skill from one JSONL file a split."""

    def __init__(
        self,
        name: str,
        files: Mapping[str, str | Path],
        grader: str | Metric,
        place: str = "order",
        reward: Metric | None = None,
    ) -> None:
        """Raises UserError at ``place`` for an unknown grader or a path that is not a file."""
        super().__init__(name, tuple(files), grader, place, reward)
        self.files = {split: Path(path) for split, path in files.items()}
        self.description = f"{name}, from " + ", ".join(path.name for path in self.files.values())
        for path in self.files.values():
            if not path.is_file():
                raise UserError(place, f"{path} is not a file", "give the path of a JSONL file")

    def load(self, split: str) -> list[Example]:
        path = self.files[split]
        examples = [
            self._example(row, split, number, f"{path}, row {number}")
            for number, row in read_jsonl(path)
        ]
        if not examples:
            raise UserError(path, "has no rows")
        return examples


def chat_prompt(row: Mapping[str, Any], place: str) -> list[Message]:
    """The ``prompt`` of a row as chat messages.

    A turn that calls tools may have no content. Raises UserError at ``place`` if it is neither a
    text nor messages that an assistant's turn can follow, or asks nothing.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list):
        prompt = [_with_content(turn) for turn in prompt]
    if not is_prompt(prompt):
        raise UserError(place, f"`prompt` must be a text or chat messages that {PROMPT_ENDS}")
    if prompt[-1]["role"] == "user" and not prompt[-1]["content"].strip():
        raise UserError(place, "`prompt` is empty", "it asks what is to be answered")
    return prompt


def _id(value: object, place: str) -> str:
    """A row's ``id`` as records have it. Raises UserError at ``place`` for what names nothing."""
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int | float)
        or not str(value).strip()
    ):
        raise UserError(place, f"`id` is {short_json(value)}, not a text or a number")
    return str(value)


def _with_content(turn: Any) -> Any:
    """A turn of calls alone with an empty text, which chat templates take for no text."""
    calls = isinstance(turn, dict) and turn.get("tool_calls")
    return {**turn, "content": ""} if calls and turn.get("content") is None else turn
