"""Measures of texts that the field's suites print, each in [0, 1].

Sources: ROUGE (Lin 2004) as the packages ``rouge`` 1.0.1 and ``rouge-score`` 0.1.2 compute it, the
ratio of the package ``fuzzywuzzy``, SARI (Xu et al. 2016) as ``evaluate`` computes it. The packages
``rouge`` and ``fuzzywuzzy`` are not maintained; their definitions are written out here, and the
tests compare with implementations that share no code.
"""

import difflib
import functools
import string
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any


def lcs_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, by the bits of whole numbers (Hyyrö 2004)."""
    places: dict[Hashable, int] = {}
    for i, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << i
    every = (1 << len(first)) - 1
    row = every
    for item in second:
        match = row & places.get(item, 0)
        row = (row + match | row - match) & every
    return len(first) - row.bit_count()


# ---- the same text ----


def plain(answer: str) -> str:
    """Lower case, without the punctuation of ASCII, with single blanks."""
    kept = (letter for letter in answer.lower() if letter not in string.punctuation)
    return " ".join("".join(kept).split())


def exact_match(completion: str, reference: str) -> float:
    """1 if the texts are the same after ``plain``: O-LoRA's measure."""
    return float(plain(completion) == plain(reference))


# ---- edit similarity ------------------------------------------------------------------------


def fuzz(completion: str, answer: str) -> float:
    """fuzzywuzzy's ratio with python-Levenshtein: 2 LCS / (sum of lengths), in whole per cent.

    Insertions and deletions cost 1, substitutions 2. Nothing equals nothing.
    """
    if not completion or not answer:
        return 0.0
    share = 2 * lcs_length(answer, completion) / (len(answer) + len(completion))
    return round(100 * share) / 100


def fuzz_difflib(completion: str, answer: str) -> float:
    """fuzzywuzzy's ratio without python-Levenshtein: Python's SequenceMatcher, in whole per cent.

    It takes the longest common block first, so it is at most ``fuzz``, and depends on the order of
    the two texts.
    """
    if not completion or not answer:
        return 0.0
    if completion == answer:
        return 1.0
    return round(100 * difflib.SequenceMatcher(None, completion, answer).ratio()) / 100


# ---- ROUGE-L --------------------------------------------------------------------------------


@functools.cache
def _scorer(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stemmer)


def rouge_score_l(completion: str, answer: str, stemmer: bool = False) -> float:
    """F of ROUGE-L by the package rouge-score: words are runs of a-z and 0-9 in lower case.

    stemmer: whether Porter's stemmer shortens words of more than three letters. Texts of other
    scripts have no words and score 0.
    """
    return float(_scorer(stemmer).score(target=answer, prediction=completion)["rougeL"].fmeasure)


def rouge_summary_l(completion: str, answer: str) -> float:
    """F of ROUGE-L by the package rouge 1.0.1, at the level of a summary.

    Sentences end at full stops, words at white space, and case counts. The words that the longest
    common subsequences of all pairs of sentences hold are counted once each, as are the words of
    both texts. A text without a sentence, on which the package fails, scores 0.
    """
    mine, wanted = _sentences(completion), _sentences(answer)
    if not mine or not wanted:
        return 0.0
    common: set[str] = set()
    for sentence in mine:
        for other in wanted:
            common |= _lcs_words(sentence, other)
    precision = len(common) / len({word for sentence in wanted for word in sentence})
    recall = len(common) / len({word for sentence in mine for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence; one that is blank has the word "", as in the package."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _lcs_words(first: Sequence[str], second: Sequence[str]) -> set[str]:
    """The words of the longest common subsequence that the package's way back through it takes."""
    rows = [[0] * (len(second) + 1)]
    for word in first:
        above, row = rows[-1], [0]
        for j, other in enumerate(second, 1):
            row.append(above[j - 1] + 1 if word == other else max(above[j], row[-1]))
        rows.append(row)
    words, i, j = set(), len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            words.add(first[i - 1])
            i, j = i - 1, j - 1
        elif rows[i - 1][j] > rows[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


# ---- SARI -----------------------------------------------------------------------------------


@functools.cache
def _tokenizer() -> Any:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def sari(source: str, completion: str, answer: str) -> float:
    """SARI with one reference: mean over n = 1..4 of F1 of kept, precision of deleted, F1 of added.

    As ``evaluate`` computes it: lower case, words of sacrebleu's tokenizer 13a, 0/0 = 1, recall of
    kept n-grams over their counts.
    """
    texts = [_tokenizer()(text.lower()).split(" ") for text in (source, completion, answer)]
    total = 0.0
    for n in range(1, 5):
        total += sum(_operations(*(Counter(_ngrams(words, n)) for words in texts)))
    return total / 12


def _ngrams(words: Sequence[str], n: int) -> Iterator[str]:
    return (" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def _operations(
    source: Counter[str], mine: Counter[str], wanted: Counter[str]
) -> tuple[float, float, float]:
    """(F1 of kept, precision of deleted, F1 of added) n-grams."""
    kept, right = source & mine, source & wanted
    good = kept & right
    keep = _f1(
        _share(sum(good[gram] / kept[gram] for gram in good), len(kept)),
        _share(good.total(), right.total()),
    )
    deleted = source - mine
    good = deleted - wanted
    delete = _share(sum(good[gram] / deleted[gram] for gram in good), len(deleted))
    added, new = mine.keys() - source.keys(), wanted.keys() - source.keys()
    count = len(added & wanted.keys())
    return keep, delete, _f1(_share(count, len(added)), _share(count, len(new)))


def _share(part: float, whole: float) -> float:
    """``part`` of ``whole``; 1 of nothing."""
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0
