"""The methods of an order: a label and its hyperparameters become a MethodSpec."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError, plug_in, shortened
from harness.base.settings import build, fields_of
from harness.learning.method import Method, OrderView, get_method
from harness.learning.parametrisation import (
    Parametrisation,
    ParametrisationConfig,
    get_parametrisation,
)
from harness.learning.part import Part, PartConfig, get_part, joint_budget, lacking
from harness.learning.trainer import TrainingConfig
from harness.models.chat import ChatInputs
from harness.models.others import STARTS, find_model, model_checksum
from harness.models.recompute import can_recompute
from harness.runs.presets import expanded
from harness.runs.right_places import check_section
from harness.runs.sections import names_folder
from harness.skills.skill import Skill
from harness.skills.templates import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Hooks of which a method has one part at most, and what two parts would both do.
ALONE = {"budget": "divide the budget", "merge": "make the weights with which a stage ends"}


@dataclass(frozen=True)
class PartSpec:
    """A part that joins a method: its name, class and options.

    written: {option: path as the order has it}, and the part's own ``file`` where it has one.
    """

    name: str
    cls: type[Part]
    config: PartConfig
    written: dict[str, str]

    def make(self) -> Part:
        """A new instance."""
        return self.cls(copy.deepcopy(self.config))

    def conversations(self, place: str) -> list[list[Message]]:
        """``Part.conversations``. Raises UserError at ``place`` where it raises anything."""
        with plug_in(place, "conversations()"):
            return list(self.make().conversations())


@dataclass(frozen=True)
class ParametersSpec:
    """What a method trains: the name, class and options of a parametrisation.

    written: as in PartSpec.
    """

    name: str
    cls: type[Parametrisation]
    config: ParametrisationConfig
    written: dict[str, str]
    place: str

    def make(self) -> Parametrisation:
        """A new instance."""
        return self.cls(copy.deepcopy(self.config))

    def check(self, model: "PreTrainedModel") -> None:
        """Raises UserError where it trains nothing of ``model``."""
        with plug_in(self.place, "trained()"):
            try:
                self.make().trained(model)
            except UserError as error:
                raise UserError(self.place, str(error)) from None


@dataclass
class MethodSpec:
    """One label of the order: which method, with which hyperparameters.

    method: the name of the method, or its file as the order has it; written: {hyperparameter: path
    as the order has it}; files: {what: checksum} of the method's own file and of those that its
    hyperparameters name; parts: what joins it, in the order in which they join; parameters: what it
    trains, None for all weights; place: of the method in the order; preset: whose settings lie
    below its own. A point of a grid knows the label whose grid it belongs to (``grid_of``) and the
    ``values`` that are its own.
    """

    label: str
    method: str
    cls: type[Method]
    config: TrainingConfig
    written: dict[str, str]
    files: dict[str, str]
    parts: tuple[PartSpec, ...] = ()
    parameters: ParametersSpec | None = None
    place: str = "order"
    preset: str | None = None
    grid_of: str | None = None
    values: dict[str, Any] | None = None

    def ask(self, hook: str, *arguments: Any) -> Any:
        """What the method's ``hook`` returns before anything is learned, iterators as a list.

        Raises UserError where the hook raises anything, or returns another kind than its base.
        """
        with plug_in(self.place, f"{hook}()"):
            answer = getattr(self.cls(self.config), hook)(*arguments)
            answer = list(answer) if isinstance(answer, Iterator) else answer
        return answer

    def with_parts(self, phases: list[int], drawn: Sequence[int]) -> list[int]:
        """The phases of a stage, and one more for the steps that parts add behind the first.

        drawn: examples that each stage before drew.
        """
        with plug_in(self.place, "budget() of a part"):
            own, behind = joint_budget([part.make() for part in self.parts], phases[0], drawn)
        return [own, *([behind] if behind else []), *phases[1:]]

    def settings(self) -> dict[str, Any]:
        """The hyperparameters by name, those of parts as ``with.PART.OPTION``.

        Those of a parametrisation are ``parameters.NAME.OPTION``.
        """
        own = {field.name: getattr(self.config, field.name) for field in fields(self.config)}
        for part in self.parts:
            for field in fields(part.config):
                own[f"with.{part.name}.{field.name}"] = getattr(part.config, field.name)
        if spec := self.parameters:
            for field in fields(spec.config):
                own[f"parameters.{spec.name}.{field.name}"] = getattr(spec.config, field.name)
        return own

    def models(self) -> dict[str, str]:
        """{name: checksum} of the models that it names beside the one that learns."""
        configs: list[tuple[str, Any]] = [("", self.config)]
        configs += [(f"with.{part.name}.", part.config) for part in self.parts]
        return {
            getattr(config, field.name): self.files[before + field.name]
            for before, config in configs
            for field in fields_of(config).values()
            if field.metadata.get("model") and before + field.name in self.files
        }

    def make_parameters(self) -> Parametrisation:
        """A new instance of what is trained."""
        return self.parameters.make() if self.parameters else Parametrisation()

    def check_model(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", chat: ChatInputs
    ) -> None:
        """Raises UserError where nothing of ``model`` learns, or training cannot be set up.

        And where its layers are to be computed again, but are not known.

        model: may be on the meta device; chat: what the chat template is given.
        """
        if self.config.recomputes and not can_recompute(model):
            raise UserError(
                f"{self.place}: gradient_checkpointing",
                f"transformers does not say what the layers of {type(model).__name__} are",
                "leave it out",
            )
        if self.parameters:
            self.parameters.check(model)
        self.ask("try_out", model, tokenizer, chat, self.place)

    def check_effects(self) -> None:
        """Raises UserError for an option that does nothing beside the others."""
        own = [(f"{self.place}: with.{part.name}", part.config) for part in self.parts]
        for place, config in [(self.place, self.config), *own]:
            with plug_in(place, "check_effects()"):
                try:
                    config.check_effects()
                except ValueError as error:
                    raise UserError(place, str(error)) from None

    def check(self, order: OrderView) -> None:
        """Raises UserError where method, parts and ``order`` cannot go together."""
        self.ask("check", order, self.place)
        method = self.cls(self.config)
        if self.parameters and self.cls.has_own_loop:
            own = "has a training loop of its own, which trains all weights"
            why = own if self.cls.trains else "trains no weights"
            raise UserError(f"{self.place}: parameters", f"{self.method} {why}", "leave them out")
        for number, spec in enumerate(self.parts):
            place = f"{self.place}: with.{spec.name}"
            if lack := lacking(spec.cls, self.cls):
                raise UserError(place, f"{self.method} {lack}", "leave the part out")
            for other in self.parts[:number]:
                if why := _apart(spec, other):
                    raise UserError(place, f"cannot join beside {other.name}: {why}")
            trained = self.parameters
            with plug_in(place, "wants_weights()"):
                why = beside(spec.make(), trained.make()) if trained else ""
            if trained and why:
                raise UserError(place, f"cannot join parameters: {trained.name}: {why}")
            with plug_in(place, "check()"):
                spec.make().check(order, method, place)

    def conversations(self, order: OrderView) -> list[list[Message]]:
        """Chat messages of method and parts that no skill has."""
        messages = list(self.ask("conversations", order))
        for spec in self.parts:
            messages += spec.conversations(f"{self.place}: with.{spec.name}")
        return messages

    def phases(self, prompts: int) -> list[int]:
        """``Method.phases``. Raises UserError where these are no numbers of prompts."""
        phases = self.ask("phases", prompts)
        if not phases or not all(drawn > 0 for drawn in phases):
            raise UserError(
                self.place,
                f"phases() returns {shortened(repr(phases), 80)}",
                "it is a list of whole numbers of prompts, each at least 1",
            )
        return list(phases)


def build_method(
    label: str,
    options: Mapping[str, Any],
    place: str,
    skills: Iterable[Skill],
    beside: Callable[[str], Path],
) -> MethodSpec:
    """The method of one label.

    beside: finds a file that the order names. Raises UserError: an unknown method, a wrong
    hyperparameter, a file that is missing, or a training example of ``skills`` without a field that
    the method needs.
    """
    hyperparameters = expanded(options, place)
    file = hyperparameters.pop("file", None)
    parts, files = _parts(hyperparameters.pop("with", None), f"{place}: with", beside)
    parameters, own = _parameters(
        hyperparameters.pop("parameters", None), f"{place}: parameters", beside
    )
    files |= own
    if file is not None and options.get("method") is not None:
        raise UserError(place, "method and file both say what it is", "leave one out")
    name = str(hyperparameters.pop("method", None) or label)
    code = None if file is None else beside(str(file))
    if code is None:
        check_section(name, "method", place)
    cls = get_method(name, code, place)
    with plug_in(place, "its Config"):
        known = {field.name for field in fields(cls.Config)}
    for key in hyperparameters:
        if key not in known:
            check_section(str(key), "method", f"{place}: {key}")
    spec = MethodSpec(
        label,
        method=str(file or name),
        cls=cls,
        config=_built(cls, hyperparameters, place),
        written={},
        files={**({} if code is None else {"file": _checksum(code)}), **files},
        parts=parts,
        parameters=parameters,
        place=place,
        preset=options.get("preset"),
    )
    spec.written, own = _find_files(spec.config, place, beside)
    spec.files |= own
    with plug_in(place, "the method's constructor"):
        method = cls(spec.config)
    _check_examples(method, name, skills, place)
    return spec


def _parts(
    section: object, place: str, beside: Callable[[str], Path]
) -> tuple[tuple[PartSpec, ...], dict[str, str]]:
    """The parts under a method's ``with``, and the checksums of files that they name."""
    if section is None:
        return (), {}
    if not isinstance(section, dict):
        raise UserError(place, "must be a mapping", "as {replay: {ratio: 0.1}}")
    specs: list[PartSpec] = []
    files: dict[str, str] = {}
    for name, given in section.items():
        plugged = _plugged(str(name), given, "with", get_part, place, beside)
        cls, config, written, checksums = plugged
        files |= checksums
        specs.append(PartSpec(str(name), cls, config, written))
    return tuple(specs), files


def _parameters(
    section: object, place: str, beside: Callable[[str], Path]
) -> tuple[ParametersSpec | None, dict[str, str]]:
    """What a method trains, None for all weights, and the checksums of files that it names."""
    if isinstance(section, dict) and len(section) == 1:
        ((name, given),) = section.items()
    elif section is None or isinstance(section, str):
        name, given = "all" if section is None else section, None
    else:
        raise UserError(place, "must name one parametrisation", "as lora, or {lora: {rank: 8}}")
    plugged = _plugged(str(name), given, "parameters", get_parametrisation, place, beside)
    cls, config, written, checksums = plugged
    if name == "all" and not checksums:
        return None, {}
    return ParametersSpec(str(name), cls, config, written, f"{place}.{name}"), checksums


def _plugged(
    name: str,
    given: object,
    section: str,
    get: Callable[[str, Path | None, str], type[Any]],
    place: str,
    beside: Callable[[str], Path],
) -> tuple[type[Any], Any, dict[str, str], dict[str, str]]:
    """(class, options, paths as written, checksums) of a plug-in under a method's ``section``.

    given: its options; get: finds its class by name or file.
    """
    own = f"{place}.{name}"
    if not names_folder(name) or "." in name:
        raise UserError(
            place,
            f"{shortened(repr(name), 80)} is no name",
            "take letters, digits, underscores and hyphens",
        )
    if not isinstance(given, dict | None):
        raise UserError(own, "must be a mapping of options", "{} has the defaults")
    options = dict(given or {})
    file = options.pop("file", None)
    code = None if file is None else beside(str(file))
    if code is None:
        check_section(name, section, own)
    cls = get(name, code, place if code is None else own)
    config = _built(cls, options, own)
    with plug_in(own, "the constructor"):
        cls(config)
    written, checksums = _find_files(config, own, beside)
    if code is not None:
        written = {"file": str(file), **written}
        checksums = {"file": _checksum(code), **checksums}
    files = {f"{section}.{name}.{what}": checksum for what, checksum in checksums.items()}
    return cls, config, written, files


def _built(cls: type[Any], options: Mapping[str, Any], place: str) -> Any:
    """A plug-in's ``Config`` with ``options``. Raises UserError, whatever the class raises."""
    with plug_in(place, "its Config"):
        return build(cls.Config, options, place)


def beside(part: Part, trained: Parametrisation) -> str:
    """Why a part cannot act on what a method trains; empty if it can."""
    if trained.continues and part.has("merge"):
        return "the stage ends with other weights than its adapter makes; take adapter: merged"
    return part.wants_weights() if trained.makes else ""


def _apart(spec: PartSpec, other: PartSpec) -> str:
    """Why two parts cannot join one method; empty if they can."""
    if spec.cls is other.cls:
        return "both are the same part; leave one out"
    for hook, what in ALONE.items():
        if spec.cls.has(hook) and other.cls.has(hook):
            return f"both {what}; leave one out"
    return spec.cls.apart.get(other.name, "") or other.cls.apart.get(spec.name, "")


def _find_files(
    config: Any, place: str, beside: Callable[[str], Path]
) -> tuple[dict[str, str], dict[str, str]]:
    """Put the places of files and models that options name into the config.

    Returns ({option: name as the order has it}, {option: checksum}).
    """
    names, checksums = {}, {}
    for field in fields_of(config).values():
        written, own = getattr(config, field.name), f"{place}: {field.name}"
        if written is None:
            continue
        if field.metadata.get("path"):
            found = str(beside(written))
            if not Path(found).is_file():
                raise UserError(own, f"{written} is not a file", field.metadata["help"])
            checksums[field.name] = _checksum(found)
        elif field.metadata.get("model") and written not in STARTS:
            found = find_model(written, own, beside)
            checksums[field.name] = model_checksum(found, own)
        else:
            continue
        setattr(config, field.name, found)
        names[field.name] = written
    return names, checksums


def _check_examples(method: Method, name: str, skills: Iterable[Skill], place: str) -> None:
    for skill in skills:
        for need in method.needs:
            for example in skill.examples("train"):
                if getattr(example, need, None) is None:
                    raise UserError(
                        place,
                        f"{name} needs {need}s; skill {skill.name}, example {example.id} has none",
                    )


def _checksum(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
