"""What the files of a results folder hold: version, names of metrics, forms of JSON.

docs/reference/results.md lists every file. The typed dictionaries say what a run writes. The shapes
say what a reader needs, and ``check_shape`` refuses a file of another form.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.results.overlap import OVERLAP

# 2: files have SHA-256, fingerprints hold the model's config, protocols tokenizer and generation.
VERSION = 2
READABLE = (1, 2)  # versions that a report reads
FAILED = "failed.txt"  # in a run's folder: why it failed, in its first line, and the traceback
# Before the name of a metric: of the base model with the question's source in its prompt.
ORACLE = "oracle_"
# What a reference run learns, the key `reference` of its records: all skills at once, one alone, or
# one again from the model after the last stage.
JOINT, SINGLE, RELEARN = "joint", "single", "relearn"
OF_SEQUENCE = "@"  # in a run's folder name, before the sequence: no label has it
# Metrics that a retention task has beside the one that counts: harness/evaluation/likelihoods.py.
CONTINUOUS = ("margin", "probability", "loglikelihood")
# Keys of a skill, a retention task or a method's options in results.json that older folders lack.
# They are compared only where both sides have them.
LATER = (
    "gradient_checkpointing",
    "evaluated",
    "graders",
    "num_fewshot",
    "chat_template",
    "limit",
    "max_gen_toks",
    "coarse",
    "reference",
    "chance",
)
# Name of a file in evaluations/, which a record gives: nothing that leads out of there.
EVALUATION_KEY = re.compile(r"[\w.+=-]+")
MOST_OF_A_LINE = 100_000  # letters of a record
REMEDY = "restore the file, or start the run again where it is lost"


# ---- what a run writes ---------------------------------------------------------------------------


class Record(TypedDict):
    """A line of records.jsonl: one number and what made it."""

    run: str  # name of the run's folder
    method: str  # its label in the order
    seed: int
    stage: int  # 0 is the base model, k is after the k-th skill
    skill: str | None  # learned in this stage, None at stage 0
    step: int  # optimizer steps since the start of the run
    final: bool  # the stage is over; false: a point inside it
    kind: Literal["skill", "retention", "drift"]
    name: str  # of the skill or task that was measured, or `general_prompts` of the drift
    split: str
    metric: str
    value: float | None  # None: not finite
    stderr: float | None  # over examples
    n: int  # examples
    protocol: str  # hash of the measurement, a key of protocols.json
    evaluation: str  # key of the file in evaluations/
    prompts: int  # drawn since the start of the run
    prompts_learned: NotRequired[int]  # at a stage's end: without what parts read behind its steps
    tokens: int  # trained on, scored or sampled since the start of the run
    seconds: float  # of training and sampling since the start of the run
    reference: NotRequired[str]  # of a reference run alone: joint, single or relearn
    sequence: NotRequired[str]  # name in `orders`, where the order has several sequences


class Evaluation(TypedDict):
    """A file in evaluations/: the answers to one measurement of one model, with their scores.

    What an item holds depends on the measurement; each has ``id``, and most have ``prompt``,
    ``completion`` and ``scores``, a number a metric.
    """

    protocol: str
    kind: Literal["skill", "retention", "drift"]
    name: str
    split: str
    n: int
    metrics: dict[str, tuple[float, float | None]]  # value and standard error
    items: list[dict[str, Any]]
    sampled_tokens: NotRequired[int]  # pass@k, KL
    scored_tokens: NotRequired[int]  # KL
    base: NotRequired[str]  # KL, drift: fingerprint of the base model's weights
    judge_tokens: NotRequired[int]  # of a judge: read and written
    unjudged: NotRequired[list[dict[str, Any]]]  # of a judge: items without a verdict


class StageSummary(TypedDict):
    """stage.json of a run's stage: what it took."""

    stage: int
    skill: str | None
    steps: int
    prompts: int
    tokens: int
    seconds: dict[str, float]  # training, sampling, evaluation, retention, pass_at_k, kl
    peak_memory_gib: float
    kept_bytes: int  # on disk for later stages, by the method and its parts
    learned_tokens: NotRequired[int]  # of ``tokens``, those of training passes; a skill's stage
    flops: NotRequired[float]
    gold_rows: NotRequired[int]  # training examples with gold answers that parts keep
    change: NotRequired[dict[str, dict[str, float]]]  # since the starts of stage and run


class GridPoint(TypedDict):
    """A point of a grid in selection.json."""

    label: str  # of the method that has these values
    values: dict[str, Any]
    validation: float | None  # mean over seeds and sequences
    # By seed, as a text: keys of JSON are texts. With `orders` by SEED@SEQUENCE.
    runs: dict[str, float | None]


class GridChoice(TypedDict):
    """What selection.json holds of a grid."""

    rule: str
    selected: str | None  # label of a point
    points: list[GridPoint]


# ---- what a reader needs -------------------------------------------------------------------------

# A shape is a type, [shape of every entry] or {key: shape}. A key with ? may be absent or null, *
# is every key.
Shape = type | list[Any] | dict[str, Any]
HEAD: Shape = {
    "name?": str,
    "skills": [
        {
            "name": str,
            "metric": str,
            "description?": str,
            "chance?": float,
            "judge?": {"metrics?": [str]},
        }
    ],
    "retention?": [{"name": str, "metric": str, "description?": str, "chance?": float}],
    "methods": {
        "*": {
            "method?": str,
            "config?": dict,
            "with?": dict,
            "parameters?": {"*?": dict},
            "grid?": {"of": str, "values": dict},
        }
    },
    "seeds": [int],
    "evaluate?": {"split?": str, "skills?": str},
    "rollout?": dict,
    "budget?": dict,
    "overlap?": [OVERLAP],
    "references?": [str],
    "relearning?": [str],
    "orders?": {"*?": [str]},
}
SELECTION: Shape = {"*": {"selected?": str, "rule": str, "points": list}}
PRODUCTS: Shape = {"dtype": str, "sampling": str, "bfloat16?": float, "seconds": {"*": float}}
RUN: Shape = {
    "label?": str,
    "sequence?": str,
    "packages?": dict,
    "config?": dict,
    "with?": {"*?": dict},
    "parameters?": {"*?": dict},
    "dtype?": str,
    "learns_in?": str,
}
STAGE: Shape = {
    "stage": int,
    "steps?": float,
    "prompts?": float,
    "tokens?": float,
    "peak_memory_gib?": float,
    "seconds?": {"*?": float},
    "kept_bytes?": float,
    "flops?": float,
    "gold_rows?": float,
    "change?": {"*?": {"*?": float}},
}
EVALUATION: Shape = {"items?": [{"scores?": {"*?": float}}], "unjudged?": [dict]}
NAMES = {str: "a text", float: "a number", int: "a whole number", list: "a list", dict: "an object"}


def evaluation_file(folder: Path, key: str) -> Path:
    """The file of an evaluation, packed or not; where there is none, the one that would be made."""
    plain = folder / "evaluations" / f"{key}.json"
    packed = plain.with_name(f"{plain.name}.gz")
    return packed if packed.is_file() and not plain.is_file() else plain


def read_object(path: Path, shape: Shape) -> dict[str, Any]:
    """The JSON object of a file, {} where there is no file.

    Raises UserError naming the key that is not as ``shape`` says.
    """
    if not path.is_file():
        return {}
    value = read_json(path, remedy=REMEDY)
    check_shape(path, value, shape, "")
    return value


def check_shape(path: object, value: Any, shape: Shape, key: str, remedy: str = REMEDY) -> None:
    """Raises UserError unless ``value`` has the ``shape``; ``key`` is where it is in the file."""
    kind = shape if isinstance(shape, type) else type(shape)
    if not _is_a(value, kind):
        problem = f"`{key}` is {short_json(value)}, not" if key else "is not"
        raise UserError(path, f"{problem} {NAMES[kind]}", remedy)
    if isinstance(shape, list):
        for i, entry in enumerate(value):
            check_shape(path, entry, shape[0], f"{key}[{i}]", remedy)
    if isinstance(shape, dict):
        _check_keys(path, value, shape, key, remedy)


def _check_keys(
    path: object, value: Mapping[str, Any], shape: dict[str, Any], key: str, remedy: str
) -> None:
    for pattern, inner in shape.items():
        optional = pattern.endswith("?")
        for name in value if pattern.startswith("*") else [pattern.rstrip("?")]:
            entry = value.get(name)
            if entry is not None or not optional:
                check_shape(path, entry, inner, f"{key}.{name}" if key else name, remedy)


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value is of a type, where a whole number is a number and true no whole number."""
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def short_json(value: Any) -> str:
    """A value as JSON of at most 60 characters, for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def check_place(path: Path) -> None:
    """Raises UserError if the records of a stage are of another run or stage than its folders say.

    A folder that was copied or renamed would count as a run of its own. The first record tells.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        line = file.readline(MOST_OF_A_LINE)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # Whoever reads the records says so.
        return
    if not isinstance(row, dict) or "run" not in row or "stage" not in row:
        return
    if row["run"] != path.parents[1].name or f"stage-{row['stage']}" != path.parent.name:
        raise UserError(
            path,
            f"is of run {short_json(row['run'])}, stage {short_json(row['stage'])}",
            "a copied or renamed folder counts as a run of its own: move it out of runs/",
        )
