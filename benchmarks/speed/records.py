"""The results of a large order, made up.

    python -m benchmarks.speed.records FOLDER SKILLS METHODS SEEDS

They are written through the harness's own files (one evaluation inside each stage and one at its
end, two metrics a skill, five retention tasks), then read and drawn as report.py does. Prints JSON:
records, seconds and the peak of memory.
"""

import itertools
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.timing import peak_mib, timed
from harness.base.files import write_json, write_jsonl
from harness.report.build import write_report
from harness.results.writer import ResultsWriter

TASKS = [f"task{i}" for i in range(5)]
METRICS = ("exact", "lenient")


def stage_records(
    run: str, method: str, seed: int, stage: int, skills: Sequence[str]
) -> list[dict[str, Any]]:
    """What one stage measures: accuracy rises when a skill is learned and wears off."""
    draw = random.Random(f"{run}/{stage}")
    rows: list[dict[str, Any]] = []
    for final in (True,) if stage == 0 else (False, True):
        step = 10 * stage - 5 * (not final)
        common = {
            "run": run,
            "method": method,
            "seed": seed,
            "stage": stage,
            "skill": skills[stage - 1] if stage else None,
            "step": step,
            "final": final,
            "n": 400,
        }
        cost = {"prompts": 16 * step, "tokens": 9000 * step, "seconds": 2.5 * step}

        def add(kind: str, name: str, metric: str, value: float) -> None:
            rows.append(
                {
                    **common,
                    "kind": kind,
                    "name": name,
                    "split": "test",
                    "metric": metric,
                    "value": value,
                    "stderr": 0.02,
                    "protocol": f"p-{name}",
                    "evaluation": f"{run}-{step}-{name}",
                    **cost,
                }
            )

        for i, name in enumerate(skills, 1):
            value = 0.2 + 0.5 * (i <= stage) * 0.98 ** (stage - i) + draw.gauss(0, 0.02)
            for extra, metric in enumerate(METRICS):
                add("skill", name, metric, value + 0.05 * extra)
        for task in TASKS if final else ():
            add("retention", task, "acc", 0.6 - 0.001 * stage + draw.gauss(0, 0.005))
    return rows


def head(skills: Sequence[str], methods: int, seeds: int) -> dict[str, Any]:
    """The results.json of the order."""
    return {
        "version": 1,
        "name": "records",
        "description": "",
        "model": {"name": "none"},
        "skills": [
            {"name": name, "description": name, "metric": METRICS[0], "splits": ["test"]}
            for name in skills
        ],
        "retention": [
            {
                "name": task,
                "metric": "acc",
                "higher_is_better": True,
                "chance": 0.25,
                "description": task,
            }
            for task in TASKS
        ],
        "methods": {f"method{m}": {"method": "sft", "config": {}} for m in range(methods)},
        "seeds": list(range(seeds)),
        "evaluate": {"split": "test"},
        "budget": {},
        "rollout": {},
    }


def stage_costs(stage: int, skills: Sequence[str]) -> dict[str, Any]:
    """The stage.json of a stage."""
    return {
        "stage": stage,
        "skill": skills[stage - 1] if stage else None,
        "steps": 10,
        "prompts": 160,
        "tokens": 90000,
        "seconds": {"training": 20.0, "sampling": 5.0, "evaluation": 9.0, "retention": 7.0},
        "peak_memory_gib": 2.0,
    }


def write(folder: Path, skills: int, methods: int, seeds: int) -> int:
    """Writes the results folder of an order; returns how many records it holds."""
    results = ResultsWriter(folder)
    names = [f"skill{i}" for i in range(skills)]
    results.folder.mkdir(parents=True)
    write_json(folder / "results.json", head(names, methods, seeds))
    protocols = {f"p-{name}": {"name": name} for name in [*names, *TASKS]}
    write_json(folder / "protocols.json", protocols)
    count = 0
    for method, seed in itertools.product(range(methods), range(seeds)):
        run = f"method{method}-seed{seed}"
        for stage in range(skills + 1):
            rows = stage_records(run, f"method{method}", seed, stage, names)
            place = results.stage(run, stage)
            write_jsonl(place / "records.jsonl", rows)
            write_json(place / "stage.json", stage_costs(stage, names))
            count += len(rows)
    results.rebuild()
    return count


def main() -> None:
    folder = Path(sys.argv[1])
    skills, methods, seeds = map(int, sys.argv[2:])
    written, count = timed(lambda: write(folder, skills, methods, seeds))
    results = ResultsWriter(folder)
    rebuild, _ = timed(results.rebuild)
    run = f"method{methods - 1}-seed{seeds - 1}"
    again = folder / "again"  # the last stage once more, as a run would commit it
    results.stage(run, skills).rename(again)
    commit, _ = timed(lambda: results.commit(again, run, skills))
    drawn, _ = timed(lambda: write_report(folder))
    numbers = {
        "records": count,
        "written": written,
        "rebuild": rebuild,
        "commit": commit,
        "drawn": drawn,
        "peak_mib": peak_mib(),
    }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
