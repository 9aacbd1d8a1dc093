"""The skill "bulletins": facts and splits read from the texts by another reader, graders, reward,
teacher.
"""

import random
import re
from collections import Counter, defaultdict

import pytest

from benchmarks.skills import bulletins
from harness.skills.registry import get_skill
from harness.skills.skill import examples_fingerprint

SKILL = get_skill("bulletins")
SPLITS = {split: SKILL.examples(split) for split in SKILL.splits}
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"


def question(example):
    return example.prompt[-1]["content"]


def read(article):
    """The facts of a bulletin, by a reader of its text."""
    name, town, month = re.match(rf"The (\w+ \w+) struck (\w+) in ({MONTHS})\.", article).groups()
    return {
        "event": name,
        "town": town,
        "month": month,
        "leader": re.search(r"led by (\w+),", article)[1],
    }


def test_sizes_and_distinct_questions():
    sizes = {split: len(rows) for split, rows in SPLITS.items()}
    assert (
        sizes["train"] >= 200
        and sizes["validation"] >= 48
        and sizes["test"] >= 100
        and sizes["ood"] >= 40
    )
    every = [e for rows in SPLITS.values() for e in rows]
    assert len({question(e) for e in every}) == len({e.id for e in every}) == len(every)


def test_references_agree_with_the_bulletins():
    for e in (e for rows in SPLITS.values() for e in rows):
        facts = read(e.source)
        assert e.reference["parts"] == {kind: facts[kind] for kind in e.reference["parts"]}
        for value in e.reference["parts"].values():
            assert len(re.findall(rf"\b{value}\b", e.source)) == 1 and re.search(
                rf"\b{value}\b", e.demonstration
            )
            assert value not in question(e)  # nothing can be copied from the question
        assert e.demonstration == e.reference["answer"]


def test_a_bulletin_names_one_candidate_of_a_kind_and_nothing_is_shared():
    articles = {e.source for e in SPLITS["train"]}
    assert len(articles) == bulletins.EVENTS
    for article in articles:
        words = re.findall(r"\w+", article)
        for kind, candidates in bulletins.CANDIDATES.items():
            assert [w for w in words if w in candidates] == [read(article)[kind]]
    facts = [read(a) for a in articles]
    for key in ("event", "town", "leader"):
        # so that an indirect question has one answer
        assert len({f[key] for f in facts}) == bulletins.EVENTS
    assert len({f["event"][:3] for f in facts}) == bulletins.EVENTS


def test_train_covers_every_fact_and_held_out_wordings_are_new():
    def facts(split):
        seen = defaultdict(set)
        for e in SPLITS[split]:
            event = read(e.source)["event"]
            (kind,) = e.reference["parts"]
            assert event in question(e)
            seen[event, kind].add(question(e).replace(event, "{}"))
        return seen

    train, validation, test = facts("train"), facts("validation"), facts("test")
    assert len(train) == 3 * bulletins.EVENTS and train.keys() == validation.keys() == test.keys()
    assert min(map(len, train.values())) >= 2
    wordings = [set().union(*seen.values()) for seen in (train, validation, test)]
    assert (
        not wordings[0] & wordings[1]
        and not wordings[0] & wordings[2]
        and not wordings[1] & wordings[2]
    )


def test_ood_takes_two_facts():
    pairs = hops = 0
    for e in SPLITS["ood"]:
        facts = read(e.source)
        if len(e.reference["parts"]) == 2:
            assert facts["event"] in question(e)
            pairs += 1
        else:  # the event is not named: another fact of it is
            (asked,) = e.reference["parts"]
            assert facts["event"] not in question(e)
            assert sum(facts[k] in question(e) for k in ("town", "leader") if k != asked) == 1
            hops += 1
    assert pairs == 2 * bulletins.EVENTS and hops == bulletins.EVENTS
    assert len(Counter(tuple(sorted(e.reference["parts"])) for e in SPLITS["ood"])) == 6


def test_the_first_rows_stand_for_all():
    first = Counter(next(iter(e.reference["parts"])) for e in SPLITS["test"][:48])
    assert set(first) == {"town", "month", "leader"} and min(first.values()) >= 12


def test_data_are_pinned_and_the_same_at_every_load():
    assert set(SKILL.checksums) == set(SKILL.splits)
    random.seed(1)
    for split in SKILL.splits:
        assert examples_fingerprint(get_skill("bulletins").load(split)) == SKILL.checksums[split]


ONE = {"answer": "The Velda flood struck Oakmere.", "parts": {"town": "Oakmere"}}
TWO = {
    "answer": "The Velda flood struck Oakmere in June.",
    "parts": {"town": "Oakmere", "month": "June"},
}


@pytest.mark.parametrize(
    "text, reference, strict, lenient",
    [
        ("Oakmere", ONE, 1, 1),
        ("It was OAKMERE, I think.", ONE, 1, 1),
        ("It struck Oakmere, not Redfell.", ONE, 0, 1),  # two candidates of the kind
        ("Oakmere in July, says Simon", ONE, 1, 1),  # candidates of kinds that were not asked for
        ("Oakmeres", ONE, 0, 0),
        ("Redfell", ONE, 0, 0),
        ("", ONE, 0, 0),
        ("Oakmere in June", TWO, 1, 1),
        ("June: Oakmere", TWO, 1, 1),
        ("Oakmere", TWO, 0, 1),
        ("Oakmere in July", TWO, 0, 1),
        ("Redfell in June", TWO, 0, 1),
        ("Redfell in July", TWO, 0, 0),
    ],
)
def test_strict_and_lenient(text, reference, strict, lenient):
    assert {name: f(text, reference) for name, f in SKILL.metrics.items()} == {
        "strict": strict,
        "lenient": lenient,
    }
    assert SKILL.metric == "strict"
    assert (SKILL.reward(text, reference) == 1) == bool(strict)


def test_reward_is_half_of_f1_below_right():
    # "velda flood struck redfell" against "velda flood struck oakmere": 3 of 4 words on either side
    assert SKILL.reward("The Velda flood struck Redfell.", ONE) == pytest.approx(0.5 * 0.75)
    assert SKILL.reward("No idea", ONE) == 0
    for e in (e for rows in SPLITS.values() for e in rows):
        assert (
            SKILL.grade(e.demonstration, e.reference)
            == SKILL.reward(e.demonstration, e.reference)
            == 1
        )


def test_wrong_event_is_wrong():
    """The answer to the same question about another event is never right, but for shared months."""
    rows = [e for e in SPLITS["test"] if "month" not in e.reference["parts"]]
    for e in rows:
        others = [
            o
            for o in rows
            if o.reference["parts"].keys() == e.reference["parts"].keys() and o.source != e.source
        ]
        assert others and not any(SKILL.grade(o.demonstration, e.reference) for o in others)


def test_teacher_reads_the_bulletin_and_the_answer():
    e = SPLITS["train"][0]
    turns = SKILL.teacher_prompt(e)
    assert turns == [
        {"role": "user", "content": e.source + "\n\n" + question(e)},
        {"role": "assistant", "content": e.demonstration},
        {"role": "user", "content": question(e)},
    ]
