"""Graders that a user's own JSONL skill can name: ``f(completion, reference) -> float in [0, 1]``.

A reference is one right answer or a list of right answers.
"""

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

ARTICLES = {"a", "an", "the"}


def normalise(text: Any) -> str:
    """Lower case, no punctuation, no articles, single blanks.

    After SQuAD's rule (Rajpurkar et al. 2016, arXiv 1606.05250), with two differences. Punctuation
    becomes a blank. What only looks like an article stays: the last word ("the answer is A"), and
    a capital A behind another word ("Hepatitis A is a virus").
    """
    letters = (" " if letter in string.punctuation else letter for letter in str(text))
    words = "".join(letters).split()
    kept = [
        word
        for i, word in enumerate(words)
        if word.lower() not in ARTICLES or i == len(words) - 1 or (word == "A" and i > 0)
    ]
    return " ".join(kept).lower()


def right_answers(reference: Any) -> list[Any]:
    """The right answers that a reference names: itself, or the entries of a list."""
    return reference if isinstance(reference, list) else [reference]


def exact_match(completion: str, reference: Any) -> float:
    """1 if the completion equals a right answer, apart from white space at the ends."""
    completion = completion.strip()
    return float(any(completion == str(answer).strip() for answer in right_answers(reference)))


def normalised_match(completion: str, reference: Any) -> float:
    """1 if the completion equals a right answer after ``normalise``."""
    completion = normalise(completion)
    return float(any(completion == normalise(answer) for answer in right_answers(reference)))


def contains(completion: str, reference: Any) -> float:
    """1 if a right answer occurs in the completion as whole words, after ``normalise``."""
    words = f" {normalise(completion)} "
    return float(any(f" {normalise(answer)} " in words for answer in right_answers(reference)))


def answer_tag(completion: str, reference: Any) -> float:
    """1 if the text of the last ``<answer>...</answer>``, stripped, equals a right answer.

    This is the grader of Science Q&A in arXiv 2601.19897.
    """
    tags = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    if not tags:
        return 0.0
    text = tags[-1].strip()
    return float(any(text == str(answer).strip() for answer in right_answers(reference)))


def token_f1(completion: str, reference: Any) -> float:
    """SQuAD's F1 over normalised words; the best F1 over all right answers."""
    return max(_word_f1(completion, answer) for answer in right_answers(reference))


def _word_f1(completion: str, answer: Any) -> float:
    words = normalise(completion).split()
    wanted = normalise(answer).split()
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted)) if common else float(words == wanted)


GRADERS: dict[str, Callable[[str, Any], float]] = {
    grader.__name__: grader
    for grader in (exact_match, normalised_match, contains, answer_tag, token_f1)
}
