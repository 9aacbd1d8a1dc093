"""Rows of optimizer steps: ours beside TRL's, on the same examples."""

import statistics
import time
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

from benchmarks.speed import peers
from benchmarks.speed.timing import Loop, Result, Settings, alternate, faster, probe, stated
from harness.learning.method import get_method
from harness.learning.stage import Stage
from harness.models.chat import chat_tokens
from harness.models.load import load_tokenizer
from harness.sampling.sampler import common_prefix
from harness.sampling.transformers import TransformersSampler
from harness.skills.registry import get_skill
from harness.skills.skill import Example, Skill

Completions = Mapping[tuple[int, ...], list[list[int]]]  # token ids, by those of their prompt
Body = Callable[[Callable[[Any], None]], None]  # of a Loop


class Chosen(Skill):
    """The examples that every step learns from, as a skill.

    Its reward gives every group of GRPO a signal.
    """

    name = "chosen"
    metrics: ClassVar = {"none": lambda completion, reference: 0.0}

    def __init__(self, examples: Sequence[Example]) -> None:
        self.chosen = examples

    def load(self, split: str) -> Sequence[Example]:
        return self.chosen

    def reward(self, completion: str, reference: Any) -> float:
        return peers.score(completion)


def choose(settings: Settings, count: int) -> tuple[list[Example], Any]:
    """(``count`` training examples, the tokenizer).

    The examples are those whose prompts are nearest to the wanted length, the shortest first.
    """
    tokenizer, _ = load_tokenizer(settings.folder)
    examples = get_skill(settings.skill).examples("train")
    length = {e.id: len(chat_tokens(tokenizer, e.prompt)) for e in examples}
    by_distance = sorted(examples, key=lambda e: (abs(length[e.id] - settings.prompt_tokens), e.id))
    return sorted(by_distance[:count], key=lambda e: length[e.id]), tokenizer


class RecordingSampler(TransformersSampler):
    """A sampler that keeps the completions of its last call, in ``last``."""

    def sample(self, prompts: Any, **how: Any) -> Any:
        completions = super().sample(prompts, **how)
        self.last = {
            tuple(prompt): [completion.token_ids for completion in group]
            for prompt, group in zip(prompts, completions, strict=True)
        }
        return completions


def our_steps(
    settings: Settings,
    kind: str,
    examples: Sequence[Example],
    steps: int,
    dtype: str,
    forced: bool,
    completions: MutableMapping | None = None,
) -> Body:
    """Body of a Loop: the harness's own stage, method and trainer.

    forced: whether every answer has the full length; completions: gets those of the first step.
    """

    def body(pause: Callable[[Any], None]) -> None:
        model, tokenizer = settings.load(dtype)
        sampler = RecordingSampler(model, tokenizer)
        if forced:
            sampler.stops = {-1}  # no token ends an answer
        options = {"group_size": settings.group_size} if kind == "grpo" else {}
        cls = get_method(kind)
        method = cls(cls.Config(learning_rate=1e-5, schedule="constant", warmup_steps=0, **options))

        def on_step(stage: Stage, step: Any) -> None:
            if completions is not None and hasattr(sampler, "last"):
                completions.update(sampler.last)
            keys = ("seconds", "loss", "grad_norm", "completion_tokens")
            pause({key: step.logged[key] for key in keys})

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


def their_steps(
    settings: Settings,
    kind: str,
    examples: Sequence[Example],
    steps: int,
    dtype: str,
    micro: int,
    forced: bool,
    completions: Completions | None = None,
) -> Body:
    """Body of a Loop: TRL's trainer. completions: what it takes instead of generating."""

    def body(pause: Callable[[Any], None]) -> None:
        model, tokenizer = peers.load(settings.folder, "float32")
        group = settings.group_size if kind == "grpo" else 1
        trainer = peers.trainer(
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
            peers.replay(trainer, kind, completions)
        peers.StepWatch(trainer, pause, time.perf_counter)
        trainer.train()

    return body


def same_loss(settings: Settings, kind: str, examples: Sequence[Example]) -> tuple[float, float]:
    """Relative differences of (loss, gradient norm) of one float32 step on the same completions.

    GRPO's loss is a sum of advantages whose mean is 0: its difference is relative to the
    advantages' size, about 1.
    """
    completions: dict[tuple[int, ...], list[list[int]]] = {}
    micro = 1 if kind == "sft" else 2
    with Loop(our_steps(settings, kind, examples, 1, "float32", False, completions)) as loop:
        ours = loop.step()
    body = their_steps(settings, kind, examples, 1, "float32", micro, False, completions)
    with Loop(body) as loop:
        theirs = loop.step()
    scale = max(abs(theirs["loss"]), 1.0 if kind == "grpo" else 0.0)
    loss = abs(ours["loss"] - theirs["loss"]) / scale
    return loss, abs(ours["grad_norm"] / theirs["grad_norm"] - 1)


def step(settings: Settings, kind: str, work: str, wanted: float) -> list[Result]:
    """An optimizer step of ours beside TRL's.

    Both loops are alive and take turns. TRL's has the dtype and the sequences a pass that suit it.
    """
    group = settings.group_size if kind == "grpo" else 1
    examples, tokenizer = choose(settings, settings.groups if kind == "grpo" else settings.prompts)
    rows = len(examples) * group
    tried = _probe_passes(settings, kind, examples, rows)
    dtype, micro = min(tried, key=tried.__getitem__)
    steps = settings.repeats + 1
    with (
        Loop(our_steps(settings, kind, examples, steps, settings.our_dtype, True)) as ours,
        Loop(their_steps(settings, kind, examples, steps, dtype, micro, True)) as theirs,
    ):
        mine, others = alternate(ours.step, theirs.step, settings.repeats, settings.say)
    prompts = [chat_tokens(tokenizer, example.prompt) for example in examples]
    prompt_tokens = sum(map(len, prompts))
    if kind == "sft":
        tokens = prompt_tokens + len(examples) * mine[0]["completion_tokens"]
        check_same_work(tokens, {round(other["tokens"]) for other in others})
        work_done = f"{rows} examples of {tokens / rows:.0f} tokens in the mean"
    else:
        both = [*mine, *others]
        check_same_work(settings.tokens, {round(each["completion_tokens"]) for each in both})
        work_done = (
            f"{rows} completions of {settings.tokens} tokens, "
            f"prompts of {statistics.fmean(map(len, prompts)):.0f} in the mean"
        )
    loss, norm = same_loss(settings, kind, examples[:4])
    notes = [
        f"{work_done}; what all prompts begin with: {common_prefix(prompts)} tokens",
        f"ours in {settings.our_dtype}, TRL's in {dtype}, {micro} sequences a pass "
        f"(tried, one step each: {stated(tried)})",
        "one step on the same completions in float32: "
        f"losses differ by {loss:.1e}, gradient norms by {norm:.1e} (relative)",
    ]
    return [
        faster(
            work,
            [each["seconds"] for each in mine],
            [each["seconds"] for each in others],
            wanted,
            notes,
            loss_difference=loss,
            gradient_difference=norm,
        )
    ]


def _probe_passes(
    settings: Settings, kind: str, examples: Sequence[Example], rows: int
) -> dict[tuple[str, int], float]:
    """Seconds of a step of TRL's, by dtype and sequences of one pass."""

    def seconds(candidate: tuple[str, int]) -> float:
        dtype, micro = candidate
        with Loop(their_steps(settings, kind, examples, 1, dtype, micro, True)) as loop:
            return loop.step()["seconds"]

    quarter = [(dtype, max(1, rows // 4)) for dtype in settings.dtypes]
    tried = probe(quarter, seconds, settings.say)
    dtype, _ = min(tried, key=tried.__getitem__)
    return tried | probe([(dtype, rows)], seconds, settings.say)


def check_same_work(wanted: float, counts: Collection[int]) -> None:
    """Raises RuntimeError where a side counts other tokens than wanted."""
    if {round(wanted)} != set(counts):
        raise RuntimeError(
            f"the two sides did not do the same work: {wanted} tokens wanted, "
            f"{sorted(counts)} counted"
        )


def sdft(settings: Settings) -> list[Result]:
    return step(settings, "sdft", f"SDFT step, {settings.prompts} prompts", 2)


def sft(settings: Settings) -> list[Result]:
    wanted = 3 if settings.our_dtype == "bfloat16" else 2
    return step(settings, "sft", f"SFT step, {settings.prompts} examples", wanted)


def grpo(settings: Settings) -> list[Result]:
    work = f"GRPO step, {settings.groups} x {settings.group_size} completions"
    return step(settings, "grpo", work, 2)
