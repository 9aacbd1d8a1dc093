"""The keys of the task-order file; docs/reference/order.md explains every one."""

import datetime
import json
from dataclasses import dataclass

from harness.base.settings import option
from harness.models.chat import DATE, ChatInputs
from harness.sampling.settings import MOST_NEW_TOKENS, MOST_PROMPTS
from harness.watch.trackers import TRACKERS

# Equals harness.models.embedded.EMBEDDED, whose module imports PyTorch: an order is read without.
EMBEDDED = "embedded"


@dataclass
class ModelSpec:
    """The section ``model``."""

    name: str = option(EMBEDDED, "a hub id, a local folder, `embedded` or `gemma-3-270m`")
    revision: str | None = option(None, "commit of the hub repository")
    dtype: str = option(
        "auto", "what the model computes in", choices=("auto", "float32", "bfloat16")
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    template: str = option(
        "chat",
        "prompts by the model's chat template, or plain: prompt and answer as "
        "they are, then the end token",
        choices=("chat", "plain"),
    )
    deterministic: bool = option(
        True,
        "training on a GPU repeats to the bit, which resumed runs need; false is faster",
    )
    decode: str = option(
        "eager",
        "how transformers samples: kernel by kernel, or by CUDA graphs over fixed buffers, which "
        "no GPU has run yet",
        choices=("eager", "graphs"),
    )
    fused_losses: bool = option(
        False,
        "cross-entropy and forward KL write their gradient over the logits; no GPU has run their "
        "Triton kernels yet",
    )
    attention: str = option(
        "auto",
        "in training: segments on a CPU, PyTorch's attention on a GPU; or FlexAttention, which "
        "never ran on a GPU",
        choices=("auto", "flex"),
    )


@dataclass
class ChatTemplate:
    """The section ``chat_template``: what the model's template is given beside the messages."""

    date: str = option(
        DATE, "the day that a template takes for today; part of the protocol where it reads one"
    )
    arguments: dict = option({}, "for all prompts, as `{enable_thinking: false}`")
    student: dict = option({}, "on top: prompts, demonstrations and rollouts of the student")
    teacher: dict = option({}, "on top: prompts of a self-distillation teacher")
    evaluate: dict = option({}, "on top: evaluation of the skills, retention")

    def __post_init__(self) -> None:
        try:
            good = str(datetime.date.fromisoformat(self.date)) == self.date
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"date must be a day as {DATE}, not {self.date[:40]!r}")
        for part in ("arguments", "student", "teacher", "evaluate"):
            try:
                json.dumps(getattr(self, part), allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(f"{part} must hold texts, numbers, true or false") from None

    def inputs(self, part: str) -> ChatInputs:
        """What the template is given for ``part``: student, teacher or evaluate."""
        return ChatInputs(self.date, {**self.arguments, **getattr(self, part)})


@dataclass
class Budget:
    """The section ``budget``: how much every method learns from."""

    prompts: int | None = option(
        None, "prompts drawn for each skill, the same for every method", min=1, max=MOST_PROMPTS
    )
    epochs: float | None = option(
        None, "instead of prompts: passes over the training examples", above=0
    )
    batch_size: int = option(16, "prompts per optimizer step, unless a method sets its own", min=1)

    def __post_init__(self) -> None:
        if (self.prompts is None) == (self.epochs is None):
            raise ValueError("wants exactly one of `prompts` and `epochs`")


@dataclass
class Power:
    """The section ``power``: the smallest differences that should be told, for --plan."""

    retention: float | None = option(
        None, "points of the mean change of prior capabilities", above=0, max=100
    )
    skills: float | None = option(
        None, "points of mean accuracy between two methods", above=0, max=100
    )


@dataclass
class Checkpoints:
    """The section ``checkpoints``: what a killed run loses, and what a finished one leaves."""

    minutes: float = option(
        10.0,
        "training between two checkpoints, or 50 times what one costs if that is longer; 0 writes "
        "after every step",
        min=0,
    )
    keep: str = option(
        "last", "weights to keep when a run is done", choices=("last", "all", "none")
    )


@dataclass
class SkillSpec:
    """One entry of the list ``skills``."""

    name: str = option(
        help="a skill of benchmarks/skills, or a new name with `train`, `test` and `grader`"
    )
    train: str | None = option(None, "JSONL file of a skill of your own")
    validation: str | None = option(None, "JSONL file")
    test: str | None = option(None, "JSONL file")
    hub: str | None = option(
        None,
        "instead of files: a dataset of the hub or a folder; `train`, `validation` and `test` name "
        "its splits",
    )
    subset: str | None = option(None, "of `hub`: which of its datasets")
    revision: str | None = option(None, "of `hub`: commit of the repository")
    grader: str | None = option(
        None, "one of harness/skills/graders.py, or a function of yours: FILE.py or FILE.py:NAME"
    )
    reward: str | None = option(
        None, "a function of yours, FILE.py or FILE.py:NAME; the grade if left out"
    )
    chance: float | None = option(
        None, "of a skill of your own: the accuracy of guessing, 1/k of k choices", min=0, max=0.99
    )
    path: str | None = option(
        None, "folder with the data of tooluse, science, medical, wiki or a suite"
    )
    source: str | None = option(None, "of science: released or hub", choices=("released", "hub"))
    holdout: int | None = option(
        None, "train questions that become the validation split, where the data have none", min=1
    )
    max_new_tokens: int | None = option(
        None, "limit of answers and rollouts", min=1, max=MOST_NEW_TOKENS
    )
    teacher_template: str | list | None = option(None, "what a self-distillation teacher is shown")
    prompts: int | None = option(None, "this skill's own budget", min=1, max=MOST_PROMPTS)
    overlap: str | None = option(
        None, "why questions of train stand in a test, where that is meant: told beside their count"
    )
    judge: str | None = option(
        None, "a rubric of harness/skills/rubrics.py: a model judges the answers as well"
    )


@dataclass
class Schema:
    """The keys of the file itself. Sections are mappings here; harness.runs.sections reads them."""

    skills: list = option(help="the skills, in the order in which they are learned")
    methods: dict = option(help="label: hyperparameters")
    budget: dict = option(help="prompts (or epochs) and batch_size")
    name: str | None = option(None, "results go to results/<name>; the file's own name if left out")
    description: str = option("", "shown in the report")
    experiment: str | list[str] = option(
        [],
        "what the results are for: experiments that a folder of benchmarks/ names in its "
        "experiments.yaml",
    )
    data: dict = option(
        {},
        "suite: folder or zip file of its authors, for skills without a `path` and for retention",
    )
    model: str | dict = option(
        EMBEDDED, "a hub id, a local folder, `embedded`, `gemma-3-270m`, or a mapping"
    )
    chat_template: dict = option({}, "what the model's chat template is given: date, arguments")
    seeds: list[int] = option([0], "one run a method and seed", min=0)
    rollout: dict = option({}, "sampling while learning")
    vllm: dict = option({}, "what vLLM may use, where it is an engine")
    evaluate: dict = option({}, "evaluation of the skills")
    judge: dict = option({}, "the judge's server, for skills with a rubric")
    too_long: str = option(
        "refuse",
        "rows beyond the model's positions: refuse the order, or leave them out for all methods",
        choices=("refuse", "leave_out"),
    )
    retention: str | list | None = option(None, "a suite of benchmarks/retention, or lm-eval tasks")
    power: dict = option({}, "differences that should be told: --plan proposes seeds and questions")
    checkpoints: dict = option({}, "resume and disk")
    report_to: str | list[str] = option(
        [],
        "trackers that get steps, evaluations, settings and tables while the order runs",
        choices=tuple(TRACKERS),
    )
    orders: dict | list | str | None = option(
        None,
        "several sequences of these skills, each a run of its own: name: [skills], a list of "
        "lists, or `latin_square`",
    )
    references: list[str | int] = option(
        [],
        "methods that also learn all skills at once (`joint`) and each skill alone (`single`)",
    )
    relearning: list[str | int] = option(
        [],
        "methods whose last model learns each earlier skill again, by which validation tells when "
        "it is regained",
    )
    grid: dict = option(
        {}, "label: {hyperparameter: [values]}; validation accuracy selects among all combinations"
    )
