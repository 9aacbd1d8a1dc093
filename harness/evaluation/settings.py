"""The section ``evaluate`` of an order."""

from dataclasses import dataclass

from harness.base.settings import option
from harness.sampling.settings import ENGINES, MOST_NEW_TOKENS


@dataclass
class PassAtK:
    samples: int = option(128, "answers sampled for each prompt; the largest k", min=1, max=100_000)
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
class Drift:
    prompts: int = option(
        32, "prompts of each kind: the first ones of 64, or of a skill's split", min=2, max=64
    )
    max_new_tokens: int = option(48, "limit of the base's answers", min=1, max=MOST_NEW_TOKENS)
    along: list[str] = option(
        ["general"],
        "general prompts, those of the skill just learned, of earlier ones",
        choices=("general", "new", "old"),
    )

    def __post_init__(self) -> None:
        if not self.along or len(set(self.along)) < len(self.along):
            raise ValueError("along names general, new and old, each at most once")


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
        "after each stage: all, those learned so far (seen), or the stage's own and a drawn one "
        "(sampled)",
        choices=("all", "seen", "sampled"),
    )
    every_steps: int | None = option(
        None, "also evaluate the skills every so many optimizer steps inside a stage", min=1
    )
    max_new_tokens: int | None = option(
        None, "limit of an answer; the skill's own if left out", min=1, max=MOST_NEW_TOKENS
    )
    temperature: float = option(0.0, "0 is greedy", min=0)
    top_p: float = option(1.0, "nucleus sampling, where temperature is above 0", above=0, max=1)
    seed: int = option(0, "of sampled answers; the same for every run", min=0)
    batch_size: int | None = option(
        None,
        "answers sampled at once, if left out as `rollout.batch_size`; no part of the protocol",
        min=1,
    )
    pass_at_k: dict | None = option(
        None, "pass@k of each skill at the base and after its own stage: samples, prompts, ..."
    )
    kl: dict | None = option(None, "KL to the base policy on the skill just learned: prompts")
    drift: dict | None = option(
        None,
        "KL from the base policy on prompts, whenever skills are evaluated: prompts, "
        "max_new_tokens, along",
    )
    teacher: bool = option(
        False, "accuracy of the base model as the demonstration-conditioned teacher of each skill"
    )
    oracle: bool = option(
        False,
        "oracle retrieval: the base model on each skill with the question's source in the prompt",
    )
