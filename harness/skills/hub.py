"""A skill of the user's own from a dataset of the hub, or from a folder in the hub's form. No code.

A row has `messages`, whose last turn is the answer, or `prompt` and `completion`: texts or chat
messages, as TRL's trainers read them. Nothing of the dataset is executed: the library runs no
scripts.
"""

from collections.abc import Mapping
from typing import Any

from harness.base.errors import UserError, did_you_mean, one_line
from harness.skills.files import OwnSkill
from harness.skills.skill import Example, Metric
from harness.skills.templates import is_chat

SPLITS = ("train", "validation", "test")
FORMS = "the columns are `messages`, or `prompt` and `completion`"
MOST_OF_AN_ERROR = 160  # letters of what the library says


class HubSkill(OwnSkill):
    """A skill from a dataset; its rows have numbers for ids, from 1.

    The reference is the column `reference`, or the answer itself. Rows that end without an answer
    in words, as in a call of a tool, are left out, which ``notes`` tells.
    """

    def __init__(
        self,
        name: str,
        dataset: str,
        named: Mapping[str, str],
        grader: str | Metric,
        place: str = "order",
        reward: Metric | None = None,
        subset: str | None = None,
        revision: str | None = None,
    ) -> None:
        """dataset: an id of the hub, or a folder; named: {split: the dataset's name for it, also
        with a slice, as train[90%:]}, by default its own name; subset, revision: of the dataset.

        Raises UserError where the dataset cannot be had.
        """
        self.dataset, self.subset, self.revision = dataset, subset, revision
        self.place = place
        self._left_out: dict[str, tuple[int, int]] = {}
        there = self._splits_there()
        self.named = {split: named.get(split, split) for split in SPLITS}
        has = [s for s in SPLITS if s in named or s in there]
        super().__init__(name, has, grader, f"{place}: grader", reward)
        self.there = there
        self.description = f"{name}, from {dataset}" + (f" ({subset})" if subset else "")

    def examples(self, split: str) -> list[Example]:
        if split not in self.splits:
            raise UserError(
                f"{self.place}: {split}",
                f"{self.dataset} has no split {split!r}",
                f"it has {', '.join(self.there)}; name one, also a slice of it: "
                f"{split}: {(self.there or [split])[0]}[90%:]",
            )
        return super().examples(split)

    def notes(self) -> list[str]:
        return [
            f"skill {self.name}, split {split}: {out} of {rows} rows are left out, which end "
            "without an answer in words"
            for split, (out, rows) in self._left_out.items()
            if out
        ]

    def load(self, split: str) -> list[Example]:
        rows = self._rows(split)
        place = f"{self.dataset}, split {self.named[split]}"
        examples = []
        for number, row in enumerate(rows, 1):
            plain = plain_row(row, f"{place}, row {number}")
            if plain is not None:
                where = f"{place}, row {number}"
                examples.append(self._example(plain, split, number, where))
        self._left_out[split] = (len(rows) - len(examples), len(rows))
        if not examples:
            raise UserError(place, "has no row with an answer", FORMS)
        return examples

    def _splits_there(self) -> list[str]:
        from datasets import get_dataset_split_names  # takes a second, and most orders need none

        return list(self._asked(get_dataset_split_names, "hub"))

    def _rows(self, split: str) -> list[dict[str, Any]]:
        from datasets import load_dataset

        return self._asked(load_dataset, split, split=self.named[split]).to_list()

    def _asked(self, function: Any, key: str, **how: Any) -> Any:
        """What the library gives. Raises UserError where it gives nothing."""
        revision = {"revision": self.revision} if self.revision else {}
        try:
            return function(self.dataset, self.subset, **revision, **how)
        except Exception as error:
            said = one_line(str(error))[:MOST_OF_AN_ERROR]
            key = "subset" if self.subset and "BuilderConfig" in said else key
            raise UserError(
                f"{self.place}: {key}",
                f"{self.dataset} cannot be loaded ({type(error).__name__}: {said})",
                "give a dataset of the hub or a folder in its form, `subset` where it has several, "
                "and the names of its splits",
            ) from error


def plain_row(row: Mapping[str, Any], place: str) -> dict[str, Any] | None:
    """A row of a dataset as one of a JSONL skill; None where it ends without an answer in words.

    Raises UserError at ``place`` for columns that are none of the two forms.
    """
    if row.get("tools"):
        raise UserError(
            f"{place}: tools",
            "definitions of tools are no part of a prompt here",
            "write them into a system turn, or give all prompts the same by "
            "chat_template.arguments.tools",
        )
    if row.get("messages") is not None:
        prompt, answer = _parted(_turns(row["messages"], f"{place}: messages"))
    elif row.get("prompt") is not None:
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            prompt = _turns(prompt, f"{place}: prompt")
        answer = _answer(row.get("completion"), f"{place}: completion")
    else:
        remedy = f"{FORMS}; {did_you_mean('prompt', map(str, row))}"
        raise UserError(place, "has neither `messages` nor `prompt`", remedy)
    reference = row.get("reference")
    if reference is None:
        reference = answer
    if reference is None or (answer is None and row.get("messages") is not None):
        return None
    return {
        "prompt": prompt,
        "reference": reference,
        "demonstration": answer,
        "source": row.get("source"),
    }


def _answer(completion: Any, place: str) -> str | None:
    """The text of a completion: a text, or one turn of the assistant; None for no words."""
    if completion is None or isinstance(completion, str):
        return completion if completion and completion.strip() else None
    turns = _turns(completion, place)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise UserError(place, "is not one turn of the assistant", "put the others into `prompt`")
    return _parted(turns)[1]


def _parted(turns: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """(the prompt, the text of the last turn) of a conversation; None where that is no answer."""
    last = turns[-1] if turns else {}
    is_answer = last.get("role") == "assistant" and not last.get("tool_calls")
    if not is_answer or not last["content"].strip():
        return turns, None
    return turns[:-1], last["content"]


def _turns(messages: Any, place: str) -> list[dict[str, Any]]:
    """Chat messages without the empty fields that a table gives each of them.

    Raises UserError at ``place`` where they are none.
    """
    turns = _filled(messages) if isinstance(messages, list) else messages
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict) and turn.get("tool_calls"):
            turn.setdefault("content", "")
    if not is_chat(turns):
        raise UserError(place, "must be chat messages", "as [{role: user, content: a text}, ...]")
    return turns


def _filled(value: Any) -> Any:
    """A value without the keys that hold nothing: all rows of a table have the same ones."""
    if isinstance(value, dict):
        return {key: _filled(each) for key, each in value.items() if each is not None}
    return [_filled(each) for each in value] if isinstance(value, list) else value
