"""The learning step that every method shares: data order, precision, micro-batches, optimizer,
schedule, checkpoints.

A method says what its loss is; this file says how a loss becomes an update, so that methods differ
in nothing else:

* master weights, gradients, optimizer state and averages are float32 whatever the model computes
  in; where the model is in bfloat16 its weights are the rounded masters (pure bfloat16 updates at
  fine-tuning rates are mostly rounded away);
* rows are cut into micro-batches by length, so that little is padding;
* the vocabulary-sized tensors exist for one chunk of tokens at a time: each chunk's loss is
  differentiated as soon as it is computed, and only the gradient with respect to the hidden states
  is kept for the backward pass of the body;
* every random draw is keyed by (seed, stage, step, purpose), so that there is no generator state to
  save.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F

from harness.base.errors import UserError
from harness.base.settings import option
from harness.learning.packing import (
    Positions,
    chunks,
    completion_states,
    computed_tokens,
    micro_batches,
)
from harness.models.forward import output_head

MICRO_BATCH_TOKENS = {False: 1024, True: 8192}  # by whether the model is on a GPU


def cross_entropy(logits, tokens):
    """Sum of -log p over tokens; logits [tokens, vocabulary], tokens [tokens], see
    ``Trainer.token_mean``.
    """
    return F.cross_entropy(logits, tokens, reduction="sum")


@dataclass
class TrainingConfig:
    """Hyperparameters that every method has. Defaults are the paper's, section 4 and appendix."""

    learning_rate: float = option(2e-5, "peak learning rate of AdamW", min=0)
    batch_size: int | None = option(
        None, "prompts per optimizer step; the order's budget.batch_size if left out", min=1
    )
    epochs: float | None = option(
        None,
        "passes over the training examples of each skill; the order's budget if left out",
        above=0,
    )
    schedule: str = option(
        "cosine", "learning rate after the warm-up", choices=("cosine", "linear", "constant")
    )
    warmup_steps: int = option(
        10, "optimizer steps of linear warm-up in each stage, a fifth of the stage at most", min=0
    )
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay", min=0)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this global L2 norm", above=0)
    masters: str = option(
        "device",
        "where float32 masters, AdamW's moments and an average of the weights stand: on the model's "
        "device, or in host memory, for the price of copies at each micro-batch and step",
        choices=("device", "host"),
    )
    micro_batch_tokens: int | None = option(
        None,
        "tokens, padding included, of one forward and backward pass; 1,024 on a CPU and 8,192 on a GPU if left out",
        min=1,
    )


def learning_rate(config, step, steps):
    """The rate of optimizer step ``step`` (from 0) of ``steps``: linear warm-up, then the schedule
    down to 0.
    """
    warmup = min(config.warmup_steps, steps // 5)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    part = (step - warmup) / max(1, steps - warmup)
    factor = {
        "cosine": 0.5 * (1 + numpy.cos(numpy.pi * part)),
        "linear": 1 - part,
        "constant": 1.0,
    }[config.schedule]
    return float(config.learning_rate * factor)


def is_master(param, place):
    return param.dtype == torch.float32 and param.device == place


def master_copy(param, place):
    return param.detach().to(place, torch.float32, copy=True)


class Trainer:
    """AdamW on float32 master weights of ``stage.model``: ``backward`` as often as wanted, then
    ``update``.
    """

    def __init__(self, stage, config):
        self.stage, self.config, self.model = stage, config, stage.model
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.place = torch.device("cpu") if config.masters == "host" else self.model.device
        self.masters = [
            p if is_master(p, self.place) else master_copy(p, self.place).requires_grad_()
            for p in self.params
        ]
        self.hooks = [
            p.register_post_accumulate_grad_hook(self._accumulate(m))
            for p, m in zip(self.params, self.masters)
            if m is not p
        ]
        self.adamw = torch.optim.AdamW(
            self.masters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.limit = (
            config.micro_batch_tokens or MICRO_BATCH_TOKENS[self.model.device.type != "cpu"]
        )
        self.projected = None
        self.head = output_head(self.model, self._head_gradient)
        stage.keep(trainer=self)

    @staticmethod
    def _accumulate(master):
        def hook(param):  # micro-batches add up in float32
            if param.grad is None:  # the head's weight, whose gradient goes its own way
                return
            grad = param.grad.to(master.device, torch.float32)
            master.grad = grad if master.grad is None else master.grad.add_(grad)
            param.grad = None

        return hook

    def _head_gradient(self, weight):
        """What the chunks of a micro-batch add the gradient of the head's weight to: where the
        weight is its own master its gradient, else a sum in float32 beside it, which goes to the
        master once.
        """
        if not self.hooks:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            return weight.grad
        if self.projected is None:
            self.projected = torch.zeros_like(weight, dtype=torch.float32)
        return self.projected

    def backward(self, rows, loss, last_first=False):
        """Add the gradient of a sum over all completion tokens of ``rows`` to the masters'
        gradients; returns that sum.

        loss: ``f(logits, positions) -> scalar`` for one chunk of tokens; logits float32 [tokens,
        vocabulary], positions a Positions whose ``rows`` index into ``rows``. It must already be
        divided by whatever the method averages over. last_first: the chunks of a completion come in
        reverse, for losses that need what comes after.
        """
        total = 0.0
        for group in micro_batches(self.model, rows, self.limit):
            self.stage.tokens += computed_tokens(rows, group)
            states, at = completion_states(self.model, rows, group)
            leaf = states.detach().requires_grad_()
            parts = chunks(len(leaf), self.model.config.get_text_config().vocab_size)
            for part in reversed(parts) if last_first else parts:
                value = loss(
                    self.head(leaf[part]).float(),
                    Positions(at.rows[part], at.offsets[part], at.tokens[part]),
                )
                if value.requires_grad:
                    value.backward()
                total += value.item()
            if leaf.grad is not None:
                states.backward(leaf.grad)
            if self.projected is not None:
                weight = self.model.get_output_embeddings().weight
                master = next(m for p, m in zip(self.params, self.masters) if p is weight)
                grad, self.projected = self.projected.to(master.device), None
                master.grad = grad if master.grad is None else master.grad.add_(grad)
        return total

    def token_mean(self, rows, total):
        """Backward of the mean loss over all completion tokens of ``rows``; returns what a step
        logs of it.

        total: ``f(logits [tokens, vocabulary], tokens [tokens]) -> scalar``, the sum over a chunk's
        tokens, as ``cross_entropy``.
        """
        count = sum(len(r.completion) for r in rows)
        value = self.backward(rows, lambda logits, at: total(logits, at.tokens) / count)
        return {"loss": value, "completion_tokens": count / len(rows)}

    def update(self):
        """One optimizer step. Returns the gradients' global L2 norm before clipping, and the
        learning rate used. Raises UserError where that norm is not finite.

        Each phase of a stage is a training of its own: warm-up, schedule and AdamW's averages begin
        anew.
        """
        stage = self.stage
        if 0 < stage.begun == stage.step:
            self.adamw.state.clear()
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        rate = learning_rate(self.config, stage.step - stage.begun, stage.planned)
        self.adamw.param_groups[0]["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.config.max_grad_norm)
        if not torch.isfinite(norm):  # AdamW would write it into every weight
            raise UserError(
                f"step {stage.step + 1}",
                f"the gradients' norm is {norm.item()}",
                "take a smaller learning_rate, or float32; the last checkpoint is whole",
            )
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self._copy_to_model()
        return {"grad_norm": norm.item(), "learning_rate": rate}

    @torch.no_grad()
    def _copy_to_model(self):
        for param, master in zip(self.params, self.masters):
            if master is not param:
                param.copy_(master)

    def close(self):
        """Leave the model as it is and let go of the rest. The head's function holds this trainer,
        which holds it: left so, masters and moments would live until Python looks for cycles, and
        on a GPU stand beside those of the next stage.
        """
        for hook in self.hooks:
            hook.remove()
        self.stage.let_go(self)
        # what is asked for later fails
        self.head = self.adamw = self.projected = self.params = self.masters = self.hooks = None

    def state_dict(self):
        return {"masters": [m.detach() for m in self.masters], "adamw": self.adamw.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state):
        for master, value in zip(self.masters, state["masters"], strict=True):
            master.copy_(value)
        self.adamw.load_state_dict(state["adamw"])
        self._copy_to_model()


@contextmanager
def learning(stage, config):
    """A Trainer for the length of a stage."""
    trainer = Trainer(stage, config)
    stage.model.train()
    try:
        yield trainer
    finally:
        trainer.close()
        stage.model.eval()
