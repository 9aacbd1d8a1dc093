"""The keys of the task-order file; docs/order.md explains every one."""

from dataclasses import dataclass

from harness.base.settings import option
from harness.models.embedded import EMBEDDED


@dataclass
class ModelSpec:
    name: str = option(EMBEDDED, "a hub id, a local folder, `embedded` or `gemma-3-270m`")
    revision: str | None = option(None, "commit of the hub repository")
    dtype: str = option(
        "auto", "what the model computes in", choices=("auto", "float32", "bfloat16")
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")


@dataclass
class Budget:
    prompts: int | None = option(
        None, "prompts drawn for each skill, the same for every method", min=1
    )
    epochs: float | None = option(
        None, "instead of prompts: passes over the training examples", above=0
    )
    batch_size: int = option(16, "prompts per optimizer step, unless a method sets its own", min=1)

    def __post_init__(self):
        if (self.prompts is None) == (self.epochs is None):
            raise ValueError("wants exactly one of `prompts` and `epochs`")


ENGINES = ("transformers", "vllm")


@dataclass
class Rollout:
    engine: str = option("transformers", "what samples", choices=ENGINES)
    temperature: float = option(1.0, "sampling temperature of rollouts", above=0)
    top_p: float = option(1.0, "nucleus sampling of rollouts", above=0, max=1)
    max_prompt_tokens: int | None = option(
        None, "training examples with a longer prompt are left out; no limit if left out", min=1
    )
    max_new_tokens: int | None = option(
        None, "limit of a rollout; the skill's own if left out", min=1
    )
    batch_size: int = option(48, "completions sampled at once; vLLM has its own way", min=1)


@dataclass
class PassAtK:
    samples: int = option(128, "answers sampled for each prompt; the largest k", min=1)
    prompts: int | None = option(
        None, "prompts of the split, the first ones; all if left out", min=1
    )
    temperature: float = option(1.0, "sampling temperature", above=0)
    top_p: float = option(0.95, "nucleus sampling", above=0, max=1)


@dataclass
class KL:
    prompts: int | None = option(
        None, "prompts of the split, the first ones; all if left out", min=1
    )


@dataclass
class Evaluate:
    engine: str = option(
        "transformers",
        "what answers, and scores the retention suite; part of the protocol where it is vllm",
        choices=ENGINES,
    )
    split: str = option(
        "test",
        "the split that counts: test, or validation for a search",
        choices=("test", "validation"),
    )
    examples: int | None = option(
        None, "examples of each split, the first ones; all if left out", min=1
    )
    skills: str = option(
        "all",
        "after each stage: all skills, those learned so far (seen), or the stage's own and an earlier one "
        "that is drawn (sampled); all at the base and after the last stage",
        choices=("all", "seen", "sampled"),
    )
    every_steps: int | None = option(
        None, "also evaluate the skills every so many optimizer steps inside a stage", min=1
    )
    max_new_tokens: int | None = option(
        None, "limit of an answer; the skill's own if left out", min=1
    )
    temperature: float = option(0.0, "0 is greedy", min=0)
    top_p: float = option(1.0, "nucleus sampling, where temperature is above 0", above=0, max=1)
    seed: int = option(0, "of sampled answers; the same for every run", min=0)
    batch_size: int = option(48, "answers sampled at once; no part of the protocol", min=1)
    pass_at_k: dict | None = option(
        None, "pass@k of each skill at the base and after its own stage: samples, prompts, ..."
    )
    kl: dict | None = option(None, "KL to the base policy on the skill just learned: prompts")
    teacher: bool = option(
        False, "accuracy of the base model as the demonstration-conditioned teacher of each skill"
    )
    oracle: bool = option(
        False,
        "oracle retrieval: the base model on each skill with the question's source in the prompt",
    )


@dataclass
class Checkpoints:
    minutes: float = option(
        10.0, "a resume loses at most this much training; 0 writes after every step", min=0
    )
    keep: str = option(
        "last", "weights to keep when a run is done", choices=("last", "all", "none")
    )


@dataclass
class SkillSpec:
    name: str = option(
        help="a skill of benchmarks/skills, or a new name with `train`, `test` and `grader`"
    )
    train: str | None = option(None, "JSONL file of a skill of your own")
    validation: str | None = option(None, "JSONL file")
    test: str | None = option(None, "JSONL file")
    grader: str | None = option(None, "one of harness/skills/graders.py")
    path: str | None = option(None, "folder with the data of tooluse, science, medical or wiki")
    source: str | None = option(None, "of science: released or hub", choices=("released", "hub"))
    holdout: int | None = option(
        None, "train questions that become the validation split, where the data have none", min=1
    )
    max_new_tokens: int | None = option(None, "limit of answers and rollouts", min=1)
    teacher_template: str | list | None = option(None, "what a self-distillation teacher is shown")
    prompts: int | None = option(None, "this skill's own budget", min=1)
    judge: str | None = option(
        None, "a rubric of harness/skills/rubrics.py: a model judges the answers as well"
    )


@dataclass
class Schema:
    skills: list = option(help="the skills, in the order in which they are learned")
    methods: dict = option(help="label: hyperparameters")
    budget: dict = option(help="prompts (or epochs) and batch_size")
    name: str | None = option(None, "results go to results/<name>; the file's own name if left out")
    description: str = option("", "shown in the report")
    experiment: str | list[str] = option(
        [],
        "what the results are for: experiments that a folder of benchmarks/ names in its experiments.yaml",
    )
    model: str | dict = option(
        EMBEDDED, "a hub id, a local folder, `embedded`, `gemma-3-270m`, or a mapping"
    )
    seeds: list[int] = option([0], "one run a method and seed", min=0)
    rollout: dict = option({}, "sampling while learning")
    vllm: dict = option({}, "what vLLM may use, where it is an engine")
    evaluate: dict = option({}, "evaluation of the skills")
    judge: dict = option({}, "the judge's server, for skills with a rubric")
    retention: str | list | None = option(None, "a suite of benchmarks/retention, or lm-eval tasks")
    checkpoints: dict = option({}, "resume and disk")
    grid: dict = option(
        {}, "label: {hyperparameter: [values]}; validation accuracy selects among all combinations"
    )
