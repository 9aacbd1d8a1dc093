"""Both samplers are what the protocol says, for mypy and at run time.

``mypy tests/sampling/test_protocol.py`` checks the assignments of ``samplers``.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest

from harness.sampling.sampler import Sampler, common_prefix
from harness.sampling.transformers import TransformersSampler
from harness.sampling.vllm import Engine, VLLMSampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS: tuple[type[Sampler], ...] = (TransformersSampler, VLLMSampler)


def samplers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Sampler]:
    """One of each kind; vLLM need not be installed, since its engine does not start."""
    of_transformers: Sampler = TransformersSampler(model, tokenizer)
    of_vllm: Sampler = VLLMSampler(Engine(), model, tokenizer)
    return [of_transformers, of_vllm]


def members() -> set[str]:
    """What the protocol declares."""
    methods = {name for name, _ in inspect.getmembers(Sampler, inspect.isfunction)}
    return set(inspect.get_annotations(Sampler)) | {m for m in methods if not m.startswith("_")}


def test_both_have_the_members(tiny_model: tuple) -> None:
    assert members() == {"model", "tokenizer", "end", "stops", "sample", "rest"}
    for sampler in samplers(*tiny_model):
        assert isinstance(sampler, Sampler)
        assert all(hasattr(sampler, name) for name in members())
        assert (sampler.model, sampler.tokenizer) == tiny_model
        assert sampler.end in sampler.stops
        sampler.rest()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["sample", "rest"])
def test_both_take_the_arguments(kind: type[Sampler], method: str) -> None:
    """The same names, kinds, defaults and types; a sampler may take more, with defaults."""
    wanted = inspect.signature(getattr(Sampler, method))
    signature = inspect.signature(getattr(kind, method))
    own = [p for p in signature.parameters.values() if p.name in wanted.parameters]
    more = [p for p in signature.parameters.values() if p.name not in wanted.parameters]
    assert own == list(wanted.parameters.values())
    assert signature.return_annotation == wanted.return_annotation
    assert all(p.default is not p.empty for p in more)


@pytest.mark.parametrize(
    "lists, count",
    [
        ([[1, 2, 3]], 3),
        ([[1, 2, 3], [1, 2]], 2),
        ([[1, 2, 3], [1, 2, 4], [1, 9]], 1),
        ([[1, 2], [3]], 0),
        ([[1, 2], []], 0),
        ([[5, 1, 2], [5, 1, 2]], 3),
    ],
)
def test_common_prefix(lists: list[list[int]], count: int) -> None:
    assert common_prefix(lists) == count == common_prefix([tuple(tokens) for tokens in lists])
