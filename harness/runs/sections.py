"""The sections of an order file, checked against their schema. Nothing here imports PyTorch.

A wrong key or value is refused within a second. What needs a look at a model, at data or at a
method follows in harness.runs.order.
"""

import datetime
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from harness.base.errors import UserError, did_you_mean, shortened
from harness.base.files import ROOT, spelling
from harness.base.settings import build, check
from harness.base.strict_yaml import read_yaml
from harness.evaluation.settings import KL, Drift, Evaluate, PassAtK
from harness.runs.latin_square import latin_square
from harness.runs.schema import (
    Budget,
    ChatTemplate,
    Checkpoints,
    ModelSpec,
    Power,
    Schema,
    SkillSpec,
)
from harness.sampling.settings import Rollout, VLLMConfig
from harness.watch.tracking import check_installed

NAMES = "use letters, digits, - and _, at most 200"
LONGEST_NAME = 200
LONGEST_SEQUENCE = 30  # letters: with a label and a seed it is the name of a folder
LATIN_SQUARE = "latin_square"
PLAIN_NAMES = (
    "use letters, digits, blanks and marks, at most 200, but no line breaks, $, \\, <, >, `, | "
    "nor = + - @ in front"
)
SERIES = ("base", "teacher", "oracle_rag")  # rows of the report beside those of the methods


class Sections:
    """An order file with every section in its dataclass; files, skills and methods are names.

    skill_specs: the entries of ``skills``; data: {suite: path}; sequences: {name: numbers of the
    skills, from 1} of ``orders``, {"": (1, 2, ...)} where there are none; method_options: the
    hyperparameters that the file gives each label; grid: {label: {hyperparameter: values}};
    judge_section, retention_section: as in the file; reference_labels, relearning_labels: of
    ``references``, ``relearning``; report_to: trackers. ``selects``: whether a grid selects among
    its points, by validation scores.
    """

    def __init__(self, mapping: object, path: str | Path) -> None:
        """Raises UserError for a key or a value that the schema does not allow."""
        self.path = Path(path)
        self.place = place = str(self.path)
        schema = build(Schema, mapping, place)
        self.description: str = schema.description
        self.too_long: str = schema.too_long
        self.experiment = _experiments(schema.experiment, f"{place}: experiment")
        self.name: str = schema.name or self.path.stem
        if not names_folder(self.name):
            raise UserError(f"{place}: name", f"{self.name!r} is no folder name", NAMES)
        self.model: ModelSpec = build(ModelSpec, _named(schema.model), f"{place}: model")
        self.chat_template: ChatTemplate = build(
            ChatTemplate, _with_texts(schema.chat_template), f"{place}: chat_template"
        )
        self.budget: Budget = build(Budget, schema.budget, f"{place}: budget")
        self.rollout: Rollout = build(Rollout, schema.rollout, f"{place}: rollout")
        self.evaluate = _evaluate_section(schema, place)
        self.grid = _by_label(schema.grid, f"{place}: grid")
        self.selects = bool(schema.grid)
        self.vllm: VLLMConfig = build(VLLMConfig, schema.vllm, f"{place}: vllm")
        self.checkpoints: Checkpoints = build(
            Checkpoints, schema.checkpoints, f"{place}: checkpoints"
        )
        self.power: Power = build(Power, schema.power, f"{place}: power")
        report_to = [schema.report_to] if isinstance(schema.report_to, str) else schema.report_to
        self.report_to = list(dict.fromkeys(report_to))
        check_installed(self.report_to, f"{place}: report_to")
        self.seeds = _seeds(schema.seeds, f"{place}: seeds")
        self.skill_specs = _skill_specs(schema.skills, f"{place}: skills")
        self.data = _data(schema.data, f"{place}: data")
        self.sequences = _sequences(
            schema.orders, [spec.name for spec in self.skill_specs], f"{place}: orders"
        )
        self.all_sequences = self.sequences  # those of the file, whatever --sequence says
        self.method_options = _method_options(schema.methods, f"{place}: methods")
        if self.drifts == ["old"] and len(self.skill_specs) < 2:
            problem = "an order of one skill has no earlier one"
            raise UserError(f"{place}: evaluate.drift: along", problem, "take new or general")
        self.reference_labels = schema.references
        self.relearning_labels = schema.relearning
        if schema.relearning and self.checkpoints.keep == "none":
            raise UserError(
                f"{place}: relearning",
                "goes on from the last weights, and checkpoints.keep is none",
                "keep the `last`",
            )
        self.judge_section: dict[str, Any] = schema.judge
        self.retention_section: str | list[Any] | None = schema.retention

    @property
    def orders(self) -> dict[str, list[str]]:
        """{name: skills} of the sequences that are kept; {} where the order has one."""
        named = {name: numbers for name, numbers in self.sequences.items() if name}
        return {name: [self.skill_specs[n - 1].name for n in of] for name, of in named.items()}

    @property
    def pass_at_k(self) -> PassAtK | None:
        """The section ``evaluate.pass_at_k``, if there is one."""
        return cast(PassAtK | None, self.evaluate.pass_at_k)  # a mapping until it is checked

    @property
    def kl(self) -> KL | None:
        """The section ``evaluate.kl``, if there is one."""
        return cast(KL | None, self.evaluate.kl)

    @property
    def drift(self) -> Drift | None:
        """The section ``evaluate.drift``, if there is one."""
        return cast(Drift | None, self.evaluate.drift)

    @property
    def drifts(self) -> list[str]:
        """The kinds of skills' prompts on which the drift is measured: ``new``, ``old``."""
        return [kind for kind in (self.drift.along if self.drift else []) if kind != "general"]

    def beside(self, name: str) -> Path:
        """A path beside the order file; one from the current folder if there is none."""
        path = Path(os.path.expanduser(name))
        beside = self.path.parent / path
        return path if path.exists() and not beside.exists() else beside


def known_experiments() -> list[str]:
    """Names of the experiments that benchmarks/*/experiments.yaml list."""
    files = sorted((ROOT / "benchmarks").glob("*/experiments.yaml"))
    return [name for file in files for name in read_yaml(file, "its keys are experiments")]


def names_folder(text: str) -> bool:
    """Whether a folder may have this name, also with a seed behind it."""
    return bool(re.fullmatch(r"[A-Za-z0-9._-]{1,200}", text)) and bool(text.strip("."))


def is_plain(name: str) -> bool:
    """Whether tables, pictures, pages and spreadsheets show this name as it is.

    Not where it has line breaks or other letters without a shape, math (``$``, a backslash), HTML,
    a formula's first letter, or no letter and no digit.
    """
    return bool(
        len(name) <= LONGEST_NAME
        and name.isprintable()
        and name == name.strip()
        and any(letter.isalnum() for letter in name)
        and not re.search(r"^[=+@-]|[$\\<>`|]|&#?\w+;", name)
    )


def check_plain(name: str, place: str) -> None:
    """Raises UserError at ``place`` for a name that ``is_plain`` refuses."""
    if not is_plain(name):
        raise UserError(place, f"{name[:80]!r} is no name to show", PLAIN_NAMES)


def _named(entry: object) -> object:
    """An entry that is a name alone, as a mapping."""
    return {"name": entry} if isinstance(entry, str) else entry


def _with_texts(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping whose dates are texts, which YAML makes of 2024-07-26."""
    return {
        key: str(value) if isinstance(value, datetime.date) else value
        for key, value in mapping.items()
    }


def _by_label(
    mapping: Mapping[Any, Any], place: str, remedy: str = "choose another label"
) -> dict[str, Any]:
    """A mapping whose keys are texts: YAML reads a label such as 1 as a number.

    Raises UserError for two labels that are one folder on some file systems.
    """
    labels: dict[str, str] = {}
    for label in map(str, mapping):
        if spelling(label) in labels:
            raise UserError(
                f"{place}.{label}",
                f"{label!r} and {labels[spelling(label)]!r} are one folder on some file systems",
                remedy,
            )
        labels[spelling(label)] = label
    return {str(label): value for label, value in mapping.items()}


def _experiments(names: str | list[str], place: str) -> list[str]:
    names = [names] if isinstance(names, str) else names
    check(names, {"choices": known_experiments()}, place)
    return names


def _evaluate_section(schema: Schema, place: str) -> Evaluate:
    evaluate: Evaluate = build(Evaluate, schema.evaluate, f"{place}: evaluate")
    for key, kind in (("pass_at_k", PassAtK), ("kl", KL), ("drift", Drift)):
        section = getattr(evaluate, key)
        if section is not None:
            setattr(evaluate, key, build(kind, section, f"{place}: evaluate.{key}"))
    if schema.grid and evaluate.split != "test":
        raise UserError(
            f"{place}: grid",
            f"selects on the validation split, and evaluate.split is {evaluate.split}",
            "leave evaluate.split at test: the selected run's test result is reported",
        )
    return evaluate


def _seeds(seeds: list[int], place: str) -> list[int]:
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(place, "must be one or more different whole numbers")
    return seeds


def _skill_specs(entries: list[Any], place: str) -> list[SkillSpec]:
    specs: list[SkillSpec] = []
    for i, entry in enumerate(entries):
        spec: SkillSpec = build(SkillSpec, _named(entry), f"{place}[{i}]")
        check_plain(spec.name, f"{place}[{i}]: name")
        for other in specs:
            if spelling(spec.name) == spelling(other.name):
                raise UserError(
                    f"{place}[{i}]",
                    f"skill {spec.name!r} stands twice"
                    + (f", also as {other.name!r}" if spec.name != other.name else ""),
                    "a skill is learned once in an order",
                )
        specs.append(spec)
    if not specs:
        raise UserError(place, "is empty", "name at least one skill")
    return specs


def _data(folders: Mapping[Any, Any], place: str) -> dict[str, str]:
    for suite, folder in folders.items():
        if not isinstance(folder, str) or not folder:
            remedy = "give the path of a folder or of a zip file"
            raise UserError(f"{place}.{suite}", f"is {shortened(repr(folder), 80)}", remedy)
    return {str(suite): folder for suite, folder in folders.items()}


def _sequences(entry: Any, skills: list[str], place: str) -> dict[str, tuple[int, ...]]:
    """{name: numbers of the skills}; {"": all in the order of the file} without an entry."""
    if entry is None:
        return {"": tuple(range(1, len(skills) + 1))}
    if len(skills) < 2:
        raise UserError(place, "there is one skill, which has one sequence", "leave `orders` out")
    if isinstance(entry, str):
        if entry != LATIN_SQUARE:
            problem = f"{shortened(repr(entry), 80)} is no design"
            raise UserError(place, problem, f"write {LATIN_SQUARE}, or sequences of the skills")
        return {str(k): row for k, row in enumerate(latin_square(len(skills)), 1)}
    named = entry if isinstance(entry, dict) else dict(enumerate(entry, 1))
    if len(named) < 2:
        remedy = "name two or more, or write `skills` in that sequence and leave `orders` out"
        raise UserError(place, f"has {['no', 'one'][len(named)]} sequence", remedy)
    sequences: dict[str, tuple[int, ...]] = {}
    for name, listed in _by_label(named, place, "choose another name").items():
        own = f"{place}.{shortened(name, 80)}" if isinstance(entry, dict) else f"{place}[{name}]"
        if not names_folder(name) or len(name) > LONGEST_SEQUENCE:
            problem = f"{shortened(repr(name), 80)} is no name of a folder"
            remedy = f"use letters, digits, - and _, at most {LONGEST_SEQUENCE}"
            raise UserError(own, problem, remedy)
        numbers = _numbers(listed, skills, own)
        for other, before in sequences.items():
            if numbers == before:
                raise UserError(own, f"is the same sequence as {other}", "leave one out")
        sequences[name] = numbers
    return sequences


def _numbers(listed: Any, skills: list[str], place: str) -> tuple[int, ...]:
    """The numbers of the skills that a sequence lists. Raises UserError unless it has each once."""
    if not isinstance(listed, list):
        problem = f"must be a list of skills, not {shortened(repr(listed), 80)}"
        raise UserError(place, problem, "as [" + ", ".join(skills)[:60] + "]")
    names = list(map(str, listed))
    for name in names:
        if name not in skills:
            problem = f"there is no skill {shortened(repr(name), 80)}"
            raise UserError(place, problem, did_you_mean(name, skills))
        if names.count(name) > 1:
            raise UserError(place, f"{name[:80]!r} stands twice", "a skill is learned once")
    if absent := [name for name in skills if name not in names]:
        problem = f"{absent[0][:80]!r} is not in it"
        raise UserError(place, problem, "a sequence has every skill of `skills` once")
    return tuple(skills.index(name) + 1 for name in names)


def _method_options(methods: Mapping[Any, Any], place: str) -> dict[str, dict[str, Any]]:
    """{label: hyperparameters}, {} where the file gives none."""
    by_label = _by_label(methods, place)
    for label, options in by_label.items():
        if not names_folder(label):
            raise UserError(f"{place}.{label}", f"{label!r} is no label", NAMES)
        if spelling(label) in SERIES:
            raise UserError(
                f"{place}.{label}",
                f"{label!r} is what the report calls a row of its own",
                "choose another label, and name the `method`",
            )
        if not isinstance(options, dict | None):
            raise UserError(
                f"{place}.{label}", f"must be a mapping of hyperparameters, not {options!r}"
            )
    if not methods:
        raise UserError(place, "is empty", "name at least one method")
    return {label: dict(options or {}) for label, options in by_label.items()}
