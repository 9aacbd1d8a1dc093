"""The task-order file: schema, validation before anything loads, expansion into runs. docs/order.md
explains every key.
"""

import hashlib
import itertools
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from harness.base.errors import UserError, did_you_mean
from harness.base.files import ROOT
from harness.base.seeds import seed_for
from harness.base.settings import build, check
from harness.evaluation.endpoint import endpoint_config
from harness.evaluation.protocol import scorer_hash
from harness.evaluation.settings import KL, Evaluate, PassAtK
from harness.learning.method import get_method
from harness.learning.trainer import TrainingConfig
from harness.models.chat import chat_tokens
from harness.models.load import check_device, check_name, resolve_device, resolve_dtype
from harness.results.formats import VERSION
from harness.runs.schema import Budget, Checkpoints, ModelSpec, Schema, SkillSpec
from harness.sampling.settings import REMEDY, Rollout, VLLMConfig, version
from harness.skills.files import FileSkill
from harness.skills.registry import get_skill
from harness.skills.skill import examples_fingerprint
from harness.skills.templates import TEACHER_TEMPLATES


@dataclass
class MethodSpec:
    """One label of the order: which method, with which hyperparameters. A point of a grid knows the
    label whose grid it is of, and the values that are its own.
    """

    label: str
    method: str
    cls: type
    config: object
    written: dict  # {hyperparameter: path as the order has it}
    # {what: checksum} of the method's own file and of those that its hyperparameters name
    files: dict
    grid_of: str | None = None
    values: dict | None = None


@dataclass(frozen=True)
class Run:
    """One method x seed through the whole order."""

    label: str
    seed: int

    @property
    def name(self):
        return f"{self.label}-seed{self.seed}"


class Order:
    """A validated order. Attributes follow the schema; ``skills`` are Skill instances, ``methods``
    MethodSpecs by label.

    ``listed`` are the methods of results.json: with --method also the other points of a grid, which
    selects among them all.
    """

    def __init__(self, mapping, path):
        path = Path(path)
        place = str(path)
        schema = build(Schema, mapping, place)
        self.path, self.description = path, schema.description
        self.experiment = (
            [schema.experiment] if isinstance(schema.experiment, str) else schema.experiment
        )
        check(self.experiment, {"choices": known_experiments()}, f"{place}: experiment")
        self.name = schema.name or path.stem
        if not _names_folder(self.name):
            raise UserError(f"{place}: name", f"{self.name!r} is no folder name", NAMES)
        self.model = build(
            ModelSpec,
            {"name": schema.model} if isinstance(schema.model, str) else schema.model,
            f"{place}: model",
        )
        check_name(self.model.name, f"{place}: model")
        check_device(self.model.device, f"{place}: model: device")
        self.budget = build(Budget, schema.budget, f"{place}: budget")
        self.rollout = build(Rollout, schema.rollout, f"{place}: rollout")
        self.evaluate = build(Evaluate, schema.evaluate, f"{place}: evaluate")
        for key, kind in (("pass_at_k", PassAtK), ("kl", KL)):
            if (given := getattr(self.evaluate, key)) is not None:
                setattr(self.evaluate, key, build(kind, given, f"{place}: evaluate.{key}"))
        if schema.grid and self.evaluate.split != "test":
            raise UserError(
                f"{place}: grid",
                f"selects on the validation split, and evaluate.split is {self.evaluate.split}",
                "leave evaluate.split at test: the selected run's test result is reported",
            )
        self.selects = bool(schema.grid)
        self.vllm = build(VLLMConfig, schema.vllm, f"{place}: vllm")
        self._check_engines(place)
        self.checkpoints = build(Checkpoints, schema.checkpoints, f"{place}: checkpoints")
        if len(set(schema.seeds)) != len(schema.seeds) or not schema.seeds:
            raise UserError(f"{place}: seeds", "must be one or more different whole numbers")
        self.seeds = schema.seeds
        self.skills, self.specs = [], {}
        for i, entry in enumerate(schema.skills):
            self._add_skill(entry, f"{place}: skills[{i}]")
        if not self.skills:
            raise UserError(f"{place}: skills", "is empty", "name at least one skill")
        self.methods = {}
        for label, options in schema.methods.items():
            self.methods[str(label)] = self._method(
                str(label), options, f"{place}: methods.{label}"
            )
        if not self.methods:
            raise UserError(f"{place}: methods", "is empty", "name at least one method")
        for label, values in schema.grid.items():
            self._add_grid(str(label), values, schema.methods, f"{place}: grid.{label}")
        self.listed = self.methods
        judged = schema.judge or any(s.judge for s in self.skills)
        self.judge = endpoint_config(schema.judge, f"{place}: judge") if judged else None
        self.suite = None
        if schema.retention is not None:
            from harness.evaluation.suite import load_suite

            for entry in schema.retention if isinstance(schema.retention, list) else ():
                for key, value in entry.items() if isinstance(entry, dict) else ():
                    check(value, {}, f"{place}: retention: {key}")
            self.suite = load_suite(schema.retention, f"{place}: retention")

    def _check_engines(self, place):
        for section, asked in (("rollout", self.rollout), ("evaluate", self.evaluate)):
            if asked.engine == "vllm" and version() is None:
                raise UserError(f"{place}: {section}.engine", "vLLM is not installed", REMEDY)
        if (
            self.rollout.engine == "vllm"
            and self.rollout.top_p < 1
            and self.rollout.temperature != 1
        ):
            raise UserError(
                f"{place}: rollout.engine",
                "vLLM does not tell what a token's probability at another temperature than 1 "
                "was before top-p, which importance weights need",
                "set rollout.top_p or rollout.temperature to 1",
            )

    def _add_skill(self, entry, place):
        from harness.skills.rubrics import RUBRICS

        spec = build(SkillSpec, {"name": entry} if isinstance(entry, str) else entry, place)
        files = {
            s: str(self._beside(f))
            for s in ("train", "validation", "test")
            if (f := getattr(spec, s))
        }
        options = {
            k: v for k in ("path", "source", "holdout") if (v := getattr(spec, k)) is not None
        }
        if "path" in options:
            options["path"] = str(self._beside(spec.path))
        if spec.name in self.specs:
            raise UserError(
                place, f"skill {spec.name!r} stands twice", "a skill is learned once in an order"
            )
        for split, file in files.items():
            if not Path(file).is_file():
                raise UserError(
                    f"{place}: {split}", f"{file} is not a file", "give the path of a JSONL file"
                )
        if files:
            for wanted in sorted(self._needed() - set(files)):
                raise UserError(f"{place}: {wanted}", "is missing", "give the path of a JSONL file")
            for key in options:
                raise UserError(
                    f"{place}: {key}",
                    "goes with a skill of benchmarks/skills",
                    "leave it out, or `train` and `test`",
                )
            if not spec.grader:
                raise UserError(
                    f"{place}: grader", "is missing", "name one of harness/skills/graders.py"
                )
            skill = FileSkill(spec.name, files, spec.grader, f"{place}: grader")
        elif spec.grader:
            raise UserError(
                f"{place}: grader",
                "goes with a skill of your own",
                "give `train` and `test`, or leave it out",
            )
        else:
            skill = get_skill(spec.name, f"{place}: name", **options)
        if spec.judge is not None:
            skill.judge = spec.judge
        if skill.judge is not None and skill.judge not in RUBRICS:
            raise UserError(
                f"{place}: judge",
                f"unknown rubric {skill.judge!r}",
                did_you_mean(skill.judge, RUBRICS),
            )
        template = spec.teacher_template
        if isinstance(template, str) and template not in TEACHER_TEMPLATES:
            raise UserError(
                f"{place}: teacher_template",
                f"unknown template {template!r}",
                did_you_mean(template, TEACHER_TEMPLATES),
            )
        if isinstance(template, list) and not (
            template
            and all(
                isinstance(t, dict)
                and set(t) == {"role", "content"}
                and all(isinstance(v, str) for v in t.values())
                for t in template
            )
        ):
            raise UserError(
                f"{place}: teacher_template", "must be messages with `role` and `content`"
            )
        for split in sorted(self._needed()):  # wrong rows are found now, not after an hour
            skill.examples(split)
        self.skills.append(skill)
        self.specs[spec.name] = spec
        for example in skill.examples(self.teacher_split(skill)) if self.evaluate.teacher else ():
            skill.teacher_prompt(example, self.template(skill))
        for split in self.reported(skill) if self.evaluate.oracle else ():
            if lacking := next((e for e in skill.examples(split) if not e.source), None):
                raise UserError(
                    f"skill {skill.name}, split {split}",
                    f"example {lacking.id} has no source, and `evaluate.oracle` shows it",
                    "give every question the text that answers it, or leave `oracle` out",
                )

    def _needed(self):
        """The splits that every skill must have."""
        return {"train", self.evaluate.split} | ({"validation"} if self.selects else set())

    def _method(self, label, options, place):
        if not _names_folder(label):
            raise UserError(place, f"{label!r} is no label", NAMES)
        if label in SERIES:
            raise UserError(
                place,
                f"{label!r} is what the report calls a row of its own",
                "choose another label, and name the `method`",
            )
        if not isinstance(options, dict | None):
            raise UserError(place, f"must be a mapping of hyperparameters, not {options!r}")
        options = dict(options or {})
        file = options.pop("file", None)
        name = options.pop("method", None) or label
        code = None if file is None else self._beside(str(file))
        cls = get_method(str(name), code, place)
        config = build(cls.Config, options, place)
        written, files = {}, {} if code is None else {"file": _checksum(code)}
        for field in fields(config):
            if field.metadata.get("path") and (given := getattr(config, field.name)) is not None:
                path = self._beside(given)
                if not path.is_file():
                    raise UserError(
                        f"{place}: {field.name}", f"{given} is not a file", field.metadata["help"]
                    )
                setattr(config, field.name, str(path))
                written[field.name], files[field.name] = given, _checksum(path)
        method = cls(config)
        for skill in self.skills:
            for need in method.needs:
                missing = next(
                    (e for e in skill.examples("train") if getattr(e, need) is None), None
                )
                if missing:
                    raise UserError(
                        place,
                        f"{name} needs {need}s; skill {skill.name}, example {missing.id} has none",
                    )
        method.check(self, place)
        return MethodSpec(label, str(file or name), cls, config, written, files)

    def _add_grid(self, label, values, methods, place):
        """Put a method for every combination of ``values`` ({hyperparameter: list}) in the place of
        the method ``label``.
        """
        if label not in self.methods:
            raise UserError(
                place, f"there is no method {label!r}", did_you_mean(label, self.methods)
            )
        if not isinstance(values, dict) or not values:
            raise UserError(place, "must be a mapping from hyperparameters to lists of values")
        known = [f.name for f in fields(self.methods[label].config)]
        for name, each in values.items():
            if name not in known:
                raise UserError(f"{place}: {name}", "unknown key", did_you_mean(name, known))
            if not isinstance(each, list) or not each:
                raise UserError(f"{place}: {name}", "must be a list of values", "as [1e-5, 5e-5]")
        given = next(options for key, options in methods.items() if str(key) == label) or {}
        del self.methods[label]

        def short(value):  # epochs: 1 and 1.0 are the same value
            return int(value) if isinstance(value, float) and value.is_integer() else value

        for combination in itertools.product(*values.values()):
            spec = self._method(label, {**given, **dict(zip(values, combination))}, place)
            spec.grid_of, spec.values = label, {name: getattr(spec.config, name) for name in values}
            spec.label = ".".join(
                [label, *(f"{name}-{short(value)}" for name, value in spec.values.items())]
            )
            spec.label = re.sub(r"[^A-Za-z0-9._-]", "_", spec.label)
            if not _names_folder(spec.label):
                raise UserError(
                    place,
                    f"{spec.label!r} is too long for a label",
                    "take fewer hyperparameters, or a shorter label",
                )
            if spec.label in self.methods:
                raise UserError(place, f"{spec.label} stands twice", "give different values")
            self.methods[spec.label] = spec

    def _beside(self, name):
        """A path beside the order file; one from the current folder if there is none."""
        given = Path(os.path.expanduser(name))
        beside = self.path.parent / given
        return given if given.exists() and not beside.exists() else beside

    def check_prompts(self, tokenizer):
        """What only a tokenizer can tell. Raises UserError if its chat template refuses a prompt
        (one of each sequence of roles is tried), or if ``rollout.max_prompt_tokens`` leaves a skill
        no training example.
        """
        for skill in self.skills:
            for split in dict.fromkeys(["train", *self.splits(skill)]):
                for prompt in {
                    tuple(m["role"] for m in e.prompt): e.prompt for e in skill.examples(split)
                }.values():
                    chat_tokens(tokenizer, prompt, f"skill {skill.name}, split {split}")
            limit = self.rollout.max_prompt_tokens
            if limit and not any(
                len(chat_tokens(tokenizer, e.prompt)) <= limit for e in skill.examples("train")
            ):
                raise UserError(
                    f"skill {skill.name}",
                    f"no training example has a prompt of at most {limit} tokens",
                    "raise rollout.max_prompt_tokens",
                )

    # ---- what follows from it ------------------------------------------------------------------------------------

    def runs(self):
        return [Run(label, seed) for seed in self.seeds for label in self.methods]

    def prompts(self, skill, config: TrainingConfig | None = None):
        """Prompts drawn for ``skill``, by a method with ``config``: its own epochs, or the skill's
        or the order's budget.
        """
        epochs = config.epochs if config else None
        if not epochs:
            if own := self.specs[skill.name].prompts or self.budget.prompts:
                return own
            epochs = self.budget.epochs
        return max(1, round(epochs * len(skill.examples("train"))))

    def batch_size(self, config: TrainingConfig):
        return config.batch_size or self.budget.batch_size

    def limit(self, skill, rollout=False):
        """New tokens of an answer of ``skill``, at evaluation or in a rollout."""
        section = self.rollout if rollout else self.evaluate
        return (
            section.max_new_tokens or self.specs[skill.name].max_new_tokens or skill.max_new_tokens
        )

    def template(self, skill):
        return self.specs[skill.name].teacher_template

    def reported(self, skill):
        """The splits that numbers are quoted of: the one that counts, and the skill's further ones
        (as ``ood``) beside the test.
        """
        further = [s for s in skill.splits if s not in ("train", "validation", "test")]
        return [self.evaluate.split] + (further if self.evaluate.split == "test" else [])

    def splits(self, skill):
        """The splits that are evaluated: those reported, and the validation split where a grid
        selects by it.
        """
        return self.reported(skill) + ["validation"] * self.selects

    def _measured(self, skill):
        """All splits from which a number comes: those evaluated, and the one of the
        demonstration-conditioned teacher.
        """
        return dict.fromkeys(
            [*self.splits(skill), *([self.teacher_split(skill)] if self.evaluate.teacher else [])]
        )

    def evaluated(self, number, final=True):
        """The skills that are evaluated in stage ``number`` (0 = base model), at its end or inside
        it; see ``evaluate.skills``.
        """
        if self.evaluate.skills == "all" or number == 0 or (final and number == len(self.skills)):
            return self.skills
        if self.evaluate.skills == "seen" or number == 1:
            return self.skills[:number]
        # the same for all methods and seeds
        earlier = seed_for("evaluated skills", number) % (number - 1)
        return [self.skills[earlier], self.skills[number - 1]]

    def teacher_split(self, skill):
        """Where the demonstration-conditioned teacher is measured: the first of validation and
        train whose examples all have demonstrations. Raises UserError if there is none.
        """
        for split in ("validation", "train"):
            if split in skill.splits and all(
                e.demonstration is not None for e in skill.examples(split)
            ):
                return split
        raise UserError(
            f"skill {skill.name}", "no split has demonstrations", "self-distillation needs them"
        )

    def dtype(self):
        """What the model computes in on this machine, a torch dtype."""
        return resolve_dtype(self.model.dtype, resolve_device(self.model.device))

    def about(self):
        """What results.json holds; see docs/results.md."""
        return {
            "version": VERSION,
            "name": self.name,
            "description": self.description,
            "experiment": self.experiment,
            "model": {**asdict(self.model), "dtype": str(self.dtype()).removeprefix("torch.")},
            "skills": [
                {
                    "name": s.name,
                    "description": s.description,
                    "metric": s.metric,
                    "splits": self.splits(s),
                    "prompts": self.prompts(s),
                    "max_new_tokens": self.limit(s),
                    "teacher_template": self.template(s) or s.teacher_template,
                    "train": examples_fingerprint(s.examples("train"))[:12],
                    "evaluated": {
                        split: examples_fingerprint(s.examples(split))[:12]
                        for split in self._measured(s)
                    },
                    "graders": {name: scorer_hash(f) for name, f in s.metrics.items()},
                    **_judge_of(s),
                }
                for s in self.skills
            ],
            "retention": [] if self.suite is None else self.suite.summary(),
            "methods": {
                label: {
                    "method": m.method,
                    "config": {**asdict(m.config), **m.written},
                    **({"files": m.files} if m.files else {}),
                    **({"grid": {"of": m.grid_of, "values": m.values}} if m.grid_of else {}),
                }
                for label, m in self.listed.items()
            },
            "seeds": self.seeds,
            "evaluate": _asked(
                self.evaluate,
                without=("batch_size",),
                unless_set=("engine", "pass_at_k", "kl", "teacher", "oracle"),
            ),
            "budget": asdict(self.budget),
            "rollout": _asked(self.rollout, unless_set=("engine", "max_prompt_tokens")),
        }


NAMES = "use letters, digits, - and _, at most 200"
SERIES = ("base", "teacher", "oracle_rag")  # of the report, beside the methods


def known_experiments():
    """Names that the benchmarks draw something for: those of every benchmarks/*/experiments.yaml."""
    files = sorted((ROOT / "benchmarks").glob("*/experiments.yaml"))
    return [name for file in files for name in yaml.safe_load(file.read_text(encoding="utf-8"))]


def _checksum(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def _names_folder(text):
    """Whether a folder may be called so, also with a seed behind it."""
    return bool(re.fullmatch(r"[A-Za-z0-9._-]{1,200}", text)) and bool(text.strip("."))


def _asked(section, without=(), unless_set=()):
    """A section of the order as results.json holds it; what is optional stands there only where it
    is asked for.
    """
    default = {f.name: f.default for f in fields(section)}
    return {
        k: v
        for k, v in asdict(section).items()
        if k not in without and (v != default[k] or k not in unless_set)
    }


def _judge_of(skill):
    """For results.json: by what a skill's answers are judged, and under which metrics; nothing for
    a skill that is not.
    """
    from harness.skills.rubrics import RUBRICS

    return (
        {"judge": {"rubric": skill.judge, "metrics": list(RUBRICS[skill.judge].metrics)}}
        if skill.judge
        else {}
    )
