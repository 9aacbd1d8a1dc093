"""KL divergence between two policies along given completions."""

import torch
import torch.nn.functional as F

from harness.learning.packing import chunks, completion_states
from harness.models.forward import output_head


@torch.inference_mode()
def sequence_kl(p, rows_p, q, rows_q):
    """Sums over the completions of KL(p || q) between next-token distributions, in nats: a float a
    row.

    p, q: models; rows_p, rows_q: Rows with the same completions, each after the prompt that its
    model reads. One row at a time, the vocabulary-sized tensors for one chunk of tokens; float32,
    summed in float64.
    """
    totals = []
    for pair in zip(rows_p, rows_q, strict=True):
        states = [completion_states(model, [row], [[0]])[0] for model, row in zip((p, q), pair)]
        total = 0.0
        for part in chunks(len(states[0]), p.config.get_text_config().vocab_size):
            log_p, log_q = (
                output_head(model)(s[part]).float().log_softmax(-1)
                for model, s in zip((p, q), states)
            )
            total += (
                F.kl_div(log_q, log_p, reduction="none", log_target=True)
                .sum(-1)
                .double()
                .sum()
                .item()
            )
        totals.append(total)
    return totals
