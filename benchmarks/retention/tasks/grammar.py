"""Minimal pairs of English grammar in the manner of BLiMP (Warstadt et al. 2020).

The sentences are our own, and there is no data file. Each phenomenon gives pairs of sentences that
differ in one spot; a model is right where it finds the grammatical one more likely. Words are
combined by a fixed walk through short lists, so the pairs are the same on every machine.

Each function of a phenomenon returns its pair number ``i``: (grammatical, ungrammatical). The
source of ``dataset`` is part of the protocol of the retention task that names it.
"""

from collections.abc import Callable
from typing import Any

NAMES = ["Anna", "Peter", "Maria", "David", "Laura", "Thomas", "Julia", "Robert"]
PEOPLE = [
    ("boy", "boys"),
    ("girl", "girls"),
    ("teacher", "teachers"),
    ("doctor", "doctors"),
    ("farmer", "farmers"),
    ("student", "students"),
    ("singer", "singers"),
    ("lawyer", "lawyers"),
]
THINGS = [
    ("book", "books"),
    ("key", "keys"),
    ("letter", "letters"),
    ("picture", "pictures"),
    ("chair", "chairs"),
    ("bottle", "bottles"),
    ("ticket", "tickets"),
]
STATES = ["tired", "happy", "hungry", "angry", "late", "ready", "busy", "quiet"]
PLACES = ["in the garden", "in the kitchen", "at the station", "in the park", "at school"]
VERBS = [
    ("walk", "walks", "walked"),
    ("smile", "smiles", "smiled"),
    ("sleep", "sleeps", "slept"),
    ("sing", "sings", "sang"),
    ("work", "works", "worked"),
    ("leave", "leaves", "left"),
    ("swim", "swims", "swam"),
]
FEMALE = ["Anna", "Maria", "Laura", "Julia", "Emma", "Sarah"]
MALE = ["Peter", "David", "Thomas", "Robert", "James", "John"]
REFLEXIVE_VERBS = ["hurt", "saw", "blamed", "introduced", "described"]
PARTICIPLES = [
    ("broken", "broke", "the window"),
    ("eaten", "ate", "the cake"),
    ("written", "wrote", "a letter"),
    ("stolen", "stole", "the car"),
    ("taken", "took", "the bus"),
    ("driven", "drove", "the truck"),
    ("chosen", "chose", "a name"),
    ("forgotten", "forgot", "the answer"),
    ("seen", "saw", "the movie"),
    ("drunk", "drank", "the milk"),
    ("sung", "sang", "a song"),
    ("begun", "began", "the work"),
    ("given", "gave", "a speech"),
    ("hidden", "hid", "the money"),
    ("worn", "wore", "a hat"),
]
PER_PHENOMENON = 15
MORE = 30  # of each phenomenon that has so many


def agreement(i: int) -> tuple[str, str]:
    one, many = PEOPLE[i % len(PEOPLE)]
    state = STATES[i % 7]
    place = PLACES[i % 5]
    if i % 2:
        return f"The {one} {place} is {state}.", f"The {one} {place} are {state}."
    return f"The {many} {place} are {state}.", f"The {many} {place} is {state}."


def agreement_attractor(i: int) -> tuple[str, str]:
    """A noun of the other number stands between the subject and its verb."""
    one, many = THINGS[i % 7]
    other, others = PEOPLE[i % 8]
    if i % 2:
        return (
            f"The {one} of the {others} is on the table.",
            f"The {one} of the {others} are on the table.",
        )
    return (
        f"The {many} of the {other} are on the table.",
        f"The {many} of the {other} is on the table.",
    )


def agreement_relative(i: int) -> tuple[str, str]:
    one, many = PEOPLE[i % 8]
    other, others = PEOPLE[(i + 3) % 8]
    state = STATES[i % 7]
    if i % 2:
        return (
            f"The {one} that the {others} know is {state}.",
            f"The {one} that the {others} know are {state}.",
        )
    return (
        f"The {many} that the {other} knows are {state}.",
        f"The {many} that the {other} knows is {state}.",
    )


def determiner(i: int) -> tuple[str, str]:
    one, many = THINGS[i % 7]
    name = NAMES[i % 8]
    if i % 2:
        return f"{name} bought this {one} yesterday.", f"{name} bought this {many} yesterday."
    return f"{name} bought these {many} yesterday.", f"{name} bought these {one} yesterday."


def anaphor_gender(i: int) -> tuple[str, str]:
    verb = REFLEXIVE_VERBS[i % 5]
    if i % 2:
        return f"{FEMALE[i % 6]} {verb} herself.", f"{FEMALE[i % 6]} {verb} himself."
    return f"{MALE[i % 6]} {verb} himself.", f"{MALE[i % 6]} {verb} herself."


def anaphor_number(i: int) -> tuple[str, str]:
    verb = REFLEXIVE_VERBS[i % 5]
    many = PEOPLE[i % 8][1]
    return f"The {many} {verb} themselves.", f"The {many} {verb} {['himself', 'herself'][i % 2]}."


def polarity(i: int) -> tuple[str, str]:
    one = PEOPLE[i % 8][0]
    experiences = [
        "been to Paris",
        "seen the sea",
        "won a prize",
        "missed a train",
        "read the book",
    ]
    return f"No {one} has ever {experiences[i % 5]}.", f"Some {one} has ever {experiences[i % 5]}."


def participle(i: int) -> tuple[str, str]:
    right, wrong, rest = PARTICIPLES[i]
    return f"{NAMES[i % 8]} has {right} {rest}.", f"{NAMES[i % 8]} has {wrong} {rest}."


def modal(i: int) -> tuple[str, str]:
    bare, third, past = VERBS[i % 7]
    helper = ["can", "will", "must", "did not", "should"][i % 5]
    return (
        f"{NAMES[i % 8]} {helper} {bare} today.",
        f"{NAMES[i % 8]} {helper} {(third, past)[i % 2]} today.",
    )


def filler_gap(i: int) -> tuple[str, str]:
    name = NAMES[i % 8]
    one = PEOPLE[(i + 2) % 8][0]
    verb = ["bought", "wanted", "found", "needed", "brought"][i % 5]
    return f"{name} knew what the {one} {verb}.", f"{name} knew that the {one} {verb}."


def question(i: int) -> tuple[str, str]:
    bare = ["buy", "want", "find", "need", "see"][i % 5]
    one = PEOPLE[i % 8][0]
    word = ["What", "When"][i % 2] if bare in ("buy", "find", "see") else "What"
    tail = "" if word == "What" else " it"
    return f"{word} did the {one} {bare}{tail}?", f"{word} the {one} did {bare}{tail}?"


PHENOMENA: list[Callable[[int], tuple[str, str]]] = [
    agreement,
    agreement_attractor,
    agreement_relative,
    determiner,
    anaphor_gender,
    anaphor_number,
    polarity,
    participle,
    modal,
    filler_gap,
    question,
]


def rows(each: int = PER_PHENOMENON) -> list[dict[str, Any]]:
    """[{"phenomenon", "choices": two sentences, "answer": index of the grammatical one}].

    each: pairs of a phenomenon at most. Each pair is there once.
    """
    pairs: list[dict[str, Any]] = []
    sentences = set()
    for phenomenon in PHENOMENA:
        for i in range(min(each, len(PARTICIPLES)) if phenomenon is participle else each):
            good, bad = phenomenon(i)
            if good in sentences:
                continue
            sentences.add(good)
            # The right one alternates: a model that gives NaN everywhere must not score 1.
            answer = len(pairs) % 2
            choices = [bad, good] if answer else [good, bad]
            pairs.append({"phenomenon": phenomenon.__name__, "choices": choices, "answer": answer})
    return pairs


def dataset(**_):
    """For lm-eval's ``custom_dataset``."""
    from datasets import Dataset

    return {"test": Dataset.from_list(rows())}


def more(**_):
    """The same for lm-eval, with twice as many pairs."""
    from datasets import Dataset

    return {"test": Dataset.from_list(rows(MORE))}
