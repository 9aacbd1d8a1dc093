"""Names for people: of models, of metrics and of measures. The machine's name stands behind each.

A page shows these and says the machine's name where one points at them; files keep the machine's.
"""

from collections.abc import Iterable

# Models that come without a hub: (name on the hub, licence there).
EMBEDDED = {
    "embedded": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    "gemma-3-270m": ("google/gemma-3-270m-it", "gemma"),
}
METRICS = {
    "acc": "accuracy",
    "acc_norm": "accuracy by letter",  # lm-eval divides likelihoods by the letters of a choice
    "bits_per_byte": "bits per byte",
    "byte_perplexity": "perplexity a byte",
    "word_perplexity": "perplexity a word",
    "exact": "exact match",
    "exact_match": "exact match",
    "f": "F1 of tokens",
    "inst_level_loose_acc": "instructions followed",
    "inst_level_strict_acc": "instructions followed strictly",
    "prompt_level_loose_acc": "prompts followed",
    "prompt_level_strict_acc": "prompts followed strictly",
    "kl_forward_token": "KL from the base, a token",
    "kl_forward_sequence": "KL from the base, an answer",
    "kl_reverse_token": "KL to the base, a token",
    "kl_reverse_sequence": "KL to the base, an answer",
    "lenient": "lenient match",
    "strict": "strict match",
    "mcc": "Matthews correlation",
    "response_tokens": "tokens an answer",
    "pass": "pass@1",
}
MEASURES = {  # headings of columns
    "ACC": "accuracy at the end",
    "BWT": "earlier skills since learned",
    "Forgetting": "forgetting since best",
    "FWT": "later skills before their stage",
    "LA": "accuracy when learned",
    "mean gain": "learned",
    "Retention Δ": "prior abilities",
    "retention Δ": "prior abilities",
}
PREFIXES = {"oracle": "with the answer shown", "teacher": "of the teacher"}


def model_name(name: str) -> str:
    """A base model without its owner and folder: SmolLM2-135M-Instruct for ``embedded``."""
    first, blank, rest = name.partition(" ")  # behind it a revision may stand
    hub = EMBEDDED.get(first, (first,))[0].rstrip("/")
    return (hub.rpartition("/")[2] or first) + blank + rest


def model_names(names: Iterable[str]) -> dict[str, str]:
    """{name: model_name}; all as they are where two would have the same."""
    short = {name: model_name(name) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def metric_name(metric: str) -> str:
    """A metric as people read it; lm-eval's filter is left out where it is none."""
    name, _, kept = metric.partition(",")
    prefix, _, rest = name.partition("_")
    if prefix in PREFIXES and rest:
        return f"{metric_name(metric[len(prefix) + 1 :])}, {PREFIXES[prefix]}"
    words = METRICS.get(name, name.replace("_", " "))
    return words if kept in ("", "none") else f"{words} ({kept})"


def both_names(metric: str) -> str:
    """A metric as people read it, the machine's name behind it where that is another."""
    words = metric_name(metric)
    return words if words == metric else f"{words} ({metric})"


def measure_name(heading: str) -> str:
    """A heading of a table as people read it."""
    return MEASURES.get(heading, heading)
