"""The project's skills by name: one file a skill in ``benchmarks/skills``, or a suite of tasks."""

from typing import Any

from harness.base.errors import UserError, did_you_mean, plug_in
from harness.base.files import ROOT
from harness.base.registry import plugin_named, plugin_names
from harness.skills.skill import Skill

FOLDER = ROOT / "benchmarks" / "skills"


def skill_class(name: str, place: str = "order") -> tuple[type[Skill], str]:
    """(class, task) of the skill ``name``; the task is empty where the file is no suite.

    A suite is a class with ``tasks``: each is a skill SUITE_TASK. Raises UserError at ``place`` for
    an unknown name, and for a suite without one of its tasks.
    """
    files = plugin_names(FOLDER)
    mine = [file for file in files if name == file or name.startswith(f"{file}_")]
    file = max(mine, key=len, default=name)
    cls = plugin_named(FOLDER, "benchmarks.skills", file, Skill, "skill", place)
    if file == name and not cls.tasks:
        return cls, ""
    tasks = {f"{file}_{task}": task for task in cls.tasks}
    if name not in tasks:
        problem = f"{name!r} is a suite of skills" if file == name else f"unknown skill {name!r}"
        raise UserError(place, problem, did_you_mean(name, tasks or files))
    return cls, tasks[name]


def released_suites() -> list[str]:
    """The suites whose data a user may have in their released form."""
    place = str(FOLDER)
    classes = [
        plugin_named(FOLDER, "benchmarks.skills", file, Skill, "skill", place)
        for file in plugin_names(FOLDER)
    ]
    return sorted({cls.suite for cls in classes} - {""})


def get_skill(name: str, place: str = "order", **options: Any) -> Skill:
    """An instance of the project's skill ``name``, made with ``options``.

    Raises UserError at ``place`` for an unknown skill and for options that it does not take.
    """
    cls, task = skill_class(name, place)
    for option in options:
        if option not in cls.options:
            remedy = "it takes " + ", ".join(cls.options) if cls.options else "leave it out"
            raise UserError(place, f"{name} takes no `{option}`", remedy)
    with plug_in(place, f"the constructor of {cls.__name__}"):
        return cls(task, **options) if task else cls(**options)  # type: ignore[call-arg]
