"""The loop: for each run, for each stage, learn one skill and evaluate everything; committed stage
by stage.

A run that is killed goes on from its last committed stage or checkpoint and ends in the numbers of
one that was not: every random draw is keyed by what it is for, and a checkpoint holds weights,
optimizer, averages and all that was logged.
"""

import copy
import datetime
import gc
import importlib.metadata
import os
import platform
import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import torch

from harness.base.console import Progress, Rate
from harness.base.errors import UserError
from harness.base.files import locked, read_json, read_jsonl, write_json, write_jsonl
from harness.base.seeds import seed_for
from harness.evaluation.judge import judge_stage
from harness.learning.stage import Stage, seed_all
from harness.models.checkpoint import model_fingerprint, save_checkpoint
from harness.models.load import resolve_device
from harness.models.memory import peak_memory, reset_peak_memory
from harness.results.formats import ORACLE
from harness.results.writer import ResultsWriter
from harness.runs.engines import advice, engine_for, evaluator_for, load_order_model, sampler_for
from harness.runs.provenance import device_name, git_revision
from harness.sampling.settings import version


def run_order(order, folder, progress=None):
    """Run what ``order`` asks for and ``folder`` does not hold yet."""
    results, progress = ResultsWriter(folder), progress or Progress()
    results.check(order.about())
    loaded = None
    # a model that cannot be had leaves no folder behind
    if not (results.folder / "results.json").exists():
        loaded = load_order_model(order)
    results.open(order.about())
    if line := advice(order, resolve_device(order.model.device)):
        progress.say(line)
    for skill in order.skills if order.judge is None else ():
        if skill.judge:
            progress.say(
                f"{skill.name}: no judge is configured (docs/judge.md); what counts is {skill.metric}, another metric"
            )
    runs = order.runs()
    with engine_for(order) as engine:
        for number, run in enumerate(runs, 1):
            with _alone(results.run(run.name)):
                _tidy(order, results, run)
                left = [
                    k for k in range(len(order.skills) + 1) if not results.committed(run.name, k)
                ]
                if left:
                    _Run(
                        order,
                        results,
                        run,
                        progress,
                        f"run {number}/{len(runs)} {run.name}",
                        engine,
                    ).go(left[0], loaded)
                    loaded = None
                else:
                    # what a kill or a judge that was down has left
                    judge_stage(order, results, run.name, progress)
    results.rebuild()
    for label, chosen in results.selection().items():
        points = {point["label"]: point["validation"] for point in chosen["points"]}
        if chosen["selected"]:
            progress.say(
                f"{label}: {chosen['selected']} is selected among {len(points)}, validation {points[chosen['selected']]:.3f}"
            )
        else:
            progress.say(
                f"{label}: nothing is selected yet, some of {len(points)} points have not run with all seeds"
            )


class _Run:
    """One method x seed."""

    def __init__(self, order, results, run, progress, title, engine):
        self.order, self.results, self.run, self.progress, self.title = (
            order,
            results,
            run,
            progress,
            title,
        )
        self.engine = engine
        self.spec = order.methods[run.label]
        self.method = self.spec.cls(copy.deepcopy(self.spec.config))
        self.evaluator = evaluator_for(order, results)

    def go(self, first, loaded=None):
        """All stages from ``first`` on; loaded: the order's model and tokenizer, if they are at
        hand untouched.
        """
        order, results, name = self.order, self.results, self.run.name
        kept = results.stage(name, first - 1) if first > 1 else None
        # before another model comes the one of the run before goes, whatever cycles it stands in
        gc.collect()
        self.model, self.tokenizer = (
            loaded if loaded and not kept else load_order_model(order, kept and kept / "weights")
        )
        if not kept:
            _check_base(results, model_fingerprint(self.model))
        self.eval_sampler = sampler_for(order.evaluate, self.engine, self.model, self.tokenizer)
        if kept:
            self.method.load_state_dict(
                torch.load(kept / "method.pt", map_location="cpu", weights_only=False)
            )
        self._provenance(first)
        for stage in range(first, len(order.skills) + 1):
            self._stage(stage)
            judge_stage(order, results, name, self.progress)
            _tidy(order, results, self.run)

    def _stage(self, number):
        order, results = self.order, self.results
        self.evaluator.seconds = {"evaluation": 0.0, "retention": 0.0}
        reset_peak_memory(self.model.device)
        self.partial = results.run(self.run.name) / f"stage-{number}.partial"
        self.partial.mkdir(parents=True, exist_ok=True)
        before = [
            read_json(
                results.stage(self.run.name, k) / "stage.json",
                "steps",
                "prompts",
                "tokens",
                "seconds",
            )
            for k in range(number)
        ]
        self.base = {
            "step": sum(b["steps"] for b in before),
            "prompts": sum(b["prompts"] for b in before),
            "tokens": sum(b["tokens"] for b in before),
            "seconds": sum(b["seconds"]["training"] + b["seconds"]["sampling"] for b in before),
        }
        self.number, self.skill = number, order.skills[number - 1] if number else None
        self.where = f"{self.title}, stage {number}/{len(order.skills)}" + (
            f" {self.skill.name}" if self.skill else " base model"
        )
        self.log, self.records, stage = [], [], None
        if number:
            stage = self._learn()
        self._evaluate(stage, final=True)
        write_jsonl(self.partial / "records.jsonl", self.records)
        write_jsonl(self.partial / "training.jsonl", self.log)
        if number:
            save_checkpoint(self.model, self.tokenizer, self.partial / "weights")
            torch.save(self.method.state_dict(), self.partial / "method.pt")
        write_json(
            self.partial / "stage.json",
            {
                "stage": number,
                "skill": self.skill.name if self.skill else None,
                "steps": stage.step if stage else 0,
                "prompts": stage.prompts_drawn if stage else 0,
                "tokens": stage.tokens if stage else 0,
                "seconds": {
                    **(stage.seconds if stage else {"training": 0.0, "sampling": 0.0}),
                    **self.evaluator.seconds,
                },
                "peak_memory_gib": peak_memory(self.model.device),
            },
        )
        results.commit(self.partial, self.run.name, number)
        scores = {
            r["name"]: r["value"]
            for r in self.records
            if r["final"]
            and r["kind"] == "skill"
            and r["split"] == order.evaluate.split
            and r["metric"] == self._metric(r["name"])
        }
        self.progress.say(f"{self.where}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))

    def _metric(self, name):
        return next(s.metric for s in self.order.skills if s.name == name)

    # ---- learning --------------------------------------------------------------------------------------------------

    def _learn(self):
        order, path = self.order, self.partial / "checkpoint" / "state.pt"
        restored = None
        if path.exists():
            try:
                restored = torch.load(path, map_location="cpu", weights_only=False)
            except Exception:  # whatever PyTorch makes of half a file
                raise UserError(
                    path, "is no whole checkpoint", "remove it: the stage starts anew"
                ) from None
            self.model.load_state_dict(restored["model"])
            self.log, self.records = restored["log"], restored["records"]
            self.evaluator.seconds = restored["evaluation_seconds"]
        folder = self.partial / "method"
        folder.mkdir(exist_ok=True)
        stage = Stage(
            model=self.model,
            tokenizer=self.tokenizer,
            sampler=sampler_for(order.rollout, self.engine, self.model, self.tokenizer),
            sampled_elsewhere=order.rollout.engine != "transformers",
            skill=self.skill,
            teacher_template=order.template(self.skill),
            seed=self.run.seed,
            index=self.number,
            prompts=order.prompts(self.skill, self.spec.config),
            phases=self.method.phases(order.prompts(self.skill, self.spec.config)),
            batch_size=order.batch_size(self.spec.config),
            max_new_tokens=order.limit(self.skill, rollout=True),
            temperature=order.rollout.temperature,
            top_p=order.rollout.top_p,
            folder=folder,
            on_step=self._after_step,
            restored=restored and restored["stage"],
        )
        if limit := order.rollout.max_prompt_tokens:
            stage.examples = self._short_enough(stage, limit)
        self.rate, self.saved = Rate(stage.steps_in_all, stage.step), time.monotonic()
        if restored:
            self.progress.say(f"{self.where}: goes on after step {stage.step}")
        del restored  # the stage lets go of it as well, once its parts are back
        # what it draws before its first step, a resumed stage draws again
        seed_all(seed_for(self.run.seed, self.number, "learn"))
        self.method.learn(stage)
        stage.close()
        return stage

    def _short_enough(self, stage, limit):
        """The training examples whose prompt has at most ``limit`` tokens: a cut prompt would be
        another question.
        """
        kept = [e for e in stage.examples if len(stage.prompt_tokens(e)) <= limit]
        if not kept:
            raise UserError(
                f"skill {self.skill.name}",
                f"no training example has a prompt of at most {limit} tokens",
                "raise rollout.max_prompt_tokens",
            )
        if left_out := len(stage.examples) - len(kept):
            self.progress.say(
                f"{self.where}: {left_out} of {len(stage.examples)} training examples are left out, "
                f"their prompts are longer than {limit} tokens"
            )
        return kept

    def _after_step(self, stage, step):
        self.log.append({"step": self.base["step"] + stage.step, **step.logged})
        shown = " ".join(
            f"{k} {step.logged[k]:.3g}" for k in ("loss", "reward") if k in step.logged
        )
        self.progress.show(f"{self.where}: {self.rate.text(stage.step)}, {shown}")
        every = self.order.evaluate.every_steps
        if every and stage.step % every == 0 and stage.step < stage.steps_in_all:
            self._evaluate(stage, final=False)
        if time.monotonic() - self.saved >= 60 * self.order.checkpoints.minutes:
            self._checkpoint(stage)

    def _checkpoint(self, stage):
        folder = self.partial / "checkpoint"
        folder.mkdir(exist_ok=True)
        with open(folder / "state.partial", "wb") as file:
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "stage": stage.state_dict(),
                    "log": self.log,
                    "records": self.records,
                    "evaluation_seconds": self.evaluator.seconds,
                },
                file,
            )
            file.flush()
            # or a power cut could leave the new name with nothing behind it
            os.fsync(file.fileno())
        os.replace(folder / "state.partial", folder / "state.pt")
        self.saved = time.monotonic()

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def _evaluate(self, stage, final):
        weights = model_fingerprint(self.model)

        def shower(what):
            return lambda *done: self.progress.show(
                f"{self.where}: evaluates {what} {' '.join(map(str, done))}"
            )

        for skill in self.order.evaluated(self.number, final):
            for split in self.order.splits(skill):
                found = self.evaluator.skill(
                    self.model,
                    self.tokenizer,
                    self.eval_sampler,
                    weights,
                    skill,
                    split,
                    shower(f"{skill.name} {split}"),
                )
                self._record(stage, final, *found)
        if final:
            self._measure_further(stage, weights, shower)
        if final and self.order.suite:
            for found in self.evaluator.retention(
                self.model, self.tokenizer, weights, shower("retention"), self.eval_sampler
            ):
                self._record(stage, final, *found)
        self.eval_sampler.rest()

    def _measure_further(self, stage, weights, shower):
        """pass@k and the KL to the base policy of the skill just learned; of every skill at the
        base, with teacher and oracle.
        """
        order, settings, measure, model, tokenizer = (
            self.order,
            self.order.evaluate,
            self.evaluator,
            self.model,
            self.tokenizer,
        )
        if settings.pass_at_k:
            for skill in [self.skill] if self.number else order.skills:
                self._record(
                    stage,
                    True,
                    *measure.pass_at_k(
                        model,
                        tokenizer,
                        self.eval_sampler,
                        weights,
                        skill,
                        shower(f"{skill.name} pass@k"),
                    ),
                )
        if settings.kl and self.number:
            base, _ = load_order_model(order)  # a second copy, for as long as this takes
            _check_base(self.results, model_fingerprint(base))
            self._record(
                stage,
                True,
                *measure.kl(
                    model,
                    base,
                    tokenizer,
                    self.skill,
                    settings.split,
                    shower(f"{self.skill.name} KL to the base policy"),
                ),
            )
        for skill in order.skills if settings.teacher and not self.number else ():
            split, show = order.teacher_split(skill), shower(f"{skill.name} teacher")
            of_split = {
                "model": model,
                "tokenizer": tokenizer,
                "sampler": self.eval_sampler,
                "weights": weights,
                "skill": skill,
                "split": split,
                "progress": show,
            }
            if split not in order.splits(skill):  # what the teacher is to be compared with
                self._record(stage, True, *measure.skill(**of_split))
            self._record(
                stage,
                True,
                *measure.skill(**of_split, teacher=True),
                names={skill.metric: "teacher_accuracy"},
            )
            if settings.kl:
                self._record(
                    stage,
                    True,
                    *measure.kl(model, model, tokenizer, skill, split, show, teacher=True),
                )
        for skill in order.skills if settings.oracle and not self.number else ():
            for split in order.reported(skill):
                found = measure.skill(
                    model,
                    tokenizer,
                    self.eval_sampler,
                    weights,
                    skill,
                    split,
                    shower(f"{skill.name} {split} with its source"),
                    oracle=True,
                )
                self._record(
                    stage,
                    True,
                    *found,
                    names={metric: ORACLE + metric for metric in found[2]["metrics"]},
                )

    def _record(self, stage, final, key, protocol, evaluation, names=None):
        """One record a metric of ``evaluation``; names: {metric: under which name}, and then only
        those.
        """
        done = stage.step if stage else 0
        prompts = stage.prompts_drawn if stage else 0
        values = evaluation["metrics"]
        for metric, (value, stderr) in (
            {names[m]: values[m] for m in names}.items() if names else values.items()
        ):
            self.records.append(
                {
                    "run": self.run.name,
                    "method": self.run.label,
                    "seed": self.run.seed,
                    "stage": self.number,
                    "skill": self.skill.name if self.skill else None,
                    "step": self.base["step"] + done,
                    "final": final,
                    "kind": evaluation["kind"],
                    "name": evaluation["name"],
                    "split": evaluation["split"],
                    "metric": metric,
                    "value": value,
                    "stderr": stderr,
                    "n": evaluation["n"],
                    "protocol": protocol,
                    "evaluation": key,
                    "prompts": self.base["prompts"] + prompts,
                    "tokens": self.base["tokens"] + (stage.tokens if stage else 0),
                    "seconds": round(
                        self.base["seconds"] + (sum(stage.seconds.values()) if stage else 0.0), 3
                    ),
                }
            )

    # ---- the rest --------------------------------------------------------------------------------------------------

    def _provenance(self, first):
        """Put on record how and where the stages from ``first`` on are made, beside what earlier
        starts had otherwise.
        """
        path = self.results.run(self.run.name) / "run.json"
        before = read_json(path) if path.exists() else {}
        now = {
            "run": self.run.name,
            "method": self.spec.method,
            "label": self.run.label,
            "seed": self.run.seed,
            "config": asdict(self.spec.config),
            "batch_size": self.order.batch_size(self.spec.config),
            "model": asdict(self.order.model),
            "device": device_name(self.model.device),
            "dtype": str(self.model.dtype),
            "threads": torch.get_num_threads(),
            "git": git_revision(),
            "python": platform.python_version(),
            "packages": {
                p: importlib.metadata.version(p)
                for p in ("torch", "transformers", "trl", "lm_eval", "datasets")
            },
            "engine": {
                "rollout": self.order.rollout.engine,
                "evaluate": self.order.evaluate.engine,
                **(
                    {"vllm": asdict(self.order.vllm) | {"version": version()}}
                    if self.engine
                    else {}
                ),
            },
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "first_stage": first,
        }
        earlier = before.pop("earlier", []) + [
            {k: v for k, v in before.items() if v != now.get(k)}
        ] * bool(before)
        write_json(path, {**now, **({"earlier": earlier} if earlier else {})})


def _check_base(results, weights):
    """Raises UserError if the base model's ``weights``, their fingerprint, are not those that a run
    of the folder began with: its name may stand for others since then, and what is learned from
    these would be compared with what those could do.
    """
    for path in sorted(results.folder.glob("runs/*/stage-0/records.jsonl")):
        rows = (row for _, row in read_jsonl(path)) if (path.parent / "stage.json").exists() else ()
        before = next(
            (str(row["evaluation"]).partition("-")[0] for row in rows if row.get("evaluation")),
            None,
        )
        if before not in (None, weights[:16]):
            raise UserError(
                path,
                f"is of a base model with other weights ({before}) than the order's model has now ({weights[:16]})",
                "put the old weights back, name their revision in the order, or give another folder with --out",
            )
        if before:  # all that came later were compared with the first
            return


def _tidy(order, results, run):
    """Give back the disk of checkpoints and weights that nothing will read any more."""
    done = [k for k in range(len(order.skills) + 1) if results.committed(run.name, k)]
    for stage in done:
        folder = results.stage(run.name, stage)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        read_again = order.checkpoints.keep == "all" or (
            stage == done[-1]
            and not (order.checkpoints.keep == "none" and stage == len(order.skills))
        )
        if not read_again:
            shutil.rmtree(folder / "weights", ignore_errors=True)
            (folder / "method.pt").unlink(missing_ok=True)


@contextmanager
def _alone(folder):
    """Nobody else works on this run."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError:
            raise UserError(
                folder,
                "another process works on this run",
                "wait for it, or choose another --method or --seed",
            ) from None
        yield
