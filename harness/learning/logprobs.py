"""What losses on completion tokens are made of."""

import torch

from harness.learning.packing import Positions, TokenValues


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [tokens], in nats, of ``tokens`` under logits [tokens, vocabulary]."""
    return logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


@torch.no_grad()
def importance_weights(
    logprobs: torch.Tensor,
    positions: Positions,
    sampler_logprobs: TokenValues,
    cap: float,
) -> torch.Tensor:
    """Truncated importance weights [tokens], min(cap, p / p_sampler), constant for the gradient.

    logprobs: log p of a chunk's tokens [tokens]; sampler_logprobs: log p_sampler of every
    completion token.
    """
    return (logprobs - sampler_logprobs.at(positions)).exp().clamp(max=cap)
