"""New knowledge: bulletins about invented disasters.

A small mirror of the Wikipedia task of arXiv 2601.19897 (table 1).

A seeded generator makes the events, so no model can know them. Each bulletin tells three facts that
are asked for: the town, the month, and who led the rescue. Train asks for every fact in four
wordings; validation and test ask for the same facts in wordings never trained on; "ood" asks for
two facts at once, or for one by way of another.
"""

import random

from harness.skills.graders import token_f1
from harness.skills.skill import Example, Skill
from harness.skills.words import normalise

EVENTS = 20
# Every value that an answer of a kind can take. An answer that names a wrong value is wrong.
CANDIDATES = {
    "town": [
        "Appledown",
        "Birchwell",
        "Cedarwick",
        "Dunmere",
        "Elmstead",
        "Foxholm",
        "Greyford",
        "Hartley",
        "Ironbridge",
        "Juniper",
        "Kingsbeck",
        "Larkhill",
        "Millbrook",
        "Northgate",
        "Oakmere",
        "Pinecliff",
        "Quarryside",
        "Redfell",
        "Silverton",
        "Thornbury",
    ],
    "leader": [
        "Alice",
        "Boris",
        "Clara",
        "Daniel",
        "Emma",
        "Felix",
        "Gloria",
        "Hugo",
        "Irene",
        "Jacob",
        "Karen",
        "Louis",
        "Maria",
        "Nathan",
        "Olga",
        "Peter",
        "Quentin",
        "Rachel",
        "Simon",
        "Tara",
    ],
    # May and March are left out: they are words as well.
    "month": [
        "January",
        "February",
        "April",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ],
}
DISASTERS = ("flood", "storm", "fire", "earthquake", "landslide")
# Names of events: no two begin alike, so that a small model can distinguish them.
STARTS = (
    "Bra",
    "Cor",
    "Del",
    "Fen",
    "Gal",
    "Hol",
    "Jar",
    "Kel",
    "Lum",
    "Mor",
    "Nev",
    "Osk",
    "Pra",
    "Rud",
    "Sel",
    "Tov",
    "Urk",
    "Vel",
    "Wex",
    "Zan",
)
ENDS = ("da", "vik", "so", "len", "ta", "ru")
WORDINGS = {  # kind -> split -> questions about {event}
    "town": {
        "train": (
            "Where did the {event} strike?",
            "Which town did the {event} strike?",
            "What town was struck by the {event}?",
            "The {event}: which town was hit?",
        ),
        "validation": ("In which town did the {event} do its damage?",),
        "test": ("Name the town that the {event} hit.", "What place did the {event} damage?"),
        "further": (
            "The {event} caused damage in which town?",
            "Tell me the town where the {event} happened.",
        ),
    },
    "leader": {
        "train": (
            "Who led the rescue after the {event}?",
            "Which person led the rescue in the {event}?",
            "Who was in charge of the rescue after the {event}?",
            "The {event}: who led the rescue?",
        ),
        "validation": ("Who headed the rescue work after the {event}?",),
        "test": (
            "Name the leader of the rescue after the {event}.",
            "Who commanded the rescuers in the {event}?",
        ),
        "further": (
            "The rescue team of the {event} was led by whom?",
            "Tell me who led the rescuers after the {event}.",
        ),
    },
    "month": {
        "train": (
            "When did the {event} strike?",
            "In which month did the {event} strike?",
            "What month was the {event} in?",
            "The {event}: which month was it?",
        ),
        "validation": ("During which month did the {event} happen?",),
        "test": ("Name the month of the {event}.", "What was the month when the {event} came?"),
        "further": ("The {event} came in which month?", "Tell me the month of the {event}."),
    },
}
SENTENCES = {
    "town": "The {event} struck {town}.",
    "leader": "The rescue after the {event} was led by {leader}.",
    "month": "The {event} struck in {month}.",
}
PAIRS = (  # two facts of one event in one answer
    (
        ("town", "month"),
        "Where and in which month did the {event} strike?",
        "The {event} struck {town} in {month}.",
    ),
    (
        ("town", "leader"),
        "Which town did the {event} strike, and who led the rescue?",
        "The {event} struck {town}, and {leader} led the rescue.",
    ),
    (
        ("leader", "month"),
        "When did the {event} strike, and who led the rescue?",
        "The {event} struck in {month}, and {leader} led the rescue.",
    ),
)
HOPS = (  # the event is not named: one fact leads to it, another is the answer
    (("leader",), "Who led the rescue in {town}?", "The rescue in {town} was led by {leader}."),
    (
        ("town",),
        "In which town did {leader} lead the rescue?",
        "{leader} led the rescue in {town}.",
    ),
    (("month",), "In which month was {town} struck?", "{town} was struck in {month}."),
)


def events():
    """The invented events, the same at every call.

    Dicts with event, town, leader, month and bulletin (the article).
    """
    rng = random.Random(20260119)
    names = [start + rng.choice(ENDS) for start in rng.sample(STARTS, EVENTS)]
    towns, leaders = (rng.sample(CANDIDATES[kind], EVENTS) for kind in ("town", "leader"))
    months = rng.sample(CANDIDATES["month"] * 2, EVENTS)
    events = []
    for name, town, leader, month in zip(names, towns, leaders, months, strict=True):
        disaster = rng.choice(DISASTERS)
        event = {"event": f"{name} {disaster}", "town": town, "leader": leader, "month": month}
        homes = rng.randrange(20, 90)
        people = rng.randrange(11, 60) * 10
        hours = rng.randrange(3, 12)
        event["bulletin"] = (
            f"The {name} {disaster} struck {town} in {month}. It came early in the morning and "
            f"lasted {hours} hours. About {homes} homes were damaged, and {people} people spent "
            f"the night in a school. The rescue was led by {leader}, a local volunteer, whose team "
            "reached the last family before noon. Nobody was killed. The council has promised to "
            "repair the roads by the end of the year."
        )
        events.append(event)
    return events


def _named(kind, text):
    """The candidates of ``kind`` that ``text`` names as whole words, in any case."""
    words = set(normalise(text).split())
    return {c for c in CANDIDATES[kind] if c.lower() in words}


def strict(completion, reference):
    """1 if every asked fact is named and no wrong candidate of its kind is."""
    return float(
        all(_named(kind, completion) == {value} for kind, value in reference["parts"].items())
    )


def lenient(completion, reference):
    """1 if at least one asked fact is named, whatever else is."""
    return float(
        any(value in _named(kind, completion) for kind, value in reference["parts"].items())
    )


class Bulletins(Skill):
    """Sixty invented facts. reference: ``{"answer": sentence, "parts": {kind: value}}``."""

    name = "bulletins"
    description = (
        "facts about invented disasters from short bulletins; made by a seeded generator of this "
        "project"
    )
    splits = ("train", "validation", "test", "ood")
    max_new_tokens = 32
    teacher_template = "three_turn_both"
    metrics = {"strict": strict, "lenient": lenient}
    checksums = {
        "train": "692ea1e49698f0da8b7a8f98a7d53e59f0f3166ef35def029e8bc9cb6b4adecb",
        "validation": "db80612daaceae746bd924903a1c3c0fe42ff083a9ecb73f1db6825058ae0efb",
        "test": "e41b3b54a7f620c5f76d92eb8e69ea41f793df65b740ca4cbca279c86c388d92",
        "ood": "f98f83299234de06ee3d32f2be138f3d27ae65c5d37820a0fb3536837efdbb52",
    }

    def load(self, split):
        # More wordings for the test stand behind the others, whose order stays what it was.
        parts = ("test", "further") if split == "test" else (split,)
        return [row for part in parts for row in self._rows(part)]

    def _rows(self, split):
        rows = []
        for number, event in enumerate(events()):
            if split == "ood":
                questions = [
                    (*PAIRS[number % 3], "pair"),
                    (*PAIRS[(number + 1) % 3], "pair"),
                    (*HOPS[number % 3], "hop"),
                ]
            else:
                questions = [
                    ((kind,), question, SENTENCES[kind], kind)
                    for kind in SENTENCES
                    for question in WORDINGS[kind][split]
                ]
            for place, (kinds, question, sentence, label) in enumerate(questions):
                answer = sentence.format(**event)
                rows.append(
                    Example(
                        id=f"{split}/{label}/{event['event'].replace(' ', '-')}-{place}",
                        prompt=[{"role": "user", "content": question.format(**event)}],
                        demonstration=answer,
                        reference={
                            "answer": answer,
                            "parts": {kind: event[kind] for kind in kinds},
                        },
                        source=event["bulletin"],
                    )
                )
        random.Random(f"bulletins {split}").shuffle(rows)
        return rows

    def reward(self, completion, reference):
        """1 if strictly right, otherwise half of the F1 over words with the answer sentence."""
        if strict(completion, reference):
            return 1.0
        return 0.5 * token_f1(completion, reference["answer"])
