"""What an order costs, as the plan prints it: of each skill, each stage and all runs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.models.memory import Passes


@dataclass(frozen=True)
class SkillCost:
    """What it costs to measure one skill on one model: answers, and seconds of each measurement.

    answers, evaluation: of all evaluated splits; oracle_answers: of the oracle's. The base alone
    has ``teacher`` and ``oracle``; pass_at_k and kl belong to the skill's own stage.
    """

    answers: int
    evaluation: float
    pass_at_k: float
    kl: float
    teacher: float
    oracle: float
    oracle_answers: int


@dataclass(frozen=True)
class StageCost:
    """One stage of one run of a method.

    stem, number: of the run's name, and of the stage in it; learning: of ``seconds``, those that
    are not measuring; prompts: drawn in all, replayed ones and those outside the steps included;
    evaluations: inside the stage and at its end; evaluated_skills: the names of the skills that
    these measure, once each time; seconds: measured in runs of the folder, if there are any, or
    estimated; memory: GiB at the peak, on the device and in host memory; trained: numbers that
    learn; state: bytes of a checkpoint beside the weights; kept: bytes for later stages; held: of
    these, {method, part or parametrisation: (bytes, gold rows)}; reference: ``joint``, ``single``
    or ``relearn``, empty for a stage of a sequence; sequence: its name, where there are several;
    is_last: whether no stage comes after it; shown: prompt tokens before each question that is
    evaluated; passes: of training on a GPU; choices: ``memory`` there by what else is chosen and
    the place of the masters.
    """

    label: str
    skill: str
    prompts: int
    batch_size: int
    steps: int
    evaluations: int
    evaluated_skills: tuple[str, ...]
    seconds: float
    is_measured: bool
    memory: tuple[float, float]
    trained: int
    state: float
    kept: float
    shown: float
    stem: str
    number: int
    learning: float
    held: Mapping[str, tuple[float, float]]
    reference: str = ""
    sequence: str = ""
    is_last: bool = True
    passes: Passes | None = None
    choices: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class OrderCost:
    """What all runs of an order cost.

    parameters: weights of the model; machine: its speed, in words; retention: seconds of the suite
    on one model, drift: of the last measurement of the drift, base_answers: of the
    answers that it needs once; uncounted: why those of the suite are unknown, or None.
    """

    parameters: int
    machine: str
    seeds: int
    skills: dict[str, SkillCost]
    stages: list[StageCost]
    retention: float
    drift: float
    base_answers: float
    uncounted: str | None

    @property
    def sequences(self) -> dict[str, list[StageCost]]:
        """{name of a sequence: the stages of one seed}, where there are several."""
        names = dict.fromkeys(stage.sequence for stage in self.stages if stage.sequence)
        return {name: [stage for stage in self.stages if stage.sequence == name] for name in names}

    @property
    def evaluations(self) -> int:
        """Of all runs, and of the base once."""
        return 1 + sum(stage.evaluations for stage in self.stages) * self.seeds

    @property
    def times(self) -> Counter[str]:
        """How often each skill is measured, the base included."""
        times = Counter(list(self.skills))
        for stage in self.stages:
            times.update(stage.evaluated_skills * self.seeds)
        return times

    @property
    def answers(self) -> int:
        """Answers of all evaluations."""
        return sum(self.skills[name].answers * count for name, count in self.times.items())

    @property
    def seconds(self) -> float:
        """Of all runs, and of everything that is measured at the base."""
        return sum(stage.seconds * self.seeds for stage in self.stages) + self.base

    @property
    def base(self) -> float:
        """Seconds of everything that is measured at the base."""
        skills = self.skills.values()
        base = sum(skill.evaluation for skill in skills)
        further = sum(skill.pass_at_k + skill.teacher + skill.oracle for skill in skills)
        return base + further + self.retention + self.base_answers

    @property
    def passes(self) -> dict[str, Passes]:
        """{label: the passes that fit all stages}, of methods that train on a GPU."""
        found: dict[str, Passes] = {}
        for stage in self.stages:
            if stage.passes:
                other = found.get(stage.label, stage.passes)
                found[stage.label] = Passes(
                    min(other.tokens, stage.passes.tokens),
                    other.recomputed or stage.passes.recomputed,
                )
        return found

    @property
    def choices(self) -> dict[str, dict[tuple[str, str], tuple[float, float]]]:
        """{label: {(what else is chosen, place of the masters): ``memory``}}, on a GPU."""
        found: dict[str, dict[tuple[str, str], tuple[float, float]]] = {}
        for stage in self.stages:
            peaks = found.setdefault(stage.label, {}) if stage.choices else {}
            for choice, peak in stage.choices.items():
                peaks[choice] = max(peaks.get(choice, (0.0, 0.0)), peak)
        return found

    @property
    def memory(self) -> dict[str, tuple[float, float]]:
        """{label: GiB at the peak of all stages, on the device and in host memory}."""
        peaks: dict[str, tuple[float, float]] = {}
        for stage in self.stages:
            peaks[stage.label] = max(peaks.get(stage.label, (0.0, 0.0)), stage.memory)
        return peaks
