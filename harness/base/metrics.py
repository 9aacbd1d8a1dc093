"""Numbers of continual learning from an accuracy matrix, and their intervals. Needs numpy alone.

The matrix R has shape [T + 1, T] for T skills learned one after the other: ``R[k, i - 1]`` is the
accuracy on the i-th skill after the k-th stage, row 0 is the base model, and every skill is
measured at every stage, learned or not. All functions take R with any leading axes (seeds,
bootstrap draws), use the last two, and give NaN where a number they need is NaN: a mean over what
happens to be there would be another quantity. Formulas below count skills from 1.
"""

import math
import statistics
from statistics import NormalDist

import numpy as np

# lm-eval's metrics that are no share of anything right, whatever value they happen to take: never
# averaged with accuracies.
OTHER_UNITS = frozenset(
    [
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
        *(
            f"{score}_{of}"
            for score in ("bleu", "bleurt", "rouge1", "rouge2", "rougeL")
            for of in ("max", "diff")
        ),
    ]
)


def average_accuracy(R):
    """ACC = 1/T sum_i R[T, i]: accuracy over all skills after the last stage (Lopez-Paz & Ranzato
    2017, eq. 2).
    """
    return np.asarray(R, float)[..., -1, :].mean(-1)


def own_stage_accuracy(R):
    """R[i, i] for every skill: its accuracy right after the stage that taught it, shape [..., T]."""
    R = np.asarray(R, float)
    return np.diagonal(R[..., 1:, :], axis1=-2, axis2=-1)


def learning_accuracy(R):
    """LA = 1/T sum_i R[i, i] (Riemer et al. 2019, section 5)."""
    return own_stage_accuracy(R).mean(-1)


def own_stage_gain(R):
    """R[i, i] - R[0, i] for every skill, shape [..., T]: own-stage accuracy over the base model's."""
    return own_stage_accuracy(R) - np.asarray(R, float)[..., 0, :]


def backward_transfer(R):
    """BWT = 1/(T-1) sum_{i<T} (R[T, i] - R[i, i]) (Lopez-Paz & Ranzato 2017, eq. 3). Negative:
    skills were lost.

    NaN for a single skill, which nothing comes after.
    """
    R = np.asarray(R, float)
    if R.shape[-1] < 2:
        return np.full(R.shape[:-2], np.nan)[()]
    return (R[..., -1, :-1] - own_stage_accuracy(R)[..., :-1]).mean(-1)


def forward_transfer(R):
    """FWT = 1/(T-1) sum_{i>1} (R[i-1, i] - R[0, i]): what earlier skills did to one not yet
    learned.

    Lopez-Paz & Ranzato 2017, eq. 4, where the comparison is a random initialisation; here it is the
    base model, which is where these runs start. NaN for a single skill.
    """
    R = np.asarray(R, float)
    if R.shape[-1] < 2:
        return np.full(R.shape[:-2], np.nan)[()]
    before = np.diagonal(R[..., 1:-1, 1:], axis1=-2, axis2=-1)
    return (before - R[..., 0, 1:]).mean(-1)


def forgetting(R):
    """F = 1/(T-1) sum_{i<T} (max_{1<=l<T} R[l, i] - R[T, i]) (Chaudhry et al. 2018, section 3.1).
    Positive: skills were lost.

    As in the source the maximum runs over all stages before the last one, also those before the
    skill's own; the base model (row 0) is not among them. NaN for a single skill.
    """
    R = np.asarray(R, float)
    if R.shape[-1] < 2:
        return np.full(R.shape[:-2], np.nan)[()]
    return (R[..., 1:-1, :-1].max(-2) - R[..., -1, :-1]).mean(-1)


def in_unit_interval(metric, values=(), higher_is_better=True):
    """Whether a retention metric counts in means: higher is better, in [0, 1] by its name and by
    all its values.

    metric: lm-eval's name, with or without its filter ("acc,none").
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return bool(
        higher_is_better
        and metric.partition(",")[0] not in OTHER_UNITS
        and ((values >= 0) & (values <= 1)).all()
    )


def retention_delta(base, final, higher_is_better=True):
    """Change of a retention metric from the base model, signed so that positive is better and
    negative is lost.

    final - base; base - final where lower is better (bits per byte): a model that needs 0.1 bits
    per byte more has -0.1. base, final: numbers or arrays in the metric's own unit, which the
    result keeps.
    """
    delta = np.asarray(final, float) - np.asarray(base, float)
    return delta if higher_is_better else -delta


def normalised(values, base, best):
    """Figure 3 of arXiv 2601.19897: linear in the accuracy, 0 = the base model, 1 = the best of all
    compared methods.

    best: the highest point of any method's mean curve on this skill. NaN where no method is above
    the base.
    """
    span = np.asarray(best, float) - np.asarray(base, float)
    return (np.asarray(values, float) - base) / np.where(span > 0, span, np.nan)


def pass_at_k(samples, correct, k):
    """Unbiased estimate of the chance that one of k answers is right (Chen et al. 2021, arXiv
    2107.03374, eq. 1).

    1 - C(n - c, k) / C(n, k) for c = ``correct`` of n = ``samples`` answers, as a product that does
    not overflow. Numbers or arrays of counts, k <= samples; the mean over prompts is the pass@k
    that papers quote.
    """
    n, c = np.broadcast_arrays(np.asarray(samples), np.asarray(correct))
    if not ((c >= 0) & (c <= n) & (k <= n)).all() or k < 1:
        raise ValueError(
            f"pass_at_k({samples}, {correct}, {k}): wants 0 <= correct <= samples and 1 <= k <= samples"
        )
    none_right = np.ones(n.shape)
    for i in range(k):  # the i-th of k answers drawn without replacement is wrong too
        none_right = none_right * np.maximum(n - c - i, 0) / (n - i)
    return (1 - none_right)[()]


def mean_and_stderr(values):
    """Mean, and the standard error of the mean over examples (sample standard deviation over root
    n; None for n = 1).
    """
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(
        values
    ) > 1 else None


def ratio_and_stderr(totals, counts):
    """Mean per unit, sum(totals) / sum(counts), over answers of differing length, and its standard
    error.

    The error is that of a ratio of means over independent answers, to first order (Cochran 1977,
    eq. 2.46); None for one.
    """
    totals, counts = np.asarray(totals, float), np.asarray(counts, float)
    ratio, n = totals.sum() / counts.sum(), len(totals)
    if n < 2:
        return float(ratio), None
    residual = ((totals - ratio * counts) ** 2).sum() / (n - 1)
    return float(ratio), float(math.sqrt(residual / n) / counts.mean())


def select(points):
    """The best point of a grid by its validation scores: {point: [score of every run]} -> the point
    with the highest mean.

    None while a score is missing (None or NaN) or there is no point; of equal ones the first, in
    the order of the grid. Equal is what agrees in 12 decimals: the same scores in another order
    have means that differ in the last bit.
    """
    means = {
        point: np.round(np.mean([math.nan if s is None else s for s in scores]), 12)
        for point, scores in points.items()
    }
    return max(means, key=means.get) if means and np.isfinite(list(means.values())).all() else None


def t_quantile(p, df):
    """Quantile of Student's t distribution for 0.5 <= p < 1 and a whole number of degrees of
    freedom.

    The closed series of Abramowitz & Stegun 26.7.3-4 for P(|T| < t), solved by bisection in the
    angle atan(t / sqrt(df)).
    """
    if df < 1 or df != int(df) or not 0.5 <= p < 1:
        raise ValueError(f"t_quantile({p}, {df}): wants 0.5 <= p < 1 and df = 1, 2, ...")

    def inside(angle):
        sine, cosine, odd = math.sin(angle), math.cos(angle), df % 2
        term, total = (cosine, 0.0) if odd else (1.0, 0.0)
        for k in range(2 if not odd else 3, int(df) + 1, 2):
            total += term
            term *= cosine * cosine * ((k - 1) / k)
        return 2 / math.pi * (angle + sine * total) if odd else sine * total

    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 2 * p - 1 else (low, middle)
    return math.sqrt(df) * math.tan(low)


def t_interval(values, level=0.95):
    """(mean, low, high) of independent runs (seeds): mean -/+ t_{n-1} s / sqrt(n), s with n - 1
    (Student).

    NaN values are left out; with fewer than two the bounds are NaN.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = (
        t_quantile((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    )
    return mean, float(mean - half), float(mean + half)


def bootstrap_means(scores, draws=2000, seed=0):
    """Means of resampled examples: scores [n] or [n, k] (k measurements of the same n examples) ->
    [draws] or [draws, k].

    All k columns see the same resample, so differences between them are paired (Efron & Tibshirani
    1993, chapter 6).
    """
    scores = np.asarray(scores, float)
    table = scores.reshape(len(scores), -1)
    rows, counts = np.unique(
        table, axis=0, return_counts=True
    )  # equal examples are drawn together: the same law, far fewer
    generator, means, block = np.random.default_rng(seed), [], max(1, 4_000_000 // len(rows))
    for start in range(0, draws, block):
        drawn = generator.multinomial(
            len(table), counts / len(table), size=min(block, draws - start)
        )
        means.append(drawn @ rows / len(table))
    return np.concatenate(means).reshape(draws, *scores.shape[1:])


def percentile_interval(draws, level=0.95):
    """(low, high) of bootstrap draws along their first axis: the percentile interval; NaN where a
    draw is NaN.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def wilson_interval(right, n, level=0.95):
    """(low, high) of a fraction of right answers, ``right`` of ``n``: the score interval (Wilson
    1927; Agresti & Coull 1998).

    It lies in [0, 1] and has a width also at 0 of n, [0, z^2 / (n + z^2)], where the bootstrap has
    none. NaN for n = 0. Numbers or arrays.
    """
    right, n = np.asarray(right, float), np.where(n, n, np.nan)
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, slack = np.clip(right / n, 0, 1), z * z / n
    half = z * np.sqrt(p * (1 - p) / n + slack / (4 * n))
    return np.maximum(0, (p + slack / 2 - half) / (1 + slack))[()], np.minimum(
        1, (p + slack / 2 + half) / (1 + slack)
    )[()]


def score_interval(value, stderr, n, level=0.95):
    """(low, high) of a mean of ``n`` scores in [0, 1]: Wilson's interval at the effective number of
    answers.

    That is the number of answers, each right or wrong, whose mean would have this standard error
    (the sample's, as of ``mean_and_stderr``): 1 + value (1 - value) / stderr^2 (Kish 1965; for the
    score interval Franco et al. 2019). It is ``n`` where all scores are 0 or 1, so that this is
    Wilson's interval itself, and more for scores in between, such as pass@k or token F1. All 0 or
    all 1: ``n``. NaN where the error is unknown, is 0 at another value or where a value is not in
    [0, 1]. Numbers or arrays.
    """
    value, stderr, n = np.broadcast_arrays(*(np.asarray(x, float) for x in (value, stderr, n)))
    extreme = (value == 0) | (value == 1)
    known = np.where(extreme, n > 0, (value > 0) & (value < 1) & (stderr > 0))
    effective = np.where(extreme, n, 1 + value * (1 - value) / np.where(stderr > 0, stderr, 1) ** 2)
    low, high = wilson_interval(
        np.where(known, value * effective, np.nan), np.where(known, effective, np.nan), level
    )
    return low, high
