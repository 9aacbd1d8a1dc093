"""The measures of TRACE, O-LoRA and SAPT against implementations that share no code with them, on
thousands of made answers.
"""

import random
import re
from difflib import SequenceMatcher
from functools import lru_cache

import pytest
from rouge_score.rouge_scorer import RougeScorer

from benchmarks.skills import _measures, cl, superni, trace

TEXT = "der die Rat tagt heute . , Steuer und - 1 2.5 (x) The the council Council . ."
WORDS = [*re.findall(r"\S+", TEXT), "\n"]
CODE = [
    "x",
    "=",
    "<NUM_LIT>",
    "<NUM_LIT:7>",
    "<STR_LIT:a b>",
    "<STR_LIT>",
    "<CHAR_LIT:c>",
    "(",
    ".",
]


def made(rng, words, most=18):
    """A text of drawn words with blanks of several kinds."""
    count = rng.randint(0, most)
    return "".join(rng.choice(words) + rng.choice(["", " ", " ", "  "]) for _ in range(count))


def near(rng, text, words):
    """A text that shares most of another, or nothing."""
    pieces = re.split(r"(\s+)", text)
    for _ in range(rng.randint(0, 4)):
        place = rng.randrange(len(pieces) + 1)
        if rng.random() < 0.5 and pieces[place:]:
            del pieces[place]
        else:
            pieces.insert(place, rng.choice(words))
    return rng.choice(["".join(pieces)] * 3 + [made(rng, words), text, ""])


def pairs(count, words, seed=0, most=18):
    rng = random.Random(seed)
    for _ in range(count):
        text = made(rng, words, most)
        yield near(rng, text, words), text


# ---- longest common subsequence and edit similarity ----------------------------------------------


def plain_lcs(a, b):
    """The textbook's table."""
    row = [0] * (len(b) + 1)
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[-1]))
    return row[-1]


def test_the_length_of_a_common_subsequence():
    assert _measures.lcs_length("", "") == _measures.lcs_length("a", "") == 0
    assert _measures.lcs_length("abcbdab", "bdcaba") == 4
    rng = random.Random(1)
    for _ in range(1000):
        a, b = ([rng.randint(0, 4) for _ in range(rng.randint(0, 90))] for _ in "ab")
        assert _measures.lcs_length(a, b) == plain_lcs(a, b)


def levenshtein_ratio(a, b):
    """(sum of lengths - distance) / sum of lengths, substitutions at 2, as python-Levenshtein."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, before[j] + 1, before[j - 1] + 2 * (x != y)))
    total = len(a) + len(b)
    return round(100 * ((total - row[-1]) / total)) / 100 if a and b else 0.0


def test_fuzz_is_fuzzywuzzys_ratio():
    for completion, answer in pairs(1200, CODE):
        fuzz = _measures.fuzz(completion, answer)
        assert fuzz == levenshtein_ratio(completion, answer), (completion, answer)
        other = _measures.fuzz_difflib(completion, answer)
        assert other <= fuzz
        if completion and answer and completion != answer:
            ratio = SequenceMatcher(None, completion, answer).ratio()
            assert other == round(100 * ratio) / 100


def test_literals_of_code_are_written_out():
    assert trace.plain_code("<STR_LIT:a>b<NUM_LIT>c<STR_LIT>d<CHAR_LIT:e>") == "ab0cde"
    assert trace.plain_code("<NUM_LIT:1.5> <BOOL_LIT:x> <STR_LIT:\n>") == "1.5 <BOOL_LIT:x> \n"


# ---- ROUGE-L -------------------------------------------------------------------------------------


def summary_l(hypothesis, reference):
    """ROUGE-L at summary level with each word once, from the definition; two recursive functions.

    reference: the text whose sentences are followed back first where two ways are as long.
    """

    def sentences(text):
        return [tuple(" ".join(s.split()).split(" ")) for s in text.split(".") if s != ""]

    def subsequence(x, y):
        @lru_cache(None)
        def length(i, j):
            if not (i and j):
                return 0
            if x[i - 1] == y[j - 1]:
                return length(i - 1, j - 1) + 1
            return max(length(i - 1, j), length(i, j - 1))

        def words(i, j):
            if not (i and j):
                return frozenset()
            if x[i - 1] == y[j - 1]:
                return words(i - 1, j - 1) | {x[i - 1]}
            return words(*((i - 1, j) if length(i - 1, j) > length(i, j - 1) else (i, j - 1)))

        return words(len(x), len(y))

    ours, theirs = sentences(reference), sentences(hypothesis)
    if not ours or not theirs:
        return 0.0
    union = frozenset().union(*(subsequence(x, y) for x in ours for y in theirs))
    r = len(union) / len(frozenset(sum(ours, ())))
    p = len(union) / len(frozenset(sum(theirs, ())))
    return 2 * (p * r) / (p + r + 1e-8)


def test_rouge_of_trace():
    for completion, answer in pairs(2000, WORDS, seed=2):
        # TRACE gives the answer as the hypothesis and the completion as the reference.
        expected = pytest.approx(summary_l(answer, completion), abs=1e-12)
        assert trace.rouge_l(completion, answer) == expected
        assert trace.rouge_l_reasons("A " + completion, "B " + answer) == expected


def test_rouge_of_later_code():
    plain, stemmed = (RougeScorer(["rougeL"], use_stemmer=stem) for stem in (False, True))
    for completion, answer in pairs(1500, WORDS, seed=3):
        expected = plain.score(answer, completion)["rougeL"].fmeasure
        assert trace.rouge_l_google(completion, answer) == expected
        words = [re.findall("[a-z0-9]+", text.lower()) for text in (completion, answer)]
        common, total = plain_lcs(*words), len(words[0]) + len(words[1])
        assert expected == pytest.approx(2 * common / total if total else 0, abs=1e-12)
        scores = [stemmed.score(each, completion)["rougeL"].fmeasure for each in (answer, "Rat")]
        assert superni.rouge_l(completion, [answer, "Rat"]) == max(scores)
        assert superni.rouge_l_first(completion, [answer, "Rat"]) == scores[0]


# ---- SARI ----------------------------------------------------------------------------------------


def plain_sari(source, completion, answer):
    """SARI from its definition, n-grams as tuples, with lists in place of counters."""
    from sacrebleu.metrics import BLEU

    cut = BLEU(tokenize="13a").tokenizer
    s, c, r = (cut(text.lower()).split(" ") for text in (source, completion, answer))

    def ratio(a, b):
        return a / b if b else 1

    def f(p, r):
        return 2 * p * r / (p + r) if p + r else 0

    total = 0
    for n in (1, 2, 3, 4):
        grams = [[tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in (s, c, r)]
        every = {g for each in grams for g in each}
        count = {g: [each.count(g) for each in grams] for g in every}
        kept = [(min(a, b), min(a, b, d)) for a, b, d in count.values() if min(a, b)]
        right = [(min(a, d), min(a, b, d)) for a, b, d in count.values() if min(a, d)]
        keep = f(
            ratio(sum(good / k for k, good in kept), len(kept)),
            ratio(sum(good for _, good in right), sum(k for k, _ in right)),
        )
        gone = [(a - b, max(0, a - b - d)) for a, b, d in count.values() if a > b]
        delete = ratio(sum(good / k for k, good in gone), len(gone))
        new = [bool(d) for a, b, d in count.values() if b and not a]
        wanted = [bool(b) for a, b, d in count.values() if d and not a]
        total += keep + delete + f(ratio(sum(new), len(new)), ratio(sum(wanted), len(wanted)))
    return total / 12


def test_sari():
    sources = pairs(800, WORDS, seed=4)
    for (completion, answer), (source, _) in zip(pairs(800, WORDS, seed=5), sources, strict=True):
        expected = pytest.approx(plain_sari(source, completion, answer), abs=1e-12)
        assert _measures.sari(source, completion, answer) == expected
        prompt = f"Simplify.\n\nParagraph:\n{source}\n\nSimplification:\n"
        reference = {"prompt": prompt, "answer": answer}
        assert trace.sari_paragraph(completion, reference) == expected
        assert trace.sari(completion, reference) == _measures.sari(prompt, completion, answer)


def test_sari_by_hand():
    """By hand: of "a b" and "a c" against "a d", a is kept, b deleted, c added for nothing."""
    # n = 1: keep 1, delete 1, add F(0, 0) = 0; n = 2: keep 0/0 = 1 twice, delete 1, add 0;
    # n = 3, 4: nothing anywhere, all 1.
    assert _measures.sari("a b", "a c", "a d") == pytest.approx((2 + 2 + 3 + 3) / 12)


# ---- choices and numbers -------------------------------------------------------------------------


def opr_number(completion, reference):
    """The rule of On-Policy Replay: the last run of digits, points and commas that is no point."""
    final = None
    for run in reversed(re.findall(r"(\-?[0-9\.\,]+)", completion)):
        final = run
        if run not in ("", "."):
            break
    return float(final == reference)


def test_the_rules_of_choices_and_numbers():
    parts = ["A", "B", " ", "\n", ".", ",", "5", "-5", "1,000", "2.50", "x", "(A)", "answer"]
    rng = random.Random(6)
    for _ in range(4000):
        completion = "".join(rng.choice(parts) for _ in range(rng.randint(0, 6)))
        reference = rng.choice(["A", "B", "5", "-5", "2.50"])
        assert trace.same_text(completion, reference) == float(completion == reference)
        assert trace.first_character(completion, reference) == float(
            completion != "" and completion[:1] == reference[:1]
        )
        assert trace.last_number(completion, reference) == opr_number(completion, reference)
        squeezed = "".join(c for c in completion.lower() if c not in ".,-()")
        wanted = "".join(c for c in reference.lower() if c not in ".,-()")
        assert cl.exact_match(completion, reference) == float(
            " ".join(squeezed.split()) == " ".join(wanted.split())
        )


@pytest.mark.parametrize("letter", "ABCDE")
def test_a_letter_in_each_usual_way(letter):
    for written in ("{}", "({})", "{}.", "Answer: {}", "The answer is {}.", "**{}**", "option {}"):
        answer = written.format(letter)
        assert trace.letter(answer, letter) == trace.letter(answer, f"{letter}\nreasons") == 1
        assert trace.letter(answer, "B" if letter == "A" else "A") == 0
    assert trace.letter(f"{letter} or A", letter) == trace.letter(f"{letter}nd", letter) == 0


@pytest.mark.parametrize(
    ("completion", "reference", "score"),
    [
        ("The total is 1,000.", "1000", 1),
        ("5.00", "5", 1),
        ("-5", "5", 0),
        ("x5", "5", 0),
        ("5 apples and 6 pears", "6", 1),
        ("none", "5", 0),
        ("", "5", 0),
        (".5", "0.5", 1),
        ("5 - ", "5", 1),
        ("5 -", "5", 1),
        ("2.50x", "2", 0),
        ("1.2.3", "3", 0),
        ("12345678901234567", "12345678901234568", 0),
        ("9" * 400, "8" * 400, 0),
        ("9" * 5000 + ".0", "9" * 5000, 1),
        ("0.1", "0.10000000000000001", 0),
        ("5", "nan", 0),
        ("5", "sNaN", 0),
        ("5", "five", 0),
    ],
)
def test_numbers_by_their_value(completion, reference, score):
    assert trace.number(completion, reference) == score
