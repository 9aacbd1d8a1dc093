"""Made-up results folders of the paper's experiments, written as a run writes them."""

import numpy as np

from benchmarks.paper.collect import collect
from harness.base.files import write_json, write_jsonl
from harness.results.writer import ResultsWriter

TASKS = [
    {"name": "facts", "metric": "acc,none", "higher_is_better": True},
    {"name": "grammar", "metric": "acc,none", "higher_is_better": True},
    {"name": "code", "metric": "bits_per_byte,none", "higher_is_better": False},
]
T2 = 4.302653  # quantile 0.975 of Student's t with two degrees of freedom


def record(
    name,
    metric,
    value,
    kind="skill",
    split="test",
    stderr=0.02,
    step=0,
    prompts=None,
    final=True,
    n=50,
):
    return {
        "name": name,
        "metric": metric,
        "value": value,
        "kind": kind,
        "split": split,
        "stderr": stderr,
        "step": step,
        "prompts": 16 * step if prompts is None else prompts,
        "final": final,
        "n": n,
        "protocol": f"{name}-{split}"[:12],
        "evaluation": f"{name}-{value}",
    }


def write_results(
    folder, experiment, skills, methods, stages, model="embedded", retention=(), **skill
):
    """A results folder through harness.results.writer.

    methods: {label: (method, config)}; stages: {(label, seed): one list of records a stage, the
    base's first}; skill: further keys of the skills in results.json.
    """
    results = ResultsWriter(folder)
    results.open(
        {
            "version": 1,
            "name": folder.name,
            "experiment": [experiment] if isinstance(experiment, str) else experiment,
            "model": {"name": model, "dtype": "float32"},
            "methods": {k: {"method": m, "config": c} for k, (m, c) in methods.items()},
            "skills": [{"name": s, "metric": "accuracy", "prompts": 160, **skill} for s in skills],
            "retention": list(retention),
            "seeds": sorted({seed for _, seed in stages}),
            "evaluate": {"split": "test"},
            "budget": {"prompts": 160},
            "rollout": {},
        }
    )
    for (label, seed), parts in stages.items():
        run = f"{label}-seed{seed}"
        for number, records in enumerate(parts):
            results.protocol(records[0]["protocol"], {"decoding": "greedy"})
            partial = results.run(run) / f"stage-{number}.partial"
            place = {
                "run": run,
                "method": label,
                "seed": seed,
                "stage": number,
                "skill": skills[number - 1] if number else None,
            }
            write_jsonl(partial / "records.jsonl", [{**place, **record} for record in records])
            write_json(partial / "stage.json", {"stage": number})
            results.commit(partial, run, number)
    return folder


def numbers(folder, key):
    """What ``folder`` holds of one figure or table."""
    (side,) = collect([folder]).sides[key]
    return side.numbers


def value(frame, **where):
    """The one row of a frame that has these values."""
    for key, wanted in where.items():
        frame = frame[frame[key] == wanted]
    assert len(frame) == 1, frame
    return frame.iloc[0]


BOTH = {"sft": ("sft", {}), "sdft": ("sdft", {"divergence": "forward"})}


def sequence_folder(folder):
    """Two skills, three seeds. On "a" the base has 0.2.

    The best mean point of any method on "a" is the 0.7 of sdft after stage 1.
    """
    on_a = {  # after stage 1 and 2, of each seed
        "sft": [(0.6, 0.3), (0.5, 0.3), (0.7, 0.6)],
        "sdft": [(0.7, 0.6), (0.6, 0.6), (0.8, 0.6)],
    }
    stages = {}
    for label, seeds in on_a.items():
        for seed, (own, later) in enumerate(seeds):
            points = [(0.2, 0.1), (own, 0.1), (later, 0.5)]
            stages[label, seed] = [
                [record("a", "accuracy", a, step=10 * k), record("b", "accuracy", b, step=10 * k)]
                for k, (a, b) in enumerate(points)
            ]
    return write_results(folder, "figure_3", ["a", "b"], BOTH, stages)


def skill_folder(
    folder, accuracy, facts, seeds=(0,), experiment="table_5", skill="elements", **more
):
    """A one-skill order whose base has accuracy 0.1 and facts 0.8.

    accuracy, facts: {label: one value a seed}; more: keys of the skill in results.json.
    """

    def tasks(x):
        return [
            record("facts", "acc,none", x, "retention"),
            record("grammar", "acc,none", 0.6, "retention"),
            record("code", "bits_per_byte,none", 0.5, "retention"),
        ]

    stages = {
        (label, seed): [
            [record(skill, "accuracy", 0.1), *tasks(0.8)],
            [record(skill, "accuracy", accuracy[label][i], step=10), *tasks(facts[label][i])],
        ]
        for label in accuracy
        for i, seed in enumerate(seeds)
    }
    return write_results(folder, experiment, [skill], BOTH, stages, retention=TASKS, **more)


def further_folder(folder):
    """pass@k, KL and the teacher."""
    base = [
        record("e", "accuracy", 0.1),
        record("e", "accuracy", 0.2, split="validation"),
        record("e", "teacher_accuracy", 0.9, split="validation"),
        record("e", "teacher_kl_forward_token", 0.4, split="validation"),
        *[record("e", f"pass@{k}", 0.1 * i) for i, k in enumerate((1, 2, 16), 1)],
    ]
    end = [
        record("e", "accuracy", 0.5, step=10),
        record("e", "kl_forward_token", 1.2, step=10),
        *[record("e", f"pass@{k}", 0.2 * i, step=10) for i, k in enumerate((1, 2, 16), 1)],
    ]
    return write_results(
        folder,
        ["figure_2_right", "figure_5_right"],
        ["e"],
        BOTH,
        {("sft", 0): [base, end], ("sdft", 0): [base, end]},
    )


def generations_folder(folder):
    """Methods that sample answers, methods with a fixed set of them, and sft, which has none."""
    methods = {
        "sdft": ("sdft", {"rollouts": 2}),
        "offline_40": ("offline_distillation", {"generations": 40}),
        "offline": ("offline_distillation", {"generations": None}),
        "teacher": ("sft_from_teacher", {"generations": 999}),
        "short": ("sft_from_teacher", {"generations": None, "epochs": 0.5}),
        "grpo": ("grpo", {"group_size": 8}),
        "sft": ("sft", {}),
    }
    stages = {
        (label, 0): [
            [record("e", "accuracy", 0.1)],
            [
                record("e", "accuracy", 0.3, step=5, prompts=prompts // 2, final=False),
                record("e", "accuracy", end, step=10, prompts=prompts),
            ],
        ]
        for label, end, prompts in (
            ("sdft", 0.5, 160),
            ("offline_40", 0.2, 160),
            ("offline", 0.4, 160),
            ("teacher", 0.6, 160),
            ("short", 0.15, 80),
            ("grpo", 0.7, 160),
            ("sft", 0.8, 160),
        )
    }
    return write_results(folder, "figure_6", ["e"], methods, stages)


def context_folder(folder):
    """SDFT with each context of the teacher, and everything that tables 1 and 2 show."""
    contexts = {
        f"sdft_{c}": ("sdft", {"teacher_context": c}) for c in ("demonstration", "source", "both")
    }
    base = [
        record("e", "accuracy", 0.0),
        record("e", "lenient", 0.1),
        record("e", "accuracy", 0.0, split="ood"),
        record("e", "response_tokens", 30),
        record("e", "oracle_accuracy", 0.9),
        record("e", "oracle_lenient", 1.0),
        record("e", "oracle_accuracy", 0.7, split="ood"),
    ]
    stages = {
        (label, 0): [
            base,
            [
                record("e", "accuracy", 0.2, step=5, final=False),
                record("e", "accuracy", end, step=10),
                record("e", "lenient", end + 0.1, step=10),
                record("e", "accuracy", end - 0.1, split="ood", step=10),
                record("e", "response_tokens", 20.5, step=10),
            ],
        ]
        for label, end in zip(contexts, (0.3, 0.6, 0.8), strict=True)
    }
    return write_results(
        folder, ["figure_7", "figure_8", "table_1", "table_2"], ["e"], contexts, stages
    )


def paired_folder(folder, scores, tasks=("facts", "grammar")):
    """One seed of sft and sdft with the scores of every example.

    scores: {skill or task: {label: array}}, the base's under "base".
    """
    items = {}

    def scored_record(name, label):
        values = np.asarray(scores[name][label], float)
        kind, metric = ("retention", "acc,none") if name in tasks else ("skill", "accuracy")
        key = f"{name}-{label}"
        items[key] = [
            {"id": str(i), **({"score": v} if name in tasks else {"scores": {metric: v}})}
            for i, v in enumerate(values)
        ]
        summary = record(
            name,
            metric,
            values.mean(),
            kind,
            stderr=values.std(ddof=1) / len(values) ** 0.5,
            n=len(values),
            step=10 * (label != "base"),
        )
        return {**summary, "evaluation": key}

    stages = {
        (label, 0): [[scored_record(name, stage) for name in scores] for stage in ("base", label)]
        for label in BOTH
    }
    suite = [task for task in TASKS if task["name"] in tasks]
    write_results(folder, ["table_5", "figure_5_left"], ["elements"], BOTH, stages, retention=suite)
    for key, of_evaluation in items.items():
        write_json(folder / "evaluations" / f"{key}.json", {"items": of_evaluation})
    return folder
