"""The skills of an order: an entry of its list ``skills`` becomes a Skill."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from harness.base.errors import UserError, did_you_mean
from harness.runs.schema import SkillSpec
from harness.skills.files import FileSkill
from harness.skills.registry import get_skill
from harness.skills.rubrics import JUDGES
from harness.skills.skill import Skill
from harness.skills.templates import TEACHER_TEMPLATES

SPLITS = ("train", "validation", "test")
OPTIONS = ("path", "source", "holdout")  # keys that go to the constructor of a project's skill


def build_skill(
    spec: SkillSpec, place: str, splits: Collection[str], beside: Callable[[str], Path]
) -> Skill:
    """The skill of one entry, with the examples of ``splits`` read: wrong rows are an error now.

    splits: those that the order needs; beside: finds a file that the order names. Raises UserError.
    """
    files = {split: str(beside(file)) for split in SPLITS if (file := getattr(spec, split))}
    skill = _own_skill(spec, files, place, splits) if files else _project_skill(spec, place, beside)
    skill.check_grading(place)
    _set_judge(skill, spec, place)
    if spec.overlap:
        skill.overlap_note = " ".join(spec.overlap.split())
    _check_template(spec.teacher_template, f"{place}: teacher_template")
    for split in sorted(splits):
        if not skill.examples(split):
            raise UserError(f"skill {skill.name}, split {split}", "has no examples")
    return skill


def _own_skill(
    spec: SkillSpec, files: dict[str, str], place: str, splits: Collection[str]
) -> Skill:
    """A skill of the user's own, from JSONL files."""
    for split, file in files.items():
        if not Path(file).is_file():
            raise UserError(
                f"{place}: {split}", f"{file} is not a file", "give the path of a JSONL file"
            )
    for split in sorted(set(splits) - set(files)):
        raise UserError(f"{place}: {split}", "is missing", "give the path of a JSONL file")
    for key in _options(spec):
        raise UserError(
            f"{place}: {key}",
            "goes with a skill of benchmarks/skills",
            "leave it out, or `train` and `test`",
        )
    if not spec.grader:
        raise UserError(f"{place}: grader", "is missing", "name one of harness/skills/graders.py")
    return FileSkill(spec.name, files, spec.grader, f"{place}: grader")


def _project_skill(spec: SkillSpec, place: str, beside: Callable[[str], Path]) -> Skill:
    """A skill of benchmarks/skills."""
    if spec.grader:
        raise UserError(
            f"{place}: grader",
            "goes with a skill of your own",
            "give `train` and `test`, or leave it out",
        )
    options = _options(spec)
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
    if isinstance(template, list) and not (template and all(map(_is_message, template))):
        raise UserError(place, "must be messages with `role` and `content`")


def _is_message(turn: object) -> bool:
    return (
        isinstance(turn, dict)
        and set(turn) == {"role", "content"}
        and all(isinstance(text, str) for text in turn.values())
    )
