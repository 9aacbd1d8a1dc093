"""TRACE (Wang et al. 2023, arXiv 2310.06762): eight tasks, from a folder in the released form.

A task is a folder with ``train.json``, ``eval.json`` and ``test.json``, each a list of rows with
``prompt`` and ``answer``. The archive is one of the authors' (docs/reference/skills/trace.md);
``python -m benchmarks.fetch trace --from FOLDER`` checks it and keeps it for orders.

The first metric of a task is TRACE's own, to the letter. The looser ones of later code have names
of their own: those of On-Policy Replay (arXiv 2605.29495) compare first characters and last
numbers.
"""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from string import ascii_uppercase
from typing import NamedTuple

from benchmarks.skills._choice import letter_of
from benchmarks.skills._measures import fuzz as ratio
from benchmarks.skills._measures import fuzz_difflib as difflib_ratio
from benchmarks.skills._measures import rouge_score_l, rouge_summary_l
from benchmarks.skills._measures import sari as sari_of
from benchmarks.skills._sources import text
from benchmarks.skills._suite import SuiteSkill
from harness.base.errors import UserError
from harness.skills.skill import Example, Metric

PARAGRAPH = ("Paragraph:\n", "\n\nSimplification:")  # around the text of 20Minuten's prompts
LITERAL = re.compile(r"<(STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
UNNAMED = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}
NUMBER_TEXT = re.compile(r"-?[0-9.,]+")
NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(?:\.\d+)?(?!\w|\.\d)")


def same_text(completion: str, reference: str) -> float:
    """1 if the texts are the same, white space and all; nothing is wrong."""
    return float(bool(completion) and completion == reference)


def first_character(completion: str, reference: str) -> float:
    """1 if the first characters are the same; nothing is wrong."""
    return float(bool(completion) and completion[:1] == reference[:1])


def letter(completion: str, reference: str) -> float:
    """1 if the first line gives the right letter in a usual way: bare, (A), "Answer: A"."""
    line = completion.strip().split("\n")[0]
    wanted = reference[:1]
    given = letter_of(line, {}, ascii_uppercase)  # questions of ScienceQA have up to five options
    return float(bool(line and wanted) and wanted in (given, line.strip(" .()")))


def last_number(completion: str, reference: str) -> float:
    """1 if the last run of digits, points and commas is the reference, character by character.

    A full stop behind the number is part of the run, so "It is 5." is wrong.
    """
    runs = [run for run in NUMBER_TEXT.findall(completion) if run != "."]
    return float(bool(runs) and runs[-1] == reference)


def number(completion: str, reference: str) -> float:
    """1 if the last number has the value of the reference: 5, 5.0 and 1,000 as 1000.

    Values are exact, however many digits they have.
    """
    numbers = NUMBER.findall(completion)
    wanted = _value(reference.strip())
    return float(bool(numbers) and wanted is not None and _value(numbers[-1]) == wanted)


def _value(written: str) -> Decimal | None:
    try:
        value = Decimal(written.replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def fuzz(completion: str, reference: str) -> float:
    """fuzzywuzzy's ratio of both codes with their literals written out."""
    return ratio(plain_code(completion), plain_code(reference))


def fuzz_difflib(completion: str, reference: str) -> float:
    """the ratio by Python's SequenceMatcher of both codes with their literals written out."""
    return difflib_ratio(plain_code(completion), plain_code(reference))


def plain_code(code: str) -> str:
    """Code of Py150: ``<STR_LIT:x>`` is x, ``<NUM_LIT>`` 0, ``<STR_LIT>`` nothing.

    As in TRACE each literal that is found is then replaced everywhere, in its turn.
    """
    for mark, plain in UNNAMED.items():
        code = code.replace(mark, plain)
    for kind, content in LITERAL.findall(code):
        code = code.replace(f"<{kind}_LIT:{content}>", content)
    return code


def rouge_l(completion: str, reference: str) -> float:
    """ROUGE-L as the package rouge 1.0.1 has it, of the whole texts."""
    return rouge_summary_l(completion, reference)


def rouge_l_reasons(completion: str, reference: str) -> float:
    """ROUGE-L of what follows the letter and one more character, as in TRACE."""
    return rouge_summary_l(completion[2:], reference[2:])


def rouge_l_google(completion: str, reference: str) -> float:
    """ROUGE-L as the package rouge-score has it, without a stemmer, of the whole texts."""
    return rouge_score_l(completion, reference)


def sari(completion: str, reference: Mapping[str, str]) -> float:
    """SARI whose source is the whole prompt, instruction and all, as in TRACE's code."""
    return sari_of(reference["prompt"], completion, reference["answer"])


def sari_paragraph(completion: str, reference: Mapping[str, str]) -> float:
    """SARI whose source is the paragraph alone."""
    return sari_of(paragraph(reference["prompt"]), completion, reference["answer"])


def rouge_l_simple(completion: str, reference: Mapping[str, str]) -> float:
    """ROUGE-L of a simplification, by the package rouge 1.0.1."""
    return rouge_summary_l(completion, reference["answer"])


def paragraph(prompt: str) -> str:
    """The text between the marks of a prompt of 20Minuten; all of it without them."""
    before, mark, rest = prompt.partition(PARAGRAPH[0])
    return rest.partition(PARAGRAPH[1])[0] if mark else before


LABEL = {"accuracy": same_text, "first_character": first_character, "letter": letter}
NUMERIC = {"accuracy": same_text, "last_number": last_number, "number": number}


class Task(NamedTuple):
    """Folder in the release, limit of new tokens, metrics, the first of which is TRACE's."""

    folder: str
    max_new_tokens: int
    metrics: Mapping[str, Metric]


# TRACE generates up to 512 tokens. What follows 16 tokens of an answer that is one letter changes
# none of its metrics.
TASKS = {
    "c_stance": Task("C-STANCE", 16, LABEL),
    "fomc": Task("FOMC", 16, LABEL),
    "meetingbank": Task("MeetingBank", 512, {"rouge_l": rouge_l, "rouge_l_google": rouge_l_google}),
    "py150": Task("Py150", 512, {"fuzz": fuzz, "fuzz_difflib": fuzz_difflib}),
    "scienceqa": Task(
        "ScienceQA",
        512,
        {"accuracy": first_character, "letter": letter, "rouge_l_reasons": rouge_l_reasons},
    ),
    "numglue_cm": Task("NumGLUE-cm", 512, NUMERIC),
    "numglue_ds": Task("NumGLUE-ds", 512, NUMERIC),
    "20minuten": Task(
        "20Minuten",
        512,
        {"sari": sari, "sari_paragraph": sari_paragraph, "rouge_l_simple": rouge_l_simple},
    ),
}


class Trace(SuiteSkill):
    """One of the eight tasks; the prompt is one user turn, the demonstration the answer."""

    suite = "trace"
    description = (
        "TRACE's eight tasks (repository Apache-2.0, parts of the data non-commercial), from a "
        "folder of yours"
    )
    tasks = tuple(TASKS)
    folders = {name: task.folder for name, task in TASKS.items()}
    roots = ("", "LLM-CL-Benchmark_5000/", "TRACE-Benchmark/LLM-CL-Benchmark_5000/")
    second = "eval"

    def __init__(self, task, path=None, holdout=None):
        super().__init__(task, path, holdout)
        self.max_new_tokens = TASKS[task].max_new_tokens
        self.chance = 1 / 3 if TASKS[task].metrics is LABEL else 0.0

    @property
    def metrics(self):
        return TASKS[self.task].metrics

    def example(self, row, split, number, place):
        prompt, answer = text(row, ["prompt"], place), row.get("answer", 0)
        if answer is None:
            answer = ""  # as TRACE's code has it; a row without the column is refused
        if not isinstance(answer, str):
            raise UserError(f"{place}: answer", "must be a text")
        if not answer.strip() and split == "train":
            return None  # it shows nothing; a test question without an answer counts as wrong
        return Example(
            str(number),
            [{"role": "user", "content": prompt}],
            answer,
            self._with_prompt(answer, {"prompt": prompt}, place),
        )

    def reference(self, row, place):
        return self._with_prompt(super().reference(row, place), row, place)

    def _with_prompt(self, answer, row, place):
        """The answer; for 20Minuten {"prompt", "answer"}, since SARI reads the prompt as well."""
        if self.task != "20minuten" or isinstance(answer, dict):
            return answer
        if not isinstance(row.get("prompt"), str):
            raise UserError(
                f"{place}: prompt", "is missing", "SARI compares with the prompt's text"
            )
        return {"prompt": row["prompt"], "answer": answer}
