"""The task-order file: validated whole before anything loads, and what follows from it.

docs/reference/order.md explains every key. harness.runs.sections reads the sections without
PyTorch; here their names become skills, methods and a retention suite.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.base.settings import check
from harness.evaluation.endpoint import EndpointConfig, endpoint_config
from harness.evaluation.protocol import scorer_hash
from harness.evaluation.skills import sample_of
from harness.evaluation.suite import Suite, load_suite
from harness.learning.fused import check_fused
from harness.learning.options import TrainingConfig
from harness.models.chat import chat_tokens
from harness.models.flex import FLEX, check_flex
from harness.models.load import (
    check_device,
    check_name,
    prepare_device,
    resolve_device,
    resolve_dtype,
)
from harness.models.memory import let_segments_grow
from harness.models.products import Products
from harness.results.formats import VERSION
from harness.results.overlap import Overlap
from harness.runs.about import about_method, about_section
from harness.runs.grid import check_effects, expand_grid
from harness.runs.methods import MethodSpec, build_method
from harness.runs.prompts import live_turns, try_template
from harness.runs.reading import Changes, keep, naming_keys, read_source
from harness.runs.references import Run, check_followed, check_references, no_short_prompt, runs
from harness.runs.schema import ChatTemplate
from harness.runs.sections import Sections, check_plain
from harness.runs.skills import SPLITS, build_skill, check_data
from harness.sampling.rows import usual_rows
from harness.sampling.settings import MOST_PROMPTS, REMEDY, version
from harness.sampling.vllm_setup import prepare_invariant
from harness.skills.overlap import find_overlaps
from harness.skills.rubrics import JUDGES
from harness.skills.skill import Skill, examples_fingerprint
from harness.skills.templates import ORACLE_TEMPLATE

# Keys of the section ``model`` that results.json has only where they are not their defaults.
OF_MODEL = ("deterministic", "template", "decode", "fused_losses", "attention")


class Order(Sections):
    """A validated order: the sections, and the skills and methods that they name.

    skills: Skill instances; specs: their entries by name; methods: MethodSpecs by label; listed:
    the methods of results.json, with --method also the other points of a grid, which selects among
    them all; all_methods: those of the file, whatever --method says; references,
    relearning: labels of methods that have such runs; judge, suite: None where the order has none.
    """

    # How a CPU computes the model, once that is measured or read from the folder.
    products: Products | None = None

    @naming_keys
    def __init__(
        self,
        source: object,
        path: str | Path | None = None,
        *,
        changes: Changes = (),
        methods: Sequence[str] = (),
        seeds: Sequence[int] = (),
        sequences: Sequence[str] = (),
    ) -> None:
        """An order from a file, or from a mapping with its keys.

        path: where a mapping comes from: files that it names are looked up beside it, else in the
        current folder. changes: {key.key: value}, or texts ``key.key=value`` as for --set; methods,
        seeds, sequences: keep only these. Raises UserError naming the place and what would be right
        there.
        """
        super().__init__(*read_source(source, path, changes))
        check_name(self.model.name, f"{self.place}: model", self.model.revision)
        check_device(self.model.device, f"{self.place}: model: device")
        self._prepare_gpu()
        if self.model.fused_losses:
            check_fused(resolve_device(self.model.device), f"{self.place}: model: fused_losses")
        if self.model.attention == FLEX:
            check_flex(resolve_device(self.model.device), f"{self.place}: model: attention")
        self._check_engines()
        check_data(self.data, f"{self.place}: data")
        self.specs = {spec.name: spec for spec in self.skill_specs}
        self.skills = [
            self._skill(name, f"{self.place}: skills[{i}]") for i, name in enumerate(self.specs)
        ]
        self.methods = self._methods()
        self.listed = self.all_methods = self.methods
        self.references, self.relearning = (
            check_references(labels, self.methods, self.grid, self.sequences, self.place, key)
            for key, labels in (
                ("references", self.reference_labels),
                ("relearning", self.relearning_labels),
            )
        )
        check_followed(self)
        self._check_sizes()
        self.judge = self._judge()
        self.suite = self._suite()
        keep(self, methods, seeds, sequences)

    # ---- the parts -----------------------------------------------------------------------------

    def _prepare_gpu(self) -> None:
        """What PyTorch reads once: at its first look at a GPU, and before its first product there.

        An order's dtype and times of its steps ask for the GPU before a model is loaded.
        """
        device = resolve_device(self.model.device)
        if torch.device(device).type == "cpu":
            return
        let_segments_grow()
        if "vllm" in (self.rollout.engine, self.evaluate.engine):
            prepare_invariant(device, self.model.deterministic)
        prepare_device(device)

    def _check_engines(self) -> None:
        engines = {"rollout": self.rollout.engine, "evaluate": self.evaluate.engine}
        asking = [section for section, engine in engines.items() if engine == "vllm"]
        if asking and version() is None:
            others = " ".join(f"{section}.engine=transformers" for section in asking)
            remedy = f"{REMEDY}; or --set {others}"
            raise UserError(f"{self.place}: {asking[0]}.engine", "vLLM is not installed", remedy)
        rollout = self.rollout
        if rollout.engine == "vllm" and rollout.top_p < 1 and rollout.temperature != 1:
            raise UserError(
                f"{self.place}: rollout.engine",
                "vLLM does not tell what a token's probability at another temperature than 1 "
                "was before top-p, which importance weights need",
                "set rollout.top_p or rollout.temperature to 1",
            )

    def _skill(self, name: str, place: str) -> Skill:
        validation = self.selects or self.relearning_labels
        needed = {"train", self.evaluate.split} | ({"validation"} if validation else set())
        skill = build_skill(self.specs[name], place, needed, self.beside, self.data)
        if self.evaluate.teacher:
            for example in skill.examples(self.teacher_split(skill)):
                skill.teacher_prompt(example, self.template(skill))
        if self.evaluate.oracle:
            self._check_sources(skill)
        return skill

    def _check_sources(self, skill: Skill) -> None:
        for split in self.reported(skill):
            for example in skill.examples(split):
                if not example.source:
                    raise UserError(
                        f"skill {skill.name}, split {split}",
                        f"example {example.id} has no source, and `evaluate.oracle` shows it",
                        "give every question the text that answers it, or leave `oracle` out",
                    )

    def _methods(self) -> dict[str, MethodSpec]:
        """The methods by label, with the points of a grid in the place of its label."""
        methods = {
            label: self._method(label, options, f"{self.place}: methods.{label}")
            for label, options in self.method_options.items()
        }
        for label, spec in methods.items():
            if label not in self.grid:
                spec.check_effects()
        for label, values in self.grid.items():
            place = f"{self.place}: grid.{label}"
            options = self.method_options.get(label, {})
            methods = expand_grid(methods, label, values, options, self._method, place)
            check_effects([spec for spec in methods.values() if spec.grid_of == label])
        return methods

    def _method(self, label: str, options: Mapping[str, Any], place: str) -> MethodSpec:
        spec = build_method(label, options, place, self.skills, self.beside)
        spec.check(self)
        return spec

    def _check_sizes(self) -> None:
        """Raises UserError for more draws or answers than anybody waits for."""
        for label, spec in self.methods.items():
            for skill in self.skills:
                drawn = sum(spec.phases(self.prompts(skill, spec.config)))
                place = f"{self.place}: methods.{label}"
                _check_size(drawn, f"draws {drawn:,} prompts of skill {skill.name}", place)
        if self.pass_at_k is None:
            return
        for skill in self.skills:
            rows = len(sample_of(skill.examples(self.evaluate.split), self.pass_at_k.prompts))
            answers = rows * self.pass_at_k.samples
            place = f"{self.place}: evaluate.pass_at_k"
            _check_size(answers, f"samples {answers:,} answers of skill {skill.name}", place)

    def _judge(self) -> EndpointConfig | None:
        if not self.judge_section and not any(skill.judge for skill in self.skills):
            return None
        return endpoint_config(self.judge_section, f"{self.place}: judge")

    def _suite(self) -> Suite | None:
        entries = self.retention_section
        if entries is None:
            return None
        place = f"{self.place}: retention"
        for entry in entries if isinstance(entries, list) else ():
            for key, value in entry.items() if isinstance(entry, dict) else ():
                check(value, {}, f"{place}: {key}")
        suite = load_suite(entries, place)
        suite.data = {name: str(self.beside(path)) for name, path in self.data.items()}
        for task in suite.tasks:
            check_plain(task.task, place)
        return suite

    def check_prompts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Check what only a tokenizer can tell; returns what a user should know, in lines.

        Raises UserError if its chat template refuses a prompt (one of each sequence of roles is
        tried) or reads no such argument, or if ``rollout.max_prompt_tokens`` leaves a skill no
        training example.
        """
        template = tokenizer.get_chat_template()
        student, teacher, evaluate = map(
            self.chat_template.inputs, ("student", "teacher", "evaluate")
        )
        for chat in (student, teacher, evaluate):
            chat.check(template, f"{self.place}: chat_template")
        notes: list[str] = []
        for skill in self.skills:
            place = f"skill {skill.name}"
            train = [example.prompt for example in skill.examples("train")]
            try_template(tokenizer, train, f"{place}, split train", student)
            for split in self.splits(skill):
                prompts = [example.prompt for example in skill.examples(split)]
                try_template(tokenizer, prompts, f"{place}, split {split}", evaluate)
            self._try_shown(tokenizer, skill)
            limit = self.rollout.max_prompt_tokens
            if limit and not any(
                len(chat_tokens(tokenizer, prompt, inputs=student)) <= limit for prompt in train
            ):
                raise no_short_prompt(skill, limit)
            notes += [*live_turns(tokenizer, skill, student), *skill.notes()]
        for label, spec in self.methods.items():
            messages = spec.conversations(self)
            for chat in (student, teacher):
                try_template(tokenizer, messages, f"{self.place}: methods.{label}", chat)
            notes += [f"methods.{label}: {note}" for note in spec.ask("notes")]
        return notes

    def _try_shown(self, tokenizer: PreTrainedTokenizerBase, skill: Skill) -> None:
        """Try the prompts of a measured teacher and of oracle retrieval on the chat template."""
        place = f"skill {skill.name}"
        if self.evaluate.teacher:
            examples = skill.examples(self.teacher_split(skill))
            shown = [skill.teacher_prompt(e, self.template(skill)) for e in examples]
            chat = self.chat_template.inputs("teacher")
            try_template(tokenizer, shown, f"{place}: teacher_template", chat)
        if self.evaluate.oracle:
            examples = [e for split in self.reported(skill) for e in skill.examples(split)]
            shown = [skill.teacher_prompt(e, ORACLE_TEMPLATE) for e in examples]
            chat = self.chat_template.inputs("evaluate")
            try_template(tokenizer, shown, f"{place}: oracle", chat)

    # ---- what follows from it ------------------------------------------------------------------

    def runs(self) -> list[Run]:
        """Every method x seed x sequence, as they run; references come last."""
        return runs(self)

    def prompts(self, skill: Skill, config: TrainingConfig | None = None) -> int:
        """Prompts drawn for ``skill`` by a method with ``config``.

        From the method's own epochs, the skill's budget or the order's, whichever comes first.
        """
        epochs = config.epochs if config else None
        if not epochs:
            prompts = self.specs[skill.name].prompts or self.budget.prompts
            if prompts:
                return prompts
            epochs = self.budget.epochs
        assert epochs is not None  # the budget has exactly one of the two
        return max(1, round(epochs * len(skill.examples("train"))))

    def batch_size(self, config: TrainingConfig) -> int:
        """Prompts of an optimizer step."""
        return config.batch_size or self.budget.batch_size

    def limit(self, skill: Skill, rollout: bool = False) -> int:
        """New tokens of an answer of ``skill``, at evaluation or in a rollout."""
        section = self.rollout if rollout else self.evaluate
        own = self.specs[skill.name].max_new_tokens
        return section.max_new_tokens or own or skill.max_new_tokens

    def template(self, skill: Skill) -> str | list[dict[str, str]] | None:
        """The teacher template that the order gives the skill; None leaves the skill's own."""
        return self.specs[skill.name].teacher_template

    def reported(self, skill: Skill) -> list[str]:
        """The splits whose numbers are quoted.

        The split that counts, and beside the test the skill's further ones (as ``ood``).
        """
        further = [split for split in skill.splits if split not in SPLITS]
        return [self.evaluate.split, *(further if self.evaluate.split == "test" else [])]

    def splits(self, skill: Skill) -> list[str]:
        """The splits that are evaluated: those reported, and validation where it decides."""
        validation = ["validation"] if self.selects or self.relearning_labels else []
        return list(dict.fromkeys([*self.reported(skill), *validation]))

    def in_sequence(self, sequence: str = "") -> list[Skill]:
        """The skills as a sequence of ``orders`` has them; "" where the order has one."""
        return [self.skills[number - 1] for number in self.sequences[sequence]]

    def evaluated(self, number: int, final: bool = True, sequence: str = "") -> list[Skill]:
        """The skills that are evaluated in stage ``number`` (0: the base model) of a sequence.

        final: at the end of the stage, or else inside it. See ``evaluate.skills``.
        """
        which = self.evaluate.skills
        if which == "all" or number == 0 or (final and number == len(self.skills)):
            return self.skills
        learned = self.in_sequence(sequence)
        if which == "seen" or number == 1:
            return learned[:number]
        # The earlier skill is the same for all methods and seeds.
        earlier = seed_for("evaluated skills", number) % (number - 1)
        return [learned[earlier], learned[number - 1]]

    def teacher_split(self, skill: Skill) -> str:
        """Where the demonstration-conditioned teacher is measured.

        The first of validation and train whose examples all have demonstrations. Raises UserError
        if there is none.
        """
        for split in ("validation", "train"):
            if split in skill.splits and all(
                example.demonstration is not None for example in skill.examples(split)
            ):
                return split
        raise UserError(
            f"skill {skill.name}", "no split has demonstrations", "self-distillation needs them"
        )

    @cached_property
    def overlaps(self) -> list[Overlap]:
        """What the measured questions share with the train splits, of all skills."""
        measured = {
            (skill.name, split): sample_of(skill.examples(split), self.evaluate.examples)
            for skill in self.skills
            for split in self.splits(skill)
            if split != "train"
        }
        return find_overlaps(self.skills, measured)

    def dtype(self) -> torch.dtype:
        """What the model computes in on this machine."""
        if self.products and self.model.dtype == "auto":
            return resolve_dtype(self.products.dtype, "cpu")
        return resolve_dtype(self.model.dtype, resolve_device(self.model.device))

    # ---- results.json --------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What results.json holds; see docs/reference/results.md."""
        chat = asdict(self.chat_template)
        return {
            "version": VERSION,
            "name": self.name,
            "description": self.description,
            "experiment": self.experiment,
            "model": {
                **about_section(self.model, optional=OF_MODEL),
                "dtype": str(self.dtype()).removeprefix("torch."),
            },
            "skills": [self._about_skill(skill) for skill in self.skills],
            "overlap": self.overlaps,
            "retention": [] if self.suite is None else self.suite.summary(),
            "methods": {label: about_method(spec) for label, spec in self.listed.items()},
            "seeds": self.seeds,
            "evaluate": about_section(
                self.evaluate,
                without=("batch_size",),
                optional=("engine", "pass_at_k", "kl", "drift", "teacher", "oracle"),
            ),
            "budget": asdict(self.budget),
            "rollout": {
                **about_section(self.rollout, optional=("engine", "max_prompt_tokens")),
                "batch_size": self.rollout.batch_size
                or usual_rows(resolve_device(self.model.device)),
            },
            # Folders from before the section have none.
            **({"chat_template": chat} if chat != asdict(ChatTemplate()) else {}),
            **({"products": asdict(self.products)} if self.products else {}),
            **({"references": self.references} if self.references else {}),
            **({"relearning": self.relearning} if self.relearning else {}),
            **({"orders": self.orders} if self.orders else {}),
        }

    def _about_skill(self, skill: Skill) -> dict[str, Any]:
        about: dict[str, Any] = {
            "name": skill.name,
            "description": skill.description,
            "metric": skill.metric,
            "splits": self.splits(skill),
            "prompts": self.prompts(skill),
            "max_new_tokens": self.limit(skill),
            "teacher_template": self.template(skill) or skill.teacher_template,
            "train": _data_hash(skill, "train"),
            "evaluated": {split: _data_hash(skill, split) for split in self._measured(skill)},
            "graders": {name: scorer_hash(grader) for name, grader in skill.metrics.items()},
        }
        if reward := getattr(skill, "own_reward", None):
            about["reward"] = scorer_hash(reward)
        if skill.chance:
            about["chance"] = skill.chance
        if skill.judge:
            metrics = list(JUDGES[skill.judge].metrics)
            about["judge"] = {"rubric": skill.judge, "metrics": metrics}
        return about

    def _measured(self, skill: Skill) -> Iterable[str]:
        """All splits that give a number: those evaluated, and the one that measures the teacher."""
        teacher = [self.teacher_split(skill)] if self.evaluate.teacher else []
        return dict.fromkeys([*self.splits(skill), *teacher])


def _check_size(count: int, what: str, place: str) -> None:
    if count > MOST_PROMPTS:
        raise UserError(place, what, f"{MOST_PROMPTS:,} are the most of one stage")


def _data_hash(skill: Skill, split: str) -> str:
    return examples_fingerprint(skill.examples(split))[:12]
