"""A second set of weights that follows the model."""

import copy

import torch

from harness.learning.packing import completion_states, computed_tokens, micro_batches
from harness.learning.trainer import is_master, master_copy
from harness.models.forward import output_head


class Teacher:
    """A second set of weights that follows the model as an exponential moving average, kept in
    float32.

    After every optimizer step phi <- alpha * theta + (1 - alpha) * phi (paper, section 3). alpha 0
    is a frozen copy; alpha 1 is the live model itself, of which no copy is made. In the model's own
    bfloat16 most steps of an average with alpha 0.01 are below half a unit in the last place and
    would be lost: hence the float32 state, which stands on ``place`` (where the trainer's masters
    are; the model's device if left out).
    """

    def __init__(self, stage, alpha, micro_batch_tokens, place=None):
        self.stage, self.alpha, self.limit = stage, alpha, micro_batch_tokens
        self.model = (
            stage.model if alpha == 1 else copy.deepcopy(stage.model).requires_grad_(False).eval()
        )
        place = place or self.model.device
        self.average = (
            []
            if alpha in (0, 1)
            else [
                p if is_master(p, place) else master_copy(p, place) for p in self.model.parameters()
            ]
        )
        stage.keep(teacher=self)
        self.head = output_head(self.model)

    @torch.no_grad()
    def follow(self, masters):
        """Take one step towards ``masters``, the trainer's float32 weights."""
        for average, master, param in zip(self.average, masters, self.model.parameters()):
            average.lerp_(master, self.alpha)
            if average is not param:
                param.copy_(average)

    @torch.no_grad()
    def states(self, rows):
        """Hidden states that predict each row's completion: a list of [completion tokens, width],
        in the rows' order.
        """
        out = [None] * len(rows)
        for group in micro_batches(self.model, rows, 2 * self.limit):
            self.stage.tokens += computed_tokens(rows, group)
            states, _ = completion_states(self.model, rows, group)
            order = [i for tree in group for i in tree]
            for i, part in zip(order, states.split([len(rows[i].completion) for i in order])):
                out[i] = part
        return out

    def state_dict(self):
        parts = self.average or ([] if self.alpha == 1 else list(self.model.parameters()))
        return {"weights": [p.detach() for p in parts]}

    @torch.no_grad()
    def load_state_dict(self, state):
        for position, value in enumerate(state["weights"]):
            if self.average:
                self.average[position].copy_(value)
        for param, value in zip(self.model.parameters(), state["weights"]):
            param.copy_(value)
