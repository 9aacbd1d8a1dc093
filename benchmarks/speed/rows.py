"""One function a row: ``f(settings) -> [Result]``. docs/speed.md says what each side does."""

import json
import shlex
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
import yaml

from benchmarks.speed import peers
from benchmarks.speed.timing import (
    Loop,
    Result,
    alternate,
    command,
    faster,
    probe,
    python,
    stated,
    timed,
)
from harness.base.files import read_json
from harness.evaluation.suite import FOLDER as RETENTION
from harness.learning.method import get_method
from harness.learning.stage import Stage
from harness.models.chat import chat_tokens
from harness.models.checkpoint import model_fingerprint
from harness.models.load import load_model, load_tokenizer
from harness.results.writer import ResultsWriter
from harness.runs.engines import evaluator_for
from harness.runs.order import Order
from harness.runs.sequence import run_order
from harness.sampling.sampler import common_prefix
from harness.sampling.settings import version
from harness.sampling.transformers import TransformersSampler
from harness.sampling.vllm import Engine, VLLMSampler
from harness.skills.registry import get_skill
from harness.skills.skill import Skill

# ---- optimizer steps ----------------------------------------------------------------------------------------------------


class Chosen(Skill):
    """The examples of a skill that every step learns from, with a reward that gives every group of
    GRPO a signal.
    """

    name, metrics = "chosen", {"none": lambda completion, reference: 0.0}

    def __init__(self, examples):
        self.chosen = examples

    def load(self, split):
        return self.chosen

    def reward(self, completion, reference):
        return peers.score(completion)


def choose(settings, count):
    """The ``count`` training examples whose prompts are nearest to the wanted length, the shortest
    first.
    """
    tokenizer, _ = load_tokenizer(settings.folder)
    examples = get_skill(settings.skill).examples("train")
    length = {e.id: len(chat_tokens(tokenizer, e.prompt)) for e in examples}
    nearest = sorted(examples, key=lambda e: (abs(length[e.id] - settings.prompt_tokens), e.id))[
        :count
    ]
    return sorted(nearest, key=lambda e: length[e.id]), tokenizer


class Kept(TransformersSampler):
    """The sampler, which keeps what it gave."""

    def sample(self, prompts, **how):
        found = super().sample(prompts, **how)
        self.kept = {tuple(p): [c.token_ids for c in group] for p, group in zip(prompts, found)}
        return found


def our_steps(settings, kind, examples, steps, dtype, forced, kept=None):
    """Body of a Loop: the harness's own stage, method and trainer. kept: a dictionary that gets the
    first step's completions.
    """

    def body(pause):
        model, tokenizer = load_model(settings.folder, dtype, "cpu")
        sampler = Kept(model, tokenizer)
        if forced:
            sampler.stops = {-1}  # no token ends an answer
        options = {"group_size": settings.group_size} if kind == "grpo" else {}
        cls = get_method(kind)
        method = cls(cls.Config(learning_rate=1e-5, schedule="constant", warmup_steps=0, **options))

        def on_step(stage, step):
            if kept is not None and hasattr(sampler, "kept"):
                kept.update(sampler.kept)
            pause(
                {k: step.logged[k] for k in ("seconds", "loss", "grad_norm", "completion_tokens")}
            )

        method.learn(
            Stage(
                model=model,
                tokenizer=tokenizer,
                sampler=sampler,
                skill=Chosen(examples),
                teacher_template="paper",
                seed=0,
                index=1,
                prompts=steps * len(examples),
                batch_size=len(examples),
                max_new_tokens=settings.tokens,
                on_step=on_step,
            )
        )

    return body


def their_steps(settings, kind, examples, steps, dtype, micro, forced, completions=None):
    """Body of a Loop: TRL's trainer. completions: what it finds instead of generating."""

    def body(pause):
        model, tokenizer = peers.load(settings.folder, "float32")
        group = settings.group_size if kind == "grpo" else 1
        made = peers.trainer(
            kind,
            model,
            tokenizer,
            examples,
            settings.work / "trl",
            dtype=dtype,
            micro=micro,
            rows=len(examples) * group,
            steps=steps,
            tokens=settings.tokens,
            group_size=group,
            forced=forced,
        )
        if completions:
            peers.replay(made, kind, completions)
        peers.Watch(made, pause, time.perf_counter)
        made.train()

    return body


def same_loss(settings, kind, examples):
    """(relative difference of the losses, of the gradient norms) of one step in float32 on the same
    completions.

    GRPO's loss is a sum of advantages whose mean is 0: its difference is relative to the
    advantages' size, about 1.
    """
    kept = {}
    with Loop(our_steps(settings, kind, examples, 1, "float32", False, kept)) as loop:
        ours = loop.step()
    with Loop(
        their_steps(settings, kind, examples, 1, "float32", 1 if kind == "sft" else 2, False, kept)
    ) as loop:
        theirs = loop.step()
    scale = max(abs(theirs["loss"]), 1.0 if kind == "grpo" else 0.0)
    return abs(ours["loss"] - theirs["loss"]) / scale, abs(
        ours["grad_norm"] / theirs["grad_norm"] - 1
    )


def step(settings, kind, work, wanted):
    """An optimizer step of ours beside TRL's, both loops alive and taking turns; TRL's with the
    dtype and passes that suit it.
    """
    group = settings.group_size if kind == "grpo" else 1
    examples, tokenizer = choose(settings, settings.groups if kind == "grpo" else settings.prompts)
    rows = len(examples) * group

    def once(candidate):
        dtype, micro = candidate
        with Loop(their_steps(settings, kind, examples, 1, dtype, micro, True)) as loop:
            return loop.step()["seconds"]

    tried = probe([(dtype, max(1, rows // 4)) for dtype in settings.dtypes], once, settings.say)
    tried |= probe([(min(tried, key=tried.get)[0], rows)], once, settings.say)
    dtype, micro = min(tried, key=tried.get)
    steps = settings.repeats + 1
    with (
        Loop(our_steps(settings, kind, examples, steps, settings.our_dtype, True)) as ours,
        Loop(their_steps(settings, kind, examples, steps, dtype, micro, True)) as theirs,
    ):
        mine, others = alternate(ours.step, theirs.step, settings.repeats, settings.say)
    prompts = [chat_tokens(tokenizer, e.prompt) for e in examples]
    if kind == "sft":
        own = sum(map(len, prompts)) + len(examples) * mine[0]["completion_tokens"]
        _same_work(own, {round(o["tokens"]) for o in others})
        done = f"{rows} examples of {own / rows:.0f} tokens in the mean"
    else:
        _same_work(settings.tokens, {round(x["completion_tokens"]) for x in (*mine, *others)})
        done = f"{rows} completions of {settings.tokens} tokens, prompts of {statistics.fmean(map(len, prompts)):.0f} in the mean"
    loss, norm = same_loss(settings, kind, examples[:4])
    return [
        faster(
            work,
            [m["seconds"] for m in mine],
            [o["seconds"] for o in others],
            wanted,
            [
                f"{done}; what all prompts begin with: {common_prefix(prompts)} tokens",
                f"ours in {settings.our_dtype}, TRL's in {dtype}, {micro} sequences a pass (tried, one step each: {stated(tried)})",
                f"one step on the same completions in float32: losses differ by {loss:.1e}, gradient norms by {norm:.1e} (relative)",
            ],
            loss_difference=loss,
            gradient_difference=norm,
        )
    ]


def _same_work(wanted, found):
    if {round(wanted)} != found:
        raise RuntimeError(
            f"the two sides did not do the same work: {wanted} tokens wanted, {sorted(found)} counted"
        )


def sdft(settings):
    return step(settings, "sdft", f"SDFT step, {settings.prompts} prompts", 2)


def sft(settings):
    return step(settings, "sft", f"SFT step, {settings.prompts} examples", 2)


def grpo(settings):
    return step(
        settings, "grpo", f"GRPO step, {settings.groups} x {settings.group_size} completions", 2
    )


# ---- sampling -----------------------------------------------------------------------------------------------------------


def sampling(settings):
    """Completions of one batch."""
    return [
        beside_generate(
            settings,
            TransformersSampler(*load_model(settings.folder, settings.our_dtype, "cpu")),
            "sampling",
            2,
        )
    ]


def sampling_vllm(settings):
    """The same by vLLM, where it is installed; and what it takes to give it new weights."""
    if version() is None:
        settings.say("vLLM is not installed: no row for it")
        return []
    engine = Engine()
    try:
        sampler = VLLMSampler(engine, *load_model(settings.folder, settings.our_dtype, "cpu"))
        found = beside_generate(settings, sampler, "sampling by vLLM", 1.5)
        engine.rest()
        push = timed(sampler.ready)[0]
    finally:
        engine.close()
    found.notes.append(
        f"{version()}, without compilation; new weights come into it in {push:.2f} s, not counted here"
    )
    found.details["push"] = push
    return [found]


def beside_generate(settings, sampler, work, faster_by):
    """Completions of one batch by ``sampler`` and by generate."""
    examples, tokenizer = choose(settings, settings.prompts)
    prompts = [chat_tokens(tokenizer, e.prompt) for e in examples]
    wanted = len(prompts) * settings.tokens
    sampler.stops = {-1}
    loaded = {dtype: peers.load(settings.folder, dtype) for dtype in settings.dtypes}

    def ours():
        seconds, found = timed(lambda: sampler.sample(prompts, max_new_tokens=settings.tokens))
        _same_work(wanted, {sum(len(c.token_ids) for group in found for c in group)})
        return seconds

    def theirs(candidate):
        dtype, cache = candidate
        seconds, found = timed(
            lambda: peers.generate(
                *loaded[dtype],
                [e.prompt for e in examples],
                settings.tokens,
                len(examples),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                min_new_tokens=settings.tokens,
                cache_implementation=cache,
                disable_compile=True,
            )
        )
        _same_work(wanted, {sum(map(len, found))})
        return seconds

    tried = probe([(dtype, "dynamic") for dtype in settings.dtypes], theirs, settings.say)
    tried |= probe([(min(tried, key=tried.get)[0], "static")], theirs, settings.say)
    best = min(tried, key=tried.get)
    mine, others = alternate(ours, lambda: theirs(best), settings.repeats, settings.say)
    return faster(
        f"{work}, batch {len(prompts)}, {settings.tokens} new tokens",
        mine,
        others,
        faster_by,
        [
            f"ours in {settings.our_dtype}, model.generate in {best[0]} with a {best[1]} cache (tried: {stated(tried)})",
            "no side stops early; the prompts are those of the SDFT step",
        ],
    )


# ---- evaluation ---------------------------------------------------------------------------------------------------------


def make_order(settings, skills, methods, prompts, examples, documents, tasks=None, **changes):
    """An order as a mapping; documents: limit of each retention task; tasks: the names of those of
    the embedded suite.
    """
    suite = yaml.safe_load((RETENTION / "embedded.yaml").read_text(encoding="utf-8"))["tasks"]
    chosen = [
        task | ({"limit": documents} if documents else {})
        for task in suite
        if tasks is None or task["task"] in tasks
    ]
    return {
        "model": {"name": settings.model, "dtype": settings.dtype, "device": "cpu"},
        "skills": list(skills),
        "methods": methods,
        "budget": {"prompts": prompts, "batch_size": settings.prompts},
        "evaluate": {"examples": examples},
        "retention": chosen,
        **changes,
    }


def lm_eval(folder, suite, dtype, batch_size, out):
    """Arguments of the ``lm_eval`` commands for a suite: one for the tasks that want the chat
    template, one for the others.
    """
    found = []
    for limit, chat in dict.fromkeys((t.limit, t.chat_template) for t in suite.tasks):
        names = [t.task for t in suite.tasks if (t.limit, t.chat_template) == (limit, chat)]
        found.append(
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
    return found


def lm_eval_scores(suite, out):
    rows = {}
    for file in Path(out).rglob("results_*.json"):
        rows |= read_json(file)["results"]
    return {t.task: rows[t.task][t.metric] for t in suite.tasks}


def lm_eval_batch(settings, dtype):
    """The batch size that suits lm_eval, tried on a few documents of one task; the text that says
    so.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from harness.evaluation.lm_eval_context import quiet

    model, tokenizer = peers.load(settings.folder, dtype)

    def seconds(candidate):
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
    return min(tried, key=tried.get)[0], stated(tried)


def evaluation(settings):
    """A stage's evaluation. The dtype is part of what is measured, so both sides have ours."""
    dtype = settings.our_dtype
    mapping = make_order(
        settings, settings.skills, {"sft": {}}, 1, settings.examples, settings.documents
    )
    order = Order(mapping, Path("speed.yaml"))
    model, tokenizer = load_model(settings.folder, dtype, "cpu")
    measure = evaluator_for(order, ResultsWriter(settings.work / "evaluation"))

    def ours():
        weights, sampler = (
            model_fingerprint(model),
            TransformersSampler(model, tokenizer, order.evaluate.batch_size),
        )
        skills = [
            measure.skill(model, tokenizer, sampler, weights, skill, "test")[2]
            for skill in order.skills
        ]
        tasks = [e for _, _, e in measure.retention(model, tokenizer, weights)]
        return [
            {e["name"]: next(iter(e["metrics"].values()))[0] for e in some}
            for some in (skills, tasks)
        ]

    size, tried = lm_eval_batch(settings, dtype)
    batch, answers = settings.prompts, settings.work / "answers.json"
    settings.say("ours")
    mine, (skills, tasks) = timed(ours)
    settings.say(f"ours {mine:.3g} s; the commands")
    others = python(
        "-m",
        "benchmarks.speed.peers",
        "generate",
        "--model",
        settings.folder,
        "--dtype",
        dtype,
        "--skills",
        *settings.skills,
        "--examples",
        settings.examples,
        "--batch-size",
        batch,
        "--out",
        answers,
    )[0]
    out = settings.work / "lm_eval"
    seconds = [
        python(*arguments)[0]
        for arguments in lm_eval(settings.folder, order.suite, dtype, size, out)
    ]
    theirs = lm_eval_scores(order.suite, out)
    different = [name for name in tasks if tasks[name] != theirs[name]]
    part = measure.seconds
    notes = [
        f"{len(skills)} skills x {settings.examples} greedy answers, {len(tasks)} retention tasks, {dtype}; one pair",
        f"ours: answers {part['evaluation']:.3g} s, retention {part['retention']:.3g} s",
        f"theirs: a script with generate, batch {batch}, {others:.3g} s, and {len(seconds)} lm_eval commands, batch {size} "
        f"(tried: {tried}), {sum(seconds):.3g} s; each loads the checkpoint, which is saved already and not counted",
        f"accuracy ours {_shown(skills)}, theirs {_shown(read_json(answers))}",
        f"lm-eval scores in {dtype}: "
        + (f"differ in {', '.join(different)}" if different else "identical"),
    ]
    return [
        faster(
            "a stage's evaluation",
            [mine],
            [others + sum(seconds)],
            3,
            notes,
            skills=[skills, read_json(answers)],
            retention=[tasks, theirs],
            identical_scores=not different,
        )
    ]


def identical_scores(settings):
    """lm-eval's scores in float32, ours and the command's, on a few documents of every task."""
    documents = min(settings.documents or 8, 8)
    order = Order(
        make_order(settings, settings.skills[:1], {"sft": {}}, 1, 1, documents), Path("speed.yaml")
    )
    model, tokenizer = load_model(settings.folder, "float32", "cpu")
    out = settings.work / "identical"
    measure = evaluator_for(order, ResultsWriter(settings.work / "identical_ours"))
    mine, found = timed(
        lambda: {
            e["name"]: next(iter(e["metrics"].values()))[0]
            for _, _, e in measure.retention(model, tokenizer, model_fingerprint(model))
        }
    )
    other = sum(
        python(*arguments)[0]
        for arguments in lm_eval(settings.folder, order.suite, "float32", 8, out)
    )
    theirs = lm_eval_scores(order.suite, out)
    worst = max(abs(found[name] - theirs[name]) / max(1.0, abs(theirs[name])) for name in found)
    # Accuracies are equal to the last digit; bits per byte rest on sums whose rounding depends on
    # the threads.
    return [
        Result(
            "lm-eval scores in float32, largest difference",
            mine,
            other,
            worst,
            "0",
            worst < 1e-5,
            1,
            notes=[f"{documents} documents of each of {len(found)} tasks"],
            details={"ours": found, "theirs": theirs},
        )
    ]


def _shown(values):
    return ", ".join(f"{k} {v:.3f}" for k, v in values.items())


# ---- whole orders -------------------------------------------------------------------------------------------------------


def order(settings, kinds=("sft", "sdft", "grpo")):
    """A shortened order by our command, and by a shell script of the peers' commands."""
    methods = {
        kind: {"group_size": settings.group_size} if kind == "grpo" else {} for kind in kinds
    }
    mapping = make_order(
        settings,
        settings.skills,
        methods,
        settings.order_prompts,
        settings.order_examples,
        settings.order_documents,
        ("embedded_facts", "embedded_commonsense"),
        rollout={"max_new_tokens": settings.tokens // 2},
    )
    mapping["budget"]["batch_size"] = settings.batch
    file = settings.work / "order.yaml"
    file.write_text(yaml.safe_dump(mapping, sort_keys=False), encoding="utf-8")
    suite, dtype = Order(mapping, file).suite, settings.our_dtype
    lines = ["set -e"]

    def add(arguments):
        lines.append(shlex.join([sys.executable, *map(str, arguments)]))

    def evaluate(folder, name):
        add(
            [
                "-m",
                "benchmarks.speed.peers",
                "generate",
                "--model",
                folder,
                "--dtype",
                dtype,
                "--skills",
                *settings.skills,
                "--examples",
                settings.order_examples,
                "--batch-size",
                settings.prompts,
                "--out",
                settings.work / f"{name}.json",
            ]
        )
        for arguments in lm_eval(folder, suite, dtype, 16, settings.work / name):
            add(arguments)

    evaluate(settings.folder, "base")
    for kind in methods:
        folder = settings.folder
        for number, skill in enumerate(settings.skills, 1):
            out = settings.work / f"{kind}-{number}"
            add(
                [
                    "-m",
                    "benchmarks.speed.peers",
                    "train",
                    "--method",
                    kind,
                    "--model",
                    folder,
                    "--out",
                    out,
                    "--skill",
                    skill,
                    "--dtype",
                    dtype,
                    "--prompts",
                    settings.order_prompts,
                    "--batch-size",
                    settings.batch,
                    "--tokens",
                    settings.tokens // 2,
                    "--group-size",
                    settings.group_size,
                ]
            )
            evaluate(out, out.name)
            folder = out
    script = settings.work / "order.sh"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings.say("ours")
    mine, _ = python("run_sequence.py", file, "--out", settings.work / "order")
    settings.say(f"ours {mine:.3g} s; theirs, {len(lines) - 1} commands")
    others, _ = command(["bash", str(script)])
    answers = settings.order_examples * len(settings.skills)
    return [
        faster(
            f"an order of {len(settings.skills)} skills x {len(methods)} methods, shortened",
            [mine],
            [others],
            2,
            [
                f"{settings.order_prompts} prompts a stage in steps of {settings.batch}, answers of at most {settings.tokens // 2} "
                f"tokens, which end where they end; after each stage {answers} answers and 2 retention tasks of "
                f"{settings.order_documents} documents; {dtype}",
                f"theirs: {len(lines) - 1} commands, of which each starts Python and loads a checkpoint, as ours does once; the shorter "
                "the stages, the more that weighs",
            ],
        )
    ]


def stage(settings):
    """Whole stages of SFT and SDFT in the harness: their seconds, and what of a stage is the
    harness's own.
    """
    mapping = make_order(
        settings,
        [settings.skill],
        {"sft": {}, "sdft": {}},
        settings.stage_prompts,
        settings.examples,
        settings.documents,
        rollout={"max_new_tokens": settings.tokens},
    )
    results = ResultsWriter(settings.work / "stage")
    run_order(Order(mapping, Path("stage.yaml")), results.folder, settings.progress)
    learned, parts = {}, defaultdict(dict)
    for kind in ("sft", "sdft"):
        files = [results.stage(f"{kind}-seed0", k) / "stage.json" for k in (0, 1)]
        seconds = read_json(files[1])["seconds"]
        # from the end of one stage to the end of the next
        whole = files[1].stat().st_mtime - files[0].stat().st_mtime
        learned[kind] = seconds["training"] + seconds["sampling"]
        parts[kind] = {**seconds, "stage": whole, "own": whole - sum(seconds.values())}
    ratio = learned["sdft"] / learned["sft"]
    whole, own = (sum(part[key] for part in parts.values()) for key in ("stage", "own"))
    how = f"{settings.stage_prompts} prompts of {settings.skill} in steps of {settings.prompts}, {settings.our_dtype}"
    return [
        Result(
            "SDFT against SFT, the same examples",
            learned["sdft"],
            learned["sft"],
            ratio,
            "at most 2.5x",
            ratio <= 2.5,
            1,
            notes=[
                f"{how}; training and sampling; with evaluation "
                f"{parts['sdft']['stage'] / parts['sft']['stage']:.2f}x; here `theirs` is SFT"
            ],
            details=dict(parts),
        ),
        Result(
            "the harness's own share of a stage",
            own,
            whole,
            own / whole,
            "under 3%",
            own / whole < 0.03,
            2,
            notes=[
                f"{how}: what is neither training, sampling, evaluation nor retention; here `theirs` is the whole stage"
            ],
            details=dict(parts),
        ),
    ]


# ---- memory and growth --------------------------------------------------------------------------------------------------


def point(**what):
    """What benchmarks/speed/point.py measures, in a process of its own."""
    return json.loads(python("-m", "benchmarks.speed.point", json.dumps(what))[1].splitlines()[-1])


def memory(settings, **size):
    """Peak memory of an SDFT step with a large vocabulary, beside the same step without a loss on
    top.
    """
    size = {
        "vocabulary": 150_000,
        "width": 576,
        "layers": 6,
        "completion": 1024,
        "rows": 2,
        "examples": 2,
    } | size
    ours, bare = point(kind="sdft", **size), point(kind="bare", **size)
    ratio = ours["peak_mib"] / bare["peak_mib"]
    whole = size["completion"] * size["rows"] * size["vocabulary"] * 4 / 2**20
    return [
        Result(
            "peak memory of the distillation loss",
            ours["peak_mib"],
            bare["peak_mib"],
            ratio,
            "at most 1.3x",
            ratio <= 1.3,
            1,
            "MiB",
            [
                f"a random model of width {size['width']}, {size['layers']} layers and a vocabulary of {size['vocabulary']:,}, "
                f"{size['rows']} completions of {size['completion']:,} tokens, float32; `theirs` is the same step without a loss on top",
                f"one float32 tensor of all tokens and the whole vocabulary would be {whole:,.0f} MiB",
            ],
            {"ours": ours, "bare": bare},
        )
    ]


AXES = {  # what grows: the power of it that the work itself grows with, and the points
    "skills": (2, [{"kind": "order", "skills": n} for n in (2, 4, 8, 16)]),
    "training examples": (1, [{"examples": n} for n in (8, 16, 32, 64)]),
    "completion tokens": (1, [{"completion": n} for n in (64, 128, 256, 512)]),
    "vocabulary": (1, [{"vocabulary": n} for n in (8_192, 16_384, 32_768, 65_536)]),
    "model width": (2, [{"width": n} for n in (128, 256, 512, 1024)]),
}


def growth(settings, axes=AXES):
    """Time and memory of small random models against what grows; log-log slopes."""
    out = []
    for axis, (work, changes) in axes.items():
        points = []
        for change in changes:
            x = next(value for key, value in change.items() if key != "kind")
            at = point(**{"kind": "sdft", **change}, folder=settings.folder)
            settings.say(f"{axis} {x}: {at['seconds']:.3g} s, {at['used_mib']:.0f} MiB")
            points.append({"x": x, **at})
        time_slope, memory_slope = (slope(points, key) for key in ("seconds", "used_mib"))
        out.append(
            Result(
                f"growth with {axis}",
                points[-1]["seconds"],
                points[0]["seconds"],
                time_slope,
                f"slope at most {work}",
                time_slope <= work + 0.15,
                len(points),
                notes=[
                    f"from {points[0]['x']} to {points[-1]['x']}: time grows with the power {time_slope:.2f} (0.15 above the work's is "
                    f"allowed), memory beyond Python and the model with {memory_slope:.2f}; `ours` is the largest point, "
                    "`theirs` the smallest"
                ],
                details={
                    "points": points,
                    "time": time_slope,
                    "memory": memory_slope,
                    "work": work,
                },
            )
        )
    return out


def slope(points, key):
    """Least-squares slope of log ``key`` over log x; 0 where a point has nothing of it."""
    if min(p[key] for p in points) <= 0:
        return 0.0
    x, y = (
        torch.tensor([float(p[k]) for p in points], dtype=torch.float64).log() for k in ("x", key)
    )
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def records(settings, **size):
    """The records of a large order, made up: written, read and drawn."""
    size = {"skills": 50, "methods": 10, "seeds": 10} | size
    arguments = [
        "-m",
        "benchmarks.speed.records",
        settings.work / "records",
        *(size[k] for k in ("skills", "methods", "seeds")),
    ]
    found = json.loads(python(*arguments)[1].splitlines()[-1])
    whole = found["written"] + found["drawn"]
    good = whole < 60 and found["peak_mib"] < 2048
    work = f"records of {size['skills']} skills x {size['methods']} methods x {size['seeds']} seeds"
    return [
        Result(
            work,
            whole,
            60.0,
            whole / 60,
            "under 60 s and 2 GiB",
            good,
            1,
            notes=[
                f"{found['records']:,} records: written in {found['written']:.1f} s, read and drawn in {found['drawn']:.1f} s, "
                f"{found['peak_mib']:.0f} MiB at most; a further stage is committed in {1000 * found['commit']:.1f} ms, and "
                f"records.jsonl, rebuilt in {found['rebuild']:.2f} s, takes a fiftieth of a run's time at most; `theirs` is the mark"
            ],
            details=found,
        )
    ]


ROWS = {
    f.__name__: f
    for f in (
        sdft,
        sft,
        grpo,
        sampling,
        sampling_vllm,
        evaluation,
        identical_scores,
        stage,
        order,
        memory,
        records,
        growth,
    )
}
