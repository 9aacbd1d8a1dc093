"""Fabricated results folders for the tests of the report: the contract of version 1, with numbers
made by a simple law.

Accuracy of a skill: base + gain * (learned ? 1 : 0) * keep^(stages since), with a wobble per seed;
examples have a fixed difficulty, so that item scores of one example correlate over stages as they
do for a real model.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np

SKILLS = {"tooluse": (0.08, 0.55), "science": (0.31, 0.38), "medical": (0.22, 0.30)}
METHODS = {
    "sft": (1.0, 0.70, 0.030),
    "sdft": (0.95, 0.94, 0.006),
    "grpo": (0.70, 0.90, 0.004),
}  # gain, keep, retention loss
RETENTION = {
    "hellaswag": ("acc", True, 0.25, 0.42),
    "winogrande": ("acc", True, 0.5, 0.53),
    "arc_easy": ("acc", True, 0.25, 0.61),
    "truthfulqa_mc1": ("acc", True, None, 0.24),
    "wikitext": ("bits_per_byte", False, None, 0.92),
}


def _protocol(kind, name, split, n, **more):
    fields = {
        "kind": kind,
        "name": name,
        "split": split,
        "n": n,
        "dtype": "float32",
        "template": "chat",
        **more,
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12], fields


def fabricate(
    folder,
    skills=SKILLS,
    methods=METHODS,
    seeds=(0,),
    steps=None,
    n=60,
    inside=3,
    items=True,
    model="smol-135m",
    limit=64,
    retention=RETENTION,
    training=True,
):
    """Writes a complete results folder and returns its path.

    steps: {method: optimizer steps a stage} (12 each by default); inside: evaluations inside a
    stage; items: whether the files in evaluations/ are written; limit: of new tokens, in the
    skills' protocol.
    """
    folder, names, rng = Path(folder), list(skills), np.random.default_rng(7)
    (folder / "evaluations").mkdir(parents=True)
    protocols, lines = {}, []
    difficulty = {
        name: np.random.default_rng(i).permutation(n) / n
        for i, name in enumerate([*skills, *retention])
    }
    hashes = {}
    for name in skills:
        hashes[name], fields = _protocol(
            "skill",
            name,
            "test",
            n,
            decoding="greedy",
            max_new_tokens=limit,
            metrics=["exact", "lenient"],
        )
        protocols[hashes[name]] = fields
    for task in retention:
        hashes[task], fields = _protocol("retention", task, "test", n, limit=n, lm_eval="0.4.9")
        protocols[hashes[task]] = fields

    # of one evaluation: the same key, the same noise, as the same model is evaluated once
    def noise(*key):
        return np.random.default_rng(zlib.crc32(repr(key).encode()))

    def scores(name, accuracy, *key):
        return (difficulty[name] + noise(name, *key).normal(0, 0.05, n) < accuracy).astype(float)

    def record(common, kind, name, metric, value, stderr, key):
        lines.append(
            json.dumps(
                {
                    **common,
                    "kind": kind,
                    "name": name,
                    "split": "test",
                    "metric": metric,
                    "value": value,
                    "stderr": stderr,
                    "n": n,
                    "protocol": hashes[name],
                    "evaluation": key,
                }
            )
        )

    def measure_skill(common, name, accuracy, who):
        exact = scores(name, accuracy, who)
        lenient = np.maximum(exact, scores(name, accuracy + 0.05, who))
        key = f"{name}-{who}"
        for metric, values in (("exact", exact), ("lenient", lenient)):
            record(common, "skill", name, metric, values.mean(), values.std(ddof=1) / n**0.5, key)
        if items:
            _write(
                folder / "evaluations" / f"{key}.json",
                {
                    "protocol": hashes[name],
                    "kind": "skill",
                    "name": name,
                    "split": "test",
                    "n": n,
                    "metrics": {"exact": [exact.mean(), 0.05], "lenient": [lenient.mean(), 0.05]},
                    "items": [
                        {
                            "id": f"{name}-{i}",
                            "prompt": f"[user]\nQuestion {i} of {name}: what is {i} + {i}? Show the <b>steps</b> & "
                            "answer.",
                            "completion": f"Let me think about {i} + {i}.\n\nThe answer is {2 * i if exact[i] else 2 * i + 1}.",
                            "tokens": 14,
                            "finished": True,
                            "reference": 2 * i,
                            "scores": {"exact": exact[i], "lenient": lenient[i]},
                        }
                        for i in range(n)
                    ],
                },
            )

    def measure_retention(common, task, drop, who):
        metric, _, _, base = retention[task]
        key = f"{task}-{who}"
        if metric == "acc":
            values = scores(task, base - drop, who)
        else:
            values = base + drop + 0.2 * np.sin(np.arange(n)) + noise(task, who).normal(0, 0.002, n)
        record(common, "retention", task, metric, values.mean(), values.std(ddof=1) / n**0.5, key)
        if items:
            _write(
                folder / "evaluations" / f"{key}.json",
                {
                    "protocol": hashes[task],
                    "kind": "retention",
                    "name": task,
                    "split": "test",
                    "n": n,
                    "metrics": {metric: [values.mean(), 0.05]},
                    "items": [{"id": i, "score": v} for i, v in enumerate(values)],
                },
            )

    for method, (gain, keep, loss) in methods.items():
        width = (steps or {}).get(method, 12)
        for seed in seeds:
            run, wobble = f"{method}-seed{seed}", rng.normal(0, 0.015)
            place = folder / "runs" / run
            place.mkdir(parents=True)
            _write(
                place / "run.json",
                {
                    "run": run,
                    "method": method,
                    "label": method,
                    "seed": seed,
                    "config": {"learning_rate": 2e-5, "epochs": 1},
                    "device": "cpu",
                    "packages": {"torch": "2.9.0", "transformers": "4.57.1"},
                    "git": "0123abc",
                    "dtype": "float32",
                    "threads": 2,
                    "started": "2026-01-05T10:00:00Z",
                },
            )
            for stage in range(len(names) + 1):
                for point in range(1 if stage == 0 else inside, -1, -1) if stage else (0,):
                    share = 1 - point / (inside + 1) if stage else 0
                    step = 0 if stage == 0 else round(width * (stage - 1 + share))
                    common = {
                        "run": run,
                        "method": method,
                        "seed": seed,
                        "stage": stage,
                        "skill": names[stage - 1] if stage else None,
                        "step": step,
                        "final": point == 0,
                        "prompts": step * 8,
                        "tokens": step * 900,
                        "seconds": step * 1.7,
                    }
                    for i, name in enumerate(names, 1):
                        base, room = skills[name]
                        since = stage - 1 + share - i
                        learned = (
                            0 if stage < i else gain * (share**0.5 if stage == i else keep**since)
                        )
                        who = "base" if stage == 0 else f"{run}-{step}"
                        measure_skill(
                            common, name, base + room * learned + (wobble if stage else 0), who
                        )
                    if point == 0:
                        for task in retention:
                            measure_retention(
                                common, task, loss * stage, f"{run}-{stage}" if stage else "base"
                            )
                if stage and training:
                    part = place / f"stage-{stage}"
                    part.mkdir()
                    rows = []
                    for k in range(1, width + 1):
                        row = {
                            "step": width * (stage - 1) + k,
                            "loss": 1.5 / k**0.5 + rng.normal(0, 0.03),
                            "grad_norm": 1 + rng.random(),
                            "learning_rate": 2e-5 * (1 - k / width),
                            "seconds": 1.7,
                            "tokens": 900,
                        }
                        if method != "sft":
                            row |= {
                                "kl": 0.4 / k**0.5,
                                "completion_tokens": 90 - k + rng.normal(0, 3),
                            }
                        if method == "grpo":
                            row |= {"reward": min(1, 0.2 + 0.04 * k)}
                        rows.append(json.dumps(row))
                    (part / "training.jsonl").write_text("\n".join(rows) + "\n")
                    _write(
                        part / "stage.json",
                        {
                            "stage": stage,
                            "skill": names[stage - 1],
                            "steps": width,
                            "prompts": width * 8,
                            "tokens": width * 900,
                            "seconds": {
                                "training": width * 1.7,
                                "sampling": width * (0.0 if method == "sft" else 3.1),
                                "evaluation": 22.0,
                                "retention": 31.5,
                            },
                            "peak_memory_gib": 2.1 + 0.8 * (method != "sft"),
                        },
                    )
    _write(
        folder / "results.json",
        {
            "version": 1,
            "name": folder.name,
            "model": {"name": model, "revision": None},
            "skills": [
                {
                    "name": s,
                    "description": f"{s}: fabricated questions",
                    "metric": "exact",
                    "splits": ["train", "validation", "test"],
                }
                for s in names
            ],
            "retention": [
                {
                    "name": t,
                    "metric": m,
                    "higher_is_better": up,
                    "chance": chance,
                    "description": f"{t} of lm-eval",
                }
                for t, (m, up, chance, _) in retention.items()
            ],
            "methods": {m: {"method": m, "config": {"learning_rate": 2e-5}} for m in methods},
            "seeds": list(seeds),
            "evaluate": {"split": "test", "limit": n},
            "budget": {"examples": 96},
        },
    )
    _write(folder / "protocols.json", protocols)
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _write(path, value):
    path.write_text(json.dumps(value))
