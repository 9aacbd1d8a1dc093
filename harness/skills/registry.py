"""The project's skills by name: one file a skill in ``benchmarks/skills``."""

from typing import Any

from harness.base.errors import UserError, plug_in
from harness.base.files import ROOT
from harness.base.registry import plugin_named
from harness.skills.skill import Skill


def get_skill(name: str, place: str = "order", **options: Any) -> Skill:
    """An instance of the project's skill ``name``, made with ``options``.

    Raises UserError at ``place`` for an unknown skill and for options that it does not take.
    """
    folder = ROOT / "benchmarks" / "skills"
    cls = plugin_named(folder, "benchmarks.skills", name, Skill, "skill", place)
    for option in options:
        if option not in cls.options:
            remedy = "it takes " + ", ".join(cls.options) if cls.options else "leave it out"
            raise UserError(place, f"{name} takes no `{option}`", remedy)
    with plug_in(place, f"the constructor of {cls.__name__}"):
        return cls(**options)
