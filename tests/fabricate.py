"""Fabricated results folders for the tests of the report, with numbers made by a simple law.

The files are those of version 1. Accuracy of a skill: base + gain * (learned ? 1 : 0) *
keep^(stages since), with a wobble per seed. Examples have a fixed difficulty, so that item scores
of one example correlate over stages as they do for a real model.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Law(NamedTuple):
    """How a method does: share of a skill's gain, share kept a stage, retention lost a stage."""

    gain: float
    keep: float
    loss: float


class Task(NamedTuple):
    """A retention task and the base model's value."""

    metric: str
    higher_is_better: bool
    chance: float | None
    base: float


Skills = Mapping[str, tuple[float, float]]  # {name: (base accuracy, most that can be gained)}

SKILLS: Skills = {"tooluse": (0.08, 0.55), "science": (0.31, 0.38), "medical": (0.22, 0.30)}
METHODS = {
    "sft": Law(1.0, 0.70, 0.030),
    "sdft": Law(0.95, 0.94, 0.006),
    "grpo": Law(0.70, 0.90, 0.004),
}
RETENTION = {
    "hellaswag": Task("acc", True, 0.25, 0.42),
    "winogrande": Task("acc", True, 0.5, 0.53),
    "arc_easy": Task("acc", True, 0.25, 0.61),
    "truthfulqa_mc1": Task("acc", True, None, 0.24),
    "wikitext": Task("bits_per_byte", False, None, 0.92),
}
STEPS = 12  # of a stage, where ``steps`` does not say another number


def fabricate(
    folder: str | Path,
    skills: Skills = SKILLS,
    methods: Mapping[str, tuple[float, float, float]] = METHODS,
    seeds: Iterable[int] = (0,),
    steps: Mapping[str, int] | None = None,
    n: int = 60,
    inside: int = 3,
    items: bool = True,
    model: str = "smol-135m",
    limit: int = 64,
    retention: Mapping[str, tuple[str, bool, float | None, float]] = RETENTION,
    training: bool = True,
) -> Path:
    """Writes a complete results folder and returns its path.

    methods: {name: as in Law}; steps: {method: optimizer steps a stage}; n: examples of every
    measurement; inside: evaluations inside a stage; items: whether the files in evaluations/ are
    written; limit: of new tokens, in the skills' protocol; retention: {name: as in Task}; training:
    whether the stages have a stage.json and a training.jsonl.
    """
    fabrication = Fabrication(
        folder=Path(folder),
        skills=skills,
        retention={name: Task(*task) for name, task in retention.items()},
        n=n,
        items=items,
        limit=limit,
    )
    (fabrication.folder / "evaluations").mkdir(parents=True)
    generator = np.random.default_rng(7)
    for method, law in methods.items():
        for seed in seeds:
            run = FabricatedRun(
                fabrication=fabrication,
                method=method,
                seed=seed,
                law=Law(*law),
                steps=(steps or {}).get(method, STEPS),
                wobble=generator.normal(0, 0.015),
                generator=generator,
            )
            run.write(inside, training)
    fabrication.write(model, list(methods), list(seeds))
    return fabrication.folder


@dataclass
class Fabrication:
    """A results folder, and all measurements that go into it."""

    folder: Path
    skills: Skills
    retention: dict[str, Task]
    n: int
    items: bool
    limit: int
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    protocol_of: dict[str, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [*self.skills, *self.retention]
        self.difficulty = {
            name: np.random.default_rng(i).permutation(self.n) / self.n
            for i, name in enumerate(names)
        }
        for name in self.skills:
            metrics = ["exact", "lenient"]
            how = {"decoding": "greedy", "max_new_tokens": self.limit, "metrics": metrics}
            self._add_protocol("skill", name, how)
        for task in self.retention:
            self._add_protocol("retention", task, {"limit": self.n, "lm_eval": "0.4.9"})

    def _add_protocol(self, kind: str, name: str, how: dict[str, Any]) -> None:
        fields = {
            "kind": kind,
            "name": name,
            "split": "test",
            "n": self.n,
            "dtype": "float32",
            "template": "chat",
            **how,
        }
        key = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
        self.protocols[key] = fields
        self.protocol_of[name] = key

    def measure_skill(self, where: dict[str, Any], name: str, accuracy: float, who: str) -> None:
        """where: the keys of a record that say when; who: the model, as in an evaluation's key."""
        exact = self._answers(name, accuracy, who)
        lenient = np.maximum(exact, self._answers(name, accuracy + 0.05, who))
        scores = {"exact": exact, "lenient": lenient}
        for metric, values in scores.items():
            self._record(where, "skill", name, metric, values, f"{name}-{who}")
        if self.items:
            items = [_item(name, i, exact[i], lenient[i]) for i in range(self.n)]
            self._write_evaluation("skill", name, who, scores, items)

    def measure_task(self, where: dict[str, Any], name: str, drop: float, who: str) -> None:
        """drop: what the model lost since the base model."""
        task = self.retention[name]
        if task.metric == "acc":
            values = self._answers(name, task.base - drop, who)
        else:
            wave = 0.2 * np.sin(np.arange(self.n))
            noise = _noise(name, who).normal(0, 0.002, self.n)
            values = task.base + drop + wave + noise
        self._record(where, "retention", name, task.metric, values, f"{name}-{who}")
        if self.items:
            items = [{"id": i, "score": value} for i, value in enumerate(values)]
            self._write_evaluation("retention", name, who, {task.metric: values}, items)

    def _answers(self, name: str, accuracy: float, who: str) -> np.ndarray:
        """1 for every right answer, 0 for every wrong one."""
        noise = _noise(name, who).normal(0, 0.05, self.n)
        return (self.difficulty[name] + noise < accuracy).astype(float)

    def _record(
        self,
        where: dict[str, Any],
        kind: str,
        name: str,
        metric: str,
        values: np.ndarray,
        evaluation: str,
    ) -> None:
        self.records.append(
            {
                **where,
                "kind": kind,
                "name": name,
                "split": "test",
                "metric": metric,
                "value": values.mean(),
                "stderr": values.std(ddof=1) / self.n**0.5,
                "n": self.n,
                "protocol": self.protocol_of[name],
                "evaluation": evaluation,
            }
        )

    def _write_evaluation(
        self,
        kind: str,
        name: str,
        who: str,
        scores: dict[str, np.ndarray],
        items: list[dict[str, Any]],
    ) -> None:
        _write(
            self.folder / "evaluations" / f"{name}-{who}.json",
            {
                "protocol": self.protocol_of[name],
                "kind": kind,
                "name": name,
                "split": "test",
                "n": self.n,
                "metrics": {metric: [values.mean(), 0.05] for metric, values in scores.items()},
                "items": items,
            },
        )

    def write(self, model: str, methods: list[str], seeds: list[int]) -> None:
        """Writes results.json, protocols.json and records.jsonl."""
        skills = [
            {
                "name": name,
                "description": f"{name}: fabricated questions",
                "metric": "exact",
                "splits": ["train", "validation", "test"],
            }
            for name in self.skills
        ]
        retention = [
            {
                "name": name,
                "metric": task.metric,
                "higher_is_better": task.higher_is_better,
                "chance": task.chance,
                "description": f"{name} of lm-eval",
            }
            for name, task in self.retention.items()
        ]
        results = {
            "version": 1,
            "name": self.folder.name,
            "model": {"name": model, "revision": None},
            "skills": skills,
            "retention": retention,
            "methods": {m: {"method": m, "config": {"learning_rate": 2e-5}} for m in methods},
            "seeds": seeds,
            "evaluate": {"split": "test", "limit": self.n},
            "budget": {"examples": 96},
        }
        _write(self.folder / "results.json", results)
        _write(self.folder / "protocols.json", self.protocols)
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        (self.folder / "records.jsonl").write_text(lines)


@dataclass
class FabricatedRun:
    """One method and seed through all skills; ``generator`` is drawn from in the order of runs."""

    fabrication: Fabrication
    method: str
    seed: int
    law: Law
    steps: int
    wobble: float
    generator: np.random.Generator

    def __post_init__(self) -> None:
        self.name = f"{self.method}-seed{self.seed}"
        self.folder = self.fabrication.folder / "runs" / self.name
        self.order = list(self.fabrication.skills)

    def write(self, inside: int, training: bool) -> None:
        """Measures every stage; ``inside`` as for fabricate."""
        self.folder.mkdir(parents=True)
        _write(
            self.folder / "run.json",
            {
                "run": self.name,
                "method": self.method,
                "label": self.method,
                "seed": self.seed,
                "config": {"learning_rate": 2e-5, "epochs": 1},
                "device": "cpu",
                "packages": {"torch": "2.9.0", "transformers": "4.57.1"},
                "git": "0123abc",
                "dtype": "float32",
                "threads": 2,
                "started": "2026-01-05T10:00:00Z",
            },
        )
        self._measure(stage=0, share=0.0)
        for stage in range(1, len(self.order) + 1):
            for point in range(inside, -1, -1):
                self._measure(stage, 1 - point / (inside + 1))
            if training:
                self._write_stage(stage)

    def _measure(self, stage: int, share: float) -> None:
        """Measures everything once ``share`` of a stage is done; stage 0 is the base model."""
        step = round(self.steps * (stage - 1 + share)) if stage else 0
        final = stage == 0 or share == 1
        where = {
            "run": self.name,
            "method": self.method,
            "seed": self.seed,
            "stage": stage,
            "skill": self.order[stage - 1] if stage else None,
            "step": step,
            "final": final,
            "prompts": step * 8,
            "tokens": step * 900,
            "seconds": step * 1.7,
        }
        # The base model is evaluated once for all runs.
        for i, name in enumerate(self.order, 1):
            accuracy = self._accuracy(name, i, stage, share)
            self.fabrication.measure_skill(
                where, name, accuracy, f"{self.name}-{step}" if stage else "base"
            )
        for task in self.fabrication.retention if final else ():
            self.fabrication.measure_task(
                where, task, self.law.loss * stage, f"{self.name}-{stage}" if stage else "base"
            )

    def _accuracy(self, name: str, place: int, stage: int, share: float) -> float:
        """The accuracy on the skill that stage ``place`` teaches."""
        base, room = self.fabrication.skills[name]
        if stage == 0:
            return base
        learned = 0.0
        if stage == place:
            learned = self.law.gain * share**0.5
        elif stage > place:
            learned = self.law.gain * self.law.keep ** (stage - 1 + share - place)
        return base + room * learned + self.wobble

    def _write_stage(self, stage: int) -> None:
        """Writes training.jsonl and stage.json."""
        place = self.folder / f"stage-{stage}"
        place.mkdir()
        first = self.steps * (stage - 1)
        rows = [self._training_row(first, k) for k in range(1, self.steps + 1)]
        (place / "training.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        _write(
            place / "stage.json",
            {
                "stage": stage,
                "skill": self.order[stage - 1],
                "steps": self.steps,
                "prompts": self.steps * 8,
                "tokens": self.steps * 900,
                "seconds": {
                    "training": self.steps * 1.7,
                    "sampling": self.steps * (0.0 if self.method == "sft" else 3.1),
                    "evaluation": 22.0,
                    "retention": 31.5,
                },
                "peak_memory_gib": 2.1 + 0.8 * (self.method != "sft"),
            },
        )

    def _training_row(self, first: int, k: int) -> dict[str, float]:
        """What the k-th step of a stage logs."""
        row = {
            "step": first + k,
            "loss": 1.5 / k**0.5 + self.generator.normal(0, 0.03),
            "grad_norm": 1 + self.generator.random(),
            "learning_rate": 2e-5 * (1 - k / self.steps),
            "seconds": 1.7,
            "tokens": 900,
        }
        if self.method != "sft":
            row["kl"] = 0.4 / k**0.5
            row["completion_tokens"] = 90 - k + self.generator.normal(0, 3)
        if self.method == "grpo":
            row["reward"] = min(1, 0.2 + 0.04 * k)
        return row


def _noise(name: str, who: str) -> np.random.Generator:
    """Noise of one evaluation: the same for the same key, since a model is evaluated once."""
    return np.random.default_rng(zlib.crc32(repr((name, who)).encode()))


def _item(name: str, i: int, exact: float, lenient: float) -> dict[str, Any]:
    answer = 2 * i if exact else 2 * i + 1
    return {
        "id": f"{name}-{i}",
        "prompt": f"[user]\nQuestion {i} of {name}: what is {i} + {i}? "
        "Show the <b>steps</b> & answer.",
        "completion": f"Let me think about {i} + {i}.\n\nThe answer is {answer}.",
        "tokens": 14,
        "finished": True,
        "reference": 2 * i,
        "scores": {"exact": exact, "lenient": lenient},
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
