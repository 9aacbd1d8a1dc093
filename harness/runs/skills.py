"""The skills of an order: an entry of its list ``skills`` becomes a Skill."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.base.errors import UserError, did_you_mean, plug_in
from harness.base.registry import function_of_file
from harness.runs.schema import SkillSpec
from harness.skills.files import FileSkill
from harness.skills.hub import HubSkill
from harness.skills.registry import get_skill, released_suites, skill_class
from harness.skills.rubrics import JUDGES
from harness.skills.skill import Example, Metric, Skill
from harness.skills.templates import TEACHER_TEMPLATES, template_fault

SPLITS = ("train", "validation", "test")
HUB = ("subset", "revision")  # keys that go with `hub`
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
OWN_FILE = re.compile(r"\.py(:|$)")  # of a grader that is no name
OPTIONS = ("path", "source", "holdout")  # keys that go to the constructor of a project's skill


def build_skill(
    spec: SkillSpec,
    place: str,
    splits: Collection[str],
    beside: Callable[[str], Path],
    data: Mapping[str, str] = MappingProxyType({}),
) -> Skill:
    """The skill of one entry, with the examples of ``splits`` read: wrong rows are an error now.

    splits: those that the order needs; beside: finds a file that the order names; data: where that
    of a suite is, for its skills without a path. Raises UserError.
    """
    named = {split: name for split in SPLITS if (name := getattr(spec, split))}
    if spec.hub or named:
        _check_own(spec, place)
        grader, reward = _functions(spec, place, beside)
        if spec.hub:
            skill: Skill = _hub_skill(spec, named, grader, reward, place, beside)
        else:
            files = {split: str(beside(file)) for split, file in named.items()}
            _check_files(files, place, splits)
            skill = FileSkill(spec.name, files, grader, f"{place}: grader", reward)
        skill.chance = spec.chance or 0.0
    else:
        skill = _project_skill(spec, place, beside, data)
    skill.check_grading(place)
    _set_judge(skill, spec, place)
    if spec.overlap:
        skill.overlap_note = " ".join(spec.overlap.split())
    _check_template(spec.teacher_template, f"{place}: teacher_template")
    for split in sorted(splits):
        if not skill.examples(split):
            raise UserError(f"skill {skill.name}, split {split}", "has no examples")
    if splits and (spec.hub or named):
        _try_functions(skill, spec, skill.examples(min(splits))[0], place)
    return skill


def check_data(data: Collection[str], place: str) -> None:
    """Raises UserError at ``place`` for a suite of which there is no release."""
    for suite in data:
        if suite not in (known := released_suites()):
            raise UserError(place, f"there is no suite {suite!r}", did_you_mean(suite, known))


def _try_functions(skill: Skill, spec: SkillSpec, example: Example, place: str) -> None:
    """Raises UserError where a grader or reward of the user's own cannot judge an example."""
    own = {"grader": skill.grade} if spec.grader and OWN_FILE.search(spec.grader) else {}
    own |= {"reward": skill.reward} if spec.reward else {}
    for key, function in own.items():
        with plug_in(f"{place}: {key}", "on the first example it"):
            found = float(function(example.demonstration or "", example.reference))
        if not math.isfinite(found) or (key == "grader" and not 0 <= found <= 1):
            wanted = "a number from 0 to 1" if key == "grader" else "a finite number"
            problem = f"gives {found} for the first example"
            raise UserError(f"{place}: {key}", problem, f"{wanted} is wanted")


def _check_own(spec: SkillSpec, place: str) -> None:
    """Raises UserError for keys that a skill of the user's own has not."""
    for key in _options(spec):
        raise UserError(
            f"{place}: {key}",
            "goes with a skill of benchmarks/skills",
            "leave it out, or `train` and `test`",
        )
    for key in HUB if not spec.hub else ():
        if getattr(spec, key):
            raise UserError(f"{place}: {key}", "goes with `hub`", "leave it out")
    if not spec.grader:
        raise UserError(f"{place}: grader", "is missing", "name one of harness/skills/graders.py")


def _check_files(files: dict[str, str], place: str, splits: Collection[str]) -> None:
    """Raises UserError for a file that is not there, and for a split without one."""
    for split, file in files.items():
        if not Path(file).is_file():
            raise UserError(
                f"{place}: {split}", f"{file} is not a file", "give the path of a JSONL file"
            )
    for split in sorted(set(splits) - set(files)):
        raise UserError(f"{place}: {split}", "is missing", "give the path of a JSONL file")


def _functions(
    spec: SkillSpec, place: str, beside: Callable[[str], Path]
) -> tuple[str | Metric, Metric | None]:
    """The grader, a name or a function of the user's own, and the reward where there is one."""
    grader: str | Metric = spec.grader or ""
    if spec.grader and OWN_FILE.search(spec.grader):
        grader = function_of_file(spec.grader, "grader", f"{place}: grader", beside)
    reward = spec.reward and function_of_file(spec.reward, "reward", f"{place}: reward", beside)
    return grader, reward or None


def _hub_skill(
    spec: SkillSpec,
    named: dict[str, str],
    grader: str | Metric,
    reward: Metric | None,
    place: str,
    beside: Callable[[str], Path],
) -> HubSkill:
    """A skill from a dataset of the hub, or from a folder in its form."""
    assert spec.hub is not None
    folder = beside(spec.hub)
    if not folder.is_dir() and not HUB_ID.fullmatch(spec.hub):
        raise UserError(
            f"{place}: hub",
            f"{spec.hub} is neither a folder nor a dataset of the hub",
            "write OWNER/NAME, or the path of a folder",
        )
    if folder.is_dir() and spec.revision:
        problem = f"is of a dataset of the hub, and {spec.hub} is a folder"
        raise UserError(f"{place}: revision", problem, "leave it out")
    dataset = str(folder) if folder.is_dir() else spec.hub
    return HubSkill(spec.name, dataset, named, grader, place, reward, spec.subset, spec.revision)


def _project_skill(
    spec: SkillSpec, place: str, beside: Callable[[str], Path], data: Mapping[str, str]
) -> Skill:
    """A skill of benchmarks/skills."""
    for key in ("grader", "reward", "chance", *HUB):
        if getattr(spec, key) is not None:
            raise UserError(
                f"{place}: {key}",
                "goes with a skill of your own",
                "give `train` and `test`, or leave it out",
            )
    options = _options(spec)
    if data and (suite := skill_class(spec.name, f"{place}: name")[0].suite) in data:
        options.setdefault("path", data[suite])
    if "path" in options:
        options["path"] = str(beside(options["path"]))
    return get_skill(spec.name, f"{place}: name", **options)


def _options(spec: SkillSpec) -> dict[str, Any]:
    values = {key: getattr(spec, key) for key in OPTIONS}
    return {key: value for key, value in values.items() if value is not None}


def _set_judge(skill: Skill, spec: SkillSpec, place: str) -> None:
    if spec.judge is not None:
        skill.judge = spec.judge
    if skill.judge is not None and skill.judge not in JUDGES:
        raise UserError(
            f"{place}: judge",
            f"unknown rubric {skill.judge!r}",
            did_you_mean(skill.judge, JUDGES),
        )


def _check_template(template: str | list[Any] | None, place: str) -> None:
    if isinstance(template, str) and template not in TEACHER_TEMPLATES:
        raise UserError(
            place, f"unknown template {template!r}", did_you_mean(template, TEACHER_TEMPLATES)
        )
    if isinstance(template, list) and (fault := template_fault(template)):
        raise UserError(place, fault)
