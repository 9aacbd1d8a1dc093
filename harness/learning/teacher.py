"""A second set of weights that follows the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from harness.base.settings import option
from harness.learning.dither import dither_of
from harness.learning.halves import Halves, Master, halves_of, kept_of, numbers_of, restore
from harness.learning.packing import Positions, Row, TokenValues
from harness.learning.shares import passes, states_of
from harness.learning.stage import Stage
from harness.learning.weights import check_names, float32_weights
from harness.models.forward import output_head
from harness.models.others import STARTS
from harness.models.sharded import own_parts, sharded, weights_of
from harness.models.size import product_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Teacher:
    """A second set of weights that follows the model as an exponential moving average.

    After every optimizer step phi <- alpha * theta + (1 - alpha) * phi (arXiv 2601.19897, section
    3), for each weight by its name. alpha 0 is a frozen copy of the model; alpha 1 is the live
    model itself, and no copy is made.

    The average is kept in float32, on a GPU as halves of which the teacher's own bfloat16 weights
    are the upper ones (harness/learning/halves.py). In bfloat16 alone most steps of an average with
    alpha 0.01 are below half a unit in the last place and would be lost.

    micro_batch_tokens: limit of the trainer's micro-batches; the teacher, which has no backward
    pass, takes twice as many tokens at once. place: device of lower halves, the same as that of
    the trainer's; the model's device if left out. model: a frozen model that is kept elsewhere,
    with alpha 0: no copy is made, and checkpoints do not hold it. name: in checkpoints; a second
    teacher of a stage wants one of its own.

    Where weights are made of other numbers (``stage.parameters.makes``) the average is of these,
    and the live model has the weights that they make while the teacher scores: no copy either.
    """

    def __init__(
        self,
        stage: Stage,
        alpha: float,
        micro_batch_tokens: int,
        place: torch.device | None = None,
        model: PreTrainedModel | None = None,
        name: str = "teacher",
    ) -> None:
        self.stage = stage
        self.alpha = alpha
        self.limit = micro_batch_tokens
        self.model = model or stage.model
        self.parameters: dict[str, torch.Tensor] = {}  # of a model in parts this rank's
        # Empty for a live teacher, and for a frozen model
        self.average: dict[str, Master] = {}
        self.is_worn = alpha != 1 and model is None and stage.parameters.makes
        if self.is_worn:
            self.average = {**stage.parameters.copies(self.model.device)}
        else:
            if alpha != 1 and model is None:
                parts = sharded(stage.model)
                self.model = parts.twin() if parts else copy.deepcopy(stage.model)
                self.model.requires_grad_(False).eval()
            self.parameters = weights_of(self.model)
            if alpha not in (0, 1):
                device = self.model.device
                self.average = (
                    {**float32_weights(self.parameters, device)}
                    if device.type == "cpu"
                    else halves_of(self.parameters, place or device)
                )
                dither_of(stage).begin(self.model, self.average)
        if model is None:
            stage.keep(**{name: self})
        if sharded(self.model) is None:
            self.head = output_head(self.model)

    @torch.no_grad()
    def follow(self, masters: Mapping[str, torch.Tensor]) -> None:
        """Take one step towards ``masters``, the trainer's float32 weights by name.

        A weight without a master is frozen: its average stays what it is. Raises ValueError for a
        master that the teacher has no weight for.
        """
        if not self.average or not self.alpha:
            return
        trained = [name for name in self.average if name in masters]
        check_names(trained, masters, "the teacher's average")
        for name in trained:
            average = self.average[name]
            numbers = numbers_of(average).lerp_(masters[name], self.alpha)
            if isinstance(average, Halves):
                average.write(numbers)
            elif self.parameters.get(name, average) is not average:
                self.parameters[name].copy_(average)

    @torch.no_grad()
    def states(self, rows: Sequence[Row]) -> TokenValues:
        """Hidden states [width] that predict each token of the rows' completions.

        Where ranks share the rows, each has those of its own (shares.py).
        """
        if self.is_worn:
            with self.stage.parameters.wearing(cast(dict[str, torch.Tensor], self.average)):
                return self._states(rows)
        return self._states(rows)

    def _states(self, rows: Sequence[Row]) -> TokenValues:
        found: list[torch.Tensor] = []
        order: list[int] = []
        if sharded(self.model):  # whole for these rows, with the weights as they are now
            self.head = output_head(self.model)
        for batch, tokens in passes(self.model, rows, 2 * self.limit):
            self.stage.tokens += tokens
            states, _ = states_of(self.model, rows, batch)
            if batch is not None:
                found.append(states)
                order += [i for tree in batch for i in tree]
        values = torch.cat(found) if found else torch.empty(0, device=self.model.device)
        return TokenValues(values, [len(rows[i].completion) for i in order], order, len(rows))

    @torch.no_grad()
    def logits_at(
        self, states: TokenValues, positions: Positions, raw: bool = False
    ) -> torch.Tensor:
        """Logits [tokens, vocabulary] at a chunk's positions, from what ``states`` gave.

        They are float32; raw: in the model's dtype.
        """
        logits = self.head(states.at(positions))
        return logits if raw else logits.float()

    def state_dict(self) -> dict[str, Any]:
        """The teacher's weights by name; of a live teacher, whose weights are the model's, none.

        low: the lower halves of an average in halves.
        """
        weights = {name: w.detach() for name, w in self._own_weights().items()}
        if (parts := sharded(self.model)) and not self.is_worn:
            weights = {name: parts.spread(name, part) for name, part in weights.items()}
        halves = {n: a for n, a in self.average.items() if isinstance(a, Halves)}
        return {"weights": weights, **({"low": kept_of(halves)} if halves else {})}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError naming the first weight that only one of state and teacher has."""
        weights, state = self._own_weights(), own_parts(state)
        check_names(state["weights"], weights, "the checkpoint of the teacher")
        for name, weight in weights.items():
            weight.copy_(state["weights"][name])
            if self.parameters.get(name, weight) is not weight:
                self.parameters[name].copy_(weight)
        halves = {n: a for n, a in self.average.items() if isinstance(a, Halves)}
        restore(halves, state.get("low", {}))

    def _own_weights(self) -> Mapping[str, torch.Tensor]:
        if self.alpha == 1:
            return {}
        average = {n: a.weight if isinstance(a, Halves) else a for n, a in self.average.items()}
        return average or self.parameters


class OtherModel(Teacher):
    """A teacher of other weights and perhaps another size, with the student's tokens.

    Output heads may be padded to different sizes: rows that one of them lacks are no tokens, and
    are left out of the teacher's distribution.
    """

    def states(self, rows: Sequence[Row]) -> TokenValues:
        """As ``Teacher.states``; FLOPs count the tokens by this model's size."""
        before = self.stage.tokens
        found = super().states(rows)
        own, student = (product_weights(model) for model in (self.model, self.stage.model))
        self.stage.beside += (self.stage.tokens - before) * (own / student - 1)
        return found

    def logits_at(
        self, states: TokenValues, positions: Positions, raw: bool = False
    ) -> torch.Tensor:
        width: int = self.stage.model.config.get_text_config().vocab_size
        logits = super().logits_at(states, positions, raw)
        if logits.shape[1] < width:  # rows of the student's head that are no tokens
            logits = torch.nn.functional.pad(logits, (0, width - logits.shape[1]), value=-1e4)
        return logits[:, :width]


class Beginner(Teacher):
    """The live model as the stage began: it has those weights while it scores, and no copy."""

    def __init__(self, stage: Stage, micro_batch_tokens: int) -> None:
        super().__init__(stage, 1, micro_batch_tokens, model=stage.model)

    def states(self, rows: Sequence[Row]) -> TokenValues:
        """As ``Teacher.states``."""
        with self.stage.parameters.as_begun():
            return super().states(rows)


def fixed_teacher(stage: Stage, of: str, micro_batch_tokens: int) -> Teacher:
    """What ``stage.start(of)`` is, as a teacher."""
    if stage.is_kept(of):
        return Beginner(stage, micro_batch_tokens)
    kind = Teacher if of in STARTS else OtherModel
    return kind(stage, 0, micro_batch_tokens, model=stage.start(of))


def live_scorer(stage: Stage, micro_batch_tokens: int) -> Teacher:
    """The model that learns, as it is whenever it scores."""
    return Teacher(stage, 1, micro_batch_tokens, model=stage.model)


class TrustRegion:
    """A teacher near a fixed one: its logits are (1 - share) of ``fixed`` and share of ``live``.

    The trust region of SDPO (arXiv 2601.20802): the softmax is the normalised geometric mean of
    the two distributions. share 0 is the fixed teacher, 1 the live model.
    """

    def __init__(self, fixed: Teacher, live: Teacher, share: float) -> None:
        self.fixed, self.live, self.share = fixed, live, share

    def follow(self, masters: Mapping[str, torch.Tensor]) -> None:
        """Nothing is averaged: the live model is the student."""

    def states(self, rows: Sequence[Row]) -> tuple[TokenValues, TokenValues]:
        """Hidden states of both models, as ``Teacher.states``."""
        return self.fixed.states(rows), self.live.states(rows)

    @torch.no_grad()
    def logits_at(
        self,
        states: tuple[TokenValues, TokenValues],
        positions: Positions,
        raw: bool = False,
    ) -> torch.Tensor:
        """Float32 logits [tokens, vocabulary] at a chunk's positions, ``raw`` or not."""
        fixed, live = states
        logits = self.fixed.logits_at(fixed, positions)
        return logits.lerp_(self.live.logits_at(live, positions), self.share)


class AnyTeacher(Protocol):
    """What a student is pulled towards: a Teacher or a TrustRegion."""

    def follow(self, masters: Mapping[str, torch.Tensor]) -> None: ...

    def states(self, rows: Sequence[Row]) -> Any: ...

    def logits_at(self, states: Any, positions: Positions, raw: bool = False) -> torch.Tensor: ...


@dataclass
class SelfTeacherOption:
    """For methods whose teacher has weights of the model itself."""

    teacher: str = option(
        "ema",
        "teacher weights: average, start of the stage (frozen) or of the run, live student, or a "
        "trust region around frozen",
        choices=("ema", "frozen", "run_start", "live", "trust_region"),
    )
    ema_alpha: float = option(
        0.01,
        "share of the student in the average after each optimizer step, or in the logits of "
        "trust_region",
        above=0,
        max=1,
    )

    def make_teacher(
        self, stage: Stage, micro_batch_tokens: int, place: torch.device
    ) -> AnyTeacher:
        """The teacher of a stage; place: of the trainer's masters."""
        if self.teacher == "run_start":
            return fixed_teacher(stage, "run", micro_batch_tokens)
        if self.teacher == "trust_region":
            fixed = Teacher(stage, 0, micro_batch_tokens, place)
            live = live_scorer(stage, micro_batch_tokens)
            return TrustRegion(fixed, live, self.ema_alpha)
        alpha = {"ema": self.ema_alpha, "frozen": 0, "live": 1}[self.teacher]
        return Teacher(stage, alpha, micro_batch_tokens, place)

    @property
    def has_share(self) -> bool:
        """Whether ``ema_alpha`` is of the teacher."""
        return self.teacher in ("ema", "trust_region")

    @property
    def models(self) -> dict[str, Any]:
        """The fields of Work that say which models the teacher keeps in memory."""
        return {
            "copies": int(self.teacher in ("ema", "frozen", "trust_region")),
            "averaged": self.teacher == "ema",
            "starts": {"run": 1.0} if self.teacher == "run_start" else {},
        }

    @property
    def passes(self) -> int:
        """Forward passes of the teacher over a completion."""
        return 1 + (self.teacher == "trust_region")
