"""Science Q&A of arXiv 2601.19897 (section 4): SciKnowEval, Chemistry, level 3, multiple choice.

The columns are the authors'. A train row has ``messages`` [system, user] and ``output_text`` (the
demonstration, by GPT-4o). A test row has ``prompt`` [system, user] and ``answer`` (a letter). A
validation row reads like a train row, with or without ``output_text``. Rows of a replication,
``messages`` [user, assistant] and ``answer``, are read without a demonstration: theirs is the
letter alone.
"""

import re

from benchmarks.skills._choice import BOXED, LETTERS, Letter, boxed_letter, letter_of, options_of
from benchmarks.skills._sources import PaperSkill, chat, draw, question_of, read_rows, text
from harness.base.errors import UserError
from harness.skills.graders import answer_tag
from harness.skills.skill import Example

# The authors' system turn, line breaks at its ends included.
SYSTEM = """
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), \
and nothing else. Do not restate the answer text. For example, if the answer is "A", just output:
<answer>
A
</answer>
"""
# Per cent of the questions, in the order of draw().
SHARES = {"train": (0, 75), "validation": (75, 80), "test": (80, 100)}


def accuracy_released(completion, reference):
    """The script that the authors released; 1.0 or 0.0.

    The answer is the text between the last ``<answer>`` and the next ``</answer>``. Where a tag is
    missing, the text begins or ends there, so a bare ``A`` is an answer. ``accuracy`` wants both
    tags.
    """
    return float(between_tags(completion) == reference)


def between_tags(completion):
    return completion.split("<answer>")[-1].split("</answer>")[0].strip()


def accuracy_letter(completion, reference):
    """The corrected grader: the letter alone counts, not how it is written; 1.0 or 0.0.

    Reasoning (in ``<reasoning>`` tags, also where it was cut off) holds no answer.
    The text of the last ``<answer>``, to its end if it is never closed, must be one letter, in
    either case, bare or in brackets, stars, full stops or colons.
    """
    rest = without_reasoning(completion)
    if "<answer>" not in rest:
        return 0.0
    letter = re.fullmatch(r"[\s(\[*]*([A-Da-d])[\s)\]*.:]*", between_tags(rest))
    return float(letter is not None and letter[1].upper() == reference)


def without_reasoning(completion):
    return re.sub(r"<reasoning>.*?(</reasoning>|\Z)", "", completion, flags=re.DOTALL)


def accuracy_choice(completion, reference):
    """The usual forms of one letter (``letter_of``); 1.0 or 0.0.

    Reasoning holds no answer, as for ``accuracy_letter``. The answer is the text of the last
    ``<answer>``; without tags that in the last ``\\boxed{}``, else all of it.
    """
    rest = without_reasoning(completion)
    options = getattr(reference, "options", {})
    if "<answer>" not in rest and BOXED.search(rest):
        return float(boxed_letter(rest, options) == reference)
    return float(letter_of(between_tags(rest), options) == reference)


class Science(PaperSkill):
    """The authors' files, with 507 test questions, or SciKnowEval, without demonstrations."""

    name = "science"
    description = "Science Q&A of the paper: SciKnowEval (MIT), Chemistry L3, multiple choice"
    options = ("path", "source", "holdout")
    metrics = {
        "accuracy": answer_tag,
        "accuracy_released": accuracy_released,
        "accuracy_letter": accuracy_letter,
        "accuracy_choice": accuracy_choice,
    }
    chance = 0.25
    see_thoughts = ("accuracy", "accuracy_released")  # as the authors' scripts
    released = {
        "train": (
            "data/science_data/train_data/data-00000-of-00001.arrow",
            "1c4b4e9ed91b96aae239d4c17c6f1120832bbe8d",
        ),
        "test": (
            "data/science_data/eval_data/data-00000-of-00001.arrow",
            "f71d2e0520d9f8f75547a4876f37ab521739625b",
        ),
    }
    # The revision that the authors' test file names as its source.
    hub = {
        "data/Chemistry/sciknoweval_chemistry_test.jsonl": (
            "hicai-zju/SciKnowEval",
            "3284f6fbf3b8063ab8a0408a65fb00157dbdc9fa",
        )
    }

    def example(self, row, split, number, place):
        answer, demonstration = row.get("answer"), None
        if row.get("prompt") is not None:
            prompt = chat(row, "prompt", (["system", "user"],), place)
        else:
            prompt = chat(row, "messages", (["system", "user"], ["user", "assistant"]), place)
        if prompt[-1]["role"] == "assistant":
            prompt = prompt[:-1]
        elif split == "train" or (split == "validation" and row.get("output_text") is not None):
            demonstration = text(row, ["output_text"], place)
            letter = between_tags(demonstration)
            if answer is None and letter in LETTERS:
                answer = letter
        # Only rewards need the letter of a train row. A demonstration without one still teaches.
        if answer not in LETTERS and not (split == "train" and demonstration and answer is None):
            raise UserError(
                f"{place}: answer",
                f"must be A, B, C or D, not {answer!r}",
                "it is the letter of the correct option",
            )
        if answer is not None:
            answer = Letter(answer, options_of(prompt[-1]["content"]))
        return Example(f"{split}/{number}", prompt, demonstration, answer)

    def reference(self, row, place):
        """The letter; it knows the options where the row holds the question."""
        letter = super().reference(row, place)
        question = row.get("prompt")
        if isinstance(letter, Letter) or not isinstance(letter, str):
            return letter
        return Letter(letter, options_of(question) if isinstance(question, str) else {})

    def from_hub(self, split):
        (name,) = self.hub
        file = self.hub_file(name)
        rows = {}
        for number, row in read_rows(file):
            if (
                row.get("domain") == "Chemistry"
                and row.get("type") == "mcq-4-choices"
                and level(row) == "L3"
            ):
                example = self._question(row, number, f"{file}, row {number}")
                rows.setdefault(question_of(example), example)
        questions = draw(rows)
        if not questions:
            raise UserError(
                file,
                "has no multiple-choice questions of Chemistry L3",
                "give the file of the pinned revision",
            )
        first, last = (len(questions) * share // 100 for share in SHARES[split])
        return [rows[q] for q in questions[first:last]]

    def _question(self, row, number, place):
        choices, answer = row.get("choices"), row.get("answerKey")
        texts = choices.get("text") if isinstance(choices, dict) else None
        labels = choices.get("label") if isinstance(choices, dict) else None
        if (
            not isinstance(texts, list)
            or labels != list(LETTERS)
            or len(texts) != 4
            or not all(isinstance(t, str) for t in texts)
        ):
            raise UserError(f"{place}: choices", "must have four texts with the labels A, B, C, D")
        if answer not in LETTERS:
            raise UserError(f"{place}: answerKey", f"must be A, B, C or D, not {answer!r}")
        question = (
            text(row, ["question"], place)
            + "\n\n"
            + "\n".join(f"{a}: {t}" for a, t in zip(LETTERS, texts, strict=True))
        )
        return Example(
            str(number),
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            None,
            Letter(answer, dict(zip(LETTERS, texts, strict=True))),
        )


def level(row):
    details = row.get("details")
    return details.get("level") if isinstance(details, dict) else None
