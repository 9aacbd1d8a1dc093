"""Retaining by Doing (Chen et al. 2025, arXiv 2510.18874): MMLU and Countdown in its rows.

Their archive (docs/reference/skills/retaining.md) holds ``sft/TASK.jsonl``, answers of a larger
model with whether they are right, and ``eval/TASK.jsonl``, questions. The wrong answers are left
out, as in the source. The skill ``countdown`` is the same task, generated.
"""

import re

from benchmarks.skills._sources import text
from benchmarks.skills._suite import SuiteSkill
from benchmarks.skills.countdown import accuracy as solved
from benchmarks.skills.countdown import accuracy_fractions as solved_in_fractions
from benchmarks.skills.countdown import ladder
from harness.base.errors import UserError
from harness.skills.skill import Example
from harness.skills.templates import is_chat

LETTERS = "ABCD"
ANSWER = re.compile(r"\bThe(.*)answer is(?: option)?:?\s*(\w+)", re.IGNORECASE)
FINAL = re.compile(r"\banswer is(?: option)?:?\s*(\w+)", re.IGNORECASE)
ASKED = 'Reason about it and answer with "The answer is: <option>"'


def accuracy(completion, reference):
    """1 if the first line that says "The ... answer is X", without stars, names the letter."""
    found = ANSWER.search(completion.replace("*", ""))
    return float(found is not None and found[2].upper() == reference)


def accuracy_last(completion, reference):
    """1 if the last "answer is X", without stars and brackets, names the letter."""
    found = FINAL.findall(re.sub(r"[*()\[\]]", "", completion))
    return float(bool(found) and found[-1].upper() == reference)


METRICS = {
    "mmlu": {"accuracy": accuracy, "accuracy_last": accuracy_last},
    "countdown": {"solved": solved, "solved_in_fractions": solved_in_fractions},
}


class Retaining(SuiteSkill):
    """MMLU or Countdown; the demonstration is the larger model's answer."""

    suite = "retaining"
    description = (
        "MMLU and Countdown in the rows of Retaining by Doing (no licence seen), from a folder of "
        "yours"
    )
    tasks = tuple(METRICS)
    roots = ("", "data/")
    forms = (".jsonl",)
    max_new_tokens = 1024

    @classmethod
    def place(cls, task, stem):
        return f"{'sft' if stem == 'train' else 'eval' if stem == 'test' else stem}/{task}"

    @property
    def chance(self):
        return 1 / len(LETTERS) if self.task == "mmlu" else 0.0

    @property
    def metrics(self):
        return METRICS[self.task]

    def reward(self, completion, reference):
        if self.task == "countdown":
            return ladder(completion, reference)
        return self.grade(completion, reference)

    def example(self, row, split, number, place):
        if split == "train":
            if row.get("correct") is not True:
                return None
            demonstration = text(row, ["output_text"], place)
        else:
            demonstration = None
        asked = self._mmlu if self.task == "mmlu" else self._countdown
        prompt, reference = asked(row, demonstration, place)
        return Example(str(number), prompt, demonstration, reference)

    def _mmlu(self, row, demonstration, place):
        """(prompt, letter). A row of answers has messages, all of which are the prompt; its answer
        names the letter.
        """
        if demonstration is not None:
            turns = row.get("messages")
            if not (is_chat(turns) and turns and turns[-1]["role"] == "user"):
                raise UserError(f"{place}: messages", "must be messages that end in a user turn")
            found = ANSWER.search(demonstration.replace("*", ""))
            letter = found[2].upper() if found else ""
            if letter not in tuple(LETTERS):
                raise UserError(f"{place}: output_text", "does not name its letter")
            text(turns[-1], ["content"], f"{place}: messages")  # it is not empty
            return [{key: turn[key] for key in ("role", "content")} for turn in turns], letter
        choices, answer = row.get("choices"), row.get("answer")
        if not (
            isinstance(choices, list)
            and len(choices) == 4
            and all(isinstance(choice, str) for choice in choices)
        ):
            raise UserError(f"{place}: choices", "must be four texts")
        if type(answer) is not int or answer not in range(4):
            raise UserError(f"{place}: answer", "must be a whole number from 0 to 3")
        options = "\n".join(f"{a}. {b}" for a, b in zip(LETTERS, choices, strict=True))
        asked = text(row, ["question"], place)
        question = f"{asked}\n\nAnswer options:\n{options}\n\n{ASKED}"
        return [{"role": "user", "content": question}], LETTERS[answer]

    def _countdown(self, row, demonstration, place):
        """(prompt, numbers and target). A row of answers has the question in ``datapoint``."""
        if demonstration is not None:
            row = row.get("datapoint")
            if not isinstance(row, dict):
                raise UserError(f"{place}: datapoint", "must be an object")
        numbers, target = row.get("x"), row.get("y")
        if not (
            isinstance(numbers, list)
            and numbers
            and all(type(each) is int for each in [*numbers, target])
        ):
            raise UserError(place, "`x` must be whole numbers, and `y` a whole number")
        reference = {"numbers": numbers, "target": target}
        question = text(row, ["input_text"], place)
        return [{"role": "user", "content": question}], reference
