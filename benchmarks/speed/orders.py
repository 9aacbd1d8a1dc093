"""Rows of whole orders and whole stages."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.speed.evaluation import generate_command, lm_eval_commands, make_order
from benchmarks.speed.timing import Result, Settings, command, faster, python
from harness.base.files import read_json
from harness.results.writer import ResultsWriter
from harness.runs.order import Order
from harness.runs.sequence import run_order

TASKS = ("embedded_facts", "embedded_commonsense")


def order(settings: Settings, kinds: Sequence[str] = ("sft", "sdft", "grpo")) -> list[Result]:
    """A shortened order by our command, and by a shell script of the peers' commands."""
    group_size = {"group_size": settings.group_size}
    methods = {kind: group_size if kind == "grpo" else {} for kind in kinds}
    mapping = make_order(
        settings,
        settings.skills,
        methods,
        settings.order_prompts,
        settings.order_examples,
        settings.order_documents,
        TASKS,
        rollout={"max_new_tokens": settings.tokens // 2},
    )
    mapping["budget"]["batch_size"] = settings.batch
    file = settings.work / "order.yaml"
    file.write_text(yaml.safe_dump(mapping, sort_keys=False), encoding="utf-8")
    commands = _peer_commands(settings, kinds, Order(mapping, file).suite)
    lines = [shlex.join([sys.executable, *map(str, arguments)]) for arguments in commands]
    script = settings.work / "order.sh"
    script.write_text("\n".join(["set -e", *lines]) + "\n", encoding="utf-8")
    settings.say("ours")
    mine, _ = python("run_sequence.py", file, "--out", settings.work / "order")
    settings.say(f"ours {mine:.3g} s; theirs, {len(lines)} commands")
    others, _ = command(["bash", str(script)])
    answers = settings.order_examples * len(settings.skills)
    notes = [
        f"{settings.order_prompts} prompts a stage in steps of {settings.batch}, answers of at "
        f"most {settings.tokens // 2} tokens, which end where they end; after each stage {answers} "
        f"answers and {len(TASKS)} retention tasks of {settings.order_documents} documents; "
        f"{settings.our_dtype}",
        f"theirs: {len(lines)} commands, of which each starts Python and loads a checkpoint, as "
        "ours does once; the shorter the stages, the more that weighs",
    ]
    work = f"an order of {len(settings.skills)} skills x {len(methods)} methods, shortened"
    return [faster(work, [mine], [others], 2, notes)]


def _peer_commands(settings: Settings, kinds: Sequence[str], suite: Any) -> list[list[Any]]:
    """Arguments of the Python commands by which a user of the peers runs the order."""

    def evaluate(folder: str | Path, name: str) -> list[list[Any]]:
        out = settings.work / name
        answers = generate_command(
            settings, folder, settings.order_examples, settings.work / f"{name}.json"
        )
        return [answers, *lm_eval_commands(folder, suite, settings.our_dtype, 16, out)]

    commands = evaluate(settings.folder, "base")
    for kind in kinds:
        folder: str | Path = settings.folder
        for number, skill in enumerate(settings.skills, 1):
            out = settings.work / f"{kind}-{number}"
            commands.append(_train_command(settings, kind, folder, skill, out))
            commands += evaluate(out, out.name)
            folder = out
    return commands


def _train_command(
    settings: Settings, kind: str, folder: str | Path, skill: str, out: Path
) -> list[Any]:
    return [
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
        settings.our_dtype,
        "--prompts",
        settings.order_prompts,
        "--batch-size",
        settings.batch,
        "--tokens",
        settings.tokens // 2,
        "--group-size",
        settings.group_size,
    ]


def stage(settings: Settings) -> list[Result]:
    """Whole stages of SFT and SDFT: their seconds, and what of a stage is the harness's own."""
    pairs = [_stage_seconds(settings, number) for number in range(settings.long_repeats)]
    learning = {
        kind: [pair[kind]["training"] + pair[kind]["sampling"] for pair in pairs]
        for kind in ("sft", "sdft")
    }
    sdft, sft = median(learning["sdft"]), median(learning["sft"])
    of_stages = {kind: median(pair[kind]["stage"] for pair in pairs) for kind in ("sft", "sdft")}
    ratio = sdft / sft
    whole = sum(part["stage"] for pair in pairs for part in pair.values())
    own = sum(part["own"] for pair in pairs for part in pair.values())
    details = {"pairs": pairs}
    how = (
        f"{settings.stage_prompts} prompts of {settings.skill} in steps of {settings.prompts}, "
        f"{settings.our_dtype}"
    )
    return [
        Result(
            "SDFT against SFT, the same examples",
            sdft,
            sft,
            ratio,
            "at most 2.2x",
            ratio <= 2.2,
            len(pairs),
            notes=[
                f"{how}; training and sampling; with evaluation "
                f"{of_stages['sdft'] / of_stages['sft']:.2f}x; here `theirs` is SFT"
            ],
            details=details,
        ),
        Result(
            "the harness's own share of a stage",
            own,
            whole,
            own / whole,
            "under 3%",
            own / whole < 0.03,
            2 * len(pairs),
            notes=[
                f"{how}: what is neither training, sampling, evaluation nor retention; "
                "here `theirs` is the whole stage"
            ],
            details=details,
        ),
    ]


def _stage_seconds(settings: Settings, number: int) -> dict[str, dict[str, float]]:
    """Seconds of each part of a stage, of the whole ``stage`` and of what is the harness's ``own``,
    by method; number: of the pair.
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
    results = ResultsWriter(settings.work / f"stage-{number}")
    run_order(Order(mapping, Path("stage.yaml")), results.folder, settings.progress)
    parts: dict[str, dict[str, float]] = {}
    for kind in mapping["methods"]:
        files = [results.stage(f"{kind}-seed0", k) / "stage.json" for k in (0, 1)]
        seconds = read_json(files[1])["seconds"]
        # from the end of one stage to the end of the next
        whole = files[1].stat().st_mtime - files[0].stat().st_mtime
        parts[kind] = {**seconds, "stage": whole, "own": whole - sum(seconds.values())}
    return parts
