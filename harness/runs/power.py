"""What --plan says of power: the smallest differences that would be told, and what tells smaller.

By how the numbers of finished runs vary, where there are some. Else by accuracies of 50%, where
answers vary most, of retention tasks by the base model's on record, and by how differences varied
in the committed figure 3 (three skills, three methods, three seeds; ``TYPICAL``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.base.console import clock
from harness.base.errors import UserError
from harness.base.metrics import in_unit_interval
from harness.base.power import Sizes, Variation, budgets
from harness.results.formats import SINGLE
from harness.results.writer import ResultsWriter
from harness.runs.measuring_cost import example_count
from harness.runs.order import Order
from harness.runs.order_cost import OrderCost

WIDEST = 0.5  # the accuracy at which answers vary most
WORDS = {"retention": "retention Δ", "skills": "mean accuracy between two methods"}


@dataclass(frozen=True)
class Typical:
    """How differences of accuracy vary.

    items, both: variance of one question's difference, over all seeds and by seed, as a share of
    p (1 - p) at accuracy p; seeds: standard deviation of the mean by seed.
    """

    items: float
    both: float
    seeds: float


# Medians over methods, or over pairs of them: python -m benchmarks.coverage --typical FOLDER
TYPICAL = {"retention": Typical(0.35, 0.13, 0.007), "skills": Typical(0.24, 0.53, 0.022)}


@dataclass(frozen=True)
class Measure:
    """The tests of one key of ``power``: their questions, how many there are, and the basis.

    counts: questions of each test; most: how many times these the tests have at least; seconds: of
    measuring them once.
    """

    counts: dict[str, int]
    most: float
    seconds: float

    def variation(self, typical: Typical, accuracies: Mapping[str, float]) -> Variation:
        """Of the mean over the tests; accuracies: of the base model, by test."""
        share = share_of_answers(self.counts, accuracies)
        total = sum(self.counts.values())
        return Variation(typical.items * share, typical.seeds**2, typical.both * share, total)


def share_of_answers(counts: Mapping[str, int], accuracies: Mapping[str, float]) -> float:
    """The sum of p (1 - p) / n / tests^2: the variance of a mean over tests by its answers.

    p is the accuracy with one more right and one more wrong, 1/2 where it is not known: a model
    that is right nowhere may change too.
    """
    total = 0.0
    for name, count in counts.items():
        p = (accuracies.get(name, WIDEST) * count + 1) / (count + 2)
        total += p * (1 - p) / count / len(counts) ** 2
    return total


def power_lines(
    order: Order,
    cost: OrderCost,
    results: ResultsWriter,
    measured: Mapping[str, tuple[Variation, int]],
) -> Iterator[str]:
    """measured: how the numbers vary in finished runs of the folder, and their seeds."""
    seeds = len(order.seeds)
    base = _base_accuracies(results, order)
    for key, measure in _measures(order, cost).items():
        if not measure.counts or (key == "skills" and len(order.methods) < 2):
            continue
        if key in measured:
            variation, of_seeds = measured[key]
            basis = f"by {of_seeds} seed{'s' * (of_seeds > 1)} of this folder"
        else:
            # Methods take a skill away from where the base model is, and retention tasks hardly.
            known = key == "retention" and all(name in base for name in measure.counts)
            variation = measure.variation(TYPICAL[key], base if known else {})
            basis = "base model's accuracies" if known else "accuracies of 50%"
            basis += "; typical spread of changes"
        told = 100 * variation.detectable(seeds)
        if seeds == 1:
            basis += "; what another seed changes is not in it"
            if variation.seeds:
                basis += f", with it 3 seeds tell {100 * variation.detectable(3):.1f}"
        yield (
            f"power: {WORDS[key]} of {told:.1f} points would be told (80%, two-sided 5%; {basis})"
        )
        wanted = getattr(order.power, key)
        target, what = (wanted, f"{wanted:g} points") if wanted else (told / 2, "half of it")
        ways = budgets(variation, seeds, target / 100)
        yield f"  {what}: {_ways(list(ways.values()), seeds, cost, measure)}"


def _ways(ways: Sequence[Sizes], seeds: int, cost: OrderCost, measure: Measure) -> str:
    if not ways:
        return "not within 40 seeds or 40 times the questions"
    if ways[0] == Sizes(seeds, 1.0):
        return "told by this order as it is"
    texts = []
    for budget in ways:
        times = cost.seconds * budget.seeds / seeds
        stages = sum(stage.reference != SINGLE for stage in cost.stages) * budget.seeds
        times += (budget.times - 1) * measure.seconds * (1 + stages)
        text = f"{budget.text(seeds)} ({clock(times)}"
        if budget.times > measure.most:
            text += f"; the tests have {measure.most:.1f} times"
        texts.append(text + ")")
    return ", or ".join(texts)


def _measures(order: Order, cost: OrderCost) -> dict[str, Measure]:
    split, most = order.evaluate.split, order.evaluate.examples
    counts = {skill.name: example_count(skill, split, most) for skill in order.skills}
    whole = {skill.name: example_count(skill, split, None) for skill in order.skills}
    seconds = sum(skill.evaluation for skill in cost.skills.values())
    tasks, documents = _tasks(order)
    return {
        "retention": Measure(tasks, _least(documents, tasks), cost.retention),
        "skills": Measure(counts, _least(whole, counts), seconds),
    }


def _least(whole: Mapping[str, int], counts: Mapping[str, int]) -> float:
    return min((whole[name] / counts[name] for name in counts), default=1.0)


def _tasks(order: Order) -> tuple[dict[str, int], dict[str, int]]:
    """(documents that are measured, documents there are) of the retention tasks of accuracy."""
    counts: dict[str, int] = {}
    whole: dict[str, int] = {}
    for entry in order.suite.tasks if order.suite else ():
        if not in_unit_interval(entry.metric, (), entry.higher_is_better):
            continue
        try:
            tasks = order.suite.load(entry)["tasks"].values() if order.suite else ()
        except UserError:  # the plan says that its time is not counted, and why
            return {}, {}
        sizes = [len(task.eval_docs) for task in tasks]
        whole[entry.task] = sum(sizes)
        counts[entry.task] = sum(min(size, entry.limit or size) for size in sizes)
    return counts, whole


def _base_accuracies(results: ResultsWriter, order: Order) -> dict[str, float]:
    """{task: the base model's accuracy on record}."""
    from harness.results.reader import read_records  # by pandas, which a bare image lacks

    records, _ = read_records(results.folder / "records.jsonl")
    metrics = {task.task: task.metric for task in (order.suite.tasks if order.suite else ())}
    at_base = records[(records["stage"] == 0) & records["value"].between(0, 1)]
    return {
        str(name): float(value)
        for name, metric, value in zip(
            at_base["name"], at_base["metric"], at_base["value"], strict=True
        )
        if metrics.get(name) == metric
    }
