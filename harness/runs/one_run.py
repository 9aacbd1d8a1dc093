"""One run while it goes on: a method x seed x sequence with its live model."""

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.base.console import Progress
from harness.base.errors import UserError
from harness.base.files import read_json, to_json, write_sealed
from harness.learning.lessons import Lesson
from harness.models.checkpoint import file_fingerprint, has_fingerprint
from harness.models.forward import can_share_prompts, keep_sharing
from harness.models.memory import peak_memory
from harness.models.segments import can_take_segments, keep_segments
from harness.results.formats import RELEARN
from harness.results.writer import BEFORE, ResultsWriter
from harness.runs.checkpoints import check_plain
from harness.runs.engines import evaluator_for, reload_order_model, sampler_for
from harness.runs.order import Order
from harness.runs.references import Run, lesson_of
from harness.sampling.transformers import WAYS, keep_way, way_of
from harness.sampling.vllm import Engine
from harness.skills.skill import Skill

# Parts of a protocol that can change with a model's folder, and what they are to a reader.
CHANGEABLE = {
    "chat_template": "chat template",
    "tokenizer": "tokenizer",
    "generation": "set of end tokens or penalties",
}


class OneRun:
    """One method x seed x sequence, with what its stages share.

    model, tokenizer: live, and taught in place; weights: the fingerprint that the model had at the
    end of its last stage; method, parts, parameters (what is trained): remember what they want of
    earlier skills; sampler,
    evaluator: of the evaluations; engine: vLLM's, if the order asks for it; abilities: file with
    what the model can do; title: of the run, for the progress line.
    """

    def __init__(
        self,
        order: Order,
        run: Run,
        results: ResultsWriter,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: str,
        engine: Engine | None,
        progress: Progress,
        title: str,
    ) -> None:
        self.order = order
        self.run = run
        self.results = results
        self.model = model
        self.tokenizer = tokenizer
        self.weights = weights
        self.engine = engine
        self.progress = progress
        self.title = title
        spec = order.methods[run.label]
        # What a skill is learned again with is the method alone: parts guard earlier skills.
        self.spec = replace(spec, parts=()) if run.reference == RELEARN else spec
        self.method = self.spec.cls(copy.deepcopy(self.spec.config))
        self.parts = {part.name: part.make() for part in self.spec.parts}
        self.parameters = self.spec.make_parameters()
        self._lessons: dict[str, Lesson] = {}
        self._check_memory()
        self.abilities = results.run(run.name) / "model.json"
        keep_abilities(self.abilities, model)
        self.evaluator = evaluator_for(order, results)
        self.evaluator.questions = self.method.questions
        self.evaluator.waits = self._say_waits
        self.sampler = sampler_for(order.evaluate, engine, model, tokenizer)

    def tell(self, doing: str, **numbers: object) -> None:
        """Let ``--status`` know what the run does; numbers: of a step."""
        if lease := self.results.lease:
            device = self.model.device
            module = torch.get_device_module(device)
            on = {} if device.type == "cpu" else {"gpu": str(module.get_device_name(device))}
            peak = round(peak_memory(device), 3)
            lease.tell({"doing": doing, **numbers, **on, "peak_gib": peak})

    def _say_waits(self, holder: str) -> None:
        self.progress.show(f"waits for {holder}, which measures what this run needs")

    def taught(self, stage: int) -> list[Skill]:
        """The skills that a stage of the run teaches."""
        return [self.order.skills[number - 1] for number in self.run.stages[stage - 1]]

    def lesson(self, skill: Skill) -> Lesson:
        """A skill as the order has it."""
        if skill.name not in self._lessons:
            self._lessons[skill.name] = lesson_of(self.order, skill, self.tokenizer)
        return self._lessons[skill.name]

    def say_left_out(self, lessons: Iterable[Lesson], where: str) -> None:
        """A line on the training examples of each skill that are too long."""
        for lesson in lessons:
            every = len(lesson.skill.examples("train"))
            if left_out := every - len(lesson.examples):
                self.progress.say(
                    f"{where}: {left_out} of {every} training examples are left out, their "
                    f"prompts are longer than {self.order.rollout.max_prompt_tokens} tokens"
                )

    def memory(self) -> dict[str, Any]:
        """What the method remembers for later stages. Raises UserError where it is not plain."""
        place = f"methods.{self.run.label}"
        memory = self.method.state_dict()
        check_plain(memory, place, "state_dict()")
        if not self._is_joined:
            return memory
        of_parts = {name: part.state_dict() for name, part in self.parts.items()}
        check_plain(of_parts, f"{place}: with", "state_dict()")
        joined = {"method": memory, "parts": of_parts}
        if self.spec.parameters:
            joined["parameters"] = self.parameters.state_dict()
            check_plain(joined["parameters"], f"{place}: parameters", "state_dict()")
        return joined

    @property
    def _is_joined(self) -> bool:
        """Whether a memory holds more than the method's own."""
        return bool(self.parts or self.spec.parameters)

    def remember(self, memory: dict[str, Any]) -> None:
        """Restore what ``memory`` returned."""
        self.method.load_state_dict(memory["method"] if self._is_joined else memory)
        for name, part in self.parts.items():
            part.load_state_dict(memory["parts"][name])
        if self.spec.parameters:
            self.parameters.load_state_dict(memory["parameters"])

    def load_start(self, stage: int, of: str) -> PreTrainedModel:
        """The model at the start of a stage, or of the run, for what the stage learns with it.

        It is read from where it is kept anyway: the order's model, or the stage before.
        """
        before = start_of(self.results, self.order, self.run, stage)
        if of == "run" or before is None:
            return self.load_base()
        self.progress.show(f"loads {before.name} of {before.parent.name} again")
        model = reload_order_model(self.order, before / "weights")
        check_kept_weights(self.results, before, model, file_fingerprint(model))
        keep_abilities(self.abilities, model)
        return model

    def load_base(self) -> PreTrainedModel:
        """Another copy of the base model."""
        self.progress.show("loads the base model again")
        base = reload_order_model(self.order)
        check_base_model(self.results, base, file_fingerprint(base))
        keep_abilities(self.abilities, base)
        return base

    def _check_memory(self) -> None:
        """Refuse a memory that no file can hold before anything is learned, where it shows."""
        try:
            self.memory()
        except UserError:
            raise
        except Exception:  # A method may have its memory only once it has learned.
            pass


def start_of(results: ResultsWriter, order: Order, run: Run, stage: int) -> Path | None:
    """The committed stage whose weights a stage begins with; None for the base model."""
    if stage > 1:
        return results.stage(run.name, stage - 1)
    return results.stage(run.whole, len(order.skills)) if run.reference == RELEARN else None


def keep_abilities(path: Path, model: PreTrainedModel) -> None:
    """Ask once a run what the model can do: a resume must not find otherwise.

    path: of the run's file with the answers, which its first start writes: whether the model can
    share prompts, whether it attends by segments (in runs from before it does not), and the way of
    sampling that gives its log-probabilities.
    """
    kept = read_json(path, remedy="remove it: the model is asked again") if path.exists() else {}
    if "shares_prompts" in kept:
        keep_sharing(model, bool(kept["shares_prompts"]))
        keep_segments(model, bool(kept.get("segments")))
    if kept.get("sampling") in WAYS:
        keep_way(model, kept["sampling"])
    abilities = {
        "shares_prompts": can_share_prompts(model),
        "segments": can_take_segments(model),
        "sampling": way_of(model),
    }
    if abilities != kept:
        write_sealed(path, abilities)


def check_base_model(results: ResultsWriter, model: PreTrainedModel, weights: str) -> None:
    """Raises UserError if the base ``model`` is not the one with which the folder's runs began.

    weights: its fingerprint. The name of a model may lead to other weights than it did before; what
    is learned from them would be compared with what the old ones could do.
    """
    for path in sorted(results.folder.glob("runs/*/stage-0/records.jsonl")):
        is_over = path.with_name("stage.json").exists()
        before = _evaluated_weights(results, path.parent) if is_over else None
        if before is None:
            continue
        if not has_fingerprint(model, weights, before):
            raise UserError(
                path,
                f"is of a base model with other weights ({before}) than the order's model has now "
                f"({weights[:16]})",
                "put the old weights back, name their revision in the order, or give another "
                "folder with --out",
            )
        return  # All later runs were compared with this one.


def check_protocols(live: OneRun) -> None:
    """Raises UserError if a skill would be measured otherwise than at the folder's base model.

    The chat template, the tokenizer or the end tokens in a model's folder may have changed, or the
    order's ``chat_template``, while the weights did not. Numbers before and after would be
    compared.
    """
    path = live.results.folder / "protocols.json"
    protocols = read_json(path) if path.exists() else {}
    skills = {skill.name: skill for skill in live.order.skills}
    for stage in sorted(live.results.folder.glob("runs/*/stage-0")):
        if not live.results.committed(stage.parent.name, 0):
            continue
        for row in live.results.rows(stage, "records.jsonl"):
            skill = skills.get(row.get("name", "")) if row.get("kind") == "skill" else None
            before = protocols.get(str(row.get("protocol")))
            if skill is None or row.get("metric") != skill.metric or before is None:
                continue
            now = live.evaluator.protocol_of(live.model, live.tokenizer, skill, row["split"])
            _check_same(before, json.loads(to_json(now)), skill.name, stage / "records.jsonl")
        return  # All later runs were compared with this one.


def _check_same(before: dict[str, Any], now: dict[str, Any], skill: str, path: Path) -> None:
    """Raises UserError naming the first key of a protocol that is another now."""
    for key in dict.fromkeys([*CHANGEABLE, *before, *now]):
        if before.get(key) != now.get(key):
            was, is_now = (to_json(of.get(key))[:60] for of in (before, now))
            raise UserError(
                path,
                f"{skill} was measured with another {CHANGEABLE.get(key, f'`{key}`')} ({was}) than "
                f"it would be now ({is_now})",
                "put back what was changed, name the model's revision in the order, or give "
                "another folder with --out",
            )


def check_kept_weights(
    results: ResultsWriter, stage: Path, model: PreTrainedModel, weights: str
) -> None:
    """Raises UserError if a stage's kept weights are not those that its last records are of.

    model: what was loaded from the folder ``stage``; weights: its fingerprint.
    """
    before = _evaluated_weights(results, stage)
    if before is not None and not has_fingerprint(model, weights, before):
        raise UserError(
            stage / "weights",
            f"are not the weights that were measured ({weights[:16]}, on record {before})",
            BEFORE,
        )


def base_weights(results: ResultsWriter, run: str) -> str | None:
    """The beginning of the base model's fingerprint; None before the run's stage 0 is over."""
    stage = results.stage(run, 0)
    return _evaluated_weights(results, stage) if results.committed(run, 0) else None


def _evaluated_weights(results: ResultsWriter, stage: Path) -> str | None:
    """The beginning of the fingerprint of the weights that a stage's end was measured with."""
    for row in results.rows(stage, "records.jsonl"):
        if row.get("evaluation") and row.get("final"):
            return str(row["evaluation"]).partition("-")[0]
    return None
