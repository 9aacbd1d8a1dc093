"""Distillation on completions: divergences, and estimators of their gradient.

At every completion token the student has a next-token distribution p and the teacher q, after the
same completion tokens y_<t but each after its own prompt. Both are taken at the rollout
temperature. The estimators are those of arXiv 2601.19897, appendix A.1.

``divergence``
* ``forward`` is KL(q || p), the direction behind all of the paper's results, as its authors say,
  and their code's default.
* ``reverse`` is KL(p || q), as in the paper's equations.
* ``mixture`` is the generalised Jensen-Shannon divergence with weight w on the teacher: w KL(q ||
  m) + (1 - w) KL(p || m), m = w q + (1 - w) p.

``estimator`` of the gradient of D_t, the divergence at token t
* ``full`` differentiates D_t over the whole vocabulary. It takes the prefix as fixed, although the
  student sampled it: for whole sequences the gradient is biased. The paper's choice.
* ``sampled`` uses the sampled token alone: c_t grad log p(y_t), with c_t = log p/q (reverse), -q/p
  (forward) or (1 - w) log p/m (mixture) at y_t. Given the prefix its mean over y_t ~ p is the
  gradient of ``full``, so it has the same bias. It has more variance: for ``forward`` without bound
  where the teacher likes what the student hardly samples.
* ``rao_blackwell`` adds to ``full`` the effect of a token on the prefixes of later ones: (sum of
  D_s over s > t) grad log p(y_t). It is the gradient of E[sum_t D_t] with y ~ p, without bias; for
  ``reverse`` that sum is the KL of the sequences.
* ``top_k`` differentiates the divergence on the student's ``top_k`` likeliest tokens alone. All
  other tokens are one bucket with ``tail`` (never above ``full``, and equal to it where the bucket
  holds one token); without it the two distributions are renormalised to these tokens, and what they
  do elsewhere has no effect. Support and renormalisation are those of TRL's SDFTTrainer.

``normalise``: ``sequences`` is the mean over a completion's tokens, then over completions (as in
TRL's SDFTTrainer); ``tokens`` the mean over all tokens that carry loss (as in TRL's GKDTrainer and
the codes of OPSD and SDPO); ``constant`` divides by completions x the rollout limit. A completion's
length is random too: with ``sequences`` and ``tokens`` the mean of ``sampled`` is not exactly that
of ``full``, and ``rao_blackwell`` would be the gradient of nothing. It therefore takes
``constant``.

``entry_clip``: each entry of the sum over the vocabulary counts up to this value, and has no
gradient above it, so that a few words of style do not rule the gradient. OPSD's code (arXiv
2601.18734) clips at 0.05. Negative entries stay as they are: a clipped divergence may be negative.

The first ``skip_tokens`` tokens of a completion carry no loss; a completion without further tokens
counts as 0. Under ``rao_blackwell`` they still get credit for the tokens that follow.

``importance_cap``: where another engine sampled the completions, every token's loss is weighted by
min(cap, p / p_sampler) of that token, a constant for the gradient. The cap is 2 in the paper's
code, and here where vLLM samples. The project's own sampler is the trainer's model, and has no
weights. ``rao_blackwell`` has none either: under vLLM it wants ``importance_cap: 0``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from harness.base.settings import only_with, option
from harness.learning.fused import fused_kl, fused_logprobs
from harness.learning.logprobs import importance_weights, token_logprobs
from harness.learning.options import ImportanceOption
from harness.learning.packing import Positions, Row, TokenValues
from harness.learning.teacher import AnyTeacher
from harness.learning.trainer import Trainer, TrainingConfig
from harness.models import ranks
from harness.models.forward import on_device
from harness.models.repeatable import row_cumsum


@dataclass
class DistillationConfig(ImportanceOption, TrainingConfig):
    """Hyperparameters of methods that distil; the module's docstring has their meaning."""

    divergence: str = option("forward", "KL direction", choices=("forward", "reverse", "mixture"))
    mixture_weight: float = option(
        0.5, "weight of the teacher in the mixture, below 1", above=0, max=1
    )
    estimator: str = option(
        "full",
        "of the gradient (appendix A.1)",
        choices=("full", "sampled", "rao_blackwell", "top_k"),
    )
    top_k: int = option(100, "tokens of the student that the estimator top_k looks at", min=1)
    tail: bool = option(True, "one bucket for all other tokens under top_k; renormalised if false")
    normalise: str | None = option(
        None,
        "what the loss is averaged over; constant for rao_blackwell, otherwise sequences, if "
        "left out",
        choices=("sequences", "tokens", "constant"),
    )
    entry_clip: float | None = option(
        None, "most that one token of the vocabulary adds to a divergence; OPSD's is 0.05", above=0
    )
    skip_tokens: int = option(
        3, "completion tokens without loss, against artifacts like 'Based on the text'", min=0
    )

    def __post_init__(self) -> None:
        if self.mixture_weight == 1:
            raise ValueError(
                "mixture_weight must be below 1: at 1 the mixture is the teacher and the "
                "divergence 0; divergence: reverse is the limit that is meant"
            )
        if self.estimator == "rao_blackwell" and self.normalise in ("sequences", "tokens"):
            raise ValueError(
                "estimator: rao_blackwell goes with normalise: constant: a completion's length "
                "is random too"
            )
        if self.estimator == "rao_blackwell" and self.importance_cap:
            raise ValueError(
                "estimator: rao_blackwell has no importance_cap: it wants completions of the "
                "student itself"
            )
        if self.estimator in ("sampled", "rao_blackwell") and self.entry_clip:
            raise ValueError(f"estimator: {self.estimator} has no entry_clip; take full or top_k")
        if self.estimator == "top_k" and self.top_k == 1 and not self.tail:
            raise ValueError(
                "top_k must be at least 2 without a tail: one token, renormalised, has "
                "probability 1 for both"
            )

    def check_effects(self) -> None:
        mixes, is_top = self.divergence == "mixture", self.estimator == "top_k"
        only_with(self, mixes, "divergence: mixture", "mixture_weight")
        only_with(self, is_top, "estimator: top_k", "top_k", "tail")

    @property
    def fuses(self) -> bool:
        """Whether the loss of a token is the one that fused.py has."""
        return (self.estimator, self.divergence) == ("full", "forward") and not self.entry_clip

    @property
    def denominator(self) -> str:
        """``normalise``, or the value that the estimator has if it is left out."""
        if self.normalise:
            return self.normalise
        return "constant" if self.estimator == "rao_blackwell" else "sequences"


# ---- divergences of one token ----------------------------------------------------------------


class _ForwardKL(torch.autograd.Function):
    """KL(teacher || student) [tokens] of logits [tokens, vocabulary], constant in the teacher.

    Its gradient, the difference of the probabilities, is made in the forward pass: three tensors
    [tokens, vocabulary] exist at once, where autograd keeps about eight.
    """

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        log_p = student.log_softmax(-1)
        log_q = teacher.log_softmax(-1)
        q = log_q.exp()
        value = torch.linalg.vecdot(q, log_q.sub_(log_p))
        ctx.gradient = log_p.exp_().sub_(q)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.gradient * grad[:, None], None


def divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    kind: str,
    weight: float = 0.5,
    clip: float | None = None,
) -> torch.Tensor:
    """Divergence of each token [tokens], in nats, from logits [tokens, vocabulary].

    kind: ``forward``, ``reverse`` or ``mixture``, the last with ``weight`` on the teacher; clip:
    ``entry_clip``. The module's docstring has the formulas.
    """
    if kind == "forward" and clip is None and not teacher.requires_grad:
        return _ForwardKL.apply(student, teacher)
    log_p = student.log_softmax(-1)
    log_q = teacher.log_softmax(-1)
    if clip is not None:
        return _entries(log_p, log_q, kind, weight).clamp(max=clip).sum(-1)
    if kind == "forward":
        return _kl(log_q, log_p).sum(-1)
    if kind == "reverse":
        return _kl(log_p, log_q).sum(-1)
    log_m, w = _mixture(log_p, log_q, weight)
    return w * _kl(log_q, log_m).sum(-1) + (1 - w) * _kl(log_p, log_m).sum(-1)


def _entries(log_p: torch.Tensor, log_q: torch.Tensor, kind: str, weight: float) -> torch.Tensor:
    """What each token of the vocabulary adds to a divergence [tokens, vocabulary]."""
    if kind == "forward":
        return _kl(log_q, log_p)
    if kind == "reverse":
        return _kl(log_p, log_q)
    log_m, w = _mixture(log_p, log_q, weight)
    return w * _kl(log_q, log_m) + (1 - w) * _kl(log_p, log_m)


def _mixture(
    log_p: torch.Tensor, log_q: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log m, the weight w of q in it) of log-probabilities [tokens, vocabulary]."""
    w = log_p.new_full((), weight)
    return torch.logaddexp(log_q + w.log(), log_p + (1 - w).log()), w


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The entries [tokens, vocabulary] of KL(p || q), from log-probabilities of that shape."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True)


def on_support(
    student: torch.Tensor, teacher: torch.Tensor, k: int, tail: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of student and teacher on the student's ``k`` likeliest tokens.

    From [tokens, vocabulary] to [tokens, k], or [tokens, k + 1] with ``tail``: the last one is the
    logit of all other tokens together.
    """
    if k >= student.shape[-1]:
        return student, teacher
    support = student.detach().topk(k, -1).indices
    return _restricted(student, support, tail), _restricted(teacher, support, tail)


def _restricted(logits: torch.Tensor, support: torch.Tensor, tail: bool) -> torch.Tensor:
    inside = logits.gather(-1, support)
    if not tail:
        return inside
    # Not log(1 - sum): in float32 a small rest would be lost
    outside = logits.scatter(-1, support, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([inside, outside], -1)


def sampled_divergence(
    student: torch.Tensor, teacher: torch.Tensor, kind: str, weight: float = 0.5
) -> torch.Tensor:
    """Estimate [tokens] of the divergence from log-probabilities [tokens] of the sampled tokens.

    The divergence is E_p[f(q/p)]. At r = q/p the value is f(r) and the gradient is
    (f - r f')(r) grad log p.
    """
    with torch.no_grad():
        log_ratio = teacher - student
        ratio = log_ratio.exp()
        if kind == "forward":
            value = ratio * log_ratio
            factor = -ratio
        elif kind == "reverse":
            value = -log_ratio
            factor = value
        else:
            log_mixture = (weight * ratio + 1 - weight).log()  # log m/p
            factor = -(1 - weight) * log_mixture
            value = weight * ratio * (log_ratio - log_mixture) + factor
    return value + factor * (student - student.detach())


def token_losses(
    student: torch.Tensor, teacher: torch.Tensor, tokens: torch.Tensor, config: DistillationConfig
) -> torch.Tensor:
    """The estimator's value [tokens] at every token, and its gradient.

    student, teacher: logits [tokens, vocabulary] at the rollout temperature; tokens: the sampled
    tokens [tokens]. ``rao_blackwell`` is here without the credit for later tokens.
    """
    if config.estimator == "sampled":
        return sampled_divergence(
            token_logprobs(student, tokens),
            token_logprobs(teacher, tokens),
            config.divergence,
            config.mixture_weight,
        )
    if config.estimator == "top_k":
        student, teacher = on_support(student, teacher, config.top_k, config.tail)
    kind, weight = config.divergence, config.mixture_weight
    return divergence(student, teacher, kind, weight, config.entry_clip)


# ---- the loss of a step ------------------------------------------------------------------------


def distil(
    trainer: Trainer,
    teacher: AnyTeacher,
    rows: Sequence[Row],
    teacher_rows: Sequence[Row],
    config: DistillationConfig,
    logprobs: Sequence[Sequence[float]] | None = None,
) -> dict[str, float]:
    """Backward of the loss that pulls the student on ``rows`` towards the teacher.

    Returns what a step logs: ``loss``; ``kl``, the mean over tokens that carry loss;
    ``first_token_gap``, the mean divergence of first tokens; ``completion_tokens``, the mean
    length; and ``importance_weight``, the mean weight, where there are weights.

    rows, teacher_rows: the same completions, each after the prompt of its own model. logprobs: of
    the completions' tokens by the engine that sampled them, a list for each row; needed for
    importance weights alone.
    """
    loss = _DistillationLoss(trainer, teacher, rows, teacher_rows, config, logprobs)
    last_first = config.estimator == "rao_blackwell"
    value = trainer.backward(rows, loss, last_first, raw=loss.fuses)
    return {"loss": value, **loss.diagnostics()}


class _DistillationLoss:
    """The loss of one step, called chunk by chunk; it adds up the diagnostics on the way."""

    def __init__(
        self,
        trainer: Trainer,
        teacher: AnyTeacher,
        rows: Sequence[Row],
        teacher_rows: Sequence[Row],
        config: DistillationConfig,
        logprobs: Sequence[Sequence[float]] | None,
    ) -> None:
        stage = trainer.stage
        device = trainer.model.device
        self.config = config
        self.fuses = stage.fused_losses and config.fuses
        self.rows = rows
        self.teacher = teacher
        self.teacher_states = teacher.states(teacher_rows)
        self.temperature = stage.temperature
        self.sampler_logprobs = TokenValues.of_rows(logprobs or [], device)
        self.cap = None if logprobs is None else stage.importance_cap(config.importance_cap)
        if config.denominator == "constant":
            lengths = [row.limit or stage.max_new_tokens for row in rows]
        else:
            lengths = [max(1, len(row.completion) - config.skip_tokens) for row in rows]
        self.row_weights = 1.0 / (on_device(torch.tensor(lengths), device) * len(rows))
        if config.denominator == "tokens":
            carried = sum(max(0, len(row.completion) - config.skip_tokens) for row in rows)
            self.row_weights = torch.full((len(rows),), 1.0 / max(1, carried), device=device)
        # For rao_blackwell, whose chunks come last first: each row's divergence after the chunk
        self.later = torch.zeros(len(rows), device=device)
        # Sums over chunks stay on the device: a GPU waits at every number that is read.
        self.kl, self.kl_tokens, self.first_token_gap, self.importance = torch.zeros(
            4, dtype=torch.float64, device=device
        )
        self.tokens = 0

    def __call__(self, logits: torch.Tensor, positions: Positions) -> torch.Tensor:
        """The chunk's loss, a scalar, from the student's logits [tokens, vocabulary]."""
        config = self.config
        tokens = positions.tokens
        targets = self.teacher.logits_at(self.teacher_states, positions, raw=self.fuses)
        if self.fuses:
            losses = fused_kl(logits, targets, self.temperature)
        else:
            if self.temperature != 1:
                logits = logits / self.temperature
                targets = targets / self.temperature
            losses = token_losses(logits, targets, tokens, config)
        carries_loss = (positions.offsets >= config.skip_tokens).float()
        divergences = losses.detach()
        self.first_token_gap += (divergences * (positions.offsets == 0)).sum()
        self.kl += (divergences * carries_loss).sum()
        self.kl_tokens += carries_loss.sum()
        if self.cap:
            logprobs = (
                fused_logprobs(logits.detach(), tokens, self.temperature)
                if self.fuses
                else token_logprobs(logits.detach(), tokens)
            )
            weights = importance_weights(logprobs, positions, self.sampler_logprobs, self.cap)
            self.importance += weights.sum()
            self.tokens += len(weights)
            losses = losses * weights
        losses = losses * carries_loss
        if config.estimator == "rao_blackwell":
            logprobs = token_logprobs(logits, tokens)
            credit = _credit(losses.detach(), positions, self.later)
            losses = losses + credit * (logprobs - logprobs.detach())
        return (losses * self.row_weights[positions.rows]).sum()

    def diagnostics(self) -> dict[str, float]:
        count = len(self.rows)
        if ranks.active():
            self._add_up()
        logged = {
            "kl": self.kl.item() / max(1.0, self.kl_tokens.item()),
            "first_token_gap": self.first_token_gap.item() / count,
            "completion_tokens": sum(len(row.completion) for row in self.rows) / count,
        }
        if self.cap:
            logged["importance_weight"] = self.importance.item() / self.tokens
        return logged

    def _add_up(self) -> None:
        """Let the sums be those of all ranks."""
        own = [self.kl, self.kl_tokens, self.first_token_gap, self.importance]
        sums = ranks.summed(torch.stack([*own, self.kl.new_tensor(self.tokens)]))
        self.kl, self.kl_tokens, self.first_token_gap, self.importance = sums[:4]
        self.tokens = int(sums[4])


def _credit(losses: torch.Tensor, positions: Positions, later: torch.Tensor) -> torch.Tensor:
    """Sum [tokens] of the divergences that follow each token in its completion.

    losses: the chunk's divergences [tokens]; later: each row's sum [rows] after this chunk, to
    which the chunk's own divergences are added in place.
    """
    longest = 1 + max(offset for _, offset in positions.places)
    table = torch.zeros(len(later), longest, device=losses.device)
    table[positions.rows, positions.offsets] = losses
    after = row_cumsum(table.flip(1)).flip(1) - table + later[:, None]
    later += table.sum(1)
    return after[positions.rows, positions.offsets]
