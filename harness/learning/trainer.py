"""The learning step that every method shares: precision, micro-batches, optimizer, schedule.

A method says what its loss is; this file says how a loss becomes an update, so that methods differ
in nothing else:

* master weights, gradients, optimizer state and averages are float32, in whatever dtype the model
  computes; the weights of a bfloat16 model are its rounded masters (pure bfloat16 updates at
  fine-tuning rates are mostly rounded away);
* rows are cut into micro-batches by length, so that little is padding;
* vocabulary-sized tensors exist for one chunk of tokens at a time: each chunk's loss is
  differentiated as soon as it is computed, and only the gradient with respect to the hidden states
  is kept for the backward pass of the body;
* masters, parameters and moments are paired by name;
* weight decay leaves biases and the weights of norms out, as TRL's trainers do;
* dropout acts in the passes that learn from demonstrations or texts, never where a step learns from
  samples of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
import torch.nn.functional as F

from harness.base.errors import UserError
from harness.base.settings import Checked, option
from harness.learning.packing import (
    Positions,
    Row,
    chunks,
    completion_states,
    computed_tokens,
    micro_batches,
)
from harness.learning.parametrisation import Parametrisation, mover
from harness.learning.part import having
from harness.learning.stage import Stage
from harness.learning.weights import check_names
from harness.models.forward import output_head
from harness.models.repeatable import repeatable

MICRO_BATCH_TOKENS = {False: 1024, True: 8192}  # by whether the model is on a GPU

ChunkLoss = Callable[[torch.Tensor, Positions], torch.Tensor]
TokenLoss = Callable[..., torch.Tensor]  # of (logits, tokens), and weights where parts have some


@dataclass
class TrainingConfig(Checked):
    """Hyperparameters that every method has.

    Defaults are those of arXiv 2601.19897, section 4 and appendix.
    """

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
    weight_decay: float = option(
        0.0, "AdamW's decoupled weight decay, of all but biases and norms", min=0
    )
    dropout: str = option(
        "keep",
        "the model's own dropout where it learns from demonstrations or texts; samples of a step "
        "are always learned without",
        choices=("keep", "none"),
    )
    max_grad_norm: float = option(1.0, "gradients are scaled down to this global L2 norm", above=0)
    masters: str = option(
        "device",
        "where float32 masters, AdamW's moments and averages are: on the model's device, or in "
        "host memory, which costs copies",
        choices=("device", "host"),
    )
    micro_batch_tokens: int | None = option(
        None,
        "tokens of one pass, padding included; 1,024 on a CPU and 8,192 on a GPU if left out",
        min=1,
    )


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The rate of optimizer step ``step`` (from 0) of ``steps``.

    Linear warm-up, then the schedule, which goes down to 0 unless it is constant.
    """
    warmup = min(config.warmup_steps, steps // 5)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    factor = 1.0
    if config.schedule == "cosine":
        factor = 0.5 * (1 + numpy.cos(numpy.pi * progress))
    elif config.schedule == "linear":
        factor = 1 - progress
    return float(config.learning_rate * factor)


def cross_entropy(
    logits: torch.Tensor, tokens: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of -log p over tokens: a scalar from logits [tokens, vocabulary] and tokens [tokens].

    A loss for ``Trainer.token_mean``; weights [tokens]: of the tokens, 1 if left out.
    """
    if weights is None:
        return F.cross_entropy(logits, tokens, reduction="sum")
    return (weights * F.cross_entropy(logits, tokens, reduction="none")).sum()


class Trainer:
    """AdamW on float32 masters of ``stage.model``: ``backward`` once or more, then ``update``.

    params: the model's parameters that learn, by name. masters: what ``stage.parameters`` trains,
    float32 tensors by name with the gradients in ``.grad``: weights of the model, the parameter
    itself where that is float32 on ``place``, or the numbers that weights are made of. place:
    device of masters and AdamW's moments. limit: tokens of a micro-batch.

    of_weights: for gradients of the weights that learn themselves, whatever they are made of;
    without ``update``.
    """

    def __init__(self, stage: Stage, config: TrainingConfig, of_weights: bool = False) -> None:
        self.stage = stage
        self.parameters = Parametrisation() if of_weights else stage.parameters
        self.config = config
        stage.training = config
        self.model = stage.model
        self.params: dict[str, torch.nn.Parameter] = {
            name: p for name, p in self.model.named_parameters() if p.requires_grad
        }
        self.place = torch.device("cpu") if config.masters == "host" else self.model.device
        self.masters = self.parameters.masters(self.params, self.place)
        self.receivers = {
            name: self.parameters.receiver(name, self.masters) for name in self.params
        }
        self.hooks = [
            param.register_post_accumulate_grad_hook(mover(self.receivers[name]))
            for name, param in self.params.items()
            if self.masters.get(name) is not param
        ]
        decayed = self.parameters.decayed(decayed_names(self.model))
        groups = [
            [name for name in self.masters if (name in decayed) == decays]
            for decays in (True, False)
        ]
        self.adamw = torch.optim.AdamW(
            [
                {"params": [self.masters[name] for name in names], "weight_decay": decay}
                for names, decay in zip(groups, (config.weight_decay, 0.0), strict=True)
                if names
            ],
            lr=config.learning_rate,
            fused=True,
        )
        self.numbered = [name for names in groups for name in names]  # as AdamW numbers its weights
        on_gpu = self.model.device.type != "cpu"
        self.limit = config.micro_batch_tokens or MICRO_BATCH_TOKENS[on_gpu]
        # Float32 gradient [vocabulary, width] of the head's weight, while a micro-batch is computed
        self.projected: torch.Tensor | None = None
        self.head = output_head(self.model, self._head_gradient)
        stage.updates = stage.updates or 0
        stage.keep(trainer=self)

    def backward(self, rows: Sequence[Row], loss: ChunkLoss, last_first: bool = False) -> float:
        """Add the gradient of a loss on all completion tokens of ``rows`` to the masters'.

        Returns the loss, which is the sum of the chunks' losses.

        loss: ``f(logits, positions) -> scalar`` for one chunk of tokens: float32 logits [tokens,
        vocabulary], and Positions whose ``rows`` index into ``rows``. The scalar is already divided
        by what the method averages over. last_first: the chunks of a completion come in reverse,
        for losses that need what comes after.
        """
        dropout = self.config.dropout == "keep" and not self.stage.has_sampled
        self.model.train(dropout)
        try:
            deterministic = repeatable(self.model.device, self.stage.deterministic)
            with deterministic, self.parameters.computing(self.masters):
                return self._backward(rows, loss, last_first)
        finally:
            self.model.eval()

    def _backward(self, rows: Sequence[Row], loss: ChunkLoss, last_first: bool) -> float:
        # Sums stay on the device: a GPU waits at every number that is read.
        total = torch.zeros((), dtype=torch.float64, device=self.model.device)
        vocabulary = self.model.config.get_text_config().vocab_size
        for batch in micro_batches(self.model, rows, self.limit):
            tokens = computed_tokens(rows, batch)
            self.stage.tokens += tokens
            self.stage.learned += tokens
            states, positions = completion_states(self.model, rows, batch)
            leaf = states.detach().requires_grad_()
            parts = chunks(len(leaf), vocabulary, leaf.device)
            for part in reversed(parts) if last_first else parts:
                value = loss(self.head(leaf[part]).float(), positions.part(part))
                if value.requires_grad:
                    value.backward()
                total += value.detach()
            if leaf.grad is not None and states.requires_grad:
                states.backward(leaf.grad)
            self._add_head_gradient()
        return total.item()

    def token_mean(self, rows: Sequence[Row], total: TokenLoss) -> dict[str, float]:
        """Backward of the mean loss over all completion tokens of ``rows``.

        Returns what a step logs: the loss, and the mean length of a completion in tokens.

        total: ``f(logits [tokens, vocabulary], tokens [tokens]) -> scalar``, the sum over a chunk's
        tokens, as ``cross_entropy``. Where parts weigh tokens it gets their weights [tokens] too.
        The mean is still over the number of tokens.
        """
        count = sum(len(row.completion) for row in rows)
        weighing = having(self.stage.parts, "weights")
        for part in weighing:
            part.weigh(rows)

        def mean(logits: torch.Tensor, at: Positions) -> torch.Tensor:
            weights = [part.weights(rows, at, logits.detach()) for part in weighing]
            product = [torch.stack(weights).prod(0)] if weights else []
            return total(logits, at.tokens, *product) / count

        value = self.backward(rows, mean)
        return {"loss": value, "completion_tokens": count / len(rows)}

    def update(self) -> dict[str, float]:
        """One optimizer step on the masters' gradients, which are cleared.

        Returns what a step logs: the gradients' global L2 norm before clipping, and the learning
        rate. Raises UserError where that norm is not finite; the weights are then unchanged.

        Each phase of a stage is a training of its own: warm-up, schedule and AdamW's averages start
        again.
        """
        stage = self.stage
        if 0 < stage.begun == stage.step:
            self.adamw.state.clear()
        logged = self._join_gradients()
        masters = list(self.masters.values())
        stage.rate = rate = learning_rate(self.config, stage.step - stage.begun, stage.planned)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(masters, self.config.max_grad_norm)
        if not torch.isfinite(norm):  # AdamW would write it into every weight
            raise UserError(
                f"step {stage.step + 1}",
                f"the gradients' norm is {norm.item()}",
                "take a smaller learning_rate, or float32; the last checkpoint is whole",
            )
        self._step()
        assert stage.updates is not None  # since this trainer was made
        stage.updates += 1
        self.adamw.zero_grad(set_to_none=True)
        self.parameters.settle(self.masters)
        self.copy_to_model()
        return {**logged, "grad_norm": norm.item(), "learning_rate": rate}

    def effective(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, float32 weight on ``place``) of each weight of the model that learns."""
        for name, weight in self.parameters.effective(self.masters):
            yield name, weight.to(self.place)

    def add_gradient(self, name: str, gradient: torch.Tensor, factor: float) -> None:
        """Add ``factor`` times a float32 gradient of a weight of the model to the masters'."""
        master = self.masters.get(name)
        if master is None:
            self.receivers[name](factor * gradient)
            return
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        master.grad.add_(gradient, alpha=factor)

    def _join_gradients(self) -> dict[str, float]:
        """Let the parts add to the gradients and change them; returns what they log."""
        stage, logged = self.stage, self.parameters.loss(self.masters)
        for part in having(stage.parts, "loss"):
            assert stage.present is not None
            logged |= part.loss(self, stage.present)
        for name, master in self.masters.items():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            for part in stage.parts:
                part.gradient(name, master.grad)
        return logged

    @torch.no_grad()
    def _step(self) -> None:
        """AdamW's step on all masters, or on one at a time where parts change what it makes."""
        parts = having(self.stage.parts, "update")
        projecting = having(self.stage.parts, "project")
        if not parts and not projecting:
            self.adamw.step()
            return
        old: dict[str, torch.Tensor] = {}  # for parts that look at all weights at once
        gradients = {name: master.grad for name, master in self.masters.items()}
        self.adamw.zero_grad(set_to_none=True)
        for name, master in self.masters.items():
            before = master.detach().clone()
            master.grad = gradients.pop(name)
            self.adamw.step()  # leaves out masters without a gradient
            master.grad = None
            after = master.detach()
            for part in parts:
                after = part.update(name, before, after)
            master.copy_(after)
            if projecting:
                old[name] = before
        for part in projecting:
            part.project(old, {name: master.detach() for name, master in self.masters.items()})

    @torch.no_grad()
    def merge(self) -> None:
        """Let the parts make the weights with which the stage ends, once its last step is done."""
        stage = self.stage
        if stage.step < stage.steps_in_all or stage.merged:
            return
        if merging := having(stage.parts, "merge"):
            # Weights that are made of numbers are now weights like others.
            weights = dict(self.effective())
            for part in merging:
                part.merge(weights)
            self.parameters.merge(self.params, weights)
        stage.merged = True

    def close(self) -> None:
        """Leave the model as it is, and free masters, moments and hooks.

        The head's function refers to this trainer, which refers to it. Without ``close`` masters
        and moments would live until Python collects such cycles, on a GPU beside those of the next
        stage. A closed trainer cannot be used.
        """
        for hook in self.hooks:
            hook.remove()
        self.stage.let_go(self)
        del self.head, self.adamw, self.projected, self.params, self.masters
        del self.hooks, self.receivers

    def state_dict(self) -> dict[str, Any]:
        """Masters and AdamW's moments, each by the parameter's name."""
        return {
            "masters": {name: master.detach() for name, master in self.masters.items()},
            "moments": {
                name: dict(self.adamw.state[master])
                for name, master in self.masters.items()
                if master in self.adamw.state  # before the first step there are none
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError naming the first weight that only one of state and trainer has."""
        check_names(state["masters"], self.masters, "the checkpoint of the trainer")
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
        moments = state["moments"]
        if moments:
            check_names(moments, self.masters, "the checkpoint of the optimizer")
        # PyTorch's optimizers number their weights in the order in which they got them
        numbered = {i: moments[name] for i, name in enumerate(self.numbered) if name in moments}
        groups = self.adamw.state_dict()["param_groups"]
        self.adamw.load_state_dict({"state": numbered, "param_groups": groups})
        self.copy_to_model()

    def _head_gradient(self, weight: torch.Tensor) -> torch.Tensor:
        """The tensor to which a chunk adds the gradient of the head's ``weight``.

        Where the weight is its own master this is its gradient. Elsewhere it is a float32 sum,
        which goes to the master once for each micro-batch.
        """
        if not self.hooks:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            return weight.grad
        if self.projected is None:
            self.projected = torch.zeros_like(weight, dtype=torch.float32)
        return self.projected

    def _add_head_gradient(self) -> None:
        """Move the micro-batch's gradient of the head's weight to its master."""
        if self.projected is None:
            return
        weight = self.model.get_output_embeddings().weight
        name = next(name for name, param in self.params.items() if param is weight)
        self.receivers[name](self.projected)
        self.projected = None

    def copy_to_model(self) -> None:
        """Write what the masters say into the model; for a part that has changed them by itself."""
        self.parameters.write(self.params, self.masters)


NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def decayed_names(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that weight decay acts on.

    They are those of transformers' ``Trainer.get_decay_parameter_names``, from which TRL's trainers
    have theirs: no bias, nothing in a LayerNorm, and nothing in a module whose name says norm.
    """
    norms = [
        f"{name}." for name, part in model.named_modules() if isinstance(part, torch.nn.LayerNorm)
    ]
    return {
        name
        for name, _ in model.named_parameters()
        if not NOT_DECAYED.search(name.lower()) and not name.startswith(tuple(norms))
    }


@contextmanager
def learning(stage: Stage, config: TrainingConfig, of_weights: bool = False) -> Iterator[Trainer]:
    """A Trainer for the length of a stage; of_weights: see there.

    The model is in training mode within the trainer's passes alone, where its dropout acts.
    """
    trainer = Trainer(stage, config, of_weights)
    try:
        yield trainer
        trainer.merge()
    finally:
        trainer.close()
