"""Skills of the user's own: datasets in the hub's form, own graders and rewards, turns of tools."""

import json

import pytest
import yaml
from datasets import Dataset

from harness.base.errors import UserError
from harness.evaluation.skills import message_text
from harness.runs.reading import read_order
from harness.runs.schema import SkillSpec
from harness.runs.skills import build_skill
from harness.skills.hub import plain_row
from harness.skills.templates import last_user_turn, turn_text
from methods.sdpo import reprompt
from tests.conftest import write_rows

CALL = {"type": "function", "function": {"name": "time", "arguments": {"city": "Oslo"}}}
TOOLS = [
    {"role": "system", "content": "You have tools."},
    {"role": "user", "content": "What time is it in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "12:00"},
]
TEMPLATE_WITH_TOOLS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL {{ c.function.name }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def said(user, answer):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]


def hub_folder(folder, **splits):
    """A folder as a repository of the hub has it: data/SPLIT-00000-of-00001.parquet."""
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def skill(place, splits=("train", "test"), **entry):
    spec = SkillSpec(**{"name": "support", "hub": "support", "grader": "contains", **entry})
    return build_skill(spec, "order: skills[0]", splits, lambda name: place / name)


# ---- the two forms -------------------------------------------------------------------------------


def test_messages(tmp_path):
    rows = [
        {"messages": [{"role": "system", "content": "s"}, *said(f"q{i}", f"a {i}")]}
        for i in range(3)
    ]
    hub_folder(tmp_path / "support", train=rows, test=rows[:1])
    made = skill(tmp_path)
    first = made.examples("train")[0]
    assert (first.id, first.demonstration, first.reference) == ("1", "a 0", "a 0")
    assert first.prompt == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q0"},
    ]
    assert len(made.examples("train")) == 3 and len(made.examples("test")) == 1
    assert made.splits == ("train", "test") and made.notes() == []
    assert made.grade("it is A 0.", "a 0") == 1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": said("q", "")[:1], "completion": said("", "a")[1:]},
        {"prompt": said("q", "")[:1], "completion": "a"},
    ],
)
def test_prompt_and_completion(tmp_path, row):
    hub_folder(tmp_path / "support", train=[row], test=[row])
    (example,) = skill(tmp_path).examples("train")
    assert example.prompt == [{"role": "user", "content": "q"}]
    assert (example.demonstration, example.reference) == ("a", "a")
    rows = [{**row, "reference": ["b", "c"]}]
    hub_folder(tmp_path / "own", train=rows, test=rows)
    assert skill(tmp_path, hub="own").examples("test")[0].reference == ["b", "c"]


def test_splits_have_the_names_that_the_order_gives_also_slices(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(10)]
    hub_folder(tmp_path / "support", train=rows)
    made = skill(tmp_path, train="train[:80%]", test="train[80%:]")
    assert [e.reference for e in made.examples("test")] == ["a8", "a9"]
    assert len(made.examples("train")) == 8
    with pytest.raises(UserError) as missing:
        skill(tmp_path)
    assert str(missing.value) == (
        f"order: skills[0]: test: {tmp_path}/support has no split 'test'; it has train; "
        "name one, also a slice of it: test: train[90%:]"
    )


def test_rows_that_end_without_words_are_left_out_and_told(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [json.dumps(CALL)]}
    rows = [
        {"messages": said("q", "a")},
        {"messages": [*said("q", "a"), {"role": "user", "content": "and?"}]},
        {"messages": [{"role": "user", "content": "q"}, call]},
    ]
    hub_folder(tmp_path / "support", train=rows, test=rows)
    made = skill(tmp_path, ["train"])
    assert [e.id for e in made.examples("train")] == ["1"]
    assert made.notes() == [
        "skill support, split train: 2 of 3 rows are left out, which end without an answer in words"
    ]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"text": "x"},
            "row 1: has neither `messages` nor `prompt`; the columns are",
        ),
        ({"messages": [{"from": "human", "value": "x"}]}, "messages: must be chat messages"),
        ({"prompt": "q", "completion": said("x", "y")}, "completion: is not one turn of the"),
        ({"prompt": [said("q", "a")[1]], "completion": "a"}, "`prompt` must be a text or chat"),
        (
            {"prompt": "q", "completion": "a", "tools": [{"name": "f"}]},
            "tools: definitions of tools",
        ),
        ({"prompt": "q", "completion": None}, "has no row with an answer"),
    ],
)
def test_rows_of_another_form(tmp_path, row, line):
    hub_folder(tmp_path / "support", train=[row], test=[row])
    with pytest.raises(UserError) as refused:
        skill(tmp_path)
    text = str(refused.value)
    assert line in text and "\n" not in text
    assert f"{tmp_path}/support, split " in text


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"hub": "absent"}, "order: skills[0]: hub: absent cannot be loaded ("),
        ({"hub": "a/b/c"}, "order: skills[0]: hub: a/b/c is neither a folder nor a dataset"),
        ({"subset": "nowhere"}, "order: skills[0]: subset: "),
        ({"revision": "v1"}, "order: skills[0]: revision: is of a dataset of the hub, and support"),
        ({"grader": None}, "order: skills[0]: grader: is missing"),
        ({"grader": "containz"}, "order: skills[0]: grader: unknown grader 'containz'"),
        ({"holdout": 3}, "order: skills[0]: holdout: goes with a skill of benchmarks/skills"),
        ({"train": "trian"}, "order: skills[0]: train: "),
    ],
)
def test_what_cannot_be_had(tmp_path, entry, line):
    hub_folder(
        tmp_path / "support", **{s: [{"prompt": "q", "completion": "a"}] for s in ("train", "test")}
    )
    with pytest.raises(UserError) as refused:
        skill(tmp_path, **entry)
    assert str(refused.value).startswith(line) and "\n" not in str(refused.value)


def test_keys_of_the_hub_go_with_it_alone(tmp_path):
    for key in ("subset", "revision"):
        files = {split: str(write_rows(tmp_path / split, [])) for split in ("train", "test")}
        with pytest.raises(UserError, match=f"{key}: goes with `hub`"):
            skill(tmp_path, hub=None, **files, **{key: "x"})
        with pytest.raises(UserError, match=f"{key}: goes with a skill of your own"):
            build_skill(SkillSpec(name="elements", **{key: "x"}), "s", ["train"], tmp_path.joinpath)


def test_three_lines_of_an_order(order_file, tmp_path):
    rows = [{"messages": said(f"q{i}", f"a{i}")} for i in range(6)]
    hub_folder(tmp_path / "support", train=rows, test=rows)
    path = order_file(evaluate={})
    order = yaml.safe_load(path.read_text())
    order["skills"] = yaml.safe_load(
        "- name: support\n  hub: support\n  grader: normalised_match\n"
    )
    path.write_text(yaml.safe_dump(order))
    about = read_order(path).about()["skills"][0]
    assert about["metric"] == "normalised_match" and about["splits"] == ["test"]
    assert about["description"] == f"support, from {tmp_path}/support"


# ---- tools ---------------------------------------------------------------------------------------


def test_a_prompt_may_end_in_the_answer_of_a_tool(tmp_path):
    row = {"prompt": TOOLS, "demonstration": "It is noon.", "reference": "noon"}
    silent = {**TOOLS[2], "content": None}
    null = {**row, "prompt": [*TOOLS[:2], silent, TOOLS[3]]}
    files = {s: str(write_rows(tmp_path / f"{s}.jsonl", [row, null])) for s in ("train", "test")}
    made = skill(tmp_path, hub=None, **files)
    for example in made.examples("train"):
        assert example.prompt == TOOLS and last_user_turn(example.prompt) == 1
        shown = made.teacher_prompt(example)
        assert [turn["role"] for turn in shown] == ["system", "user", "assistant", "tool"]
        assert shown[1]["content"].startswith("What time is it in Oslo?\n\nThis is an example")
        assert "It is noon." in shown[1]["content"] and shown[2:] == TOOLS[2:]
        three = made.teacher_prompt(example, "three_turn")
        assert [turn["role"] for turn in three[1:4]] == ["user", "assistant", "user"]
        assert three[4:] == TOOLS[2:]
        again = reprompt(example, "noon", None)
        assert again[2:] == TOOLS[2:] and "noon" in again[1]["content"]


def test_a_prompt_that_ends_in_a_user_turn_is_taught_as_before(tmp_path):
    rows = [{"prompt": said("a", "b") + said("c", "")[:1], "demonstration": "d", "reference": "d"}]
    files = {s: str(write_rows(tmp_path / f"{s}.jsonl", rows)) for s in ("train", "test")}
    example = skill(tmp_path, hub=None, **files).examples("train")[0]
    shown = skill(tmp_path, hub=None, **files).teacher_prompt(example, "three_turn")
    assert shown == [*said("a", "b"), *said("c", "d"), {"role": "user", "content": "c"}]
    assert reprompt(example, None, "no")[:-1] == example.prompt[:-1]


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "tool", "content": "12:00"}],  # no question
        TOOLS[:3],  # the tool has not answered
        [*TOOLS[:2], {"role": "assistant", "content": None}, TOOLS[3]],  # no call
    ],
)
def test_prompts_that_no_answer_can_follow(tmp_path, prompt):
    rows = [{"prompt": prompt, "demonstration": "d", "reference": "d"}]
    files = {s: str(write_rows(tmp_path / f"{s}.jsonl", rows)) for s in ("train", "test")}
    with pytest.raises(UserError, match="end in a user turn, or in the answer of a tool"):
        skill(tmp_path, hub=None, **files)


def test_a_call_of_the_hub_has_no_empty_fields():
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": None}}}
    turns = [
        {"role": "user", "content": "q", "tool_calls": None, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "name": None},
        {"role": "tool", "content": "1", "tool_calls": None, "name": "f"},
        {"role": "assistant", "content": "one", "tool_calls": None, "name": None},
    ]
    row = plain_row({"messages": turns}, "here")
    left = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert row["prompt"] == [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": left,
        },
        {"role": "tool", "content": "1", "name": "f"},
    ]
    assert row["demonstration"] == "one"


def test_a_call_is_seen_where_a_prompt_is_shown():
    assert turn_text(TOOLS[1]) == "What time is it in Oslo?"
    shown = message_text(TOOLS).splitlines()
    assert shown[2] == f"[assistant] {json.dumps([CALL])}" and shown[3] == "[tool] 12:00"


@pytest.mark.parametrize("reads", [False, True])
def test_a_template_that_drops_calls_is_refused(order_file, tmp_path, tiny_model, reads):
    from harness.models.load import load_tokenizer

    row = {"prompt": TOOLS, "demonstration": "noon", "reference": "noon"}
    path = order_file()
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / f"vowels-{split}.jsonl", [row])
    order = read_order(path, ["evaluate={}"], methods=["sft"])
    tokenizer, _ = load_tokenizer(order.model.name, None, "model")
    if reads:
        tokenizer.chat_template = TEMPLATE_WITH_TOOLS
        order.check_prompts(tokenizer)
    else:
        with pytest.raises(UserError, match=r"split train: .* drops the calls of tools"):
            order.check_prompts(tokenizer)


# ---- own graders and rewards ---------------------------------------------------------------------

GRADERS = '''
from difflib import SequenceMatcher


def closeness(completion, reference):
    """How alike the texts are."""
    return SequenceMatcher(None, completion, reference).ratio()


def half(completion, reference):
    return 0.5


def _helper():
    pass
'''


def own(order_file, tmp_path, source=GRADERS, **entry):
    (tmp_path / "mine.py").write_text(source)
    path = order_file(evaluate={})
    order = yaml.safe_load(path.read_text())
    order["skills"][0].update(entry)
    path.write_text(yaml.safe_dump(order))
    return read_order(path)


def test_a_grader_of_an_own_file(order_file, tmp_path):
    order = own(order_file, tmp_path, grader="mine.py:closeness")
    first = order.skills[0]
    assert first.metric == "closeness"
    assert first.grade("abcd", "abce") == 0.75 == first.reward("abcd", "abce")
    about = order.about()["skills"][0]
    assert list(about["graders"]) == ["closeness"] and "reward" not in about
    before = about["graders"]["closeness"]
    changed = own(order_file, tmp_path, GRADERS + "\nX = 1\n", grader="mine.py:closeness")
    assert changed.about()["skills"][0]["graders"]["closeness"] != before  # another protocol


def test_a_reward_of_an_own_file(order_file, tmp_path):
    order = own(order_file, tmp_path, reward="mine.py:half")
    first = order.skills[0]
    assert (first.metric, first.grade("a", "b"), first.reward("a", "b")) == ("token_f1", 0, 0.5)
    assert len(order.about()["skills"][0]["reward"]) == 8


def test_a_file_of_one_function_needs_no_name(order_file, tmp_path):
    source = (
        "import math\nfrom math import sqrt\n\n\ndef one(completion, reference):\n    return 1.0\n"
    )
    assert own(order_file, tmp_path, source, grader="mine.py").skills[0].metric == "one"


@pytest.mark.parametrize(
    ("entry", "source", "line"),
    [
        ({"grader": "none.py"}, GRADERS, "none.py is not a file; write FILE.py or FILE.py:grader"),
        ({"grader": "mine.py"}, GRADERS, "defines 2 public functions; name the one that is meant"),
        ({"grader": "mine.py"}, "x = 1", "defines no public function"),
        ({"grader": "mine.py:closenes"}, GRADERS, "defines no function 'closenes'; did you mean"),
        ({"grader": "mine.py:_helper"}, GRADERS, "defines no function '_helper'"),
        ({"reward": "mine.py:SequenceMatcher"}, GRADERS, "defines no function 'SequenceMatcher'"),
        ({"reward": "mine.py"}, "1 / 0", "cannot be imported (ZeroDivisionError"),
        ({"reward": "mine.py"}, "raise SystemExit", "cannot be imported (SystemExit"),
    ],
)
def test_files_without_the_function(order_file, tmp_path, entry, source, line):
    (key,) = entry
    with pytest.raises(UserError) as refused:
        own(order_file, tmp_path, source, **entry)
    said = str(refused.value)
    assert said.startswith(f"{tmp_path}/tiny.yaml: skills[0]: {key}: ")
    assert line in said and "\n" not in said


@pytest.mark.parametrize(
    ("key", "code", "line"),
    [
        ("grader", "def f(answer): return 1", "takes 1 positional argument but 2 were given"),
        ("grader", "def f(a, r, x): return 1", "f() missing 1 required positional argument: 'x'"),
        ("grader", "def f(a, r): pass", "on the first example it fails"),
        ("grader", "def f(a, r): return 2", "gives 2.0 for the first example; a number from 0"),
        ("grader", "def f(a, r): return 1 / 0", "fails; mine.py, line 1: ZeroDivisionError"),
        ("reward", "def f(a, r): return float('nan')", "gives nan for the first example; a finite"),
        ("reward", "def f(answer): return 1", "takes 1 positional argument but 2 were given"),
    ],
)
def test_a_function_is_tried_on_the_first_example(order_file, tmp_path, key, code, line):
    with pytest.raises(UserError) as refused:
        own(order_file, tmp_path, code, **{key: "mine.py"})
    said = str(refused.value)
    assert said.startswith(f"{tmp_path}/tiny.yaml: skills[0]: {key}: ") and line in said
    assert "\n" not in said


def test_a_reward_may_be_below_0(order_file, tmp_path):
    order = own(order_file, tmp_path, "def f(a, r): return -1", reward="mine.py")
    assert order.skills[0].reward("a", "b") == -1


def test_a_grade_out_of_bounds_names_its_skill(order_file, tmp_path):
    source = "def two(completion, reference):\n    return 2 if completion == 'a' else 0\n"
    graded = own(order_file, tmp_path, source, grader="mine.py").skills[0]

    class Answer:
        text = whole = "a"

    with pytest.raises(UserError, match=r"skill vowels: metric two gives 2\.0"):
        graded.score("two", Answer(), "b")


def test_a_project_skill_takes_no_reward():
    with pytest.raises(UserError, match="reward: goes with a skill of your own"):
        build_skill(SkillSpec(name="elements", reward="mine.py"), "s", ["train"], lambda name: name)


def test_what_guesses_reach_is_said_by_the_order(order_file, tmp_path):
    entry = {"name": "mine", "train": "vowels-train.jsonl", "test": "vowels-test.jsonl"}
    path = order_file(skills=[{**entry, "grader": "contains", "chance": 0.25}])
    order = read_order(path)
    assert order.skills[0].chance == 0.25 and order.about()["skills"][0]["chance"] == 0.25
    for chance, said in ((1, "must be at most 0.99, not 1"), (-0.1, "must be at least 0")):
        with pytest.raises(UserError, match=f"chance: {said}"):
            read_order(order_file(skills=[{**entry, "grader": "contains", "chance": chance}]))
    with pytest.raises(UserError, match="chance: goes with a skill of your own"):
        read_order(order_file(skills=[{"name": "elements", "chance": 0.0}]))
