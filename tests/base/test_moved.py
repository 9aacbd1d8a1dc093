"""Plug-ins that import names of the first edition are told the new ones in one line."""

import importlib

import pytest

from harness.base.errors import UserError
from harness.base.moved import MOVED, moved_imports
from harness.runs.reading import read_order

TRAINING = (
    "harness.training, whose names are now in harness.learning.draws, harness.learning.packing, "
    "harness.learning.stage, harness.learning.teacher, harness.learning.trainer and "
    "harness.models.memory"
)
ROW = "harness.training.Row, which is now harness.learning.packing.Row"
LEARNING = "harness.training.learning, which is now harness.learning.trainer.learning"
OLD = [
    (
        "from harness.config import option",
        "harness.config.option, which is now harness.base.settings.option",
    ),
    ("from harness.training import Row, learning", f"{ROW}, and {LEARNING}"),
    ("import harness.training", TRAINING),
    ("from harness import training", TRAINING),
    ("from harness.training import *", TRAINING),
    ("from harness.training import _private", TRAINING),
    ("import harness.training as t\nt.Row([], [])", f"{TRAINING}, and {ROW}"),
    ("def learn():\n    from harness.training import Row", ROW),
    (
        "from benchmarks.graders import contains",
        "benchmarks.graders.contains, which is now harness.skills.graders.contains",
    ),
    ("import harness.config", "harness.config, which is now harness.base.settings"),
    ("from harness.skills import Skill", "harness.skills.Skill, which is now harness.skills."),
    ("from harness import skills\nskills.Skill", "harness.skills.Skill, which is now harness."),
]
NEW = [
    "from harness.base.settings import option",
    "from harness.learning import trainer\ntrainer.learning",
    "import harness.skills.skill\nharness.skills.skill.Skill",
    # a function of the first edition, a module of this one
    "from harness.models import load\nload.load_model('x', 'float32', 'cpu')",
    "from .harness.training import Row",
    "harness.training.Row",
    "not Python at all",
    "",
]


@pytest.mark.parametrize("source, phrase", OLD)
def test_old_imports_are_found(source, phrase):
    found = moved_imports(source)
    assert found == phrase or (phrase.endswith(".") and found.startswith(phrase))
    assert moved_imports(source.encode()) == found and "\n" not in found


@pytest.mark.parametrize("source", NEW)
def test_new_imports_are_left_alone(source):
    assert moved_imports(source) == ""


def test_every_new_name_is_there():
    gone = []
    for module, names in MOVED.items():
        for old, new in names.items():
            place, _, name = new.rpartition(".")
            if not hasattr(importlib.import_module(place), name):
                gone.append(f"{module}.{old} -> {new}")
    assert gone == []


def test_a_method_file_with_old_imports_is_refused_in_one_line(order_file, tmp_path):
    """Before any of it is executed; a method of this edition of the same file name is not."""
    path = tmp_path / "my_method.py"
    path.write_text("raise SystemExit\nfrom harness.config import option\n")
    order = order_file(methods={"mine": {"file": "my_method.py"}})
    with pytest.raises(UserError) as caught:
        read_order(order)
    assert str(caught.value) == (
        f"{order}: methods.mine: my_method.py imports harness.config.option, which is now "
        "harness.base.settings.option; change the import (CHANGELOG.md lists all)"
    )
    path.write_text("from methods.sft import SFT\n\n\nclass Mine(SFT):\n    pass\n")
    assert read_order(order).methods["mine"].cls.__name__ == "Mine"
