"""The methods of an order: a label and its hyperparameters become a MethodSpec."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness.base.errors import UserError, plug_in, shortened
from harness.base.settings import build
from harness.learning.method import Method, get_method
from harness.learning.part import Part, PartConfig, get_part
from harness.learning.trainer import TrainingConfig
from harness.skills.skill import Skill


@dataclass(frozen=True)
class PartSpec:
    """A part that joins a method: its name, class and options."""

    name: str
    cls: type[Part]
    config: PartConfig

    def make(self) -> Part:
        """A new instance."""
        return self.cls(copy.deepcopy(self.config))


@dataclass
class MethodSpec:
    """One label of the order: which method, with which hyperparameters.

    method: the name of the method, or its file as the order has it; written: {hyperparameter: path
    as the order has it}; files: {what: checksum} of the method's own file and of those that its
    hyperparameters name; parts: what joins it, in the order in which they join; place: of the
    method in the order. A point of a grid knows the label whose grid it belongs to (``grid_of``)
    and the ``values`` that are its own.
    """

    label: str
    method: str
    cls: type[Method]
    config: TrainingConfig
    written: dict[str, str]
    files: dict[str, str]
    parts: tuple[PartSpec, ...] = ()
    place: str = "order"
    grid_of: str | None = None
    values: dict[str, Any] | None = None

    def ask(self, hook: str, *arguments: Any) -> Any:
        """What the method's ``hook`` returns before anything is learned, iterators as a list.

        Raises UserError where the hook raises anything.
        """
        with plug_in(self.place, f"{hook}()"):
            answer = getattr(self.cls(self.config), hook)(*arguments)
            return list(answer) if isinstance(answer, Iterator) else answer

    def phases(self, prompts: int) -> list[int]:
        """``Method.phases``. Raises UserError where these are no numbers of prompts."""
        phases = self.ask("phases", prompts)
        is_list = isinstance(phases, list | tuple) and len(phases) > 0
        if not is_list or not all(type(drawn) is int and drawn > 0 for drawn in phases):
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
    hyperparameters = dict(options)
    file = hyperparameters.pop("file", None)
    parts = _parts(hyperparameters.pop("with", None), f"{place}: with")
    name = str(hyperparameters.pop("method", None) or label)
    code = None if file is None else beside(str(file))
    cls = get_method(name, code, place)
    spec = MethodSpec(
        label,
        method=str(file or name),
        cls=cls,
        config=build(cls.Config, hyperparameters, place),
        written={},
        files={} if code is None else {"file": _checksum(code)},
        parts=parts,
        place=place,
    )
    _find_files(spec, place, beside)
    with plug_in(place, "the method's constructor"):
        method = cls(spec.config)
    _check_examples(method, name, skills, place)
    return spec


def _parts(section: object, place: str) -> tuple[PartSpec, ...]:
    """The parts under a method's ``with``."""
    if section is None:
        return ()
    if not isinstance(section, dict):
        raise UserError(place, "must be a mapping", "as {replay: {ratio: 0.1}}")
    specs = []
    for name, options in section.items():
        cls = get_part(str(name), place)
        if not isinstance(options, dict | None):
            raise UserError(
                f"{place}.{name}", "must be a mapping of options", "{} has the defaults"
            )
        specs.append(PartSpec(str(name), cls, build(cls.Config, options or {}, f"{place}.{name}")))
    return tuple(specs)


def _find_files(spec: MethodSpec, place: str, beside: Callable[[str], Path]) -> None:
    """Put the paths of files that hyperparameters name into the config, and their checksums."""
    for field in fields(spec.config):
        written = getattr(spec.config, field.name)
        if not field.metadata.get("path") or written is None:
            continue
        path = beside(written)
        if not path.is_file():
            raise UserError(
                f"{place}: {field.name}", f"{written} is not a file", field.metadata["help"]
            )
        setattr(spec.config, field.name, str(path))
        spec.written[field.name] = written
        spec.files[field.name] = _checksum(path)


def _check_examples(method: Method, name: str, skills: Iterable[Skill], place: str) -> None:
    for skill in skills:
        for need in method.needs:
            for example in skill.examples("train"):
                if getattr(example, need) is None:
                    raise UserError(
                        place,
                        f"{name} needs {need}s; skill {skill.name}, example {example.id} has none",
                    )


def _checksum(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
