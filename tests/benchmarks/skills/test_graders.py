"""The tables of docs/reference/graders.md, graded row by row; references that are refused."""

import json
import unicodedata
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from benchmarks.skills._sources import read_rows
from harness.base.errors import UserError
from harness.base.registry import plugin_named
from harness.runs.listing import skills as project_skills
from harness.skills.files import FileSkill
from harness.skills.registry import FOLDER, get_skill
from harness.skills.signs import GRADERS, is_sign
from harness.skills.skill import Skill
from harness.skills.words import normalise
from tests.conftest import write_rows

ROOT = Path(__file__).resolve().parents[3]
TABLES = yaml.safe_load((ROOT / "docs/reference/graders.yaml").read_text(encoding="utf-8"))
OPTIONS = "Which?\n\nA: copper\nB: A ketone\nC: CC(=O)O\nD: -5 K"


def grade(name, answer, reference):
    skill, dot, metric = name.rpartition(".")
    if not dot:
        return GRADERS[metric](answer, reference)
    skill = next(each for each in instances(skill) if metric in each.metrics)
    row = {"reference": reference, "prompt": OPTIONS}
    return skill.metrics[metric](answer, skill.reference(row, "here"))


def instances(name):
    """The skill of a name; of a suite all of its tasks."""
    tasks = plugin_named(FOLDER, "benchmarks.skills", name, Skill, "skill", "here").tasks
    return [get_skill(f"{name}_{task}") for task in tasks] or [get_skill(name)]


@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_a_grader(name):
    for answer, reference, score in TABLES[name]:
        assert grade(name, answer, reference) == pytest.approx(score, abs=1e-12), (
            answer,
            reference,
        )
    scores = {score for *_, score in TABLES[name]}
    assert 0 in scores and max(scores) > 0.999


def test_every_grader_has_a_table():
    metrics = defaultdict(set)
    for name, _ in project_skills():
        if name not in ("medical", "wiki"):  # graders of JSONL skills, on the answer alone
            metrics[name] = {metric for skill in instances(name) for metric in skill.metrics}
    of_skills = {f"{skill}.{metric}" for skill in metrics for metric in metrics[skill]}
    assert set(TABLES) == set(GRADERS) | of_skills


def test_normalisation_is_the_same_in_all_forms_of_unicode():
    """Composed, decomposed, full width, and with marks that have no shape of their own."""
    texts = ["Crème brûlée, 3.5 €", "Ἀθῆναι", "한국어 1,000", "ガギグ", "Việt Nam", "हिन्दी"]
    for text in texts:
        forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
        forms += ["\u200b".join(unicodedata.normalize("NFC", text)), "\ufeff" + text]
        assert {normalise(form) for form in forms} == {normalise(text)}, text
    assert normalise("ＡＢＣ　１２．５") == normalise("ABC 12.5") == "abc 12.5"
    assert normalise("٣٫٥") == normalise("३.५") == "3.5"


def test_punctuation_of_no_script_is_a_word():
    marks = [
        chr(code)
        for code in range(0x110000)
        if unicodedata.category(chr(code))[0] in "PSZ"
        and unicodedata.normalize("NFKC", chr(code)) == chr(code)
    ]
    assert len(marks) > 5000
    assert normalise(" ".join(marks)) == ""


@pytest.mark.parametrize(
    "text, words",
    [
        ("-5", "-5"),
        ("−5 –5 ‑5 -$5 $-5 (-5)", "-5 -5 -5 -5 -5 -5"),
        ("5-3, F-16, 1990–1995, - 5, --5", "5 3 f 16 1990 1995 5 5"),
        ("3.14, .5, -.5, 5., v1.5, 1.5kg", "3.14 0.5 -0.5 5 v1 5 1.5kg"),
        ("1,000 1,000,000.5 1,2,3 1,0000", "1000 1000000.5 1 2 3 1 0000"),
        ("12.05.2026 1.2.3", "12 05 2026 1 2 3"),
        ("1e-5 2.5E+3", "1e-5 2.5e+3"),
        ("10² 10⁻³ 3½ m²", "10 2 10 -3 3 1 2 m2"),
        ("Na+ Cl- O- A+, C++ C# yes- well-known", "na+ cl- o- a+ c++ c# yes well known"),
    ],
)
def test_what_belongs_to_a_number_stays_with_it(text, words):
    assert normalise(text) == words


def test_a_character_that_becomes_several_does_not_count_as_its_parts():
    """Every one of Unicode; those that become one word stay that word."""
    tried = 0
    for code in range(0x80, 0x110000):
        letter = chr(code)
        long = unicodedata.normalize("NFKC", letter)
        if len(long) == 1 or not is_sign(letter):
            continue
        tried += 1
        parts = {part for part in long if part.isalnum()} | set(normalise(long).split())
        for part in parts - {long}:
            text = f"is {letter} so"
            assert GRADERS["contains"](text, part) == 0, (letter, part)
            assert GRADERS["token_f1"](letter, part) == 0, (letter, part)
            assert GRADERS["normalised_match"](letter, part) == 0, (letter, part)
        for grader in ("contains", "token_f1", "normalised_match"):
            for answer, reference in ((letter, letter), (letter, long), (long, letter)):
                assert GRADERS[grader](answer, reference) == 1, (grader, answer, reference)
    assert tried > 190
    for letter, word in (("ﬁ", "fi"), ("㎏", "kg"), ("Ⅳ", "iv"), ("⑫", "12"), ("⑴", "1")):
        assert normalise(letter) == word and GRADERS["contains"](letter, word) == 1
    assert not any(is_sign(letter) for letter in "ﬁ㎏Ⅳ⑫⑴²ำé한ﷲ™")


@pytest.mark.parametrize(
    "answer, reference, score",
    [
        ("3½", "3 1/2", 1),
        ("½ and 2", "2", 1),
        ("11/2", "½", 0),
        ("0.1/2", "½", 0),
        ("1½ or 1/3", "⅓", 1),
        ("25 ℃", "25 °C", 1),
        ("20 ㎧", "20 m/s", 1),
        ("東京株式会社", "㍿", 1),
        ("กำ", "า", 1),  # a letter of a script whose letters are words
        ("1/2", "2", 1),  # two words as it is written
    ],
)
def test_neighbours_of_such_characters(answer, reference, score):
    assert GRADERS["contains"](answer, reference) == score


@pytest.mark.parametrize(
    "grader, reference, said",
    [
        ("contains", None, "is null"),
        ("exact_match", ["a", None], "holds null"),
        ("exact_match", [], "empty list"),
        ("exact_match", "", "empty text"),
        ("answer_tag", [" \n"], "empty text"),
        ("normalised_match", "?!", "holds no word"),
        ("token_f1", ["red", "。"], "holds no word"),
        ("contains", [], "empty list"),
        ("contains", [[]], "holds no word"),
    ],
)
def test_a_reference_that_no_answer_equals_is_refused_with_file_and_row(
    tmp_path, grader, reference, said
):
    rows = [{"prompt": "p", "reference": "fine"}, {"prompt": "q", "reference": reference}]
    path = write_rows(tmp_path / "test.jsonl", rows)
    with pytest.raises(UserError, match=rf"test.jsonl, row 2: .*{said}") as error:
        FileSkill("mine", {"test": path}, grader).examples("test")
    assert "\n" not in str(error.value)


def test_references_that_stay_valid(tmp_path):
    rows = [
        {"prompt": "p", "reference": reference}
        for reference in (0, False, "0", {"a": None}, [0, 1.5], "?", [["x"], []])
    ]
    path = write_rows(tmp_path / "test.jsonl", rows)
    assert len(FileSkill("mine", {"test": path}, "exact_match").examples("test")) == len(rows)


def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path):
    path = tmp_path / "test.jsonl"
    row = json.dumps({"prompt": "p", "reference": "é"}, ensure_ascii=False)
    path.write_text(row + "\n", encoding="utf-8-sig")
    (example,) = FileSkill("mine", {"test": path}, "contains").examples("test")
    assert example.reference == "é"


def test_the_letter_of_science_knows_its_options_and_stays_a_text():
    skill = get_skill("science")
    row = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": OPTIONS}]}
    example = skill.example({**row, "answer": "A"}, "test", 1, "here")
    assert example.reference == "A" and example.reference.options["C"] == "CC(=O)O"
    assert json.dumps(example.reference) == '"A"'
    # A question of another form has no options: the letter alone counts.
    row["prompt"][1]["content"] = "A: one\nB: two"
    example = skill.example({**row, "answer": "A"}, "test", 1, "here")
    choice = skill.metrics["accuracy_choice"]
    assert choice("A: one", example.reference) == 0 and choice("(A)", example.reference) == 1


def test_other_files_of_rows_may_have_the_mark_too(tmp_path):
    for name, text in (("a.json", '[{"x": 1}]'), ("a.jsonl", '{"x": 1}\n')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert list(read_rows(tmp_path / name)) == [(1, {"x": 1})]
        (tmp_path / name).write_text(text.replace("1}", '1, "x": 2}'))
        with pytest.raises(UserError, match=rf"{name}.*key 'x' stands twice in one object"):
            list(read_rows(tmp_path / name))


@pytest.mark.parametrize("name", ["elements", "medical", "science"])
def test_a_null_reference_is_no_reference_of_completions_either(name):
    with pytest.raises(UserError, match="row 3: `reference` is null"):
        get_skill(name).reference({"reference": None, "completion": "x"}, "row 3")


def test_an_answer_of_a_paper_skill_without_words_is_refused():
    row = {"question": "Why?", "answer": "...", "article": "a"}
    for name in ("medical", "wiki"):
        with pytest.raises(UserError, match=r"row 3: .* holds no word"):
            get_skill(name).example(row, "test", 3, "row 3")
