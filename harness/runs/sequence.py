"""The loop: for each run, for each stage, learn one skill, evaluate everything, commit.

A run that is killed goes on from its last committed stage or checkpoint and ends in the numbers of
one that was not: every random draw is keyed by what it is for, and a checkpoint holds weights,
optimizer, averages and all that was logged.
"""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.base.console import Progress
from harness.base.errors import UserError
from harness.base.files import read_json
from harness.evaluation.judge import judge_stage
from harness.models import ranks
from harness.models.checkpoint import check_saving, file_fingerprint
from harness.models.load import load_tokenizer, resolve_device
from harness.results.formats import FAILED, VERSION
from harness.results.hashes import gone_sums_line
from harness.results.overlap import sentence
from harness.results.writer import ResultsWriter
from harness.runs.checkpoints import load_memory, tidy
from harness.runs.engines import (
    advice,
    check_copies,
    check_sampling,
    engine_for,
    load_order_model,
    measure_products,
    take_products,
)
from harness.runs.expected import forecast_of
from harness.runs.failures import RunFailed, failing_alone
from harness.runs.mirror import writer_of_rank
from harness.runs.one_run import (
    OneRun,
    check_base_model,
    check_kept_weights,
    check_protocols,
    start_of,
)
from harness.runs.order import Order
from harness.runs.plan import check_models, model_shape
from harness.runs.provenance import write_provenance
from harness.runs.references import Run, without_runs
from harness.runs.shards import Shard, claimed, first_open_stage
from harness.runs.stage_run import run_stage
from harness.sampling.vllm import Engine
from harness.watch.lease import LeaseTeller
from harness.watch.tracking import track

ModelAndTokenizer = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def run_order(
    order: Order,
    folder: str | Path,
    progress: Progress | None = None,
    on_failure: Callable[[str, str], None] | None = None,
    shard: Shard | None = None,
) -> None:
    """Run what ``order`` asks for and ``folder`` does not hold yet.

    on_failure: is told the name of a run that failed and the reason in one line, and the other runs
    go on; if left out, the first error passes. A run that failed is tried again by the next start.
    shard: the part of the runs that this process begins with, and it leaves out what others work
    on; without one such a run raises UserError.
    """
    check_copies(order, ranks.on_machine())
    results = writer_of_rank(folder)
    progress = progress or Progress()
    progress.listeners.append(LeaseTeller(results))
    fresh_model = prepare(order, results, progress)
    runs = order.runs()
    with engine_for(order) as engine:
        for run in claimed(order, results, shard):
            title = f"run {runs.index(run) + 1}/{len(runs)} {run.name}"
            progress.at(title)
            if (first := open_stage(order, results, run, progress)) is None:
                continue
            fails_alone = on_failure is not None
            try:
                run_stages(
                    order, results, run, first, fresh_model, engine, progress, title, fails_alone
                )
            except RunFailed as failure:
                progress.say(f"{title} failed: {failure}")
                progress.forecast.over_before(run.name, len(run.stages) + 1)
                assert on_failure is not None
                on_failure(run.name, str(failure))
            fresh_model = None
    progress.at()
    finish(results, progress)


def open_stage(order: Order, results: ResultsWriter, run: Run, progress: Progress) -> int | None:
    """The first stage of a run that is to be done, None if it is over."""
    (results.run(run.name) / FAILED).unlink(missing_ok=True)
    tidy(order, results, run)
    first = first_open_stage(results, run)
    # Another process may have done some of it since the forecast was made.
    done = len(run.stages) + 1 if first is None else first
    progress.forecast.over_before(run.name, done)
    progress.forecast.enter(run.name, done)
    if progress.wants_history:
        _tell_history(results, run, done, progress)
    if first is None:  # a kill, or a judge that was down, may have left verdicts open
        judge_stage(order, results, run.name, progress)
    return first


def finish(results: ResultsWriter, progress: Progress) -> None:
    """Bring what all runs share up to date."""
    results.rebuild()
    results.tidy_leases()
    if elsewhere := results.owners.holders():
        progress.say(f"other processes work on {', '.join(elsewhere)}")
    _say_selection(results, progress)


def prepare(order: Order, results: ResultsWriter, progress: Progress) -> ModelAndTokenizer | None:
    """Begin the folder or go on with it; returns the model, where it had to be loaded for that."""
    take_products(order, results.folder)
    progress.say("looks for questions of the tests in the training data")
    about = order.about()
    results.check(about)
    if line := gone_sums_line(results.folder, VERSION):
        progress.say(line)
    on_gpu = resolve_device(order.model.device) != "cpu"  # timed before a model is in its memory
    progress.expect(partial(forecast_of, order, results), at_once=on_gpu)
    fresh_model = None
    if not (results.folder / "results.json").exists():
        progress.say(f"loads {order.model.name}, and tries to sample from it and to save it")
        fresh_model = load_order_model(order)  # a model that cannot be had leaves no folder behind
        measure_products(order, fresh_model[0])
        if order.products and (said := order.products.said()):
            progress.say(said)
        about = order.about()
        check_sampling(order, fresh_model[0], progress)
        check_saving(*fresh_model, f"{order.path}: model")
        check_models(order.methods.values(), order, *fresh_model)
        measured = order.products
        take_products(order, results.folder)
        if order.products != measured:  # another process has begun the folder meanwhile
            fresh_model, about = None, order.about()
    else:
        _check_new(order, results)
    results.open(about)
    results.plan({run.name: len(run.stages) for run in order.runs()})
    track(order.report_to, progress)
    progress.opened(results.folder, about)
    _say_advice(order, progress)
    return fresh_model


def run_stages(
    order: Order,
    results: ResultsWriter,
    run: Run,
    first: int,
    fresh_model: ModelAndTokenizer | None,
    engine: Engine | None,
    progress: Progress,
    title: str,
    fails_alone: bool,
) -> None:
    """The stages of one run from ``first`` on.

    fails_alone: whether an error that concerns no other run becomes RunFailed.

    fresh_model: the order's model and tokenizer, if they are in memory and untouched. Nothing
    outside refers to the run's model once this function returns: there may be room for one alone.
    """
    gc.collect()  # the model of the run before may be part of a cycle
    before = start_of(results, order, run, max(first, 1))
    progress.show(f"loads {order.model.name}" + (f" of {before.name}" if before else ""))

    def guard() -> AbstractContextManager[None]:
        alone = failing_alone(order, results, results.run(run.name))
        return alone if fails_alone else nullcontext()

    if before:  # another process may have begun the run while this one loaded the base model
        if first <= 1:
            with guard():
                check_sequence(run, before)
        results.check_kept(before, memory=first > 1)
        model, tokenizer = load_order_model(order, before / "weights")
        weights = file_fingerprint(model)
        check_kept_weights(results, before, model, weights)
    else:
        model, tokenizer = fresh_model or load_order_model(order)
        weights = file_fingerprint(model)
        check_base_model(results, model, weights)
    memory = load_memory(before / "method.pt") if first > 1 and before else None
    with guard():
        live = OneRun(order, run, results, model, tokenizer, weights, engine, progress, title)
        if memory is not None:
            live.remember(memory)
    check_protocols(live)
    write_provenance(live, first)
    for stage in range(first, len(run.stages) + 1):
        with guard():
            run_stage(live, stage)
        judge_stage(order, results, run.name, progress)
        tidy(order, results, run)
        progress.stage_over(run.name, stage)


def _tell_history(results: ResultsWriter, run: Run, done: int, progress: Progress) -> None:
    """Tell what earlier starts did in the first ``done`` stages of a run."""
    for number in range(done):
        stage = results.stage(run.name, number)
        for row in results.rows(stage, "training.jsonl"):
            progress.learned(run.name, row)
        progress.measured(run.name, results.rows(stage, "records.jsonl"))


def check_sequence(run: Run, last: Path) -> None:
    """Raises UserError where the sequence whose skills are learned again has no last weights."""
    if not (last / "weights").is_dir():
        state = "has not kept its last weights" if last.is_dir() else "is not finished"
        raise UserError(f"relearning of {run.label}", f"{run.whole} {state}", "run it first")


def _check_new(order: Order, results: ResultsWriter) -> None:
    """Raises UserError where a label that the folder does not know cannot learn."""
    known = read_json(results.folder / "results.json").get("methods") or {}
    new = [spec for label, spec in order.methods.items() if label not in known]
    if any(spec.parameters or spec.cls.has_own_loop for spec in new):
        place = f"{order.path}: model"
        model = order.model
        tokenizer, source = load_tokenizer(model.name, model.revision, place, model.template)
        check_models(new, order, model_shape(order, source, place), tokenizer)


def _say_advice(order: Order, progress: Progress) -> None:
    """Lines about a faster engine, references without runs, questions that are taught and tested,
    and a missing judge.
    """
    for idle in without_runs(order):
        progress.say(idle)
    if line := advice(order, resolve_device(order.model.device)):
        progress.say(line)
    for overlap in order.overlaps:
        progress.say(f"overlap of test and train: {sentence(overlap)}")
    if order.judge is not None:
        return
    for skill in order.skills:
        if skill.judge:
            progress.say(
                f"{skill.name}: no judge is configured (docs/how-to/judge.md); "
                f"what counts is {skill.metric}, another metric"
            )


def _say_selection(results: ResultsWriter, progress: Progress) -> None:
    """What each grid of the folder has selected."""
    for label, selection in results.selection().items():
        points = {point["label"]: point["validation"] for point in selection["points"]}
        best = selection["selected"]
        if best:
            progress.say(
                f"{label}: {best} is selected among {len(points)}, validation {points[best]:.3f}"
            )
        else:
            progress.say(
                f"{label}: nothing is selected yet, some of {len(points)} points have not run "
                "with all seeds"
            )
