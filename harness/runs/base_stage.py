"""What every stage of a run does: evaluate, record, commit."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from harness.base.files import write_jsonl, write_sealed
from harness.base.forecast import MEASURING
from harness.models.memory import peak_memory, reset_peak_memory
from harness.results.formats import JOINT, RELEARN
from harness.runs.amounts import Amounts, amounts_before
from harness.runs.measurements import Finding, Measurements
from harness.runs.one_run import OneRun
from harness.skills.skill import Skill


def _finite(value: float | None) -> float | None:
    """A number as a record holds it: None where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


class BaseStage:
    """What every stage does: evaluate, record, commit. By itself it is stage 0, the base model.

    folder: where the stage is written until it is committed; before: what the stages before it
    took; log: the rows of training.jsonl; records: those of records.jsonl.
    """

    learned = 0  # prompts drawn at the last step, before what parts read behind it

    def __init__(self, live: OneRun, number: int = 0, name: str = "base model") -> None:
        self.live = live
        self.number = number
        place = f"stage {number}/{len(live.run.stages)} {name}"
        self.where = f"{live.title}, {place}"
        live.progress.at(live.title, place)
        live.progress.forecast.enter(live.run.name, number)
        self.folder = live.results.run(live.run.name) / f"stage-{number}.partial"
        self.before = amounts_before(live.results, live.run.name, number)
        self.log: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        live.evaluator.seconds = {"evaluation": 0.0, "retention": 0.0}
        reset_peak_memory(live.model.device)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def skill_name(self) -> str | None:
        """The skill that this stage teaches."""
        return None

    @property
    def amounts(self) -> Amounts:
        """What learning took in this stage so far."""
        return Amounts()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of learning in this stage so far, by what they were for."""
        return {"training": 0.0, "sampling": 0.0}

    def learn(self) -> None:
        """The base model learns nothing."""

    def kept(self) -> str:
        """What a stop leaves of this stage, in words."""
        return f"{self.where}: what is measured is kept"

    def evaluate(self, final: bool) -> None:
        """Measure the live model and record it; final: at the end of the stage, or inside it."""
        before = self.live.progress.forecast.doing(MEASURING)
        self.live.progress.show("takes the fingerprint of the weights")
        measurements = Measurements(self.live, self._progress)
        if final:
            self._check_learned(measurements.weights)
            self.live.weights = measurements.weights
        if not self.number and len(self.live.results.owners.names()) > 1:
            measurements.share_out(self._evaluated(final))
        self._record(measurements.of_skills(self._evaluated(final)), final)
        if not self.live.run.reference:
            self._record(measurements.of_drift(self.number), final)
        if final:
            self._record(self._further(measurements), final)
        if final and self.live.run.reference in ("", JOINT):
            self._record(measurements.of_retention(), final)
        self.live.sampler.rest()
        self.live.progress.forecast.doing(before)

    def _evaluated(self, final: bool) -> list[Skill]:
        """The skills that are measured, at the end of the stage or inside it."""
        if self.live.run.reference == RELEARN:
            return self.live.taught(1)
        return self.live.order.evaluated(self.number, final, self.live.run.sequence)

    def _check_learned(self, weights: str) -> None:
        """Whether the weights, by their fingerprint, may be those at the end of the stage."""

    def _further(self, measurements: Measurements) -> Iterable[Finding]:
        """Further measures at the end of the stage: pass@k, KL, teacher, oracle."""
        return () if self.live.run.reference else measurements.of_base()

    def _progress(self, what: str, piece: str, answers: int) -> Callable[..., None]:
        """What shows how far a measurement is; see Measurements.

        It is called with the answers so far, or for retention with task, requests so far and all.
        """
        progress = self.live.progress
        progress.forecast.measures(piece)
        progress.show(f"evaluates {what}")

        def show(done: int) -> None:
            progress.forecast.measured(done / max(answers, 1))
            progress.show(f"evaluates {what} {done}/{answers}")

        return show if answers else self._show_retention

    def _show_retention(self, task: str, done: int, of_task: int) -> None:
        suite = self.live.order.suite
        assert suite is not None
        names = [entry.task for entry in suite.tasks]
        share = (names.index(task) + done / max(of_task, 1)) / len(names)
        self.live.progress.forecast.measured(share)
        self.live.progress.show(f"evaluates retention {share:.0%}: {task} {done}/{of_task}")

    def _record(self, findings: Iterable[Finding], final: bool) -> None:
        """One record for every metric of an evaluation."""
        mark = self.live.run.mark
        if final and 0 < self.learned < self.amounts.prompts:
            mark["prompts_learned"] = self.before.prompts + self.learned
        for finding in findings:
            total = self.before + self.amounts
            recorded = len(self.records)
            evaluation = finding.measurement.evaluation
            for metric, value, stderr in finding.values():
                self.records.append(
                    {
                        "run": self.live.run.name,
                        "method": self.live.run.method,
                        "seed": self.live.run.seed,
                        "stage": self.number,
                        "skill": self.skill_name,
                        "step": total.steps,
                        "final": final,
                        "kind": evaluation["kind"],
                        "name": evaluation["name"],
                        "split": evaluation["split"],
                        "metric": metric,
                        "value": _finite(value),
                        "stderr": _finite(stderr),
                        "n": evaluation["n"],
                        "protocol": finding.measurement.protocol,
                        "evaluation": finding.measurement.key,
                        "prompts": total.prompts,
                        "tokens": total.tokens,
                        "seconds": round(total.seconds, 3),
                        **mark,
                    }
                )
            self.live.progress.measured(self.live.run.name, self.records[recorded:])

    def commit(self) -> None:
        """Write the files of the stage, and give its folder its name."""
        live = self.live
        live.progress.show("writes the stage's files")
        write_jsonl(self.folder / "records.jsonl", self.records)
        write_jsonl(self.folder / "training.jsonl", self.log)
        self._save_weights()
        write_sealed(
            self.folder / "stage.json",
            {
                "stage": self.number,
                "skill": self.skill_name,
                "steps": self.amounts.steps,
                "prompts": self.amounts.prompts,
                "tokens": self.amounts.tokens,
                "seconds": {**self.seconds, **live.evaluator.seconds},
                "peak_memory_gib": peak_memory(live.model.device),
                "kept_bytes": self._kept_bytes(),
                **self._sizes(),
            },
        )
        live.results.commit(self.folder, live.run.name, self.number)
        live.progress.forecast.over()
        live.progress.say(f"{self.where}: {self._scores()}")

    def _sizes(self) -> dict[str, Any]:
        """Further entries of stage.json: FLOPs, gold rows, changes of the weights."""
        return {}

    def _save_weights(self) -> None:
        """The base model's weights are where it was loaded from."""

    def _kept_bytes(self) -> int:
        """Bytes that the method keeps on the disk: its memory of earlier skills, and its files."""
        files = [self.folder / "method.pt", *(self.folder / "method").rglob("*")]
        again = sum(part.kept_bytes() for part in self.live.parts.values())
        return again + sum(file.stat().st_size for file in files if file.is_file())

    def _scores(self) -> str:
        """The number that counts of every skill, as the last evaluation gave it."""
        order = self.live.order
        metric = {skill.name: skill.metric for skill in order.skills}
        scores = {
            record["name"]: record["value"]
            for record in self.records
            if record["final"]
            and record["kind"] == "skill"
            and record["split"] == order.evaluate.split
            and record["metric"] == metric[record["name"]]
        }
        return ", ".join(
            f"{name} {'no number' if value is None else f'{value:.3f}'}"
            for name, value in scores.items()
        )
