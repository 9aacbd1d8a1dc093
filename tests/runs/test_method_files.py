"""A method in a file of the user's own."""

import pytest

from harness.base.errors import UserError
from harness.runs.plan import plan
from harness.runs.reading import read_order
from tests.runs.refusals import refused

SET = "from harness.learning.method import Method\nclass Mine(Method):\n    {}\n"


@pytest.mark.parametrize(
    "code, said",
    [
        ("raise RuntimeError('two\\nlines')", ["cannot be imported (RuntimeError: two lines)"]),
        ("def broken(:", ["cannot be imported (SyntaxError: "]),
        ("import sys\nsys.exit(0)", ["cannot be imported (SystemExit: 0)"]),
        ("raise GeneratorExit", ["cannot be imported (GeneratorExit: )"]),
        ("raise BaseException('x')", ["cannot be imported (BaseException: x)"]),
        ("raise BaseExceptionGroup('g', [KeyboardInterrupt()])", ["(BaseExceptionGroup: g (1"]),
        (
            "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute",
            ["cannot be imported (Mute: )"],
        ),
        (
            "class Odd:\n    @property\n    def __class__(self): raise RuntimeError\nodd = Odd()",
            ["defines 0 methods"],
        ),
        (SET.format("needs = 'demonstration'"), ["needs of Mine is 'demonstration'; a tuple of"]),
        (SET.format("needs = (3,)"), ["needs of Mine is (3,); a tuple of texts is wanted"]),
        (SET.format("needs = None"), ["needs of Mine is None"]),
        (SET.format("joins = None"), ["joins of Mine is None"]),
        (SET.format("trains = 'yes'"), ["trains of Mine is 'yes'; true or false is wanted"]),
        (SET.format("Config = 3"), ["Config of Mine is 3; a class is wanted"]),
        (SET.format("pass"), ["mine.py: Mine has no function of a method's; known: learn, check"]),
        (SET.format("def lern(self, stage): pass"), ["has no function", "did you mean 'learn'?"]),
        (SET.format("def check(self, order, place): pass"), ["mine.py: Mine has no learn()"]),
        ("x = 1", ["defines 0 methods", "one class on top of Method is wanted"]),
        (
            "from harness.learning.method import Method\n"
            "class A(Method): pass\nclass B(Method): pass",
            ["defines 2 methods", "one class"],
        ),
    ],
)
def test_method_file(code, said, order_file, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    line = refused(order_file(methods={"mine": {"file": "mine.py"}}))
    assert "methods.mine: " in line and "mine.py" in line
    for part in said:
        assert part in line, line


def test_what_no_example_has_is_missing(order_file, tmp_path):
    (tmp_path / "mine.py").write_text(
        SET.format("needs = ('wing',)\n    def learn(self, stage): pass")
    )
    line = refused(order_file(methods={"mine": {"file": "mine.py"}}))
    assert "methods.mine: mine needs wings; skill vowels, example 1 has none" in line


def test_a_method_file_is_one_module_for_all_its_labels(order_file, tmp_path):
    """Another file of that name is another module."""
    code = SET.format("def learn(self, stage): pass")
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        (folder / "mine.py").write_text(code)
    order = read_order(
        order_file(
            methods={
                "a": {"file": "mine.py"},
                "b": {"file": "mine.py"},
                "c": {"file": "other/mine.py"},
            },
            grid={"a": {"learning_rate": [1e-4, 1e-3]}},
        )
    )
    made = [spec.cls(spec.config) for spec in order.methods.values()]
    assert len({type(m) for m in made}) == 2 and len(made) == 4


def unplanned(order, tmp_path):
    """The one line with which ``--plan`` refuses an order."""
    with pytest.raises(UserError) as error:
        plan(read_order(order), tmp_path / "out")
    assert "\n" not in str(error.value)
    return str(error.value)


HOOKS = """
from methods.sft import SFT
import sys


class Mine(SFT):
    {hook}
        {body}
"""


@pytest.mark.parametrize(
    "hook, body, said",
    [
        (
            "def __init__(self, config):",
            "raise OSError('disk')",
            "constructor fails; mine.py, line",
        ),
        ("def __init__(self, config):", "sys.exit()", "calls sys.exit(None)"),
        (
            "def check(self, order, place):",
            "raise KeyError('k')",
            "check() fails; mine.py, line 8:",
        ),
        ("def check(self, order, place):", "sys.exit(3)", "check() fails; mine.py, line 8: calls"),
        ("def phases(self, prompts):", "return 1 / 0", "phases() fails; mine.py, line 8: Zero"),
        ("def phases(self, prompts):", "return []", "phases() returns []; it is a list"),
        ("def phases(self, prompts):", "while True: yield 1", "phases() returns <generator"),
        ("def phases(self, prompts):", "return [True]", "returns [True]; list[int] is wanted"),
        ("def phases(self, prompts):", "return [-5]", "phases() returns [-5]"),
        ("def phases(self, prompts):", "return [1.5]", "phases() returns [1.5]"),
        ("def phases(self, prompts):", "return 12", "phases() returns 12"),
        (
            "def conversations(self, order):",
            "yield 1 / 0",
            "conversations() fails; mine.py, line 8",
        ),
        ("def work(self, outlook):", "raise GeneratorExit", "work() fails; mine.py, line 8: Gen"),
        (
            "def work(self, outlook):",
            "return None",
            "mine.py: Mine.work() returns None; Work is wanted",
        ),
        (
            "def work(self, outlook):",
            "return type(super().work(outlook))(learned=float('nan'))",
            "learned is nan, not a finite number",
        ),
        (
            "def conversations(self, order):",
            "return None",
            "returns None; Iterable[list[Message]] is wanted",
        ),
    ],
)
def test_hooks_are_tried_before_anything_is_learned(hook, body, said, order_file, tmp_path):
    (tmp_path / "mine.py").write_text(HOOKS.format(hook=hook, body=body))
    line = unplanned(order_file(methods={"mine": {"file": "mine.py"}}), tmp_path)
    assert "methods.mine: " in line and said in line, line


def test_ctrl_c_in_a_hook_is_a_stop(order_file, tmp_path):
    hook = "def check(self, order, place):"
    (tmp_path / "mine.py").write_text(HOOKS.format(hook=hook, body="raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        read_order(order_file(methods={"mine": {"file": "mine.py"}}))


@pytest.mark.parametrize(
    "hook, body, said",
    [
        ("def work(self, outlook, work, earlier):", "pass", "returns None; Work is wanted"),
        ("def budget(self, prompts, earlier):", "return prompts", "tuple[int, int] is wanted"),
        (
            "def budget(self, prompts, earlier):",
            "return 1 / 0",
            "budget() of a part fails; mine.py",
        ),
        ("def follows(self):", "return 3", "follows() returns 3; str | None is wanted"),
        ("def conversations(self):", "return 3", "conversations() returns 3; Iterable"),
    ],
)
def test_hooks_of_a_part_are_tried_as_well(hook, body, said, order_file, tmp_path):
    code = f"from harness.learning.part import Part\nclass Mine(Part):\n    {hook}\n        {body}"
    (tmp_path / "mine.py").write_text(code)
    methods = {"sft": {"with": {"mine": {"file": "mine.py"}}}}
    line = unplanned(order_file(methods=methods), tmp_path)
    assert "methods.sft" in line and said in line, line


def test_a_part_or_parametrisation_without_a_hook_is_none(order_file, tmp_path):
    for base, section in (("Part", "with"), ("Parametrisation", "parameters")):
        code = f"from harness.learning.{base.lower()} import {base}\nclass Mine({base}):\n    "
        (tmp_path / "mine.py").write_text(code + "def updte(self): pass")
        line = refused(order_file(methods={"sft": {section: {"mine": {"file": "mine.py"}}}}))
        assert f"sft: {section}.mine: mine.py: Mine has no function of a {base.lower()}'s" in line
        assert "known: " in line and ("did you mean 'update'? " in line or base != "Part")


def test_a_size_of_another_kind_is_refused(order_file, tmp_path):
    code = (
        "from harness.learning.parametrisation import Parametrisation\n"
        "class Mine(Parametrisation):\n    def size(self, model): return 3"
    )
    (tmp_path / "mine.py").write_text(code)
    methods = {"sft": {"parameters": {"mine": {"file": "mine.py"}}}}
    line = unplanned(order_file(methods=methods), tmp_path)
    assert "methods.sft: mine.py: Mine.size() returns 3; Size is wanted" in line
