"""One stage of a run, from its first draw to the commit of its folder."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from harness.base.console import Rate, clock
from harness.base.errors import UserError
from harness.base.forecast import BETWEEN, LEARNING
from harness.base.seeds import seed_for
from harness.base.stopping import SIGNALS, Stopped
from harness.learning.checks import check_done
from harness.learning.draws import seed_all
from harness.learning.stage import Stage
from harness.learning.step import Step
from harness.models import ranks
from harness.models.checkpoint import save_checkpoint
from harness.results.formats import RELEARN
from harness.runs.amounts import Amounts
from harness.runs.base_stage import BaseStage
from harness.runs.changes import Changes
from harness.runs.checkpoints import save_memory
from harness.runs.engines import sampler_for
from harness.runs.measurements import Finding, Measurements
from harness.runs.one_run import OneRun, start_of
from harness.runs.passes import passes_of
from harness.runs.references import JointSkill, joint_name, union
from harness.runs.shared_saves import load_checkpoint, saves_of
from harness.skills.skill import Skill

LONGEST_STOP = 10.0  # seconds of a step and of a checkpoint that a stop waits for


def run_stage(live: OneRun, number: int) -> None:
    """Learn, evaluate and commit stage ``number``; 0 is the base model, which learns nothing."""
    stage = SkillStage(live, number) if number else BaseStage(live)
    try:
        stage.learn()
        stage.evaluate(final=True)
        stage.commit()
    except Stopped as stop:
        stop.kept = stage.kept()
        raise
    finally:
        if isinstance(stage, SkillStage):
            stage.saves.join()


class SkillStage(BaseStage):
    """A stage that teaches a skill.

    It begins with the skill's first step, or after the last checkpoint that a killed process left.
    stage: what the method gets; saves: its checkpoints; due: whether the evaluation of the present
    step is still to be made.
    """

    def __init__(self, live: OneRun, number: int) -> None:
        self.skills = live.taught(number)
        super().__init__(live, number, joint_name(self.skills))
        state = load_checkpoint(self.folder / "checkpoint", live.model)
        if state:
            live.evaluator.seconds = state["evaluation_seconds"]
            self.log = state["log"]
            self.records = state["records"]
            if "method" in state:
                live.method.load_state_dict(state["method"])
        self.due = bool(state and state["due"])
        self.changes = Changes(live, number)
        self.stage = self._new_stage(state["stage"] if state else None)
        live.parameters.begin(self.stage)
        self.stage.read_clock()
        if state:
            live.parameters.restore(live.model, state["model"])
        self.rate = Rate(self.stage.steps_in_all, self.stage.step)
        self.is_checked = False  # whether a checkpoint can hold what the method keeps
        self.saves = saves_of(self.folder / "checkpoint", live, self.stage.step)
        if state:
            done = self.stage.step / max(1, self.stage.steps_in_all)
            live.progress.forecast.enter(live.run.name, number, done)
            for row in self.log:
                live.progress.learned(live.run.name, row)
            live.progress.measured(live.run.name, self.records)
            live.progress.say(f"{self.where}: goes on after step {self.stage.step}")

    def _new_stage(self, restored: dict[str, Any] | None) -> Stage:
        live, order, config = self.live, self.live.order, self.live.spec.config
        folder = self.folder / "method"
        folder.mkdir(exist_ok=True)
        drawn = [order.prompts(skill, config) for skill in self.skills]
        lessons = [live.lesson(skill) for skill in self.skills]
        live.say_left_out(lessons, self.where)
        examples = [lesson.examples for lesson in lessons]
        own, is_joint = self.skills[0], len(self.skills) > 1
        if is_joint:
            own = JointSkill(self.skills, union(examples, drawn, live.run.seed))
        stage = Stage(
            model=live.model,
            tokenizer=live.tokenizer,
            sampler=sampler_for(order.rollout, live.engine, live.model, live.tokenizer),
            sampled_elsewhere=order.rollout.engine != "transformers",
            deterministic=order.model.deterministic,
            fused_losses=order.model.fused_losses,
            skill=own,
            teacher_template=lessons[0].teacher_template,
            chat=order.chat_template.inputs("student"),
            teacher_chat=order.chat_template.inputs("teacher"),
            seed=live.run.seed,
            index=live.run.stages[self.number - 1][0],  # the same draws in all runs
            number=self.number,
            reference=live.run.suffix,
            prompts=sum(drawn),
            phases=live.method.phases(sum(drawn)),
            batch_size=order.batch_size(config),
            max_new_tokens=max(lesson.max_new_tokens for lesson in lessons),
            earlier=[live.lesson(s) for k in range(1, self.number) for s in live.taught(k)],
            temperature=order.rollout.temperature,
            top_p=order.rollout.top_p,
            later=len(live.run.stages) - self.number,
            parts=list(live.parts.values()),
            parameters=live.parameters,
            load_start=partial(live.load_start, self.number),
            models=live.spec.models(),
            folder=folder,
            on_step=self._after_step,
            on_work=self._show_work,
            restored=restored,
        )
        stage.passes = passes_of(live) or stage.passes
        stage.begins_run = start_of(live.results, order, live.run, self.number) is None
        stage.examples = stage.examples if is_joint else examples[0]
        for lesson in lessons:
            stage.add_lesson(lesson, own=True)
        return stage

    @property
    def skill_name(self) -> str | None:
        return joint_name(self.skills)

    def _evaluated(self, final: bool) -> list[Skill]:
        return self.skills if self.live.run.reference else super()._evaluated(final)

    @property
    def amounts(self) -> Amounts:
        stage = self.stage
        return Amounts(stage.step, stage.prompts_drawn, stage.tokens, sum(stage.seconds.values()))

    @property
    def seconds(self) -> dict[str, float]:
        return self.stage.seconds

    def learn(self) -> None:
        """Let the method teach the model what is left of the stage."""
        if self.due:
            self._evaluate_inside()
        progress = self.live.progress
        progress.forecast.doing(LEARNING)
        progress.show("begins to learn")
        self.stage.start_clock()
        try:
            for name, part in self.live.parts.items():
                self._seed("begin", name)
                part.begin(self.stage)
            # So a resumed stage repeats the draws that the method makes before its first step.
            self._seed("learn")
            self.live.method.learn(self.stage)
            self.learned = self.stage.prompts_drawn
            check_done(self.stage, f"methods.{self.live.run.label}")
            for name, part in self.live.parts.items():
                progress.show(f"ends the stage for {name}")
                self._seed("end", name)
                part.end(self.stage)
            progress.show("ends the stage for what is trained")
            self.live.parameters.end(self.stage)
        finally:
            SIGNALS.waits = False
        self.stage.read_clock()
        if self.number < len(self.live.run.stages):
            self.live.memory()  # Refused before the stage is measured.
        self.stage.close()
        progress.forecast.doing(BETWEEN)
        progress.show("measures how far the weights have gone")
        self.changes.measure()

    def _seed(self, *what: str) -> None:
        seed_all(seed_for(self.live.run.seed, self.number, *what))

    def kept(self) -> str:
        """What a stop leaves of this stage, in words."""
        self.saves.join()
        done, in_all, saved = self.stage.step, self.stage.steps_in_all, self.saves.saved
        text = f"{self.where}: step {saved} of {in_all} is kept"
        if done > saved:
            text += f", {done - saved} further steps ({clock(self.saves.lost)}) are done again"
        return text

    def _after_step(self, stage: Stage, step: Step) -> None:
        """Log and show progress; evaluate and write a checkpoint where one is due."""
        if not self.is_checked:  # now, not at the first checkpoint, which may be minutes away
            self.saves.check(stage)
            self.is_checked = True
        pending = ranks.any_of(SIGNALS.pending)
        self.log.append({"step": self.before.steps + stage.step, **step.logged})
        numbers = " ".join(
            f"{name} {step.logged[name]:.3g}" for name in ("loss", "reward") if name in step.logged
        )
        self.live.progress.forecast.learned(stage.step / stage.steps_in_all)
        self.live.progress.learned(self.live.run.name, self.log[-1])
        self.live.progress.show(f"{self.rate.text(stage.step)} {numbers}".rstrip())
        steps = {"step": stage.step, "steps": stage.steps_in_all}
        self.live.tell(f"learns {self.skill_name}", **steps, each=self.rate.each(stage.step))
        self.saves.lost += step.logged["seconds"]
        self.due = stage.step < stage.steps_in_all and self._is_measured(stage.step)
        if self.due and pending is None:
            self._evaluate_inside()
        is_time = self.saves.is_due()
        if stage.step == stage.steps_in_all:
            is_time |= self.saves.is_worth()
        if is_time or pending is not None:
            self._save_state(wait=pending is not None)
        if pending is not None:
            raise Stopped(pending)
        SIGNALS.waits = step.logged["seconds"] + self.saves.seconds < LONGEST_STOP

    def _is_measured(self, step: int) -> bool:
        """Whether a step inside the stage is evaluated; relearning after 1, 2, 4, 8, ... steps."""
        if reference := self.live.run.reference:
            return reference == RELEARN and step & (step - 1) == 0
        every = self.live.order.evaluate.every_steps
        return bool(every and step % every == 0)

    def _evaluate_inside(self) -> None:
        """Evaluate after the present step. A stop loses nothing of the steps before it."""
        records = list(self.records)
        SIGNALS.waits = False
        try:
            self.evaluate(final=False)
        except Stopped:
            self.records = records
            # A stage that goes on has this step's checkpoint, and not yet what it holds.
            self.saves.join()
            if self.saves.saved < self.stage.step and self.saves.seconds < LONGEST_STOP:
                self._save_state(wait=True)
            raise
        self.due = False

    def _show_work(self, what: str, done: int, total: int) -> None:
        self.live.progress.show(f"{what} {done}/{total}")

    def _save_state(self, wait: bool = False) -> None:
        self.live.progress.show("writes a checkpoint")
        state = {
            "model": self.live.parameters.checkpoint(self.live.model),
            "stage": self.stage.state_dict(),
            "log": self.log,
            "records": self.records,
            "evaluation_seconds": self.live.evaluator.seconds,
            "due": self.due,
            "device": self.live.model.device.type,
        }
        if not self.live.method.trains:  # What it is asked by is what it has learned.
            state["method"] = self.live.method.state_dict()
        self.saves.save(state, self.stage.step, wait)

    def _check_learned(self, weights: str) -> None:
        """Raises UserError if nothing made an update; says so if updates changed nothing."""
        if weights != self.live.weights or not self.live.method.trains:
            return
        if self.stage.updates is None:
            raise UserError(
                f"methods.{self.live.run.label}",
                f"learn() left the weights as they were in stage {self.number}",
                "a method updates stage.model in place, by harness.learning.trainer.learning",
            )
        self.live.progress.say(f"{self.where}: the updates did not change the weights")

    def _sizes(self) -> dict[str, Any]:
        return self.changes.sizes(self.stage)

    def _further(self, measurements: Measurements) -> Iterable[Finding]:
        return () if self.live.run.reference else measurements.after_learning(self.skills[0])

    def _save_weights(self) -> None:
        live = self.live
        live.progress.show("writes the weights")
        self.saves.wait()  # The folder gets another name.
        save_checkpoint(live.model, live.tokenizer, self.folder / "weights")
        if self.number < len(live.run.stages):  # else no stage reads it
            save_memory(self.folder / "method.pt", live.memory())
