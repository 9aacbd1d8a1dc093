"""What is evaluated: a model with its tokenizer and sampler, and the fingerprint of its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.models.chat import ChatInputs, Message, chat_tokens
from harness.models.checkpoint import reading_and_ending
from harness.sampling.sampler import Sampler


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    fingerprint: of its weights, see ``model_fingerprint``; chat: what the chat template is given.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    fingerprint: str
    chat: ChatInputs

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of chat messages, up to where the answer begins."""
        return chat_tokens(self.tokenizer, messages, inputs=self.chat)

    @property
    def dtype(self) -> str:
        return dtype_name(self.model.dtype)

    @property
    def reading(self) -> dict[str, Any]:
        """What protocols say of tokenizer and generation config."""
        return reading_and_ending(self.model, self.tokenizer)

    @property
    def chat_template(self) -> str:
        """The text of the chat template; the default one where the tokenizer has several."""
        return self.tokenizer.get_chat_template()


def dtype_name(dtype: object) -> str:
    """The name of a dtype of PyTorch, as ``float32``; a name stays as it is."""
    return str(dtype).removeprefix("torch.")
