"""Loaders of the paper's skills: the authors' columns from folders, the authors' repository and the
hub; rows that do not fit.
"""

import functools
import http.server
import json
import os
import threading
from pathlib import Path

import pytest
import yaml

from benchmarks.skills import _sources, medical, science
from benchmarks.skills._sources import question_of
from harness.base.errors import UserError
from harness.evaluation.completions_file import grade
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.skills.registry import get_skill
from tests.conftest import read_lines, write_rows

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = Path(
    os.environ.get("OFFICIAL_SAMPLES", ROOT.parent / "shared" / "data" / "official_samples")
)
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="no real rows: set OFFICIAL_SAMPLES to the folder that holds them"
)

CALL = {"Action": "ping", "Action_Input": '{"host": "a"}'}
TOOLUSE = {
    "prompt": "Name: Net\nQuestion: Ping a.",
    "name": "Net",
    "golden_answer": [CALL],
    "golden_response": ["Thought: ping it", 'Action: ping\nAction Input: {"host": "a"}'],
}
SYSTEM, USER = (
    {"role": "system", "content": "Select."},
    {"role": "user", "content": "Which?\n\nA: x\nB: y\nC: z\nD: w"},
)
SCIENCE = {
    "messages": [SYSTEM, USER],
    "output_text": "<reasoning>y fits</reasoning>\n<answer>\nB\n</answer>",
}
SCIENCE_TEST = {"prompt": [SYSTEM, USER], "answer": "B"}
MEDICAL, MEDICAL_TEST = (
    {"question": "Which scan?", "response": "A HIDA scan."},
    {"question": "Which nerve?", "answer": "Vagus."},
)
WIKI = {"question": "Where?", "answer": "In Oslo.", "article": "It happened in Oslo."}
ROWS = {
    "tooluse": (TOOLUSE, TOOLUSE),
    "science": (SCIENCE, SCIENCE_TEST),
    "medical": (MEDICAL, MEDICAL_TEST),
    "wiki": (WIKI, WIKI),
}


def save(folder, name, format, rows):
    """``rows`` as one of the kinds of data that a folder may hold."""
    folder.mkdir(parents=True, exist_ok=True)
    if format == "jsonl":
        write_rows(folder / f"{name}.jsonl", rows)
    elif format == "json":
        (folder / f"{name}.json").write_text(json.dumps(rows))
    else:
        import datasets

        data = datasets.Dataset.from_list(rows)
        if format == "parquet":
            data.to_parquet(folder / f"{name}.parquet")
        else:
            data.save_to_disk(folder / name)
            if format == "arrow":
                (folder / name / "data-00000-of-00001.arrow").rename(folder / f"{name}.arrow")
                (folder / name / "state.json").unlink()


def folder_of(name, folder, train=1, test=1):
    """A folder of JSONL files with numbered rows of ``name``."""
    for split, row, count in zip(("train", "test"), ROWS[name], (train, test), strict=True):
        text = json.dumps(row)
        asked = question_of(get_skill(name).example(row, split, 1, "")).split("\n")[-1]
        write_rows(
            folder / f"{split}.jsonl",
            [json.loads(text.replace(asked, f"{asked} {split} {i}")) for i in range(count)],
        )
    return folder


# ---- columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["jsonl", "json", "parquet", "arrow", "datasets"])
@pytest.mark.parametrize("name", ROWS)
def test_examples_from_each_kind_of_file(name, format, tmp_path):
    """The authors' columns become the prompt, the demonstration, the reference and the source,
    whatever holds the rows.
    """
    train, test = ROWS[name]
    save(tmp_path, "train_data", format, [train, train])
    save(tmp_path, "eval_data", format, [{k: v for k, v in test.items() if k != "golden_response"}])
    skill = get_skill(name, path=tmp_path)
    assert (
        skill.splits == ("train", "test")
        and skill.teacher_template == "paper"
        and skill.max_new_tokens == 2048
    )
    (first, second), (tested,) = skill.examples("train"), skill.examples("test")
    assert [first.id, second.id, tested.id] == ["train/1", "train/2", "test/1"]
    if name == "tooluse":
        assert first.prompt == tested.prompt == [{"role": "user", "content": TOOLUSE["prompt"]}]
        assert (
            first.demonstration == "\n".join(TOOLUSE["golden_response"])
            and tested.demonstration is None
        )
        assert first.reference == tested.reference == [CALL]
    elif name == "science":
        assert (
            first.prompt == tested.prompt == [SYSTEM, USER]
            and first.reference == tested.reference == "B"
        )
        assert first.demonstration == SCIENCE["output_text"] and tested.demonstration is None
    elif name == "medical":
        assert (
            first.prompt == [{"role": "user", "content": "Which scan?"}]
            and first.demonstration == "A HIDA scan."
        )
        assert first.reference == {"question": "Which scan?", "answer": "A HIDA scan."}
        assert (
            tested.reference == {"question": "Which nerve?", "answer": "Vagus."}
            and tested.demonstration is None
        )
    else:
        assert (first.prompt, first.demonstration, first.source) == (
            [{"role": "user", "content": "Where?"}],
            "In Oslo.",
            WIKI["article"],
        )
        assert first.reference == {"question": "Where?", "answer": "In Oslo."}
    if first.demonstration.startswith(("Thought", "<reasoning>")):
        assert skill.grade(first.demonstration, first.reference) == 1


def test_teacher_prompt_is_the_papers_and_keeps_the_system_turn(tmp_path):
    skill = get_skill("science", path=folder_of("science", tmp_path))
    system, user = skill.teacher_prompt(skill.examples("train")[0])
    question = skill.examples("train")[0].prompt[-1]["content"]
    assert system == SYSTEM and user["role"] == "user"
    assert user["content"] == (
        f"{question}\n\nThis is an example for a response to the question:\n"
        f"{SCIENCE['output_text']}\n\n"
        "Now answer with a response of your own, including the thinking process:"
    )
    released = skill.teacher_prompt(skill.examples("train")[0], "released")[1]["content"]
    assert released == f"\n{user['content'][:-1]}.\n"


@pytest.mark.parametrize(
    "name, split, change, said",
    [
        ("tooluse", "train", {"prompt": None}, "prompt: is missing"),
        ("tooluse", "train", {"prompt": " "}, "prompt: must be a text"),
        ("tooluse", "train", {"golden_response": None}, "golden_response: must be a list of texts"),
        ("tooluse", "train", {"golden_response": []}, "golden_response: must be a list of texts"),
        ("tooluse", "test", {"golden_answer": []}, "golden_answer: must be a list of calls"),
        (
            "tooluse",
            "test",
            {"golden_answer": [{"Action": "f", "Action_Input": {}}]},
            "golden_answer: must be a list of calls",
        ),
        ("science", "train", {"output_text": None}, "output_text: is missing"),
        ("science", "train", {"messages": [USER]}, "messages: must be chat messages"),
        ("science", "train", {"messages": [SYSTEM, USER, USER]}, "messages: must be chat messages"),
        ("science", "train", {"answer": "E"}, "answer: must be A, B, C or D, not 'E'"),
        ("science", "test", {"answer": "b"}, "answer: must be A, B, C or D, not 'b'"),
        ("science", "test", {"answer": None}, "answer: must be A, B, C or D, not None"),
        ("science", "test", {"prompt": "Which?"}, "prompt: must be chat messages"),
        ("medical", "train", {"response": 3}, "response: must be a text"),
        ("medical", "train", {"question": None}, "question: is missing"),
        ("medical", "test", {"answer": None}, "answer: is missing"),
        ("medical", "train", {"messages": [USER]}, "messages: must be chat messages"),
        ("wiki", "train", {"article": None}, "article: is missing"),
        ("wiki", "test", {"answer": ""}, "answer: must be a text"),
    ],
)
def test_rows_that_do_not_fit(name, split, change, said, tmp_path):
    """One line with the file, the row and the column."""
    folder_of(name, tmp_path)
    row = ROWS[name][split == "test"]
    write_rows(tmp_path / f"{split}.jsonl", [row, row, {**row, **change}])
    with pytest.raises(UserError) as caught:
        get_skill(name, path=tmp_path).examples(split)
    assert str(caught.value).startswith(
        f"{tmp_path / split}.jsonl, row 3: {said}"
    ) and "\n" not in str(caught.value)


def test_a_demonstration_that_names_no_letter_can_still_be_learned_from(tmp_path):
    write_rows(tmp_path / "train.jsonl", [{**SCIENCE, "output_text": "y fits"}])
    (example,) = get_skill("science", path=tmp_path).examples("train")
    assert (example.demonstration, example.reference) == ("y fits", None)
    assert get_skill("science").grade("<answer></answer>", None) == 0


# ---- folders ------------------------------------------------------------------------------------


def test_a_clone_of_the_authors_repository(tmp_path):
    """Both skills find their folder below ``data`` and leave the other alone."""
    for name in ("tooluse", "science"):
        save(tmp_path / "data" / f"{name}_data", "train_data", "datasets", [ROWS[name][0]] * 2)
        save(tmp_path / "data" / f"{name}_data", "eval_data", "datasets", [ROWS[name][1]])
    for name in ("tooluse", "science"):
        for path in (tmp_path, tmp_path / "data", tmp_path / "data" / f"{name}_data"):
            skill = get_skill(name, path=str(path))
            assert (len(skill.examples("train")), len(skill.examples("test"))) == (2, 1)


def test_files_may_carry_the_name_of_the_skill(tmp_path):
    write_rows(tmp_path / "tooluse_eval.jsonl", [TOOLUSE])
    write_rows(tmp_path / "science_eval.jsonl", [SCIENCE_TEST])
    assert (
        get_skill("tooluse", path=tmp_path).splits
        == get_skill("science", path=tmp_path).splits
        == ("test",)
    )


@pytest.mark.parametrize(
    "prepare, said",
    [
        (lambda folder: None, "path: {0} is not a folder"),
        (
            lambda folder: folder.mkdir(),
            "path: {0} holds no data of wiki; it must hold train.jsonl, test.jsonl",
        ),
        (
            lambda folder: [save(folder, "train", f, [WIKI]) for f in ("json", "jsonl")],
            "path: {0}/train.jsonl and train.json are both the train split",
        ),
        (
            lambda folder: (
                save(folder, "train_data", "datasets", [WIKI])
                or (folder / "train_data/state.json").write_text("{}")
            ),
            "cannot be read (KeyError",
        ),
        (
            lambda folder: (
                save(folder, "train", "jsonl", [WIKI])
                or (folder / "train.jsonl").rename(folder / "train.parquet")
            ),
            "cannot be read (Arrow",
        ),
        (lambda folder: save(folder, "train", "json", {"a": 1}), "is not a list of JSON objects"),
        (
            lambda folder: save(folder, "train", "json", [WIKI, 3]),
            "train.json, row 2: is not a JSON object",
        ),
        (lambda folder: save(folder, "train", "json", []), "train.json: has no rows"),
    ],
)
def test_folders_that_cannot_be_read(prepare, said, tmp_path):
    folder = tmp_path / "data"
    prepare(folder)
    with pytest.raises(UserError) as caught:
        get_skill("wiki", path=folder).examples("train")
    assert said.format(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_holdout_is_drawn_by_question(tmp_path):
    """Rows of one question stay together; the draw does not depend on their order; test rows are
    untouched.
    """
    folder_of("medical", tmp_path, train=30, test=3)
    rows = read_lines(tmp_path / "train.jsonl")
    write_rows(tmp_path / "train.jsonl", rows + [{**r, "response": "Again."} for r in rows])
    skill = get_skill("medical", path=tmp_path, holdout=7)
    assert skill.splits == ("train", "validation", "test")
    train, validation = (
        {question_of(e) for e in skill.examples(s)} for s in ("train", "validation")
    )
    assert len(validation) == 7 and len(train) == 23 and not train & validation
    assert [len(skill.examples(s)) for s in skill.splits] == [46, 14, 3]
    write_rows(tmp_path / "train.jsonl", rows[::-1])
    assert {
        question_of(e)
        for e in get_skill("medical", path=tmp_path, holdout=7).examples("validation")
    } == validation
    with pytest.raises(UserError, match="holdout: is 30 of 30 questions"):
        get_skill("medical", path=tmp_path, holdout=30).examples("train")
    write_rows(tmp_path / "validation.jsonl", rows[:2])
    with pytest.raises(UserError, match="holdout: the source has a validation split"):
        get_skill("medical", path=tmp_path, holdout=7)


# ---- the authors' repository and the hub --------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An HTTP server on loopback in place of the one that holds the authors' repository; its
    folder.
    """
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "www")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(_sources, "SERVER", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
        yield tmp_path / "www"
        server.shutdown()


def test_the_authors_data_are_fetched_once_and_checked(server, tmp_path, monkeypatch):
    """From the second name of the repository if the first is gone; kept; refused where the content
    is another.
    """
    save(tmp_path, "made", "datasets", [TOOLUSE] * 3)
    data = (tmp_path / "made/data-00000-of-00001.arrow").read_bytes()
    skill = type(get_skill("tooluse"))
    file = server / _sources.REPOSITORIES[1] / _sources.COMMIT / skill.released["train"][0]
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"has the git id \w+, not c6c3e9855e26; give a clone"):
        skill().examples("train")
    monkeypatch.setitem(
        skill.released, "train", (skill.released["train"][0], _sources.blob_id(data))
    )
    assert [e.id for e in skill().examples("train")] == ["train/1", "train/2", "train/3"]
    file.unlink()
    assert len(skill().examples("train")) == 3 and not list((tmp_path / "cache").rglob("*.part"))
    with pytest.raises(
        UserError,
        match=r"skill tooluse: the authors' data cannot be fetched \(.*\); "
        r"without network, set `path`",
    ):
        skill().examples("test")


def test_git_names_a_blob_so():
    # git's well-known empty file
    assert _sources.blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


@pytest.mark.parametrize("name, options", [("science", {"source": "hub"}), ("medical", {})])
def test_hub_without_network(name, options, tmp_path, monkeypatch):
    """The hub's client asks its cache alone, as HF_HUB_OFFLINE says, and finds nothing there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    skill = get_skill(name, **options)
    assert skill.splits == ("train", "validation", "test")
    with pytest.raises(UserError) as caught:
        skill.examples("train")
    line = str(caught.value)
    assert line.startswith(f"skill {name}: ") and "cannot be had" in line and "\n" not in line
    assert "HF_HUB_OFFLINE" in line and "HF_HOME" in line and "`path`" in line


def test_hub_cache_is_read(tmp_path, monkeypatch):
    """A file that the hub's client has in its cache, at the pinned revision, needs no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    dataset, revision = medical.Medical.hub[medical.TRAIN]
    file = (
        tmp_path
        / f"datasets--{dataset.replace('/', '--')}"
        / "snapshots"
        / revision
        / medical.TRAIN
    )
    file.parent.mkdir(parents=True)
    file.write_text(
        json.dumps([{"Question": "Which scan?", "Complex_CoT": "Hm.", "Response": "HIDA."}])
    )
    (example,) = get_skill("medical").examples("train")
    assert (example.prompt[0]["content"], example.demonstration) == ("Which scan?", "HIDA.")


def hub_rows(count):
    return [
        {
            "domain": "Chemistry",
            "type": "mcq-4-choices",
            "details": {"level": "L3", "task": "t"},
            "question": f"Which {i}?",
            "choices": {"text": ["x", "y", "z", str(i)], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[i % 4],
        }
        for i in range(count)
    ]


def test_sciknoweval_is_filtered_and_split(tmp_path):
    """Chemistry, level 3, four choices; 75, 5 and 20 per cent; a question that stands twice is in
    one split, once.
    """
    rows = hub_rows(100)
    others = [
        {**rows[0], "question": "not this", **change}
        for change in (
            {"domain": "Biology"},
            {"type": "true_or_false"},
            {"details": {"level": "L2"}},
            {"details": None},
        )
    ]
    write_rows(tmp_path / "sciknoweval_chemistry_test.jsonl", others + rows + rows[:10])
    skill = get_skill("science", path=tmp_path)
    splits = {s: skill.examples(s) for s in skill.splits}
    assert {s: len(e) for s, e in splits.items()} == {"train": 75, "validation": 5, "test": 20}
    assert len({question_of(e) for examples in splits.values() for e in examples}) == 100
    by_row = {int(e.id): e for examples in splits.values() for e in examples}
    for i in range(100):
        example = by_row[len(others) + 1 + i]
        assert (
            example.prompt[0] == {"role": "system", "content": science.SYSTEM}
            and example.demonstration is None
        )
        assert (
            example.prompt[1]["content"] == f"Which {i}?\n\nA: x\nB: y\nC: z\nD: {i}"
            and example.reference == "ABCD"[i % 4]
        )
    write_rows(tmp_path / "sciknoweval_chemistry_test.jsonl", rows[::-1])
    again = get_skill("science", path=tmp_path, source="hub").examples("test")
    assert [question_of(e) for e in again] == [question_of(e) for e in splits["test"]]
    rows[3]["choices"] = {"text": ["x"], "label": ["A"]}
    write_rows(tmp_path / "sciknoweval_chemistry_test.jsonl", rows)
    with pytest.raises(UserError, match="row 4: choices: must have four texts"):
        get_skill("science", path=tmp_path).examples("train")


def test_medical_is_tested_on_questions_that_were_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(medical, "SIZES", {"test": 10, "validation": 5})
    train = [
        {"Question": f"Case {i}, which?", "Complex_CoT": "Hm.", "Response": f"It is {i}."}
        for i in range(20)
    ]
    problems = [
        {"Open-ended Verifiable Question": f"case {i}  which", "Ground-True Answer": str(i)}
        for i in range(40)
    ]
    (tmp_path / medical.TRAIN).write_text(json.dumps(train))
    (tmp_path / medical.VERIFIABLE).write_text(json.dumps(problems))
    skill = get_skill("medical", path=tmp_path)
    assert [len(skill.examples(s)) for s in ("train", "validation", "test")] == [20, 5, 10]
    tested = [e.reference["answer"] for s in ("validation", "test") for e in skill.examples(s)]
    assert len(set(tested)) == 15 and all(20 <= int(a) < 40 for a in tested)
    monkeypatch.setattr(medical, "SIZES", {"test": 20, "validation": 5})
    with pytest.raises(
        UserError, match="20 of its questions are not in the train split, 25 are wanted"
    ):
        get_skill("medical", path=tmp_path).examples("test")


# ---- orders and grading -------------------------------------------------------------------------


def test_an_order_runs_on_the_authors_folder(tiny, tmp_path):
    """``path`` is found beside the order; both methods learn; each metric is on the records under
    its own name.
    """
    for name in ("tooluse", "science"):
        (tmp_path / name).mkdir()
        folder_of(name, tmp_path / name, train=4, test=2)
    order = {
        "model": {"name": str(tiny), "dtype": "float32", "device": "cpu"},
        "skills": [
            {"name": name, "path": name, "max_new_tokens": 4, "holdout": 1}
            for name in ("tooluse", "science")
        ],
        "methods": {"sft": {"learning_rate": 1e-3}, "sdft": {"learning_rate": 1e-3}},
        "budget": {"prompts": 2, "batch_size": 2},
    }
    (tmp_path / "order.yaml").write_text(yaml.safe_dump(order))
    run_order(read_order(tmp_path / "order.yaml"), tmp_path / "out")
    found = {
        (r["run"], r["stage"], r["name"], r["metric"], r["n"])
        for r in read_lines(tmp_path / "out/records.jsonl")
    }
    for run in ("sft-seed0", "sdft-seed0"):
        for stage in (0, 1, 2):
            for name in ("tooluse", "science"):
                assert {(run, stage, name, metric, 2) for metric in get_skill(name).metrics} < found


@pytest.mark.parametrize(
    "skill, said",
    [
        (
            {"name": "tooluse", "path": "nowhere"},
            "skill tooluse: path: {0}/nowhere is not a folder",
        ),
        (
            {"name": "elements", "path": "."},
            "skills[0]: name: elements takes no `path`; leave it out",
        ),
        (
            {"name": "tooluse", "source": "hub"},
            "skills[0]: name: tooluse takes no `source`; it takes path, holdout",
        ),
        (
            {"name": "science", "source": "hugg"},
            "skills[0]: source: unknown value 'hugg'; known: hub, released",
        ),
        ({"name": "wiki", "path": ".", "holdout": 0}, "skills[0]: holdout: must be at least 1"),
        (
            {
                "name": "mine",
                "train": "t.jsonl",
                "test": "t.jsonl",
                "grader": "contains",
                "path": ".",
            },
            "skills[0]: path: goes with a skill of benchmarks",
        ),
        (
            {"name": "wiki"},
            "skill wiki: has no data of its own; set `path` to a folder with train.jsonl",
        ),
    ],
)
def test_wrong_orders(skill, said, tmp_path):
    write_rows(tmp_path / "t.jsonl", [{"prompt": "p", "demonstration": "d", "reference": "r"}])
    (tmp_path / "order.yaml").write_text(
        yaml.safe_dump({"skills": [skill], "methods": {"sft": {}}, "budget": {"prompts": 2}})
    )
    with pytest.raises(UserError) as caught:
        read_order(tmp_path / "order.yaml")
    assert said.format(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_order_that_selects_wants_a_holdout(tmp_path):
    folder_of("wiki", tmp_path, train=4)
    order = {
        "skills": [{"name": "wiki", "path": "."}],
        "methods": {"sft": {}},
        "budget": {"prompts": 2},
        "evaluate": {"split": "validation"},
    }
    (tmp_path / "order.yaml").write_text(yaml.safe_dump(order))
    with pytest.raises(UserError, match="skill wiki: has no split 'validation'"):
        read_order(tmp_path / "order.yaml")
    assert (
        len(
            read_order(tmp_path / "order.yaml", ["skills.wiki.holdout=1"])
            .skills[0]
            .examples("validation")
        )
        == 1
    )


@pytest.mark.parametrize("name", ROWS)
def test_rows_in_the_authors_columns_are_graded(name, tmp_path):
    """``reference`` where there is one, as in a run's own items; else what the columns say."""
    row = {k: v for k, v in ROWS[name][1].items() if k != "golden_response"}
    skill = get_skill(name)
    right = {
        "tooluse": TOOLUSE["golden_response"][1],
        "science": "<answer>B</answer>",
        "medical": "vagus",
        "wiki": "in Oslo",
    }[name]
    example = skill.example(row, "test", 1, "")
    rows = [
        {**row, "completion": right},
        {"reference": example.reference, "completion": right},
        {**row, "completion": "no"},
    ]
    graded = grade(skill, write_rows(tmp_path / "rows.jsonl", rows))
    assert [r["score"] for r in graded] == [1, 1, 0] and list(graded[0]["scores"]) == list(
        skill.metrics
    )
    with pytest.raises(UserError, match="row 1: "):
        grade(skill, write_rows(tmp_path / "rows.jsonl", [{"completion": right}]))


# ---- real rows ----------------------------------------------------------------------------------


@needs_samples
def test_real_tool_use_rows():
    """Read where they stand; the reference, written out as an answer, is right unless a call is
    marked as optional.
    """
    skill = get_skill("tooluse", path=SAMPLES)
    rows, examples = read_lines(SAMPLES / "tooluse_eval.jsonl"), skill.examples("test")
    assert len(examples) == len(rows) == 40
    scores = []
    for row, example in zip(rows, examples, strict=True):
        assert (
            example.prompt == [{"role": "user", "content": row["prompt"]}]
            and example.reference == row["golden_answer"]
        )
        answer = "\n".join(
            f"Thought: next\nAction: {c['Action']}\nAction Input: {c['Action_Input']}"
            for c in row["golden_answer"]
        )
        nested = any("{" in c["Action_Input"][1:] for c in row["golden_answer"])
        optional = any(c["Action"].startswith("[Optional]") for c in row["golden_answer"])
        paper, corrected = (f(answer, example.reference) for f in skill.metrics.values())
        assert corrected == 1 and paper == (not nested and not optional)
        scores.append(paper)
    # of the other two, one nests an object, one has a call that may be left out
    assert sum(scores) == 38


@needs_samples
def test_real_science_rows(tmp_path):
    """The test rows have the system turn and the form of options that questions from the hub are
    given.
    """
    skill = get_skill("science", path=SAMPLES)
    examples = skill.examples("test")
    assert len(examples) == 150 and {e.reference for e in examples} == set("ABCD")
    for example in examples:
        system, user = (turn["content"] for turn in example.prompt)
        assert system == science.SYSTEM
        question, options = user.rsplit("\n\n", 1)
        parts = [part.split(": ", 1) for part in options.split("\n")]
        labels, texts = map(list, zip(*parts, strict=True))
        row = {
            "question": question,
            "choices": {"label": labels, "text": texts},
            "answerKey": example.reference,
        }
        assert skill._question(row, 1, "row 1").prompt == example.prompt
    rows = read_lines(SAMPLES / "science_answer_only_train.jsonl")
    first = next(i for i, row in enumerate(rows, 1) if row["answer"] not in set("ABCD"))
    write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(
        UserError, match=f"train.jsonl, row {first}: answer: must be A, B, C or D, not ''"
    ):
        get_skill("science", path=tmp_path).examples("train")
    rows = [row for row in rows if row["answer"]]
    write_rows(tmp_path / "train.jsonl", rows)
    train = get_skill("science", path=tmp_path).examples("train")
    assert [(e.prompt, e.demonstration, e.reference) for e in train] == [
        (r["messages"][:-1], None, r["answer"]) for r in rows
    ]


@needs_samples
def test_real_medical_rows(tmp_path):
    rows = read_lines(SAMPLES / "medical_demonstrations.jsonl")
    write_rows(tmp_path / "train.jsonl", rows)
    skill = get_skill("medical", path=tmp_path)
    for row, example in zip(rows, skill.examples("train"), strict=True):
        user, assistant = row["messages"]
        assert (example.prompt, example.demonstration) == ([user], assistant["content"])
        assert [f(example.demonstration, example.reference) for f in skill.metrics.values()] == [
            1,
            1,
            1,
        ]
