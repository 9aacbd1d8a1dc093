"""Numbers of continual learning from an accuracy matrix, and their intervals.

The matrix R has shape [T + 1, T] for T skills learned one after the other: ``R[k, i - 1]`` is the
accuracy on the i-th skill after the k-th stage, and row 0 is the base model. Every skill is
measured at every stage, learned or not. Formulas below count skills from 1.

Skills are counted in the sequence of the run. Where runs learn them in several sequences
(``orders`` of an order), a measure is computed inside each run, then averaged.

All functions take R with any leading axes (runs,
bootstrap draws), use the last two, and give NaN where a number they need is NaN: a mean over the
numbers that happen to be there would be another quantity.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
# np.float64 for numbers or for one matrix R, an array where an argument has (leading) axes.
Numbers: TypeAlias = Any
Point = TypeVar("Point")

# Metrics that are no share of right answers, even where their value is in [0, 1]: lm-eval's, and
# the continuous ones beside an accuracy. They are never averaged with accuracies.
OTHER_UNITS = frozenset(
    [
        "margin",
        "probability",
        "bits_per_byte",
        "byte_perplexity",
        "word_perplexity",
        "perplexity",
        "loglikelihood",
        "mcc",
        "bleu",
        "chrf",
        "ter",
        "rouge1",
        "rouge2",
        "rougeL",
        "bleu_max",
        "bleu_diff",
        "bleurt_max",
        "bleurt_diff",
        "rouge1_max",
        "rouge1_diff",
        "rouge2_max",
        "rouge2_diff",
        "rougeL_max",
        "rougeL_diff",
    ]
)


def average_accuracy(R: ArrayLike) -> Numbers:
    """ACC = 1/T sum_i R[T, i]: accuracy over all skills after the last stage.

    Lopez-Paz & Ranzato 2017, eq. 2.
    """
    return _floats(R)[..., -1, :].mean(-1)


def own_stage_accuracy(R: ArrayLike) -> Array:
    """R[i, i] for every skill: accuracy right after the stage that taught it, shape [..., T]."""
    return np.diagonal(_floats(R)[..., 1:, :], axis1=-2, axis2=-1)


def learning_accuracy(R: ArrayLike) -> Numbers:
    """LA = 1/T sum_i R[i, i] (Riemer et al. 2019, section 5)."""
    return own_stage_accuracy(R).mean(-1)


def own_stage_gain(R: ArrayLike) -> Array:
    """R[i, i] - R[0, i] for every skill: own-stage accuracy less the base model's, [..., T]."""
    return own_stage_accuracy(R) - _floats(R)[..., 0, :]


def backward_transfer(R: ArrayLike) -> Numbers:
    """BWT = 1/(T-1) sum_{i<T} (R[T, i] - R[i, i]); negative: skills were lost.

    Lopez-Paz & Ranzato 2017, eq. 3. NaN for a single skill, which nothing comes after.
    """
    R = _floats(R)
    if R.shape[-1] < 2:
        return _not_defined(R)
    return (R[..., -1, :-1] - own_stage_accuracy(R)[..., :-1]).mean(-1)


def forward_transfer(R: ArrayLike) -> Numbers:
    """FWT = 1/(T-1) sum_{i>1} (R[i-1, i] - R[0, i]): what earlier skills did to later ones.

    Lopez-Paz & Ranzato 2017, eq. 4: the accuracy on a skill just before its own stage. They compare
    with a random initialisation; here the comparison is the base model, from which these runs
    start. NaN for a single skill.
    """
    R = _floats(R)
    if R.shape[-1] < 2:
        return _not_defined(R)
    before = np.diagonal(R[..., 1:-1, 1:], axis1=-2, axis2=-1)
    return (before - R[..., 0, 1:]).mean(-1)


def forgetting(R: ArrayLike) -> Numbers:
    """F = 1/(T-1) sum_{i<T} (max_{1<=l<T} R[l, i] - R[T, i]); positive: skills were lost.

    Chaudhry et al. 2018, section 3.1. As in the source the maximum runs over all stages before the
    last one, also those before the skill's own; the base model (row 0) is not among them. NaN for a
    single skill.
    """
    R = _floats(R)
    if R.shape[-1] < 2:
        return _not_defined(R)
    return (R[..., 1:-1, :-1].max(-2) - R[..., -1, :-1]).mean(-1)


def overall_performance(R: ArrayLike) -> Array:
    """OP_t = 1/t sum_{i<=t} R[t, i]: over the skills learned so far, after each stage, [..., T].

    TRACE (Wang et al. 2023, arXiv 2310.06762). OP_T is ACC.
    """
    R = _floats(R)
    places = range(1, R.shape[-1] + 1)
    return np.stack([R[..., t, :t].mean(-1) for t in places], axis=-1)


def anytime_accuracy(R: ArrayLike) -> Numbers:
    """A = 1/T sum_t OP_t = 1/T sum_t 1/t sum_{i<=t} R[t, i]: over the whole way, not its end alone.

    The average incremental accuracy of Rebuffi et al. 2017 (iCaRL), with the first stage in it.
    """
    return overall_performance(R).mean(-1)


def backward_transfer_trace(R: ArrayLike) -> Numbers:
    """BWT_T = 1/T sum_{i<=T} (R[T, i] - R[i, i]): the last skill, whose term is 0, counts.

    TRACE (Wang et al. 2023, arXiv 2310.06762) and the code of SAPT divide by T, Lopez-Paz & Ranzato
    by T - 1 (``backward_transfer``): this one is smaller by (T - 1) / T. NaN for a single skill.
    """
    share = (_floats(R).shape[-1] - 1) / _floats(R).shape[-1]
    return backward_transfer(R) * share


def intransigence(R: ArrayLike, joint: ArrayLike) -> Numbers:
    """I = 1/T sum_i (J[i] - R[i, i]); positive: the sequence learns less than all skills at once.

    Chaudhry et al. 2018 (RWalk), whose reference for skill i has learned skills 1 to i at
    once; here one reference has learned all T, as where papers report a joint or multi-task row.

    joint: accuracy J on each skill of the model that learned all at once, [..., T].
    """
    return (_floats(joint) - own_stage_accuracy(R)).mean(-1)


def plasticity_loss(R: ArrayLike, single: ArrayLike) -> Numbers:
    """P = 1/(T-1) sum_{i>1} ((S[i] - R[0, i]) - (R[i, i] - R[i-1, i])); positive: less is learned.

    What a skill gains alone from the base model, less what its stage gains after the stages before
    it: the loss of plasticity of Dohare et al. 2024 (Nature 632, 768), who compare a network that
    has learned tasks before with a new one on the same task, in accuracies.

    What earlier stages gave or took before the stage began (``forward_transfer``) is in neither
    gain. The first stage is its own reference, so it is left out. NaN for a single skill.

    single: accuracy S on each skill of the model that learned it alone, [..., T].
    """
    R, single = _floats(R), _floats(single)
    if R.shape[-1] < 2:
        return _not_defined(R)
    before = np.diagonal(R[..., 1:-1, 1:], axis1=-2, axis2=-1)
    in_sequence = own_stage_accuracy(R)[..., 1:] - before
    return (single[..., 1:] - R[..., 0, 1:] - in_sequence).mean(-1)


def forward_transfer_single(R: ArrayLike, single: ArrayLike) -> Numbers:
    """FWT_S = 1/(T-1) sum_{i>1} (R[i, i] - S[i]): what earlier skills did to learning later ones.

    The meaning of FWT in SAPT (Zhao et al. 2024, arXiv 2401.08295), whose first term, of the first
    skill, is 0 and counts there. NaN for a single skill. single: as for ``plasticity_loss``.
    """
    R, single = _floats(R), _floats(single)
    if R.shape[-1] < 2:
        return _not_defined(R)
    return (own_stage_accuracy(R) - single)[..., 1:].mean(-1)


def holm(p: Sequence[float]) -> Array:
    """p-values adjusted for their number: Holm 1979, which needs no independence.

    The k-th smallest of m is taken m - k + 1 times, and is no less than the one before it, nor more
    than 1. NaN values are no tests and stay NaN.
    """
    values = _floats(p)
    adjusted = np.full(values.shape, np.nan)
    tests = np.flatnonzero(np.isfinite(values))
    order = tests[np.argsort(values[tests], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted


def _floats(numbers: ArrayLike) -> Array:
    return np.asarray(numbers, dtype=np.float64)


def _not_defined(R: Array) -> Numbers:
    """NaN for every matrix of R."""
    return np.full(R.shape[:-2], np.nan)[()]


def in_unit_interval(metric: str, values: ArrayLike = (), higher_is_better: bool = True) -> bool:
    """Whether a retention metric counts in means of accuracies.

    It does if higher is better, its name is that of a share, and all its values lie in [0, 1].

    metric: lm-eval's name, with or without its filter ("acc,none"); values: NaN among them count as
    none.
    """
    values = _floats(values)
    values = values[np.isfinite(values)]
    return bool(
        higher_is_better
        and metric.partition(",")[0] not in OTHER_UNITS
        and ((values >= 0) & (values <= 1)).all()
    )


def retention_delta(base: ArrayLike, final: ArrayLike, higher_is_better: bool = True) -> Numbers:
    """Change of a retention metric from the base model, signed so that negative is lost.

    final - base; base - final where lower is better (bits per byte): a model that needs 0.1 bits
    per byte more has -0.1. base, final: numbers or arrays in the metric's own unit, which the
    result keeps.
    """
    delta = _floats(final) - _floats(base)
    return delta if higher_is_better else -delta


def normalised(values: ArrayLike, base: ArrayLike, best: ArrayLike) -> Numbers:
    """Accuracy on a scale where 0 is the base model and 1 the best of all compared methods.

    Figure 3 of arXiv 2601.19897: linear in the accuracy. best: the highest point of any method's
    mean curve on this skill. NaN where no method is above the base.
    """
    span = _floats(best) - _floats(base)
    return (_floats(values) - _floats(base)) / np.where(span > 0, span, np.nan)


def pass_at_k(samples: ArrayLike, correct: ArrayLike, k: int) -> Numbers:
    """Unbiased estimate of the chance that one of k answers is right.

    Chen et al. 2021, arXiv 2107.03374, eq. 1: 1 - C(n - c, k) / C(n, k) for c = ``correct`` of n =
    ``samples`` answers, as a product that does not overflow. Numbers or arrays of counts, k <=
    samples; the mean over prompts is the pass@k that papers quote.
    """
    n, c = np.broadcast_arrays(_floats(samples), _floats(correct))
    if not ((c >= 0) & (c <= n) & (k <= n)).all() or k < 1:
        raise ValueError(
            f"pass_at_k({samples!r}, {correct!r}, {k}): "
            "wants 0 <= correct <= samples and 1 <= k <= samples"
        )
    none_right = np.ones(n.shape)
    for i in range(k):  # The i-th of k answers, drawn without replacement, is wrong too.
        none_right = none_right * np.maximum(n - c - i, 0) / (n - i)
    return (1 - none_right)[()]


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of examples and its standard error: sample standard deviation over root n.

    The error is None for n = 1.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def ratio_and_stderr(totals: ArrayLike, counts: ArrayLike) -> tuple[float, float | None]:
    """Mean per unit over answers of differing length, sum(totals) / sum(counts), and its error.

    The standard error is that of a ratio of means over independent answers, to first order (Cochran
    1977, eq. 2.46); None for one answer.
    """
    totals = _floats(totals)
    counts = _floats(counts)
    ratio = totals.sum() / counts.sum()
    n = len(totals)
    if n < 2:
        return float(ratio), None
    residual = ((totals - ratio * counts) ** 2).sum() / (n - 1)
    return float(ratio), float(math.sqrt(residual / n) / counts.mean())


def select(points: Mapping[Point, Sequence[float | None]]) -> Point | None:
    """The best point of a grid: the one with the highest mean validation score.

    points: {point: [score of every run]}, in the order of the grid. Returns None while a score is
    missing (None or NaN) or there is no point. Of equal points the first counts. Equal means agree
    in 12 decimals: the same scores in another order have means that differ in the last bit.
    """
    means = {
        point: float(np.round(np.mean([math.nan if s is None else s for s in scores]), 12))
        for point, scores in points.items()
    }
    if not means or not np.isfinite(list(means.values())).all():
        return None
    return max(means, key=lambda point: means[point])


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t for 0.5 <= p < 1 and a whole number of degrees of freedom."""
    if df < 1 or df != int(df) or not 0.5 <= p < 1:
        raise ValueError(f"t_quantile({p}, {df}): wants 0.5 <= p < 1 and df = 1, 2, ...")
    from scipy import special  # only reports and grids want it; a run goes on without

    return float(special.stdtrit(df, p))


def t_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of independent runs (seeds): mean -/+ t_{n-1} s / sqrt(n), s with n - 1.

    Student's interval. NaN values are left out; with fewer than two the bounds are NaN.
    """
    values = _floats(values)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if n == 1:
        return mean, math.nan, math.nan
    half = t_quantile((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return mean, float(mean - half), float(mean + half)


def bootstrap_means(scores: ArrayLike, draws: int = 2000, seed: int = 0) -> Array:
    """Means of resampled examples: scores [n] or [n, k] -> [draws] or [draws, k].

    k: measurements of the same n examples. All k columns see the same resample, so that differences
    between them are paired (Efron & Tibshirani 1993, chapter 6).
    """
    scores = _floats(scores)
    table = scores.reshape(len(scores), -1)
    # Equal examples are drawn together: their number has the same law, and there are far fewer.
    rows, counts = np.unique(table, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    block = max(1, 4_000_000 // len(rows))  # draws at a time, 32 MB of counts
    means = []
    for start in range(0, draws, block):
        resamples = generator.multinomial(
            len(table), counts / len(table), size=min(block, draws - start)
        )
        means.append(resamples @ rows / len(table))
    return np.concatenate(means).reshape(draws, *scores.shape[1:])


def percentile_interval(draws: ArrayLike, level: float = 0.95) -> tuple[Numbers, Numbers]:
    """(low, high) of bootstrap draws along their first axis; NaN where a draw is NaN."""
    low, high = np.quantile(_floats(draws), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def wilson_interval(
    right: ArrayLike, n: ArrayLike, level: float = 0.95, quantile: float | None = None
) -> tuple[Numbers, Numbers]:
    """(low, high) of a fraction of right answers, ``right`` of ``n``: the score interval.

    Wilson 1927; Agresti & Coull 1998. It lies in [0, 1] and has a width also at 0 of n, [0, z^2 /
    (n + z^2)], where the bootstrap has none. NaN for n = 0. Numbers or arrays. quantile: z, if it
    is not the normal one of ``level``.
    """
    right = _floats(right)
    n = np.where(n, n, np.nan)
    z = NormalDist().inv_cdf((1 + level) / 2) if quantile is None else quantile
    p = np.clip(right / n, 0, 1)
    slack = z * z / n
    half = z * np.sqrt(p * (1 - p) / n + slack / (4 * n))
    low = np.maximum(0, (p + slack / 2 - half) / (1 + slack))
    high = np.minimum(1, (p + slack / 2 + half) / (1 + slack))
    return low[()], high[()]


def score_interval(
    value: ArrayLike,
    stderr: ArrayLike,
    n: ArrayLike,
    level: float = 0.95,
    quantile: float | None = None,
) -> tuple[Numbers, Numbers]:
    """(low, high) of a mean of ``n`` scores in [0, 1]: Wilson's at the effective number of answers.

    The effective number is that of answers, each right or wrong, whose mean would have this
    standard error (the sample's, as of ``mean_and_stderr``): 1 + value (1 - value) / stderr^2 (Kish
    1965; for the score interval Franco et al. 2019).

    It is ``n`` where all scores are 0 or 1, so that the interval is Wilson's itself, and more for
    scores in between, such as pass@k or token F1. All 0 or all 1: ``n``. NaN where the error is
    unknown, where it is 0 at another value, and where a value is not in [0, 1]. Numbers or arrays.
    quantile: as in ``wilson_interval``, for an error of few seeds (Korn & Graubard 1998).
    """
    value, stderr, n = np.broadcast_arrays(*(_floats(x) for x in (value, stderr, n)))
    extreme = (value == 0) | (value == 1)
    defined = np.where(extreme, n > 0, (value > 0) & (value < 1) & (stderr > 0))
    effective = np.where(extreme, n, 1 + value * (1 - value) / np.where(stderr > 0, stderr, 1) ** 2)
    return wilson_interval(
        np.where(defined, value * effective, np.nan),
        np.where(defined, effective, np.nan),
        level,
        quantile,
    )
