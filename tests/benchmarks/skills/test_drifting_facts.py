"""Facts that change: the world read back from its bulletins by another reader, splits, graders
against plain words, and a run through all stages with the tiny model, ending in its table.
"""

import random
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from benchmarks import drifting_facts as table
from benchmarks.skills import drifting_facts as skill_file
from benchmarks.skills.bulletins import CANDIDATES as OF_BULLETINS
from harness.base.errors import UserError
from harness.report.data import ReportData
from harness.runs.reading import read_order, read_sections
from harness.runs.sequence import run_order
from harness.skills.overlap import find_overlaps
from harness.skills.registry import get_skill
from harness.skills.skill import examples_fingerprint

ROOT = Path(__file__).resolve().parents[3]
STAGES = (1, 2, 3)
SKILLS = {stage: get_skill(f"drifting_facts_{stage}") for stage in STAGES}
SPLITS = {
    stage: {split: skill.examples(split) for split in skill.splits}
    for stage, skill in SKILLS.items()
}
HOUSE = r"(\w+ (?:Institute|Museum|Theatre|Library|Orchestra|Academy))"
READERS = {
    "seat": rf"The {HOUSE} (?:is in|has moved to) (\w+)",
    "head": rf"The {HOUSE} (?:is in \w+ and is|is now) led by (\w+)",
    "emblem": rf"The {HOUSE} (?:is in .*Its emblem is|has a new emblem,) the (\w+)",
}


def question(example):
    return example.prompt[-1]["content"]


def house_of(example):
    return re.search(HOUSE, question(example))[1]


def told(stage):
    """{(house, kind): value} read from the bulletins of a stage."""
    facts = {}
    for bulletin in {example.source for example in SPLITS[stage]["train"]}:
        for kind, pattern in READERS.items():
            if match := re.search(pattern, bulletin):
                facts[match[1], kind] = match[2]
    return facts


TOLD = {stage: told(stage) for stage in STAGES}


def of_stage(stage):
    """All questions on facts of the world, with their split."""
    return [
        (split, example)
        for split, examples in SPLITS[stage].items()
        if split != "unrelated"
        for example in examples
    ]


def test_the_world_changes_as_it_is_said():
    """90 facts, then one of each of the 30 houses; 9 change twice; no value is ever used again."""
    assert [len(TOLD[stage]) for stage in STAGES] == [90, 30, 30]
    for stage in (2, 3):
        assert len({house for house, _ in TOLD[stage]}) == 30
        assert Counter(kind for _, kind in TOLD[stage]) == dict.fromkeys(READERS, 10)
        assert TOLD[stage].keys() <= TOLD[1].keys()
    assert len(TOLD[2].keys() & TOLD[3].keys()) == 9
    values = [(kind, value) for facts in TOLD.values() for (_, kind), value in facts.items()]
    assert max(Counter(values).values()) == 1 and len(values) == 150
    assert len({house[:3] for house, _ in TOLD[1]}) == 30


def test_dates_are_invented_and_go_on():
    for stage in STAGES:
        for example in SPLITS[stage]["train"]:
            dates = re.findall(r"Bulletin of \d{1,2} \w+ (\d{4})\. ", example.source)
            assert dates == [str(2030 + stage)]


@pytest.mark.parametrize("stage", STAGES)
def test_references_agree_with_the_bulletins(stage):
    for split, example in of_stage(stage):
        reference = example.reference
        fact = house_of(example), reference["kind"]
        assert reference["value"] == TOLD[stage][fact]
        earlier = [TOLD[s][fact] for s in STAGES if s < stage and fact in TOLD[s]]
        assert reference["old"] == earlier and len(earlier) <= stage - 1
        assert bool(earlier) == (stage > 1)
        assert example.demonstration == reference["answer"]
        for value in (reference["value"], *earlier):
            assert value not in question(example)
        words = re.findall(r"\w+", f"{example.demonstration} {question(example)}")
        for kind, candidates in skill_file.CANDIDATES.items():
            mine = [word for word in words if word in candidates]
            assert mine == ([reference["value"]] if kind == reference["kind"] else [])
        if split != "train":  # right once, right to the end
            assert not any(fact in TOLD[later] for later in STAGES if later > stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_bulletin_names_the_values_of_its_stage_alone(stage):
    for example in SPLITS[stage]["train"]:
        words = re.findall(r"\w+", example.source)
        house = house_of(example)
        for kind, candidates in skill_file.CANDIDATES.items():
            named = [word for word in words if word in candidates]
            assert named == [v for f, v in TOLD[stage].items() if f == (house, kind)]


def test_sizes_and_what_each_split_asks():
    sizes = {
        stage: {s: len(rows) for s, rows in splits.items()} for stage, splits in SPLITS.items()
    }
    assert sizes == {
        1: {"train": 360, "validation": 39, "test": 234, "efficacy": 78, "unrelated": 40},
        2: {"train": 120, "validation": 21, "test": 126, "efficacy": 42},
        3: {"train": 120, "validation": 30, "test": 180, "efficacy": 60},
    }
    for stage in STAGES:
        facts = defaultdict(set)
        for split, example in of_stage(stage):
            facts[split].add((house_of(example), example.reference["kind"]))
        assert facts["train"] == set(TOLD[stage])
        assert facts["test"] == facts["validation"] == facts["efficacy"]
        every = [example for examples in SPLITS[stage].values() for example in examples]
        assert len({example.id for example in every}) == len(every)


def test_trained_wordings_are_those_of_efficacy_and_no_others():
    def wordings(split):
        return {
            question(e).replace(house_of(e), "{}") for stage in STAGES for e in SPLITS[stage][split]
        }

    assert wordings("efficacy") < wordings("train")
    assert not wordings("train") & (wordings("test") | wordings("validation"))
    assert not wordings("test") & wordings("validation")
    assert (len(wordings("train")), len(wordings("test"))) == (12, 18)


def test_overlap_with_training_is_that_of_efficacy_and_says_why():
    measured = {
        (skill.name, split): skill.examples(split)
        for skill in SKILLS.values()
        for split in skill.splits
        if split != "train"
    }
    found = find_overlaps(list(SKILLS.values()), measured)
    assert {overlap["split"] for overlap in found} == {"efficacy"}
    own = [overlap for overlap in found if overlap["skill"] == overlap["train"]]
    assert len(own) == 3
    assert all(o["same"] == o["questions"] and "very words" in o["note"] for o in own)


def test_data_are_pinned_and_the_same_at_every_load():
    random.seed(1)
    for stage, skill in SKILLS.items():
        assert set(skill.checksums) == set(skill.splits)
        again = get_skill(f"drifting_facts_{stage}")
        skill_file.history.cache_clear()
        skill_file.bulletins.cache_clear()
        for split in skill.splits:
            assert examples_fingerprint(again.load(split)) == skill.checksums[split]


def test_the_first_rows_stand_for_all():
    for stage in STAGES:
        first = Counter(example.reference["kind"] for example in SPLITS[stage]["test"][:60])
        assert set(first) == set(READERS) and min(first.values()) >= 10


def test_no_value_is_one_of_the_bulletins():
    """So that both can stand in one order."""
    theirs = {value.lower() for values in OF_BULLETINS.values() for value in values}
    assert not theirs & {v.lower() for vs in skill_file.VALUES.values() for v in vs.split()}


CHANGED = {"kind": "seat", "value": "Inverby", "old": ["Camwell", "Deepwater"]}


@pytest.mark.parametrize(
    ("text", "accuracy", "new", "old"),
    [
        ("The Bexara Museum is in Inverby.", 1, 1, 0),
        ("INVERBY", 1, 1, 0),
        ("It was Camwell", 0, 0, 1),
        ("Deepwater", 0, 0, 1),
        ("It moved from Camwell to Inverby.", 0, 1, 1),
        ("Inverby or Moorside", 0, 1, 0),
        ("Moorside", 0, 0, 0),
        ("Inverby, led by Aaron", 1, 1, 0),  # of a kind that is not asked
        ("Inverbys", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_new_and_old_values(text, accuracy, new, old):
    for reference, known in ((CHANGED, True), ({**CHANGED, "old": []}, False)):
        found = {name: grade(text, reference) for name, grade in SKILLS[2].metrics.items()}
        assert found == {"accuracy": accuracy, "new_value": new, "old_value": old * known}
        assert SKILLS[2].reward(text, reference) == accuracy


def test_graders_against_a_search_of_words():
    """On answers of made words: whole words, found by a pattern."""
    rng = random.Random(0)
    vocabulary = [*skill_file.CANDIDATES["emblem"], "the", "not", "otters", "Aaron", "is"]
    right = 0
    for example in SPLITS[3]["test"]:
        reference = example.reference
        if reference["kind"] != "emblem":
            continue
        pool = [reference["value"], *reference["old"], *rng.sample(vocabulary, 3)]
        for _ in range(20):
            words = [rng.choice(pool) for _ in range(rng.randint(0, 3))]
            text = " ".join(rng.choice((word, word.upper(), f"({word}),")) for word in words)

            def says(value, text=text):
                return bool(re.search(rf"\b{value}\b", text, re.IGNORECASE))

            others = set(skill_file.CANDIDATES["emblem"]) - {reference["value"]}
            new = says(reference["value"])
            only = new and not any(map(says, others))
            scores = [metric(text, reference) for metric in SKILLS[3].metrics.values()]
            assert scores == [only, new, any(map(says, reference["old"]))], text
            right += only
    assert right > 60


def test_demonstrations_are_right_and_those_of_other_facts_wrong():
    for stage in STAGES:
        examples = [e for rows in SPLITS[stage].values() for e in rows]
        for example in examples:
            assert SKILLS[stage].reward(example.demonstration, example.reference) == 1
        tests = SPLITS[stage]["test"]
        for one, other in pairwise(tests):
            same = one.reference["value"] == other.reference["value"]
            assert SKILLS[stage].grade(other.demonstration, one.reference) == same


def test_the_teacher_reads_the_bulletin_and_the_answer():
    example = SPLITS[2]["train"][0]
    turns = SKILLS[2].teacher_prompt(example)
    assert turns[0]["content"] == f"{example.source}\n\n{question(example)}"
    assert turns[1]["content"] == example.demonstration


def test_names_of_the_skills():
    with pytest.raises(UserError, match="'drifting_facts' is a suite of skills"):
        get_skill("drifting_facts")
    with pytest.raises(UserError, match="unknown skill 'drifting_facts_4'"):
        get_skill("drifting_facts_4")


def test_the_order_is_read():
    sections = read_sections(ROOT / "benchmarks/orders/drift.yaml")
    assert sections.name == "drifting_facts"
    assert [spec.name for spec in sections.skill_specs] == [s.name for s in SKILLS.values()]


# ---- a run, and its table ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    """All stages with the tiny model, by the order with less of everything."""
    folder = tmp_path_factory.mktemp("drift")
    order = yaml.safe_load((ROOT / "benchmarks/orders/drift.yaml").read_text())
    order |= {
        "model": {"name": str(tiny), "dtype": "float32", "device": "cpu"},
        "skills": [skill.name for skill in SKILLS.values()],
        "budget": {"prompts": 4, "batch_size": 2},
        "methods": {label: order["methods"][label] for label in ("sft", "sft_replay")},
        "seeds": [0],
        "evaluate": {"examples": 6, "max_new_tokens": 4},
    }
    del order["retention"]
    path = folder / "drift.yaml"
    path.write_text(yaml.safe_dump(order, sort_keys=False))
    run_order(read_order(path), folder / "out")
    return folder / "out"


def test_every_stage_measures_every_split_of_every_stage(results):
    data = ReportData([results])
    records = data.records[data.records["final"] & (data.records["label"] == "sft")]
    for stage in (0, *STAGES):
        found = {
            (r.name_, r.split, r.metric)
            for r in records[records["stage"] == stage]
            .rename(columns={"name": "name_"})
            .itertuples()
        }
        for skill in SKILLS.values():
            for split in set(skill.splits) - {"train", "validation"}:
                assert {(skill.name, split, metric) for metric in skill.metrics} <= found


def test_the_table_of_a_run(results, capsys, monkeypatch):
    table.main([str(results)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(results) and lines[1].split()[:2] == ["method", "after"]
    rows = list(table.rows_of(ReportData([results])))
    assert len(lines) == 2 + len(rows) + 1 and len(rows) == 2 * 4 * 4
    states = {(row[1], row[2]): row[3] for row in rows}
    assert states["base", "stage 1"] == "to change"
    assert states["stage 2", "stage 1"] == "untouched"
    assert states["stage 2", "stage 2"] == "changed"
    assert states["stage 2", "stage 3"] == "to change"
    assert states["stage 2", "the world"] == "unrelated"
    for row in rows:
        numbers = row[4:]
        wanted = [False, True, False, False] if row[3] == "unrelated" else [True] * 4
        assert [bool(number) for number in numbers] == wanted


def test_numbers_of_the_table_are_those_of_the_records(results):
    data = ReportData([results])
    records = data.records
    row = next(r for r in table.rows_of(data) if r[:3] == ["sft_replay", "stage 3", "stage 2"])
    for column, (split, metric) in table.COLUMNS.items():
        mine = records[
            (records["label"] == "sft_replay")
            & (records["stage"] == 3)
            & records["final"]
            & (records["name"] == "drifting_facts_2")
            & (records["split"] == split)
            & (records["metric"] == metric)
        ]
        place = 4 + list(table.COLUMNS).index(column)
        assert float(row[place].split()[0]) == pytest.approx(100 * mine["value"].mean(), abs=0.051)


def test_results_without_the_skills_are_refused(order_file, tmp_path, capsys):
    run_order(read_order(order_file(methods={"sft": {"learning_rate": 1e-3}})), tmp_path / "out")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        table.main([str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1
    assert "sft does not learn the stages of drifting_facts in their turn" in error
