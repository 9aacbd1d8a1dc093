"""What a method is: how a model learns one skill. One file a method in ``methods/``, or a user's
own file.
"""

import hashlib
import importlib.util
import os
import sys
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.base.registry import only_subclass, plugin_named
from harness.learning.outlook import Work
from harness.learning.trainer import TrainingConfig


class Method:
    """Base of every method. A subclass sets ``Config`` (a dataclass on top of TrainingConfig) and
    gives ``learn``.

    One instance lives through all the stages of a run. What it must remember from earlier skills (a
    buffer, a Fisher matrix) goes through ``state_dict`` and ``load_state_dict``, which are called
    at the borders of stages; tensors come back on the CPU, wherever they were.
    """

    Config = TrainingConfig
    needs = ("demonstration",)  # fields of Example that every training example must have

    def __init__(self, config):
        self.config = config

    def learn(self, stage):
        """Teach ``stage.model`` the skill, in place: loop over ``stage.steps()``, see
        harness.learning.stage.

        Python's, NumPy's and PyTorch's generators are seeded before it, before each step and after
        each phase: a resumed stage draws the same again.
        """
        raise TypeError(f"{type(self).__name__} has no learn()")

    def check(self, order, place):
        """Raises UserError at ``place`` if ``order`` asks for what the method cannot do; called
        before anything loads.
        """

    def phases(self, prompts):
        """Prompts drawn in each phase of a stage whose budget is ``prompts``; a phase is a training
        of its own.
        """
        return [prompts]

    def work(self, outlook):
        """Tokens per prompt of the budget, for the estimate of --plan: a
        harness.learning.outlook.Work, from a harness.learning.outlook.Outlook. By default one pass
        over prompt and demonstration.
        """
        return Work(learned=outlook.prompt + outlook.demonstration)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        """Called once, before the stages that a start begins with; ``state`` has its tensors on the
        CPU.
        """


def get_method(name, file=None, place="order"):
    """The class of the project's method ``name``, or the one that ``file`` defines. Raises
    UserError if there is none.
    """
    if file is None:
        return plugin_named(ROOT / "methods", "methods", name, Method, "method", place)
    path = Path(os.path.expanduser(file))
    if not path.is_file() or path.suffix != ".py":
        raise UserError(
            place,
            f"{file} is not a {'Python ' if path.is_file() else ''}file",
            "give the path of a Python file with one class on top of Method",
        )
    told_apart = hashlib.sha256(str(path.resolve()).encode() + path.read_bytes()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"method_file_{path.stem}_{told_apart}", path)
    # under another label, or in a grid: pickle wants a class to be the same object
    if spec.name in sys.modules:
        return only_subclass(sys.modules[spec.name], Method, "method", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file does
        del sys.modules[spec.name]
        raise UserError(
            place, f"{file} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    return only_subclass(module, Method, "method", place)
