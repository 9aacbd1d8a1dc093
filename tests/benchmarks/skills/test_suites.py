"""Suites of the field on rows of their form: names, folders, archives, validation drawn from train,
files that are one, rows that do not fit, orders, and the command that loads them.
"""

import json
import os
import random
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from benchmarks import fetch
from benchmarks.published import __main__ as published
from benchmarks.published import numbers
from benchmarks.skills import _sources, _suite, cl, superni
from benchmarks.skills._sources import blob_id, question_of
from benchmarks.skills.trace import TASKS, Trace
from harness.base.errors import UserError
from harness.base.files import machine
from harness.evaluation.retention import run_suite
from harness.evaluation.suite import Suite, load_suite
from harness.models.chat import chat_tokens
from harness.report.build import write_report
from harness.report.data import ReportData
from harness.runs.order import Order
from harness.runs.reading import read_order, read_sections
from harness.runs.sequence import run_order
from harness.skills.registry import get_skill
from tests.conftest import read_lines, write_rows
from tests.fabricate import SKILLS, fabricate

ROOT = Path(__file__).resolve().parents[3]
ORDERS = sorted(
    path
    for folder in ("trace", "cl", "superni", "retaining")
    for path in (ROOT / "benchmarks" / "orders" / folder).glob("*.yaml")
)
ANSWERS = {
    "C-STANCE": "A",
    "FOMC": "B",
    "MeetingBank": "The council met.",
    "Py150": "x = <NUM_LIT>",
    "ScienceQA": "A\nWater is wet.",
    "NumGLUE-cm": "5",
    "NumGLUE-ds": "7.5",
    "20Minuten": "Der Rat tagt.",
}


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def trace_rows(task, split, count):
    marks = ("\n\nParagraph:\n", "\n\nSimplification:\n") if task == "20Minuten" else ("\n", "\n")
    return [
        {"prompt": f"{split} {i}{marks[0]}text {i}{marks[1]}", "answer": ANSWERS[task]}
        for i in range(count)
    ]


@pytest.fixture
def release(tmp_path):
    """TRACE's archive unpacked, small: 40 train rows a task, 8 to test, an eval file of its own."""
    folder = tmp_path / "TRACE"
    for task in ANSWERS:
        for split, count in (("train", 40), ("eval", 5), ("test", 8)):
            rows = trace_rows(task, split, count)
            put(folder / "LLM-CL-Benchmark_5000" / task / f"{split}.json", rows)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trace", "'trace' is a suite of skills; .*known: trace_20minuten, trace_c_stance"),
        ("trace_fomx", "unknown skill 'trace_fomx'; did you mean 'trace_fomc'"),
        ("trace_", "unknown skill 'trace_'"),
        ("elements_x", "unknown skill 'elements_x'; did you mean 'elements'"),
        ("cl_", "unknown skill 'cl_'"),
        ("superni", "is a suite of skills"),
        ("countdown_x", "unknown skill"),
        ("", "unknown skill ''"),
    ],
)
def test_a_task_of_a_suite_is_a_skill_and_a_suite_is_none(name, said):
    with pytest.raises(UserError, match=said):
        get_skill(name, "here")


def test_every_task_has_a_folder_metrics_and_a_name_of_its_own():
    for suite, cls in fetch.SUITES.items():
        skills = [get_skill(f"{suite}_{task}") for task in cls.tasks]
        assert [skill.name for skill in skills] == [f"{suite}_{task}" for task in cls.tasks]
        assert len({cls.place(task, "train") for task in cls.tasks}) == len(skills)
        assert len(skills) == {"trace": 8, "cl": 15, "superni": 15, "retaining": 2}[suite]
        for skill in skills:
            skill.check_grading("here")


def test_options_of_a_task():
    with pytest.raises(UserError, match="trace_fomc takes no `source`; it takes path, holdout"):
        get_skill("trace_fomc", source="hub")
    with pytest.raises(UserError, match="skill trace_fomc: path: /nowhere is neither a folder nor"):
        get_skill("trace_fomc", path="/nowhere")


# ---- splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("deeper", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_of_trace(task, deeper, release):
    folder = release / "LLM-CL-Benchmark_5000" if deeper else release
    skill = get_skill(f"trace_{task}", path=folder)
    splits = {split: skill.examples(split) for split in skill.splits}
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 36,
        "validation": 4,
        "test": 8,
    }
    questions = {name: {question_of(e) for e in rows} for name, rows in splits.items()}
    assert questions["train"] | questions["validation"] == {
        row["prompt"] for row in trace_rows(skill.folders[task], "train", 40)
    }
    assert not questions["train"] & questions["validation"]
    for example in splits["test"]:
        answer = example.demonstration
        assert answer == ANSWERS[skill.folders[task]]
        assert all(skill.score(m, Answer(answer), example.reference) > 0.999 for m in skill.metrics)
        assert all(skill.score(m, Answer(""), example.reference) < 0.7 for m in skill.metrics)
        assert skill.reward(answer, example.reference) > 0.999


class Answer:
    def __init__(self, text):
        self.text = self.whole = text


def test_validation_is_drawn_by_question_and_the_same_however_rows_are_ordered(release):
    file = release / "LLM-CL-Benchmark_5000/FOMC/train.json"
    rows = json.loads(file.read_text())
    put(file, rows + rows)  # every question twice
    skill = get_skill("trace_fomc", path=release, holdout=10)
    first = [question_of(e) for e in skill.examples("validation")]
    assert len(first) == 20 and len(set(first)) == 10 and len(skill.examples("train")) == 60
    put(file, (rows + rows)[::-1])
    again = get_skill("trace_fomc", path=release, holdout=10)
    assert [question_of(e) for e in again.examples("validation")] == first
    with pytest.raises(UserError, match="trace_fomc: holdout: is 40 of 40 questions"):
        get_skill("trace_fomc", path=release, holdout=40).examples("train")


def test_a_first_part_of_a_test_is_a_sample_of_it(release):
    """A file that is sorted by label has all labels among the first questions."""
    rows = [{"prompt": f"q {i}", "answer": "A" if i < 50 else "B"} for i in range(100)]
    put(release / "LLM-CL-Benchmark_5000/FOMC/test.json", rows)
    examples = get_skill("trace_fomc", path=release).examples("test")
    assert 5 <= sum(e.reference == "A" for e in examples[:20]) <= 15
    assert [e.id for e in examples] != [str(i) for i in range(1, 101)]


def test_one_file_for_two_splits_is_told_or_refused(release):
    folder = release / "LLM-CL-Benchmark_5000/FOMC"
    assert "eval" not in get_skill("trace_fomc", path=release).notes()[0]
    (folder / "eval.json").write_bytes((folder / "test.json").read_bytes())
    [note] = get_skill("trace_fomc", path=release).notes()
    assert note == (
        "skill trace_fomc: its test has 8 questions: at 50% the 95% interval of an accuracy is ±35 "
        "points; the source's eval file is its test file, so validation is drawn from train"
    )
    (folder / "test.json").write_bytes((folder / "train.json").read_bytes())
    with pytest.raises(UserError, match=r"test\.json: is the same file as train\.json"):
        get_skill("trace_fomc", path=release).examples("test")


def test_rows_without_an_answer(release):
    """TRACE counts an empty answer of the test as wrong; a train row shows nothing by it."""
    folder = release / "LLM-CL-Benchmark_5000/Py150"
    empty = [{"prompt": "p", "answer": ""}, {"prompt": "q", "answer": None}]
    for split in ("train", "test"):
        put(folder / f"{split}.json", [*trace_rows("Py150", split, 20), *empty])
    skill = get_skill("trace_py150", path=release)
    assert len(skill.examples("train")) + len(skill.examples("validation")) == 20
    without = [e for e in skill.examples("test") if not e.reference]
    assert [e.reference for e in without] == ["", ""]
    for e in without:
        assert skill.grade("x", e.reference) == skill.grade("", e.reference) == 0


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("fomc", {"prompt": "q"}, r"FOMC/train\.json, row 2: answer: must be a text"),
        ("fomc", {"prompt": "q", "answer": 5}, "row 2: answer: must be a text"),
        ("fomc", {"answer": "A"}, "row 2: prompt: is missing; the columns are answer"),
        ("fomc", {"prompt": " ", "answer": "A"}, "row 2: prompt: must be a text that is not empty"),
        ("fomc", "q", r"train\.json, row 2: is not a JSON object"),
    ],
)
def test_rows_that_do_not_fit(task, row, said, release):
    rows = trace_rows("FOMC", "train", 3)
    put(release / "LLM-CL-Benchmark_5000/FOMC/train.json", [rows[0], row, *rows[1:]])
    with pytest.raises(UserError, match=said):
        get_skill(f"trace_{task}", path=release).examples("train")


def test_what_is_not_there_is_one_line(cache, release):
    with pytest.raises(UserError) as error:
        get_skill("trace_fomc").examples("train")
    assert str(error.value) == (
        "skill trace_fomc: its data are not on this machine; "
        "--set data.trace=PATH names the authors' folder or zip file; python -m benchmarks.fetch "
        "trace --from PATH keeps it"
    )
    (release / "LLM-CL-Benchmark_5000/FOMC/test.json").unlink()
    with pytest.raises(UserError, match=r"has no FOMC/test\.json; give the whole release"):
        get_skill("trace_fomc", path=release).examples("test")


# ---- label words and SuperNI ---------------------------------------------------------------------


@pytest.fixture
def labels(tmp_path):
    """O-LoRA's folders, small."""
    folder = tmp_path / "O-LoRA"
    words = {"agnews": ["World", "Sports"], "copa": ["A", "B"]}
    for task, place in cl.FOLDERS.items():
        of_task = words.get(task, ["True", "False", "Science & Mathematics"])
        put(folder / "CL_Benchmark" / place / "labels.json", of_task)
        for split, count in (("train", 30), ("test", 6)):
            rows = [
                {"sentence": f"{split} {i}", "label": of_task[i % len(of_task)]}
                for i in range(count)
            ]
            put(folder / "CL_Benchmark" / place / f"{split}.json", rows)
    return folder


def test_the_prompts_of_label_words(labels):
    [first, *_] = get_skill("cl_agnews", path=labels).examples("test")
    number = int(first.id) - 1
    assert first.prompt == [
        {
            "role": "user",
            "content": "What is the topic of the following paragraph? Choose one from the option.\n"
            f"Option: World, Sports \ntest {number}\nAnswer:",
        }
    ]
    assert first.reference == first.demonstration == ["World", "Sports"][number % 2]
    [copa, *_] = get_skill("cl_copa", path=labels).examples("test")
    assert question_of(copa) == f"test {int(copa.id) - 1}\nAnswer:"
    for task in cl.FOLDERS:
        skill = get_skill(f"cl_{task}", path=labels)
        assert len(skill.examples("train")) == 27 and len(skill.examples("validation")) == 3
        question = skill.questions()[0]
        example = skill.examples("test")[0]
        assert question.prompt == question_of(example)
        assert question.labels[question.right] == example.reference


def test_a_label_that_is_not_in_the_list(labels):
    put(labels / "CL_Benchmark/TC/agnews/test.json", [{"sentence": "s", "label": "Sport"}])
    with pytest.raises(UserError, match=r"row 1: label: .Sport. is not in labels"):
        get_skill("cl_agnews", path=labels).examples("test")
    (labels / "CL_Benchmark/TC/agnews/labels.json").write_text("{}")
    with pytest.raises(UserError, match=r"labels\.json: is not a list of label words"):
        get_skill("cl_agnews", path=labels).examples("test")


def test_a_key_that_stands_twice_is_refused_in_every_file(labels, natural):
    file = labels / "CL_Benchmark/TC/agnews/labels.json"
    file.write_text('[{"World": 1, "World": 2}]')
    with pytest.raises(UserError, match=r"labels\.json: .*key 'World' stands twice"):
        get_skill("cl_agnews", path=labels).examples("test")
    file = natural / "SuperNI/task591_sciq_answer_generation/test.json"
    file.write_text(file.read_text().replace('"input"', '"input": "other", "input"', 1))
    with pytest.raises(UserError, match=r"test\.json: .*key 'input' stands twice"):
        get_skill("superni_task591", path=natural).examples("test")


def test_sentences_without_a_label_are_left_out(labels):
    """MNLI's test has some, labelled "-"."""
    rows = [{"sentence": f"s {i}", "label": "-" if i % 2 else "True"} for i in range(6)]
    put(labels / "CL_Benchmark/NLI/MNLI/test.json", rows)
    examples = get_skill("cl_mnli", path=labels).examples("test")
    assert {e.id for e in examples} == {"1", "3", "5"}


def superni_task(split, count, definition="Answer."):
    rows = [
        {"id": f"t-{i}", "input": f"{split} {i}", "output": ["yes", "no"]} for i in range(count)
    ]
    return {"Definition": definition, "Instances": rows, "Source": ["x"]}


@pytest.fixture
def natural(tmp_path):
    """SAPT's folders, small; the dev file is the test file, as there."""
    folder = tmp_path / "SAPT"
    for place in superni.FOLDERS.values():
        put(folder / "SuperNI" / place / "train.json", superni_task("train", 20, ["Answer. "]))
        for split in ("dev", "test"):
            put(folder / "SuperNI" / place / f"{split}.json", superni_task("test", 4))
    return folder


def test_tasks_of_natural_instructions(natural):
    for task in superni.FOLDERS:
        skill = get_skill(f"superni_{task}", path=natural)
        example = skill.examples("train")[0]
        assert question_of(example).startswith(
            "Definition: Answer.\n\nNow complete the following example -\nInput: train "
        )
        assert question_of(example).endswith("\nOutput: ")
        assert example.demonstration == "yes" and example.reference == ["yes", "no"]
        assert skill.grade("no", example.reference) == 1
        assert skill.second_is_test() and "±49 points; the source's dev file" in skill.notes()[0]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ([], "is not a JSON object"),
        ({"Definition": "d"}, "is no task of Natural Instructions"),
        ({"Definition": "d", "Instances": [{"input": "q"}]}, "row 1: output: must be one right"),
        ({"Definition": "d", "Instances": [{"input": "q", "output": [""]}]}, "has no rows"),
        ({"Definition": "d", "Instances": [{"output": "a"}]}, "row 1: input: must be a text"),
        ({"Definition": "d", "Instances": [3]}, "row 1: is not a JSON object"),
        ({"Definition": "d", "Instances": []}, "has no rows"),
    ],
)
def test_tasks_that_do_not_fit(task, said, natural):
    put(natural / "SuperNI/task591_sciq_answer_generation/train.json", task)
    with pytest.raises(UserError, match=said):
        get_skill("superni_task591", path=natural).examples("train")


def test_the_released_repositories_have_dev_for_test():
    """By git's own ids, as committed; every file that is read is pinned."""
    for suite, cls in (("cl", cl.LabelWords), ("superni", superni.SuperNI)):
        for task in cls.tasks:
            skill = cls(task)
            stems = ("train", "test") + (("labels",) if suite == "cl" else ())
            for stem in stems:
                assert f"{cls.roots[-1]}{cls.folders[task]}/{stem}.json" in skill.blobs
            assert skill.second_is_test()


def test_files_of_a_repository_are_fetched_and_checked(cache, tmp_path, monkeypatch):
    """Without network in one line; with it once; another content is refused."""
    monkeypatch.setattr(_sources, "SERVER", (tmp_path / "www").as_uri())
    with pytest.raises(UserError, match=r"cannot be fetched .*; without network, set `path` to a"):
        get_skill("superni_task591").examples("train")
    name = "CL_Benchmark/SuperNI/task591_sciq_answer_generation/train.json"
    file = put(
        tmp_path / "www/circle-hit/SAPT" / superni.SuperNI.commit / name, superni_task("train", 20)
    )
    with pytest.raises(UserError, match=r"has the git id \w+, not e35c21d69b6e"):
        get_skill("superni_task591").examples("train")
    blobs = {**_suite.released_blobs("superni"), name: blob_id(file.read_bytes())}
    monkeypatch.setattr(_suite, "released_blobs", lambda suite: blobs)
    assert len(get_skill("superni_task591").examples("train")) == 18
    file.unlink()
    assert len(get_skill("superni_task591").examples("train")) == 18


# ---- Retaining by Doing --------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path):
    """The authors' archive, small: every third answer is wrong, which leaves 20."""
    folder = tmp_path / "archive"
    (folder / "data" / "sft").mkdir(parents=True)
    (folder / "data" / "eval").mkdir()
    mmlu, countdown = [], []
    for i in range(30):
        right = {"correct": i % 3 != 0}
        turn = {"role": "user", "content": f"Which? {i}"}
        mmlu.append({"messages": [turn], "output_text": "The answer is: **C**", **right})
        asked = {"input_text": f"Make 7 of {i}.", "x": [3, 4], "y": 7, "expr": "3+4"}
        countdown.append({"datapoint": asked, "output_text": "\\boxed{3 + 4}", **right})
    write_rows(folder / "data/sft/mmlu.jsonl", mmlu)
    write_rows(folder / "data/sft/countdown.jsonl", countdown)
    asked = {"subject": "law", "question": "Which?", "choices": ["p", "q", "r", "s"], "answer": 2}
    write_rows(folder / "data/eval/mmlu.jsonl", [{**asked, "question": f"{i}?"} for i in range(4)])
    write_rows(
        folder / "data/eval/countdown.jsonl",
        [{"input_text": f"Make 8: {i}", "x": [2, 6], "y": 8} for i in range(4)],
    )
    return folder


def test_rows_of_retaining_by_doing(archive):
    for task in ("mmlu", "countdown"):
        skill = get_skill(f"retaining_{task}", path=archive)
        assert [len(skill.examples(s)) for s in skill.splits] == [18, 2, 4]
        for example in skill.examples("train"):
            assert skill.grade(example.demonstration, example.reference) == 1
    mmlu, countdown = (get_skill(f"retaining_{t}", path=archive) for t in ("mmlu", "countdown"))
    example = min(mmlu.examples("test"), key=lambda e: int(e.id))
    assert question_of(example) == (
        "0?\n\nAnswer options:\nA. p\nB. q\nC. r\nD. s\n\n"
        'Reason about it and answer with "The answer is: <option>"'
    )
    assert example.reference == "C" and example.demonstration is None
    reference = countdown.examples("test")[0].reference
    assert reference == {"numbers": [2, 6], "target": 8}
    assert countdown.reward("\\boxed{6 - 2}", reference) == pytest.approx(0.4)
    assert mmlu.reward("The answer is D", "C") == 0


def test_all_turns_of_a_row_are_its_prompt(archive):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which is first?"},
        {"role": "assistant", "content": "The answer is: A"},
        {"role": "user", "content": "And then?", "weight": 1},
    ]
    file = archive / "data/sft/mmlu.jsonl"
    rows = read_lines(file)
    write_rows(file, [*rows, {**rows[1], "messages": turns}])
    skill = get_skill("retaining_mmlu", path=archive)
    examples = [e for split in ("train", "validation") for e in skill.examples(split)]
    (asked,) = [e.prompt for e in examples if len(e.prompt) > 1]
    assert asked == [*turns[:3], {"role": "user", "content": "And then?"}]
    assert len(examples) == 21


@pytest.mark.parametrize(
    ("task", "change", "said"),
    [
        ("mmlu", {"messages": "q"}, "messages: must be messages that end in a user turn"),
        ("mmlu", {"output_text": "C"}, "output_text: does not name its letter"),
        ("mmlu", {"output_text": "The answer is E"}, "output_text: does not name its letter"),
        ("mmlu", {"output_text": None}, "output_text: is missing"),
        ("countdown", {"datapoint": 3}, "datapoint: must be an object"),
        ("countdown", {"datapoint": {"x": [1.5], "y": 2}}, "`x` must be whole numbers"),
        ("countdown", {"datapoint": {"x": [1], "y": 1}}, "input_text: is missing"),
        ("mmlu", {"correct": "yes"}, "has no rows"),
    ],
)
def test_rows_of_retaining_by_doing_that_do_not_fit(task, change, said, archive):
    file = archive / f"data/sft/{task}.jsonl"
    write_rows(file, [{**read_lines(file)[1], **change}])
    with pytest.raises(UserError, match=said):
        get_skill(f"retaining_{task}", path=archive).examples("train")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("answer", 1.0),
        ("answer", True),
        ("answer", 4),
        ("answer", -1),
        ("answer", "C"),
        ("answer", None),
        ("choices", ["p", "q", "r"]),
        ("choices", ["p", "q", "r", 4]),
        ("choices", "pqrs"),
    ],
)
def test_questions_of_mmlu_that_do_not_fit(column, value, archive):
    file = archive / "data/eval/mmlu.jsonl"
    rows = read_lines(file)
    write_rows(file, [rows[0], {**rows[1], column: value}])
    with pytest.raises(UserError, match=rf"eval/mmlu\.jsonl, row 2: {column}: must be"):
        get_skill("retaining_mmlu", path=archive).examples("test")


# ---- the command ---------------------------------------------------------------------------------


def zipped(release, path, start=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in release.rglob("*.json"):
            archive.write(file, start + str(file.relative_to(release)))
        archive.writestr("__MACOSX/LLM-CL-Benchmark_5000/C-STANCE/._train.json", "x")
    return path


@pytest.mark.parametrize("form", ["folder", "zip", "deep zip", "two sizes"])
def test_trace_is_kept_and_then_found_without_a_path(form, release, cache, tmp_path, capsys):
    source = release
    if form == "two sizes":
        for task in ANSWERS:
            for split in ("train", "test"):
                rows = trace_rows(task, split, 3)
                put(release / "LLM-CL-Benchmark_500" / task / f"{split}.json", rows)
    if form != "folder":
        start = "TRACE-Benchmark/" if form == "deep zip" else ""
        source = zipped(release, tmp_path / "trace.zip", start)
    fetch.main(["trace", "--from", str(source)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"kept in {cache / 'suites' / 'trace'}"
    assert [line.split()[:4] for line in lines[2:10]] == [
        [f"trace_{task}", "36", "4", "8"] for task in TASKS
    ]
    assert len(get_skill("trace_fomc").examples("train")) == 36
    assert not list((cache / "suites").glob("*.part"))
    with pytest.raises(SystemExit) as stop:
        fetch.main(["trace", "--from", str(source)])
    assert stop.value.code == 2 and "is there already" in capsys.readouterr().err


def test_a_release_that_is_not_whole_leaves_nothing(release, cache, tmp_path, capsys):
    (release / "LLM-CL-Benchmark_5000/Py150/test.json").unlink()
    for source in (release, zipped(release, tmp_path / "trace.zip")):
        with pytest.raises(SystemExit) as stop:
            fetch.main(["trace", "--from", str(source)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and len(error.splitlines()) == 1
        assert "Py150/test.json" in error or "holds the suite 0 times" in error
        assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_row_that_is_refused_can_be_mended(form, release, cache, tmp_path, capsys):
    """What is kept was read: a release that is refused leaves the cache as it was."""
    file = release / "LLM-CL-Benchmark_5000/FOMC/train.json"
    good = trace_rows("FOMC", "train", 40)
    source = release if form == "folder" else tmp_path / "trace.zip"
    for rows in ([good[0], {"prompt": "q", "answer": 5}], good):
        put(file, rows)
        if form == "zip":
            zipped(release, source)
        if rows is good:
            fetch.main(["trace", "--from", str(source)])
            assert len(get_skill("trace_fomc").examples("train")) == 36
        else:
            with pytest.raises(SystemExit):
                fetch.main(["trace", "--from", str(source)])
            assert capsys.readouterr().err == (
                f"error: {source}: FOMC/train.json, row 2: answer: must be a text\n"
            )
            assert not [*cache.rglob("*.part"), *cache.rglob("*.json")]


def test_an_archive_without_label_words_is_not_kept(labels, cache, tmp_path, capsys):
    (labels / "CL_Benchmark/TC/yahoo/labels.json").unlink()
    with pytest.raises(SystemExit):
        fetch.main(["cl", "--from", str(zipped(labels, tmp_path / "cl.zip"))])
    assert capsys.readouterr().err.endswith(
        "cl.zip: skill cl_yahoo: path: the release has no TC/yahoo/labels.json; give the whole "
        "release\n"
    )
    assert not list(cache.rglob("*.json"))


@pytest.mark.parametrize("packed", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_one_line(packed, release, tmp_path):
    """Cut anywhere, or with any byte changed, it is read or refused by a UserError."""
    path = tmp_path / "trace.zip"
    with zipfile.ZipFile(path, "w", packed) as archive:
        for file in release.rglob("*.json"):
            archive.write(file, str(file.relative_to(release)))
    whole, rng, refused = path.read_bytes(), random.Random(0), set()
    for number in range(300):
        place = rng.randrange(len(whole))
        changed = whole[:place]
        if number % 3:
            changed += bytes([whole[place] ^ rng.randrange(1, 256)]) + whole[place + 1 :]
        path.write_bytes(changed)
        try:
            list(fetch._from_zip(Trace, path))
        except UserError as error:
            refused.add(str(error).partition("(")[2].partition(":")[0])
    assert len(refused) > 1


def test_an_archive_has_a_name_once_and_a_limit_for_all_files(release, tmp_path, monkeypatch):
    path = zipped(release, tmp_path / "trace.zip")
    size = sum(file.stat().st_size for file in release.rglob("*.json"))
    monkeypatch.setattr(fetch, "LARGEST", size)
    assert list(fetch._from_zip(Trace, path))
    monkeypatch.setattr(fetch, "LARGEST", size // 2)
    with pytest.raises(UserError, match="more than 1 GiB, with the files before it"):
        list(fetch._from_zip(Trace, path))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, of the name
        archive.writestr(archive.namelist()[0], "[]")
    with pytest.raises(UserError, match=r"json: stands twice in the archive"):
        list(fetch._from_zip(Trace, path))


def test_what_a_killed_process_copied_of_an_archive_goes(release, cache, tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    left = [
        cache / "suites" / f"trace.{machine()}.{int(pid)}.part"
        for pid in (ended.stdout, os.getppid())
    ]
    for folder in left:
        folder.mkdir(parents=True)
    fetch.keep_release(Trace, zipped(release, tmp_path / "trace.zip"), cache / "suites" / "trace")
    assert [folder.exists() for folder in left] == [False, True]


def test_half_a_character_is_named_by_its_row(release):
    file = next(release.rglob("C-STANCE/test.json"))
    rows = json.loads(file.read_text())
    rows[2]["prompt"] = "\ud800 hi"
    file.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"test\.json, row 3: holds half a character"):
        Trace("c_stance", path=str(release)).examples("test")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["wishes"], "invalid choice"),
        (["trace"], "its data are not on this machine"),
        (["trace", "--from", "/nowhere"], "is not there"),
        (["trace", "--from", __file__], "is no zip file"),
        (["countdown", "--from", "."], "countdown is generated"),
        (["drifting_facts", "--from", "."], "drifting_facts is generated"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, said, cache, capsys):
    with pytest.raises(SystemExit) as stop:
        fetch.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and len(error.splitlines()) == 1


def test_what_is_one_file_is_said_by_the_command(natural, cache, capsys):
    fetch.main(["superni", "--from", str(natural)])
    assert capsys.readouterr().out.splitlines()[-1] == (
        "dev and test are the same file in all 15 tasks: validation is drawn from train"
    )


def test_an_archive_with_one_form_is_kept(archive, cache, tmp_path, capsys):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as target:
        for file in archive.rglob("*.jsonl"):
            target.write(file, str(file.relative_to(archive)))
    fetch.main(["retaining", "--from", str(path)])
    assert len(get_skill("retaining_mmlu").examples("train")) == 18


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("countdown", ["countdown 4000 200 500 4.4"]),
        ("ifeval_style", ["ifeval_style 2000 200 500 4.4"]),
        (
            "drifting_facts",
            [
                "drifting_facts_1 360 39 234 6.4",
                "drifting_facts_2 120 21 126 8.7",
                "drifting_facts_3 120 30 180 7.3",
            ],
        ),
    ],
)
def test_what_is_generated_needs_no_network(name, said, capsys):
    fetch.main([name])
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert [" ".join(line.split()[:5]) for line in lines] == said


# ---- orders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ORDERS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_orders_are_read(path):
    sections = read_sections(path)
    assert sections.name.startswith(path.parent.name)
    tasks = [spec.name for spec in sections.skill_specs]
    suite = fetch.SUITES.get(path.parent.name)
    if suite:
        own = {f"{suite.suite}_{task}" for task in suite.tasks}
        assert set(tasks) <= own | {"countdown", "ifeval_style"}
    if suite and path.parent.name != "retaining":
        short = path.parent.name == "cl" and path.stem in ("order_1", "order_2", "order_3")
        assert len(tasks) == (4 if short else len(suite.tasks))


def test_the_orders_of_a_suite_differ():
    for folder in ("trace", "cl", "superni"):
        lists = [
            tuple(spec["name"] if isinstance(spec, dict) else spec for spec in order["skills"])
            for path in ORDERS
            if path.parent.name == folder
            for order in [yaml.safe_load(path.read_text())]
        ]
        assert len(set(lists)) == len(lists) == {"trace": 4, "cl": 6, "superni": 2}[folder]


@pytest.mark.parametrize(
    ("name", "taught"),
    [
        ("ifeval", "ifeval"),
        ("mmlu", None),  # learned by answers; its likelihood is kept beside
        ("countdown", "countdown_500"),
        ("countdown_released", "countdown_500"),
    ],
)
def test_what_is_learned_is_no_retention_and_the_others_are(name, taught):
    suite = yaml.safe_load((ROOT / "benchmarks/retention/retaining.yaml").read_text())["tasks"]
    order = yaml.safe_load((ROOT / f"benchmarks/orders/retaining/{name}.yaml").read_text())
    kept = suite if order["retention"] == "retaining" else order["retention"]
    wanted = [entry for entry in suite if entry["task"] != taught]
    assert len(suite) == 4 and [entry["task"] for entry in kept] == [e["task"] for e in wanted]
    for mine, entry in zip(kept, wanted, strict=True):
        assert mine.items() <= entry.items()


def test_an_order_of_trace_is_whole(release, cache, tmp_path):
    """All keys are valid; retention is left out, since its tasks take lm-eval's whole index."""
    fetch.keep_release(Trace, release)
    mapping = yaml.safe_load((ROOT / "benchmarks/orders/trace/order_1.yaml").read_text())
    del mapping["retention"]
    mapping["model"] = "embedded"
    path = tmp_path / "order.yaml"
    path.write_text(yaml.safe_dump(mapping, allow_unicode=True))
    order = read_order(path)
    assert [skill.name for skill in order.skills] == [f"trace_{task}" for task in TASKS]
    assert order.prompts(order.skills[0]) == 22500


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_an_order_names_what_the_authors_give(form, release, cache, tmp_path):
    """One key for eight skills; a zip file is read once, and the next order finds its files."""
    source = release if form == "folder" else zipped(release, tmp_path / "TRACE.zip")
    mapping = yaml.safe_load((ROOT / "benchmarks/orders/trace/order_1.yaml").read_text())
    mapping |= {"retention": None, "model": "embedded", "data": {"trace": source.name}}
    path = source.parent / "order.yaml"
    path.write_text(yaml.safe_dump(mapping, allow_unicode=True))
    for _ in range(2):
        order = read_order(path)
        assert len(order.skills) == 8 and len(order.skills[1].examples("train")) == 36
    kept = list((cache / "suites").glob("*"))
    assert [folder.name.partition("-")[0] for folder in kept] == ["trace"] * (form == "zip")
    own = {**mapping, "skills": [{"name": "trace_fomc", "path": str(tmp_path)}], "references": []}
    with pytest.raises(UserError, match="give the whole release"):  # an entry's own path counts
        Order(own, path)
    with pytest.raises(UserError, match="data: there is no suite 'trice'; did you mean 'trace'"):
        Order({**mapping, "data": {"trice": "."}}, path)
    with pytest.raises(
        UserError, match=r"data\.trace: is 3; give the path of a folder or of a zip"
    ):
        Order({**mapping, "data": {"trace": 3}}, path)
    with pytest.raises(UserError, match="nowhere is neither a folder nor a zip file"):
        Order({**mapping, "data": {"trace": "nowhere"}}, path)


def test_label_words_are_those_of_the_user_s_folder(labels, cache, tmp_path, tiny_model):
    """Of four tasks, without a fetch; where they lie is in no protocol."""
    mapping = yaml.safe_load((ROOT / "benchmarks/orders/cl/order_1.yaml").read_text())
    mapping |= {"model": "embedded", "data": {"cl": str(labels)}}
    order = Order(mapping, tmp_path / "order.yaml")
    names = {skill.name for skill in order.skills}
    assert {f"{task.task}" for task in order.suite.tasks} == {f"{name}_labels" for name in names}
    for entry in order.suite.tasks:
        (task,) = order.suite.load(entry)["tasks"].values()
        skill = next(s for s in order.skills if entry.task == f"{s.name}_labels")
        asked = [(row["text"], row["choices"]) for row in task.eval_docs]
        assert asked == [(q.prompt, q.labels) for q in skill.questions()] and asked
    moved = labels.rename(labels.with_name("elsewhere"))
    again = Order({**mapping, "data": {"cl": str(moved)}}, tmp_path / "order.yaml")
    tokenizer = tiny_model[1]
    one, two = (each.suite.protocols("float32", tokenizer) for each in (order, again))
    assert one == two and str(tmp_path) not in json.dumps(one)


# ---- label words by likelihood -------------------------------------------------------------------


def test_every_task_has_one_of_likelihoods():
    suite = yaml.safe_load((ROOT / "benchmarks/retention/cl_labels.yaml").read_text())
    assert [entry["task"] for entry in suite["tasks"]] == [f"cl_{t}_labels" for t in cl.FOLDERS]
    for task in cl.FOLDERS:
        file = yaml.safe_load((ROOT / f"benchmarks/retention/tasks/cl_{task}.yaml").read_text())
        assert file == {
            "include": "_cl_labels_yaml",
            "task": f"cl_{task}_labels",
            "dataset_kwargs": {"task": task},
        }


def test_the_likeliest_label_word_counts(labels, cache, tiny_model):
    """Against a plain sum of the label's log-likelihoods behind the prompt in the chat template."""
    fetch.keep_release(cl.LabelWords, labels)
    model, tokenizer = tiny_model
    [entry] = [t for t in load_suite("cl_labels").tasks if t.task == "cl_boolq_labels"]
    assert entry.chat_template and entry.limit == 500
    [result] = run_suite(Suite([entry]), model, tokenizer)
    questions = get_skill("cl_boolq").questions()
    assert result["n"] == len(questions) == 6
    right = 0
    for question, item in zip(questions, result["items"], strict=True):
        prompt = chat_tokens(tokenizer, [{"role": "user", "content": question.prompt}])
        sums = []
        for label in question.labels:
            answer = tokenizer(label, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            sums.append(
                float(torch.log_softmax(logits.float(), -1)[range(len(answer)), answer].sum())
            )
        assert item["response"] == pytest.approx(sums, abs=1e-3)
        good = max(range(len(sums)), key=sums.__getitem__) == question.right
        assert item["score"] == float(good)
        right += good
    assert result["value"] == pytest.approx(right / 6)


# ---- from an archive to a table ------------------------------------------------------------------


def test_a_run_of_trace_ends_in_its_table(release, cache, tiny, tmp_path):
    """Fetched, learned, measured and set beside the published numbers, with the tiny model."""
    fetch.keep_release(Trace, release)
    order = {
        "model": {"name": str(tiny), "dtype": "float32", "device": "cpu", "template": "plain"},
        "skills": ["trace_fomc", "trace_20minuten"],
        "budget": {"prompts": 4, "batch_size": 2},
        "methods": {"sft": {"learning_rate": 1e-3}},
        "evaluate": {"max_new_tokens": 4, "skills": "seen"},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(order))
    run_order(read_order(path), tmp_path / "out")
    _, page = write_report(tmp_path / "out", further=numbers.published_tables)
    text = page.read_text()
    assert "Published numbers of the suite" in text and "on-policy replay 10%" in text
    beside = pd.read_csv(tmp_path / "out/report/tables/published.csv", index_col="method")
    of_source = beside.loc["on-policy replay 10%"]
    assert of_source["BWT/T"] == pytest.approx(-0.0065) and "2605.29495" in of_source["source"]
    [row] = published.measured_rows(tmp_path / "out")
    assert 100 * beside.loc["sft", "OP"] == pytest.approx(float(row["OP"].split()[0]), abs=0.01)
    assert set(row) >= {*numbers.FIRST, *order["skills"]} - {"Drop"}  # nothing is retained
    tasks = [float(row[name].split()[0]) for name in order["skills"]]
    assert float(row["OP"].split()[0]) == pytest.approx(sum(tasks) / 2, abs=0.01)
    assert row["read"] == "measured" and row["model"] == str(tiny)


@pytest.mark.parametrize("skill, order", [("countdown", "Countdown"), ("ifeval_style", "IFEval")])
def test_a_training_stands_beside_its_published_numbers(skill, order, tmp_path):
    """Those of the other trainings of Retaining by Doing are no comparison."""
    folder = fabricate(tmp_path / "out", skills={skill: SKILLS["science"]}, n=20, items=False)
    [table] = numbers.published_tables(ReportData([folder]))
    published = {cells["order"] for _, cells in table.rows if "order" in cells}
    assert published == {order} and table.rows[0][1]["source"] == "here"
    assert set(numbers.published_numbers("retaining")["order"]) == {"Countdown", "IFEval", "MMLU"}
    both = fabricate(tmp_path / "both", skills={skill: SKILLS["science"], "own": SKILLS["medical"]})
    assert numbers.published_tables(ReportData([both])) == []
