"""Rows of a stage's evaluation: ours beside a script with generate and the ``lm_eval`` commands."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.speed import peers
from benchmarks.speed.timing import Result, Settings, faster, probe, python, stated, timed
from harness.base.files import read_json
from harness.evaluation.suite import FOLDER as RETENTION
from harness.models.checkpoint import model_fingerprint
from harness.models.load import load_model
from harness.results.writer import ResultsWriter
from harness.runs.engines import evaluator_for
from harness.runs.order import Order
from harness.sampling.transformers import TransformersSampler


def make_order(
    settings: Settings,
    skills: Iterable[str],
    methods: Mapping[str, Any],
    prompts: int,
    examples: int,
    documents: int | None,
    tasks: Collection[str] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """An order as a mapping.

    documents: limit of each retention task; tasks: names of those of the suite embedded_1, all if
    left out; changes: further sections.
    """
    suite = yaml.safe_load((RETENTION / "embedded_1.yaml").read_text(encoding="utf-8"))["tasks"]
    limit = {"limit": documents} if documents else {}
    return {
        "model": {"name": settings.model, "dtype": settings.dtype, "device": "cpu"},
        "skills": list(skills),
        "methods": methods,
        "budget": {"prompts": prompts, "batch_size": settings.prompts},
        "evaluate": {"examples": examples},
        "retention": [task | limit for task in suite if tasks is None or task["task"] in tasks],
        **changes,
    }


def generate_command(settings: Settings, folder: str | Path, examples: int, out: Path) -> list[Any]:
    """Arguments of a script that answers the first questions of every skill with generate."""
    return [
        "-m",
        "benchmarks.speed.peers",
        "generate",
        "--model",
        folder,
        "--dtype",
        settings.our_dtype,
        "--skills",
        *settings.skills,
        "--examples",
        examples,
        "--batch-size",
        settings.prompts,
        "--out",
        out,
    ]


def lm_eval_commands(
    folder: str | Path, suite: Any, dtype: str, batch_size: int, out: Path
) -> list[list[str]]:
    """Arguments of the ``lm_eval`` commands for a suite.

    One command has tasks of one limit, and either those that want the chat template or the others.
    """
    commands = []
    for limit, chat in dict.fromkeys((task.limit, task.chat_template) for task in suite.tasks):
        names = [
            task.task for task in suite.tasks if (task.limit, task.chat_template) == (limit, chat)
        ]
        commands.append(
            [
                "-m",
                "lm_eval",
                "run",
                "--model",
                "hf",
                "--model_args",
                f"pretrained={folder},dtype={dtype}",
                "--tasks",
                ",".join(names),
                "--include_path",
                str(RETENTION),
                "--batch_size",
                str(batch_size),
                "--device",
                "cpu",
                "--output_path",
                str(out),
                *(["--limit", str(limit)] if limit else []),
                *(["--apply_chat_template"] if chat else []),
            ]
        )
    return commands


def lm_eval_scores(suite: Any, out: Path) -> dict[str, float]:
    """{task: its score} of what the ``lm_eval`` commands wrote."""
    results: dict[str, Any] = {}
    for file in out.rglob("results_*.json"):
        results |= read_json(file)["results"]
    return {task.task: results[task.task][task.metric] for task in suite.tasks}


def lm_eval_batch(settings: Settings, dtype: str) -> tuple[int, str]:
    """The batch size that suits lm_eval, tried on a few documents of one task; text on the try."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from harness.evaluation.lm_eval_context import quiet

    model, tokenizer = peers.load(settings.folder, dtype)

    def seconds(candidate: tuple[int]) -> float:
        with quiet():
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=candidate[0])
            return timed(
                lambda: simple_evaluate(
                    lm,
                    tasks=["embedded_facts"],
                    limit=settings.documents or 16,
                    bootstrap_iters=0,
                    task_manager=TaskManager(include_path=str(RETENTION)),
                )
            )[0]

    tried = probe([(size,) for size in (4, 16, 64)], seconds, settings.say)
    return min(tried, key=tried.__getitem__)[0], stated(tried)


def our_evaluation(
    settings: Settings, name: str
) -> tuple[Callable[[], tuple[dict[str, float], dict[str, float]]], Order, Mapping[str, float]]:
    """(the work, its order, the seconds of its parts once it is done).

    The work returns the first metric of every skill and of every retention task. name: of its
    results' folder.
    """
    order = _order(settings, settings.skills, settings.examples, settings.documents)
    model, tokenizer = settings.load(settings.our_dtype)
    measure = evaluator_for(order, ResultsWriter(settings.work / name))

    def ours() -> tuple[dict[str, float], dict[str, float]]:
        weights = model_fingerprint(model)
        sampler = TransformersSampler(model, tokenizer, order.evaluate.batch_size)
        skills = [
            measure.skill(model, tokenizer, sampler, weights, skill, "test")[2]
            for skill in order.skills
        ]
        tasks = [entry for _, _, entry in measure.retention(model, tokenizer, weights)]
        return _first_metrics(skills), _first_metrics(tasks)

    return ours, order, measure.seconds


def evaluation(settings: Settings) -> list[Result]:
    """A stage's evaluation. The dtype is part of what is measured, so both sides have ours.

    Every pair begins with a results folder and files of its own, so that nothing is known before.
    """
    dtype = settings.our_dtype
    size, tried = lm_eval_batch(settings, dtype)
    mine, scripts, commanded, batches = [], [], [], settings.long_repeats
    for number in range(1, batches + 1):
        ours, order, parts = our_evaluation(settings, f"evaluation-{number}")
        settings.say(f"{number}/{batches}: ours")
        own, (skills, tasks) = timed(ours)
        settings.say(f"{number}/{batches}: ours {own:.3g} s; the commands")
        file = settings.work / f"answers-{number}.json"
        script, _ = python(*generate_command(settings, settings.folder, settings.examples, file))
        out = settings.work / f"lm_eval-{number}"
        commands = lm_eval_commands(settings.folder, order.suite, dtype, size, out)
        mine.append(own)
        scripts.append(script)
        commanded.append(sum(python(*arguments)[0] for arguments in commands))
    answers, scores = read_json(file), lm_eval_scores(order.suite, out)
    different = [name for name in tasks if tasks[name] != scores[name]]
    notes = [
        f"{len(skills)} skills x {settings.examples} greedy answers, {len(tasks)} retention tasks, "
        f"{dtype}; pairs: {batches}",
        f"ours: answers {parts['evaluation']:.3g} s, retention {parts['retention']:.3g} s",
        f"theirs: a script with generate, batch {settings.prompts}, {scripts[-1]:.3g} s, "
        f"and {len(commands)} lm_eval commands, batch {size} (tried: {tried}), "
        f"{commanded[-1]:.3g} s; each loads the checkpoint, which is saved already and not counted",
        f"accuracy ours {_as_text(skills)}, theirs {_as_text(answers)}",
        f"lm-eval scores in {dtype}: "
        + (f"differ in {', '.join(different)}" if different else "identical"),
    ]
    return [
        faster(
            "a stage's evaluation",
            mine,
            [script + command for script, command in zip(scripts, commanded, strict=True)],
            4,
            notes,
            skills=[skills, answers],
            retention=[tasks, scores],
            identical_scores=not different,
        )
    ]


def identical_scores(settings: Settings) -> list[Result]:
    """lm-eval's scores in float32, ours and the command's, on a few documents of every task."""
    documents = min(settings.documents or 8, 8)
    order = _order(settings, settings.skills[:1], 1, documents)
    model, tokenizer = load_model(settings.folder, "float32", "cpu")
    measure = evaluator_for(order, ResultsWriter(settings.work / "identical_ours"))

    def ours() -> dict[str, float]:
        tasks = measure.retention(model, tokenizer, model_fingerprint(model))
        return _first_metrics(entry for _, _, entry in tasks)

    seconds, scores = timed(ours)
    out = settings.work / "identical"
    commands = lm_eval_commands(settings.folder, order.suite, "float32", 8, out)
    their_seconds = sum(python(*arguments)[0] for arguments in commands)
    theirs = lm_eval_scores(order.suite, out)
    worst = max(abs(scores[name] - theirs[name]) / max(1.0, abs(theirs[name])) for name in scores)
    # Accuracies are equal to the last digit. Bits per byte rest on sums whose rounding depends on
    # the threads.
    return [
        Result(
            "lm-eval scores in float32, largest difference",
            seconds,
            their_seconds,
            worst,
            "0",
            worst < 1e-5,
            1,
            notes=[f"{documents} documents of each of {len(scores)} tasks"],
            details={"ours": scores, "theirs": theirs},
        )
    ]


def _order(
    settings: Settings, skills: Sequence[str], examples: int, documents: int | None
) -> Order:
    mapping = make_order(settings, skills, {"sft": {}}, 1, examples, documents)
    return Order(mapping, Path("speed.yaml"))


def _first_metrics(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """{name: value of its first metric} of evaluations."""
    return {entry["name"]: next(iter(entry["metrics"].values()))[0] for entry in entries}


def _as_text(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
