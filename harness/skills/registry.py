"""The project's skills by name."""

from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.base.registry import plugin_named
from harness.skills.skill import Skill


def get_skill(name, place="order", **options):
    """The project's skill ``name``, an instance. Raises UserError for an unknown one and for
    options that it does not take.
    """
    root = ROOT / "benchmarks" / "skills"
    cls = plugin_named(root, "benchmarks.skills", name, Skill, "skill", place)
    for option in options:
        if option not in cls.options:
            takes = "it takes " + ", ".join(cls.options) if cls.options else "leave it out"
            raise UserError(place, f"{name} takes no `{option}`", takes)
    return cls(**options)
