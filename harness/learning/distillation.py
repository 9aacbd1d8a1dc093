"""Distillation on completions: divergences, the gradient estimators of the paper's appendix A.1,
and a teacher's own samples.

At every completion token the student has a next-token distribution p, the teacher q, given the same
prefix y_<t (each after its own prompt), both at the rollout temperature.

``divergence``
* ``forward`` is KL(q || p), the direction behind all of the paper's results, as its authors say,
  and their code's default.
* ``reverse`` is KL(p || q), as in the paper's equations.
* ``mixture`` is the generalised Jensen-Shannon divergence with weight w on the teacher: w KL(q ||
  m) + (1 - w) KL(p || m), m = w q + (1 - w) p.

``estimator`` of the gradient of D_t, the divergence at token t
* ``full`` differentiates D_t over the whole vocabulary. The prefix counts as given, though the
  student sampled it: for whole sequences the gradient is biased. The paper's choice.
* ``sampled`` knows the sampled token alone: c_t grad log p(y_t), with c_t = log p/q (reverse), -q/p
  (forward) or (1 - w) log p/m (mixture) at y_t. Given the prefix its mean over y_t ~ p is the
  gradient of ``full``, so it has the same bias, and more variance: without bound for ``forward``
  where the teacher likes what the student hardly samples.
* ``rao_blackwell`` adds to ``full`` what a token does to the prefixes of later ones: (sum of D_s
  over s > t) grad log p(y_t). It is the gradient of E[sum_t D_t] with y ~ p, without bias; for
  ``reverse`` that sum is the KL of the sequences.
* ``top_k`` differentiates the divergence on the student's ``top_k`` likeliest tokens alone, either
  with everything else in one ``tail`` bucket (never above ``full``; equal to it where one token is
  left over) or renormalised to these tokens (what the two do to the rest is not seen). Support and
  renormalisation are those of TRL's SDFTTrainer.

``normalise``: ``sequences`` is the mean over a completion's tokens, then over completions (as in
TRL's SDFTTrainer); ``constant`` divides by completions x the rollout limit. A completion's length
is itself drawn: with ``sequences`` the mean of ``sampled`` is not exactly that of ``full``, and
``rao_blackwell`` would be the gradient of nothing, so that it takes ``constant``.

The first ``skip_tokens`` tokens of a completion carry no loss; a completion that has none left
counts as 0. Under ``rao_blackwell`` they still get credit for the tokens that follow.

``importance_cap``: where another engine sampled the completions, every token's loss is weighted by
min(cap, p / p_sampler) of that token, a constant for the gradient; the paper's code has a cap of 2,
and so has this where vLLM samples. The project's own sampler is the trainer's model: off.
``rao_blackwell`` weights nothing: under vLLM it wants ``importance_cap: 0``, which says so.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from harness.base.settings import option
from harness.learning.trainer import TrainingConfig


@dataclass
class DistillationConfig(TrainingConfig):
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
        choices=("sequences", "constant"),
    )
    skip_tokens: int = option(
        3, "completion tokens without loss, against artifacts like 'Based on the text'", min=0
    )
    importance_cap: float | None = option(
        None,
        "cap of the importance weights; if left out 2 where vLLM samples, else no weights; "
        "0: never",
        min=0,
    )

    def __post_init__(self):
        if self.mixture_weight == 1:
            raise ValueError(
                "mixture_weight must be below 1: at 1 the mixture is the teacher and the divergence 0; "
                "divergence: reverse is the limit that is meant"
            )
        if self.estimator == "rao_blackwell" and self.normalise == "sequences":
            raise ValueError(
                "estimator: rao_blackwell goes with normalise: constant: a completion's length is drawn as well"
            )
        if self.estimator == "rao_blackwell" and self.importance_cap:
            raise ValueError(
                "estimator: rao_blackwell has no importance_cap: it wants completions of the student itself"
            )
        if self.estimator == "top_k" and self.top_k == 1 and not self.tail:
            raise ValueError(
                "top_k must be at least 2 without a tail: one token, renormalised, has probability 1 for both"
            )


class _ForwardKL(torch.autograd.Function):
    """KL(teacher || student) of logits, constant in the teacher. Its gradient, the difference of
    the probabilities, is made in the forward pass: three tensors [tokens, vocabulary] are alive at
    once, where autograd keeps about eight.
    """

    @staticmethod
    def forward(ctx, student, teacher):
        student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
        probabilities = teacher.exp()
        value = torch.linalg.vecdot(probabilities, teacher.sub_(student))
        ctx.gradient = student.exp_().sub_(probabilities)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, times):
        return ctx.gradient * times[:, None], None


def divergence(student, teacher, kind, weight=0.5):
    """Per-token divergence [tokens], in nats, of logits [tokens, vocabulary]; conventions in the
    module's docstring.
    """
    if kind == "forward" and not teacher.requires_grad:
        return _ForwardKL.apply(student, teacher)
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)

    def kl(p, q):  # KL(p || q) of log-probabilities
        return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)

    if kind == "forward":
        return kl(teacher, student)
    if kind == "reverse":
        return kl(student, teacher)
    weight = torch.tensor(weight, dtype=student.dtype, device=student.device)
    mixture = torch.logaddexp(teacher + weight.log(), student + (1 - weight).log())
    return weight * kl(teacher, mixture) + (1 - weight) * kl(student, mixture)


def on_support(student, teacher, k, tail):
    """Both logits [tokens, vocabulary] on the student's ``k`` likeliest tokens, and with ``tail``
    one that stands for the rest.
    """
    if k >= student.shape[-1]:
        return student, teacher
    places = student.detach().topk(k, -1).indices

    def cut(logits):
        kept = logits.gather(-1, places)
        if not tail:
            return kept
        return torch.cat(
            [kept, logits.scatter(-1, places, -torch.inf).logsumexp(-1, keepdim=True)], -1
        )

    return cut(student), cut(teacher)


def sampled_divergence(student, teacher, kind, weight=0.5):
    """Estimate [tokens] of the divergence from the log-probabilities [tokens] of the sampled
    tokens.

    Its value is f(q/p) and its gradient (f - r f')(q/p) grad log p at r = q/p, where the divergence
    is E_p[f(q/p)].
    """
    with torch.no_grad():
        log_ratio = teacher - student
        ratio = log_ratio.exp()
        if kind == "forward":
            value, times = ratio * log_ratio, -ratio
        elif kind == "reverse":
            value = times = -log_ratio
        else:
            mixture = (weight * ratio + 1 - weight).log()  # of m/p
            times = -(1 - weight) * mixture
            value = weight * ratio * (log_ratio - mixture) + times
    return value + times * (student - student.detach())


def token_losses(student, teacher, tokens, config):
    """The estimator's value [tokens] at every token, from logits [tokens, vocabulary] at the
    rollout temperature; its gradient is that of ``config.estimator``, for ``rao_blackwell`` without
    the credit for later tokens.
    """
    if config.estimator == "sampled":
        student, teacher = (
            x.log_softmax(-1).gather(1, tokens[:, None])[:, 0] for x in (student, teacher)
        )
        return sampled_divergence(student, teacher, config.divergence, config.mixture_weight)
    if config.estimator == "top_k":
        student, teacher = on_support(student, teacher, config.top_k, config.tail)
    return divergence(student, teacher, config.divergence, config.mixture_weight)


def distil(trainer, teacher, rows, shown, config, logprobs=None):
    """Backward of the loss of student ``rows`` towards the teacher on ``shown``; returns what a
    step logs of it.

    rows and shown: Rows with the same completions, each after its own prompt. logprobs: of the
    completions' tokens by whoever sampled them, lists of floats in the rows' order; needed for an
    importance cap alone.
    """
    stage, device = trainer.stage, trainer.model.device
    targets = teacher.states(shown)
    cap = None if logprobs is None else stage.importance_cap(config.importance_cap)
    if (
        config.normalise or ("constant" if config.estimator == "rao_blackwell" else "sequences")
    ) == "constant":
        counted = [stage.max_new_tokens for _ in rows]
    else:
        counted = [max(1, len(r.completion) - config.skip_tokens) for r in rows]
    weight = 1.0 / (torch.tensor(counted, device=device) * len(rows))
    totals = {"kl": 0.0, "kl_tokens": 0, "gap": 0.0, "importance": 0.0, "tokens": 0}
    # the divergence of the tokens after those of the chunk at hand
    later = torch.zeros(len(rows), device=device)

    def loss(logits, at):
        places = list(zip(at.rows.tolist(), at.offsets.tolist()))
        with torch.no_grad():
            target = teacher.head(torch.stack([targets[i][t] for i, t in places])).float()
        if stage.temperature != 1:
            logits, target = logits / stage.temperature, target / stage.temperature
        each = token_losses(logits, target, at.tokens, config)
        first = at.offsets == 0
        totals["gap"] += each.detach()[first].sum().item()
        kept = (at.offsets >= config.skip_tokens).float()
        totals["kl"] += (each.detach() * kept).sum().item()
        totals["kl_tokens"] += int(kept.sum())
        if cap:
            with torch.no_grad():
                own = logits.log_softmax(-1).gather(1, at.tokens[:, None])[:, 0]
                others = torch.tensor([logprobs[i][t] for i, t in places], device=device)
                importance = (own - others).exp().clamp(max=cap)
            totals["importance"] += importance.sum().item()
            totals["tokens"] += len(importance)
            each = each * importance
        each = each * kept
        if config.estimator == "rao_blackwell":
            own = logits.log_softmax(-1).gather(1, at.tokens[:, None])[:, 0]
            each = each + _credit(each.detach(), at, later) * (own - own.detach())
        return (each * weight[at.rows]).sum()

    value = trainer.backward(rows, loss, last_first=config.estimator == "rao_blackwell")
    logged = {
        "loss": value,
        "kl": totals["kl"] / max(1, totals["kl_tokens"]),
        "first_token_gap": totals["gap"] / len(rows),
        "completion_tokens": sum(len(r.completion) for r in rows) / len(rows),
    }
    if cap:
        logged["importance_weight"] = totals["importance"] / totals["tokens"]
    return logged


def _credit(each, at, later):
    """Sum [tokens] of the divergences that come after each token of its completion; moves ``later``
    [rows] on by the chunk.
    """
    table = torch.zeros(len(later), int(at.offsets.max()) + 1, device=each.device)
    table[at.rows, at.offsets] = each
    after = table.flip(1).cumsum(1).flip(1) - table + later[:, None]
    later += table.sum(1)
    return after[at.rows, at.offsets]
