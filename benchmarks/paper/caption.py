"""The caption of a measured picture or table: what was run, and how it was measured."""

from collections import defaultdict

from benchmarks.paper.estimates import trained_models
from benchmarks.paper.measured import model_name, unjudged
from benchmarks.paper.training import spending
from harness.report.data import ReportData

INTERVALS = (
    "Intervals: 95%, over examples and seeds, from values and standard errors; of one run over "
    "examples alone; Wilson's for an accuracy; of a difference of methods, paired by both."
)


def caption(orders: list[ReportData]) -> str:
    """A paragraph: what each order ran, and what the intervals are."""
    return " ".join([*map(_order, orders), INTERVALS])


def _order(results: ReportData) -> str:
    """Model, skills, methods, seeds, split, n, decoding and KL direction of one order."""
    seeds = sorted({run.seed for runs in results.runs.values() for run in runs})
    parts = [
        f"{' and '.join(results.names)}: {_model(results)}",
        f"skills {', '.join(_skills(results))}",
        f"methods {', '.join(results.series)}",
        f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds)) or 'none'}",
        ", ".join([f"split {results.split}", *_counts(results), *_decodings(results)]),
        *(f"{skill}: {results.metric[skill]}, not judged" for skill in unjudged(results)),
    ]
    directions = [
        f"{label} {series.config['divergence']}"
        for label, series in results.series.items()
        if series.config.get("divergence")
    ]
    if directions:
        parts.append(f"KL direction: {', '.join(directions)}")
    selections = [series.selected for series in results.series.values() if series.selected]
    return " ".join(["; ".join(parts) + ".", *selections])


def _model(results: ReportData) -> str:
    head = results.heads[0]
    model = head.get("model")
    dtype = model.get("dtype") if isinstance(model, dict) else None
    return model_name(head) + (f" ({dtype})" if dtype else "")


def _counts(results: ReportData) -> list[str]:
    """The number of examples of each skill."""
    counts = {skill: results.n.get(("skill", skill)) for skill in results.skills}
    return [f"{skill} n = {n}" for skill, n in counts.items() if n is not None]


def _decodings(results: ReportData) -> list[str]:
    decodings = set()
    for skill in results.skills:
        key = results.protocol_of.get(("skill", skill), "")
        protocol = results.protocols.get(key) or {}
        if protocol.get("decoding"):
            decodings.add(str(protocol["decoding"]))
    return sorted(decodings)


def _skills(results: ReportData) -> list[str]:
    """Each skill with the prompts and steps of its stage, by method where methods differ."""
    methods: dict[str, dict[str, list[str]]] = {
        skill: defaultdict(list) for skill in results.skills
    }
    for model in trained_models(results):
        spent = spending(results, model)
        if spent.known:
            budget = f"{spent.prompts:.0f} prompts, {spent.steps:.0f} steps"
            methods[model.skill][budget].append(model.series)
    return [
        f"{skill} ({_budgets(of_budget)})" if of_budget else skill
        for skill, of_budget in methods.items()
    ]


def _budgets(methods: dict[str, list[str]]) -> str:
    """methods: the labels that had each budget."""
    if len(methods) == 1:
        return next(iter(methods))
    return "; ".join(f"{', '.join(labels)}: {budget}" for budget, labels in methods.items())
