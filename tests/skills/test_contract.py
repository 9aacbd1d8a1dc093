"""What a skill's own code may return: whole examples, functions, scores from 0 to 1."""

from dataclasses import replace

import pytest

from harness.base.errors import UserError
from harness.runs.schema import SkillSpec
from harness.runs.skills import build_skill
from harness.skills.skill import Example, Skill

ASKED = [{"role": "user", "content": "q"}]


def example(id="a", prompt=ASKED, demonstration="d", reference="v", source=None):
    return Example(id, prompt, demonstration, reference, source)


class Mine(Skill):
    """A skill that loads, and grades, what it is given."""

    name = "mine"

    def __init__(self, examples=None, metric=lambda completion, reference: 1.0, metrics=None):
        self.rows = [example()] if examples is None else examples
        self.graders = {"m": metric} if metrics is None else metrics

    def load(self, split):
        if isinstance(self.rows, BaseException):
            raise self.rows
        return self.rows

    @property
    def metrics(self):
        if isinstance(self.graders, BaseException):
            raise self.graders
        return self.graders


class Answer:
    text = whole = "an answer"


@pytest.mark.parametrize(
    "examples, said",
    [
        ((example(),), "it is a list of Example"),
        ("text", "load() returns 'text'"),
        ([example(), 7], "row 2: 7 is no Example"),
        ([example(prompt="q")], "row 1: its prompt must be chat messages that end in a user turn"),
        ([example(prompt=[])], "end in a user turn"),
        ([example(prompt=[*ASKED, {"role": "assistant", "content": "x"}])], "end in a user turn"),
        ([example(prompt=[{"role": "user", "content": None}])], "end in a user turn"),
        ([example(demonstration=3)], "its demonstration must be a text"),
        ([example(source=["s"])], "its source must be a text"),
        ([example(reference={1, 2})], "no JSON value"),
        ([example(reference=float("nan"))], "no JSON value"),
        ([example(reference={"a": [float("inf")]})], "no JSON value"),
        ([example(reference="\ud83d")], "half a character"),
        ([example(prompt=[{"role": "user", "content": "\udc80"}])], "half a character"),
        ([example(), example()], "examples 1 and 2 have the id 'a'"),
        (ValueError("no\ndata"), "load('test') fails; test_contract.py, line"),
        (SystemExit(0), "calls sys.exit(0)"),
        (GeneratorExit(), "GeneratorExit"),
    ],
)
def test_examples(examples, said):
    with pytest.raises(UserError) as error:
        Mine(examples).examples("test")
    assert said in str(error.value) and str(error.value).startswith("skill mine")
    assert "\n" not in str(error.value)


def test_whole_examples_pass():
    """As they are, but that they know their skill."""
    for rows in (
        [example("1", reference=None), example("2", demonstration=None, reference={"a": [1.5]})],
        # an id may be a number
        [example(3), example("3", [{"role": "system", "content": ""}, *ASKED], source="s 😀")],
    ):
        assert Mine(rows).examples("test") == [replace(row, skill="mine") for row in rows]


def test_ctrl_c_in_a_skill_is_a_stop():
    with pytest.raises(KeyboardInterrupt):
        Mine(KeyboardInterrupt()).examples("test")


@pytest.mark.parametrize("value", [0, 1, 0.25, True, False])
def test_scores(value):
    assert Mine(metric=lambda *_: value).score("m", Answer(), "v") == float(value)


@pytest.mark.parametrize(
    "value, said",
    [
        (float("nan"), "metric m gives nan"),
        (float("inf"), "gives inf"),
        (2.0, "gives 2.0"),
        (-1, "gives -1.0"),
        (1.0000001, "gives 1.0000001"),
        (None, "metric m fails; skill.py, line"),
        ("x", "metric m fails"),
        ([1.0], "metric m fails"),
    ],
)
def test_what_is_no_score(value, said):
    with pytest.raises(UserError, match=r"a score is from 0 to 1|fails") as error:
        Mine(metric=lambda *_: value).score("m", Answer(), "v")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"metrics": {}}, "`metrics` of mine is {}"),
        ({"metrics": {"m": 1.0}}, "one function or more by name"),
        ({"metrics": ["m"]}, "`metrics` of mine fails"),
        ({"metrics": RuntimeError("gone")}, "RuntimeError: gone"),
        ({"max_new_tokens": -5}, "`max_new_tokens` of mine is -5"),
        ({"max_new_tokens": "32"}, "is '32'"),
        ({"max_new_tokens": 1.5}, "is 1.5"),
    ],
)
def test_grading_is_tried_before_anything_loads(change, said, monkeypatch):
    skill = Mine(metrics=change.get("metrics"))
    if "max_new_tokens" in change:
        skill.max_new_tokens = change["max_new_tokens"]
    monkeypatch.setattr("harness.runs.skills.get_skill", lambda *_, **__: skill)
    spec = SkillSpec(name="mine")
    with pytest.raises(UserError) as error:
        build_skill(spec, "order: skills[0]", ["test"], lambda file: file)
    assert said in str(error.value) and str(error.value).startswith("order: skills[0]")
