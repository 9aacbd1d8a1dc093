"""Graders that a user's own JSONL skill can name: ``f(completion, reference) -> float in [0, 1]``."""

import re
import string
from collections import Counter


def normalise(text):
    """Lower case, no punctuation, no articles, single blanks, after SQuAD's (Rajpurkar et al. 2016,
    arXiv 1606.05250).

    Other than there punctuation becomes a blank, and what only looks like an article stays: the
    last word ("the answer is A"), and a capital A behind another word ("Hepatitis A is a virus").
    """
    words = "".join(" " if c in string.punctuation else c for c in str(text)).split()
    kept = [
        w
        for i, w in enumerate(words)
        if w.lower() not in {"a", "an", "the"} or i == len(words) - 1 or (w == "A" and i > 0)
    ]
    return " ".join(kept).lower()


def exact_match(completion, reference):
    """1 if the answer equals the reference (or one of a list of them), white space at the ends
    apart.
    """
    answers = reference if isinstance(reference, list) else [reference]
    return float(any(completion.strip() == str(a).strip() for a in answers))


def normalised_match(completion, reference):
    """1 if the answer equals the reference (or one of a list) after ``normalise``."""
    answers = reference if isinstance(reference, list) else [reference]
    return float(any(normalise(completion) == normalise(a) for a in answers))


def contains(completion, reference):
    """1 if the reference (or one of a list) stands in the answer as whole words, after
    normalisation.
    """
    answers = reference if isinstance(reference, list) else [reference]
    return float(any(f" {normalise(a)} " in f" {normalise(completion)} " for a in answers))


def answer_tag(completion, reference):
    """The paper's Science Q&A grader: the text of the last ``<answer>...</answer>``, stripped,
    equals the reference (or one of a list).
    """
    answers = reference if isinstance(reference, list) else [reference]
    found = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    return float(bool(found) and any(found[-1].strip() == str(a).strip() for a in answers))


def token_f1(completion, reference):
    """SQuAD's F1 over normalised words; the best over a list of references."""

    def f1(a, b):
        a, b = normalise(a).split(), normalise(b).split()
        same = sum((Counter(a) & Counter(b)).values())
        return 2 * same / (len(a) + len(b)) if same else float(a == b)

    answers = reference if isinstance(reference, list) else [reference]
    return max(f1(completion, a) for a in answers)


GRADERS = {f.__name__: f for f in (exact_match, normalised_match, contains, answer_tag, token_f1)}
