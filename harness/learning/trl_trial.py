"""The first step of a trainer of TRL on a model of no size: what it refuses, before a run begins.

A config of TRL takes arguments that the trainer refuses when it is built, or in its first step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from harness.base.errors import UserError, one_line
from harness.learning.stage import Stage
from harness.learning.trl_run import TRLMethod, TRLRun
from harness.models.chat import ChatInputs
from harness.models.repeatable import same_draws
from harness.sampling.sampler import Sampler
from harness.skills.skill import Example, Skill

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS, TOKENS = 2, 4
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


class TrialSkill(Skill):
    """A skill without content."""

    name = "trial"
    splits = ("train",)
    max_new_tokens = TOKENS

    def load(self, split: str) -> list[Example]:
        prompts = [[{"role": "user", "content": f"Is {i} a number?"}] for i in range(PROMPTS)]
        return [Example(str(i), prompt, "Yes.", "Yes.") for i, prompt in enumerate(prompts)]


class TRLTrial(TRLRun):
    """One step, with made-up rewards and pairs."""

    is_built = False

    def _trainer(self) -> Any:
        trainer = super()._trainer()
        self.is_built = True
        return trainer

    def _reward(
        self, completion_ids: Sequence[Sequence[int]], number: Sequence[int], **_: Any
    ) -> list[float]:
        return [float(place % 2) for place in range(len(number))]

    def _make_pairs(self) -> None:
        self.pairs = {example.id: ["Yes.", "No."] for example in self.examples}


def trial_error(
    method: TRLMethod,
    plain: TRLMethod | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatInputs | None,
) -> str:
    """What TRL says against the arguments of ``method``; "" where it takes them.

    plain: the same without them. What fails in a step without them too is not of the arguments.
    model: gives device and dtype; it may be on the meta device.
    """
    said, is_built = _tried(method, model, tokenizer, chat)
    if said and is_built and (plain is None or _tried(plain, model, tokenizer, chat)[0]):
        return ""
    return said


def _tried(
    method: TRLMethod,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatInputs | None,
) -> tuple[str, bool]:
    """(what TRL raises in one line or "", whether the trainer was built)."""
    with tempfile.TemporaryDirectory() as folder, same_draws():
        run = TRLTrial(_stage(Path(folder), model, tokenizer, chat), method)
        try:
            run.train()
        except UserError as error:  # of the trainer's constructor
            return one_line(str(error.__cause__ or error)), run.is_built
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            # What is no plain refusal may be of the tokenizer, so it is compared with ``plain``.
            return one_line(said), True
    return "", True


def _stage(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatInputs | None,
) -> Stage:
    """A stage of one step, of a model that is on disk: TRL loads references from there."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    ends = {name: getattr(tokenizer, name) for name in ENDS}
    config = LlamaConfig(vocab_size=len(tokenizer), **SIZES, **ends)
    LlamaForCausalLM(config).to(model.dtype).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    device = model.device
    if device.type == "meta":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def load(_: str = "") -> PreTrainedModel:
        loaded = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=model.dtype)
        return cast("PreTrainedModel", loaded.to(device))

    (folder / "method").mkdir()
    return Stage(
        model=load(),
        tokenizer=tokenizer,
        sampler=cast(Sampler, None),  # TRL samples by itself
        skill=TrialSkill(),
        seed=0,
        index=1,
        prompts=PROMPTS,
        batch_size=PROMPTS,
        max_new_tokens=TOKENS,
        folder=folder / "method",
        load_start=load,
        chat=chat,
    )
