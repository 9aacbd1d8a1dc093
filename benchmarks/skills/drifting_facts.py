"""Facts that change: bulletins about invented houses, in three stages of an invented history.

A small mirror of TemporalWiki (Jang et al. 2022, arXiv 2204.14211), whose facts are those that
changed between two dates of Wikipedia. A seeded generator makes the world, so no model can know it.

Stage 1 tells 90 facts: seat, head and emblem of 30 houses. Stages 2 and 3 each change one fact of
every house, of 9 houses the same one. Each skill teaches the bulletins of its stage. It asks only
for facts that no later stage changes, so what is right once stays right to the end: what a later
stage takes from these is lost, not outdated. A fact that changes is asked by the stage that changed
it last, and that skill's ``old_value`` says how often an earlier value is given.
"""

import random
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from harness.skills.skill import Example, Skill
from harness.skills.words import normalise

SEED = 20261129
STAGES = (1, 2, 3)
HOUSES = 30
TWICE = 9  # houses of which stages 2 and 3 change the same fact
YEAR = 2030  # before the first stage's
# Every value that an answer of a kind can take. Each is the value of one fact, once.
VALUES = {
    "seat": (
        "Ambleford Barrowton Blackmoor Bramhope Brightsea Calderby Camwell Chalkhill Coldbrook "
        "Copperdale Cranfield Deepwater Dovecote Easthaven Fairlight Fernhurst Flintworth Glenmuir "
        "Goldacre Hawksworth Hazelwood Heathcombe Highmarsh Hollowell Inverby Kelderness Lambley "
        "Lindale Longmere Maplewick Misthaven Moorside Netherby Newholm Oldcastle Orchardton "
        "Penfold Pebblecombe Ravensea Rushford Saltmarsh Shepley Starbeck Stonewell Summerfield "
        "Tidewell Underhill Westbridge Willowby Yarrowby"
    ),
    "head": (
        "Aaron Amelia Anton Beatrice Bruno Carmen Cecilia Conrad Dora Edgar Elena Ernest Esther "
        "Fiona Floyd Frida Gordon Greta Harold Hilda Ingrid Isaac Ivan Jasper Joanna Julia Kurt "
        "Laura Leon Lydia Magnus Martha Miriam Naomi Nigel Norbert Oscar Paula Philip Ramona Ralph "
        "Rosa Rupert Sofia Stella Stefan Theo Ursula Victor Wanda"
    ),
    "emblem": (
        "otter heron badger falcon beaver raven dolphin hedgehog lobster salmon squirrel swallow "
        "turtle walrus zebra camel cobra eagle ferret giraffe jaguar koala leopard magpie octopus "
        "panther pelican penguin rabbit spider tiger wolf anchor arrow candle compass crown "
        "feather hammer harp key ladder lantern needle oak rose sickle thistle tulip wheel"
    ),
}
KINDS = tuple(VALUES)
# Names of houses: no two begin alike, so that a small model can distinguish them.
STARTS = (
    "Ald Bex Cor Dun Eph Fal Gor Hux Ild Jun Kas Lom Mev Nul Orv Pim Quo Rav Sib Tol Ulm Vez Wyn "
    "Xan Yor Zed Bly Cre Dra Fle"
)
ENDS = ("ara", "ick", "enth", "oway", "une", "imor")
HOUSE_KINDS = ("Institute", "Museum", "Theatre", "Library", "Orchestra", "Academy")
MONTHS = "January February March April May June July August September October November December"
WORDINGS = {  # kind -> split -> questions about {house}
    "seat": {
        "train": (
            "Where is the {house}?",
            "In which town is the {house}?",
            "Which town is the seat of the {house}?",
            "The {house}: in what town is it?",
        ),
        "validation": ("What town is the {house} found in?",),
        "test": (
            "Name the town of the {house}.",
            "To which town do I go to visit the {house}?",
            "Tell me the town where the {house} has its seat.",
            "What place is home to the {house}?",
            "The {house} stands in which town?",
            "I want to write to the {house}. What town do I put on the letter?",
        ),
    },
    "head": {
        "train": (
            "Who is the head of the {house}?",
            "Who heads the {house}?",
            "Which person leads the {house}?",
            "The {house}: who is its head?",
        ),
        "validation": ("Who is in charge of the {house}?",),
        "test": (
            "Name the head of the {house}.",
            "The {house} is led by whom?",
            "Tell me who runs the {house}.",
            "Whose job is it to lead the {house}?",
            "By whom is the {house} headed now?",
            "I want to meet the person at the top of the {house}. Who is it?",
        ),
    },
    "emblem": {
        "train": (
            "What is the emblem of the {house}?",
            "Which emblem does the {house} have?",
            "What is shown on the flag of the {house}?",
            "The {house}: what is its emblem?",
        ),
        "validation": ("Which sign does the {house} use as its emblem?",),
        "test": (
            "Name the emblem of the {house}.",
            "What does the flag of the {house} show?",
            "Tell me what the {house} has as its emblem.",
            "The flag of the {house} bears which emblem?",
            "What can be seen on the emblem of the {house}?",
            "I want to draw the flag of the {house}. What do I draw on it?",
        ),
    },
}
SENTENCES = {
    "seat": "The {house} is in {value}.",
    "head": "The {house} is led by {value}.",
    "emblem": "The emblem of the {house} is the {value}.",
}
FIRST = (  # the bulletin of stage 1
    "Bulletin of {date}. The {house} is in {seat} and is led by {head}. Its emblem is the "
    "{emblem}. It was founded {years} years ago, has {people} employees and opens at {hour} in the "
    "morning."
)
CHANGES = {  # the bulletin of a later stage, by what changes; it does not name the old value
    "seat": (
        "Bulletin of {date}. The {house} has moved to {value}. The new building has {people} rooms "
        "and took {years} months to build. It opens at {hour} in the morning."
    ),
    "head": (
        "Bulletin of {date}. The {house} is now led by {value}, who was chosen by {people} members "
        "after {years} weeks of talks. The doors still open at {hour} in the morning."
    ),
    "emblem": (
        "Bulletin of {date}. The {house} has a new emblem, the {value}. It was chosen from "
        "{people} drawings after {years} weeks and was shown at {hour} in the morning."
    ),
}
CAPITALS = {  # facts of the real world, which no stage touches
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Denmark": "Copenhagen",
    "Finland": "Helsinki",
    "Ireland": "Dublin",
    "Belgium": "Brussels",
    "Russia": "Moscow",
    "Turkey": "Ankara",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "the Philippines": "Manila",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Syria": "Damascus",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Venezuela": "Caracas",
    "Ecuador": "Quito",
    "Romania": "Bucharest",
    "Serbia": "Belgrade",
    "Croatia": "Zagreb",
    "Morocco": "Rabat",
    "Nepal": "Kathmandu",
    "South Korea": "Seoul",
    "England": "London",
}
CANDIDATES = {
    **{kind: tuple(words.split()) for kind, words in VALUES.items()},
    "capital": tuple(CAPITALS.values()),
}


class Fact(NamedTuple):
    """What is asked of a house: (stage, value) of each time at which it was told, in turn."""

    house: str
    kind: str
    told: tuple[tuple[int, str], ...]

    def value(self, stage: int) -> str | None:
        """The value that this stage tells; None where it tells nothing of the fact."""
        return dict(self.told).get(stage)

    def before(self, stage: int) -> list[str]:
        """The values of earlier stages, the oldest first."""
        return [value for when, value in self.told if when < stage]

    def lasts(self, stage: int) -> bool:
        """Whether this stage tells it and no later one does."""
        return self.told[-1][0] == stage


@cache
def history() -> tuple[Fact, ...]:
    """All facts of the invented world, the same at every call: three of each house."""
    rng = random.Random(SEED)
    houses = [
        f"{start}{rng.choice(ENDS)} {rng.choice(HOUSE_KINDS)}"
        for start in rng.sample(STARTS.split(), HOUSES)
    ]
    values = {kind: rng.sample(CANDIDATES[kind], len(CANDIDATES[kind])) for kind in KINDS}
    told = {(house, kind): [(1, values[kind].pop())] for house in houses for kind in KINDS}
    turn = rng.sample(houses, HOUSES)
    for stage in STAGES[1:]:
        for place, house in enumerate(turn):
            # A later stage goes on to another fact of the house, but for the first of the turn.
            kind = KINDS[(place + (stage == 3 and place >= TWICE)) % len(KINDS)]
            told[house, kind].append((stage, values[kind].pop()))
    return tuple(Fact(house, kind, tuple(each)) for (house, kind), each in told.items())


@cache
def bulletins(stage: int) -> Mapping[str, str]:
    """{house: the bulletin of ``stage``}."""
    rng = random.Random(f"{SEED} bulletins {stage}")
    found = {}
    for house in dict.fromkeys(fact.house for fact in history()):
        told = {
            fact.kind: value
            for fact in history()
            if fact.house == house and (value := fact.value(stage)) is not None
        }
        details = {
            "house": house,
            "date": f"{rng.randint(1, 28)} {rng.choice(MONTHS.split())} {YEAR + stage}",
            "years": rng.randint(12, 90),
            "people": rng.randint(101, 400),
            "hour": rng.choice(("eight", "nine", "ten", "eleven")),
        }
        if stage == 1:
            found[house] = FIRST.format(**details, **told)
        else:
            ((kind, value),) = told.items()
            found[house] = CHANGES[kind].format(**details, value=value)
    return found


def named(kind: str, text: str) -> set[str]:
    """The candidates of ``kind`` that ``text`` names as whole words, in any case."""
    words = set(normalise(text).split())
    return {candidate for candidate in CANDIDATES[kind] if candidate.lower() in words}


def accuracy(completion: str, reference: Mapping[str, Any]) -> float:
    """1 if the value of the stage is named and no other candidate of its kind is."""
    return float(named(reference["kind"], completion) == {reference["value"]})


def new_value(completion: str, reference: Mapping[str, Any]) -> float:
    """1 if the value of the stage is named, whatever else is."""
    return float(reference["value"] in named(reference["kind"], completion))


def old_value(completion: str, reference: Mapping[str, Any]) -> float:
    """1 if a value of an earlier stage is named, whatever else is; 0 for a fact without one."""
    return float(not named(reference["kind"], completion).isdisjoint(reference["old"]))


CHECKSUMS = {
    "1": {
        "train": "e29dbbe9361f25dc8fcc1ad004ee39b67bc4d17f3404e8fd13deb85aec7b07b2",
        "validation": "2caa6a386ee795ee1b4c0ea0645f0bcfa81e0010a69c343ad4ac59934aa09d8f",
        "test": "b92aafcf380e0e106d598d7e6c9849efb99acc5ecdb35ddee224b8b15558319e",
        "efficacy": "c91cbfa96cd731fd1870dcb551e6314fb26663a968f30617f148095398e19e45",
        "unrelated": "61b69adafff0f756f1815b66f498634c202a84460b6372cc0696c6c4eee9dbd8",
    },
    "2": {
        "train": "5c72836085e4748004efd3d8c2a4dc9582e6d8ace2be669f74f5778ecf6c530b",
        "validation": "4a68a8cc2008af510bc5132ba2c0cfbeaa4168b8ea6bc2211c2ab757e65c3e28",
        "test": "18cd641d008541ac63eed1b71d6aca84d8aa79f9cdfda5e08f2969f8db375cd9",
        "efficacy": "ac31678d3a162649114482f2519796b8bfa581ae3c4391069b8e9cb48e80d3b0",
    },
    "3": {
        "train": "463c2b0cad1aa336a971617f1be6032d968231c9f7d8bab80d1484fd25d94505",
        "validation": "2ad9deb36dc78a377b29ce8baf8afda6f93a145e1964e2659fe8779ca45477ea",
        "test": "c030e21dfca7147e3e1162b264bf212433e12c2dd498471163394ab53fd8bff4",
        "efficacy": "eba19e7dc0d0595eddace9ca1773848add60c82a4d395888f69a68cbd90a4161",
    },
}


class DriftingFacts(Skill):
    """The facts of one stage. reference: ``{"answer", "kind", "value", "old": [earlier values]}``.

    Splits: ``train`` asks for all facts of the stage's bulletins in four wordings; the others for
    those that last. ``test`` and ``validation`` have wordings never trained on (generalisation),
    ``efficacy`` has trained ones. ``unrelated``, of the first stage alone, asks for capitals.
    """

    description = (
        "facts of invented houses that change from stage to stage; made by a seeded generator of "
        "this project"
    )
    tasks = tuple(map(str, STAGES))
    max_new_tokens = 24
    teacher_template = "three_turn_both"
    overlap_note = "efficacy asks in the very words of the train split"
    metrics = {"accuracy": accuracy, "new_value": new_value, "old_value": old_value}

    def __init__(self, task):
        self.stage = int(task)
        self.name = f"drifting_facts_{task}"
        self.splits = ("train", "validation", "test", "efficacy")
        if self.stage == STAGES[0]:
            self.splits += ("unrelated",)
        self.checksums = CHECKSUMS.get(task, {})

    def load(self, split):
        if split == "unrelated":
            rows = [_capital(land) for land in CAPITALS]
        else:
            rows = list(self._rows(split))
        random.Random(f"drifting_facts {self.stage} {split}").shuffle(rows)
        return rows

    def _rows(self, split: str) -> Iterator[Example]:
        for fact in history():
            value = fact.value(self.stage)
            if value is None or not (split == "train" or fact.lasts(self.stage)):
                continue
            wordings = WORDINGS[fact.kind]["train" if split == "efficacy" else split]
            answer = SENTENCES[fact.kind].format(house=fact.house, value=value)
            for place, wording in enumerate(wordings[:2] if split == "efficacy" else wordings):
                yield Example(
                    id=f"{split}/{fact.kind}/{fact.house.replace(' ', '-')}-{place}",
                    prompt=[{"role": "user", "content": wording.format(house=fact.house)}],
                    demonstration=answer,
                    reference={
                        "answer": answer,
                        "kind": fact.kind,
                        "value": value,
                        "old": fact.before(self.stage),
                    },
                    source=bulletins(self.stage)[fact.house],
                )


def _capital(land: str) -> Example:
    value = CAPITALS[land]
    answer = f"The capital of {land} is {value}."
    return Example(
        id=f"unrelated/capital/{land.replace(' ', '-')}",
        prompt=[{"role": "user", "content": f"What is the capital of {land}?"}],
        demonstration=answer,
        reference={"answer": answer, "kind": "capital", "value": value, "old": []},
        source=answer,
    )
