"""The learning step that every method shares: precision, micro-batches, optimizer, schedule.

A method says what its loss is; this file says how a loss becomes an update, so that methods differ
in nothing else:

* master weights, gradients, optimizer state and averages are float32, in whatever dtype the model
  computes; the weights of a bfloat16 model are its rounded masters (harness/learning/dither.py);
* gradients add up on the model's device, and so does the update: what is kept in host memory passes
  through it once a step (harness/learning/optimizer.py);
* rows are cut into micro-batches by length, so that little is padding;
* vocabulary-sized tensors exist for one chunk of tokens at a time: each chunk's loss is
  differentiated as soon as it is computed, and only the gradient with respect to the hidden states
  is kept for the backward pass of the body;
* masters, parameters and moments are paired by name;
* weight decay leaves biases and the weights of norms out, as TRL's trainers do;
* dropout acts in the passes that learn from demonstrations or texts, never where a step learns from
  samples of its own;
* where torchrun has started several ranks, each computes its share of the rows and has its parts of
  masters, gradients and moments (harness/models/sharded.py); losses and norms are those of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F

from harness.base.errors import UserError
from harness.learning import halves
from harness.learning.dither import dither_of
from harness.learning.fused import fused_cross_entropy
from harness.learning.halves import Halves, Master, Masters
from harness.learning.moments import FLOAT32
from harness.learning.optimizer import (
    Optimizer,
    Resident,
    Streamed,
    decayed_names,
    learning_rate,
)
from harness.learning.options import TrainingConfig
from harness.learning.packing import Positions, Row, chunks
from harness.learning.parametrisation import Parametrisation, add_gradient, mover
from harness.learning.part import TokenWeights, having, updated
from harness.learning.shares import passes, states_of
from harness.learning.stage import Stage
from harness.learning.weights import check_names
from harness.models import ranks
from harness.models.forward import output_head
from harness.models.recompute import recomputing
from harness.models.repeatable import repeatable, same_draws
from harness.models.sharded import own_parts, sharded, weights_of

ChunkLoss = Callable[[torch.Tensor, Positions], torch.Tensor]
TokenLoss = Callable[..., torch.Tensor]  # of (logits, tokens), and weights where parts have some


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
    float32 by name: weights of the model, the parameter itself where that is float32, or numbers
    that weights are made of. They have gradients in ``.grad``, but for halves, which are to read;
    ``take_gradients``, ``add_gradient`` and ``change`` go with both. holders: masters as they are
    kept. place: of the float32 numbers that parts have. limit: tokens of a micro-batch.

    of_weights: for gradients of the weights that learn themselves, whatever they are made of;
    without ``update``.
    """

    def __init__(self, stage: Stage, config: TrainingConfig, of_weights: bool = False) -> None:
        self.stage = stage
        self.parameters = Parametrisation() if of_weights else stage.parameters
        self.config = config
        stage.training = config
        self.model = stage.model
        self.parts = sharded(self.model)
        learns = {name for name, p in self.model.named_parameters() if p.requires_grad}
        self.params: Any = {n: p for n, p in weights_of(self.model).items() if n in learns}
        self.place = torch.device("cpu") if config.masters == "host" else self.model.device
        on_gpu = self.model.device.type != "cpu"
        streams = config.masters != "device" and (on_gpu or self.parts is not None)
        self.splits = streams and self.parameters.splits and self.parts is None
        self.holders: Mapping[str, Master]
        self.masters: Mapping[str, torch.Tensor]
        if self.splits:
            self.holders = halves.halves_of(self.params, self.place)
            self.masters = Masters(self.holders)
        else:
            self.masters = self.parameters.masters(self.params, self.model.device)
            self.holders = self.masters
        if not (of_weights or self.parameters.makes):
            dither_of(stage).begin(self.model, self.holders)
        self.receivers = {
            name: partial(add_gradient, holder)
            if isinstance(holder := self.holders.get(name), Halves)
            else self.parameters.receiver(name, self.masters)
            for name in self.params
        }
        self.hooks = [
            param.register_post_accumulate_grad_hook(mover(self.receivers[name]))
            for name, param in self.params.items()
            if self.holders.get(name) is not param and self.parts is None
        ]
        decayed = self.parameters.decayed(decayed_names(self.model))
        decay = {name: config.weight_decay * (name in decayed) for name in self.holders}
        self.optimizer: Optimizer = (
            Streamed(self.holders, decay, None if streams else self.model.device, config.moments)
            if streams or config.moments != FLOAT32
            else Resident(self.masters, decay)
        )
        self.limit = config.micro_batch_tokens or stage.passes.tokens
        # Float32 gradient [vocabulary, width] of the head's weight, while a micro-batch is computed
        self.projected: torch.Tensor | None = None
        stage.updates = stage.updates or 0
        stage.keep(trainer=self)

    def backward(
        self, rows: Sequence[Row], loss: ChunkLoss, last_first: bool = False, raw: bool = False
    ) -> float:
        """Add the gradient of a loss on all completion tokens of ``rows`` to the masters'.

        Returns the loss, which is the sum of the chunks' losses.

        loss: ``f(logits, positions) -> scalar`` for one chunk of tokens: float32 logits [tokens,
        vocabulary], and Positions whose ``rows`` index into ``rows``. The scalar is already divided
        by what the method averages over. last_first: the chunks of a completion come in reverse,
        for losses that need what comes after. raw: the loss gets logits in the model's dtype, and
        may write over them (harness/learning/fused.py).
        """
        dropout = self.config.dropout == "keep" and not self.stage.has_sampled
        self.model.train(dropout)
        try:
            deterministic = repeatable(self.model.device, self.stage.deterministic)
            wanted, fitting = self.config.recomputes, self.stage.passes.recomputed
            recomputed = recomputing(self.model, fitting if wanted is None else wanted, dropout)
            with deterministic, self.parameters.computing(self.masters), recomputed:
                if self.parts is None:
                    return self._backward(rows, loss, last_first, raw).item()
                return self._backward_of_share(rows, loss, last_first, raw)
        finally:
            self.model.eval()

    def _backward(
        self, rows: Sequence[Row], loss: ChunkLoss, last_first: bool, raw: bool
    ) -> torch.Tensor:
        # Sums stay on the device: a GPU waits at every number that is read.
        total = torch.zeros((), dtype=torch.float64, device=self.model.device)
        vocabulary = self.model.config.get_text_config().vocab_size
        head = output_head(self.model, self._head_gradient)
        for batch, tokens in passes(self.model, rows, self.limit):
            self.stage.tokens += tokens
            self.stage.learned += tokens
            states, positions = states_of(self.model, rows, batch)
            if positions is None:  # a pass of the other ranks
                (0 * states).sum().backward()
                continue
            leaf = states.detach().requires_grad_()
            parts = chunks(len(leaf), vocabulary, leaf.device)
            for part in reversed(parts) if last_first else parts:
                logits = head(leaf[part])
                value = loss(logits if raw else logits.float(), positions.part(part))
                if value.requires_grad:
                    value.backward()
                total += value.detach()
            if leaf.grad is not None and states.requires_grad:
                states.backward(leaf.grad)
            if self.parts is None:
                self._add_head_gradient()
        return total

    def _backward_of_share(
        self, rows: Sequence[Row], loss: ChunkLoss, last_first: bool, raw: bool
    ) -> float:
        """``backward`` on this rank's rows; gradients and loss are then those of all ranks."""
        assert self.parts is not None
        earlier = {n: h.grad for n, h in self.holders.items()} if self.parameters.makes else {}
        for name in earlier:
            self.holders[name].grad = None
        with same_draws():  # ranks draw for rows of their own, as dropout does
            total = self._backward(rows, loss, last_first, raw)
        for name, gradient in self.parts.gradients():
            assert not self.parameters.makes, f"the gradient of {name} is of a part"
            self.receivers[name](gradient)
        for name, before in earlier.items():  # numbers that every rank has whole
            gradient = ranks.summed(halves.gradient_of(self.holders[name]))
            gradient += 0 if before is None else before
        if self.model.get_output_embeddings().weight.requires_grad:
            self._add_head_gradient()
        return ranks.summed(total).item()

    def token_mean(self, rows: Sequence[Row], total: TokenLoss) -> dict[str, float]:
        """Backward of the mean loss over all completion tokens of ``rows``.

        Returns what a step logs: the loss, and the mean length of a completion in tokens.

        total: ``f(logits [tokens, vocabulary], tokens [tokens]) -> scalar``, the sum over a chunk's
        tokens, as ``cross_entropy``. Where parts weigh tokens it gets their weights [tokens] too.
        The mean is still over the number of tokens.
        """
        count = sum(len(row.completion) for row in rows)
        weights = TokenWeights(self.stage.parts, rows)
        fuses = self.stage.fused_losses and total is cross_entropy and not weights.parts
        total = fused_cross_entropy if fuses else total

        def mean(logits: torch.Tensor, at: Positions) -> torch.Tensor:
            given = weights.at(at, logits)
            return total(logits, at.tokens, *([] if given is None else [given])) / count

        value = self.backward(rows, mean, raw=fuses)
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
            self.optimizer.forget()
        logged = self._join_gradients()
        stage.rate = rate = learning_rate(self.config, stage.step - stage.begun, stage.planned)
        norm = self._clip()
        if not torch.isfinite(norm):  # AdamW would write it into every weight
            raise UserError(
                f"step {stage.step + 1}",
                f"the gradients' norm is {norm.item()}",
                "take a smaller learning_rate, or float32; the last checkpoint is whole",
            )
        self._step()
        assert stage.updates is not None  # since this trainer was made
        stage.updates += 1
        self._clear_gradients()
        self.parameters.settle(self.masters)
        self.copy_to_model()
        return {**logged, "grad_norm": norm.item(), "learning_rate": rate}

    def _clip(self) -> torch.Tensor:
        """Scale the gradients down to the norm that they may have; returns the one that they had.

        Of a master it reads the gradient alone.
        """
        holders = cast(list[torch.Tensor], list(self.holders.values()))
        most = self.config.max_grad_norm
        if self.parts is None or self.parameters.makes:
            return torch.nn.utils.clip_grad_norm_(holders, most)
        gradients = [h.grad for h in holders if h.grad is not None]
        norm = ranks.summed(torch.nn.utils.get_total_norm(gradients).square()).sqrt()
        torch.nn.utils.clip_grads_with_norm_(holders, most, norm)
        return norm

    def effective(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, float32 weight on ``place``) of each weight of the model that learns."""
        if self.splits:
            for name, holder in self.holders.items():
                yield name, halves.numbers_of(holder).to(self.place)
            return
        for name, weight in self.parameters.effective(self.masters):
            yield name, weight.to(self.place)

    def add_gradient(self, name: str, gradient: torch.Tensor, factor: float) -> None:
        """Add ``factor`` times a float32 gradient of a weight of the model to the masters'."""
        holder = self.holders.get(name)
        if holder is None:
            self.receivers[name](factor * gradient)
            return
        total = halves.gradient_of(holder)
        total.add_(gradient.to(total.device), alpha=factor)

    def take_gradients(self) -> dict[str, torch.Tensor]:
        """The masters' gradients so far, float32 on ``place``; they begin at 0 again."""
        gradients = {
            name: holder.grad.to(self.place)
            for name, holder in self.holders.items()
            if holder.grad is not None
        }
        self._clear_gradients()
        return gradients

    def give_gradients(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Let the masters' gradients be what ``take_gradients`` gave."""
        self._clear_gradients()
        for name, gradient in gradients.items():
            self.holders[name].grad = gradient.to(self.holders[name].device)

    def change(self, name: str, numbers: torch.Tensor) -> None:
        """Let a master be ``numbers``, float32 on any device; ``copy_to_model`` comes last."""
        halves.write_numbers(self.holders[name], numbers)

    def _clear_gradients(self) -> None:
        for holder in self.holders.values():
            holder.grad = None

    def _join_gradients(self) -> dict[str, float]:
        """Let the parts add to the gradients and change them; returns what they log."""
        stage, logged = self.stage, self.parameters.loss(self.masters)
        for part in having(stage.parts, "loss"):
            assert stage.present is not None
            logged |= part.loss(self, stage.present)
        for name, holder in self.holders.items():
            gradient = halves.gradient_of(holder)
            for part in stage.parts:
                part.gradient(name, gradient)
        return logged

    @torch.no_grad()
    def _step(self) -> None:
        """AdamW's step on all masters, or on one at a time where parts change what it makes."""
        parts = having(self.stage.parts, "update")
        projecting = having(self.stage.parts, "project")
        if not parts and not projecting:
            self.optimizer.step(self.stage.rate)
            return
        old: dict[str, torch.Tensor] = {}  # for parts that look at all weights at once
        gradients = {name: halves.gradient_of(holder) for name, holder in self.holders.items()}
        self._clear_gradients()
        for name, holder in self.holders.items():
            before = halves.numbers_of(holder).to(self.place, copy=True)
            self.optimizer.move(name, gradients.pop(name), self.stage.rate)
            if parts:
                after = halves.numbers_of(holder).to(self.place)
                halves.write_numbers(holder, updated(parts, name, before, after))
            if projecting:
                old[name] = before
        if projecting:
            new = {name: halves.numbers_of(h).to(self.place) for name, h in self.holders.items()}
            for part in projecting:
                part.project(old, new)
            for name, numbers in new.items():
                halves.write_numbers(self.holders[name], numbers)

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

        Without ``close`` masters and moments would live as long as anybody has the trainer, on a
        GPU beside those of the next stage. A closed trainer cannot be used.
        """
        for hook in self.hooks:
            hook.remove()
        self.stage.let_go(self)
        if self.parts:
            self.parts.round()
        del self.optimizer, self.projected, self.params, self.masters, self.holders
        del self.hooks, self.receivers

    def state_dict(self) -> dict[str, Any]:
        """Masters, as ``kept_of`` has them, and AdamW's moments, each by the parameter's name."""
        masters, moments = halves.kept_of(self.holders), self.optimizer.state_dict()
        if self.parts and not self.parameters.makes:
            masters = {name: self.parts.spread(name, part) for name, part in self.masters.items()}
            moments = {
                name: {key: self.parts.spread_like(name, value) for key, value in state.items()}
                for name, state in moments.items()
            }
        return {"masters": masters, "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError naming the first weight that only one of state and trainer has."""
        state = own_parts(state)
        check_names(state["masters"], self.holders, "the checkpoint of the trainer")
        halves.restore(self.holders, state["masters"])
        self.optimizer.load_state_dict(state["moments"])
        self.copy_to_model()

    def _head_gradient(self, weight: torch.Tensor) -> torch.Tensor:
        """The tensor to which a chunk adds the gradient of the head's ``weight``.

        It is that of the weight's master. Where a CPU has that apart, and where weights are made of
        other numbers, it is a float32 sum, which goes there once for each micro-batch.
        """
        holder = self.holders.get(self._name_of(weight)) if self.parts is None else None
        if holder is weight or (holder is not None and weight.device.type != "cpu"):
            return halves.gradient_of(holder)
        if self.projected is None:
            self.projected = torch.zeros_like(weight, dtype=torch.float32)
        return self.projected

    def _add_head_gradient(self) -> None:
        """Move the gradient of the head's weight, of a micro-batch or a share, to its master."""
        if self.projected is None and self.parts:  # a rank without rows
            self.projected = self.parts.no_gradient()
        if self.projected is None:
            return
        weight = self.model.get_output_embeddings().weight
        gradient = self.projected
        if self.parts:
            gradient = self.parts.divide(gradient)
        self.receivers[self._name_of(weight)](gradient)
        self.projected = None

    def _name_of(self, weight: torch.Tensor) -> str:
        return next(name for name, param in self.model.named_parameters() if param is weight)

    def copy_to_model(self) -> None:
        """Write what the masters say into the model; for a part that has changed them by itself."""
        if not self.splits:  # else they are the model's weights, and 16 bits beside them
            self.parameters.write(self.params, self.masters)


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
