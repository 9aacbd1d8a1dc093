"""Runs as a crossing of seeds and sequences of skills: the levels of an interval.

The variance by level (harness.base.intervals) wants every seed with every sequence. Where a run is
missing, the mean and its interval are of the largest part that is crossed. Where more runs have
each a seed and a sequence of their own, it is of these, and seed and sequence are one level.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from harness.report.measurements import RunId

SEEDS, ORDERS = "seeds", "orders"
OF_ORDERS = (
    "Several sequences of the skills are a level beside the seeds, or in their place with one seed."
)
OF_RUNS = "Each run has a seed and a sequence of its own: where seeds are named, both are meant."


class Crossing(NamedTuple):
    """places: of the runs that count, seeds first; shape: (seeds,) or (seeds, sequences)."""

    places: list[int]
    shape: tuple[int, ...]

    @property
    def levels(self) -> tuple[str, ...]:
        return (SEEDS, ORDERS)[: len(self.shape)]


def crossing(runs: Sequence[RunId]) -> Crossing:
    """The largest crossing among runs; of equal ones that with more sequences.

    Runs of one sequence are all of it, in their order. More runs than that of which no two share a
    seed or a sequence are one level, as seeds are.
    """
    counts = Counter(run.sequence for run in runs)
    if not any(counts):
        return Crossing(list(range(len(runs))), (len(runs),))
    place = {run.key: i for i, run in enumerate(runs)}
    names = [name for name, _ in counts.most_common()]  # in the order of runs where equal
    seeds = list(dict.fromkeys(run.seed for run in runs))
    best: list[list[int]] = []
    for k in range(1, len(names) + 1):
        whole = [seed for seed in seeds if all((seed, name) in place for name in names[:k])]
        if len(whole) * k >= sum(map(len, best)) and whole:
            best = [[place[seed, name] for name in names[:k]] for seed in whole]
    places = [i for of_seed in best for i in of_seed]
    if min(len(seeds), len(names)) > len(places):
        apart = _apart(place, seeds, names)
        if len(apart) > len(places):
            return Crossing(apart, (len(apart),))
    return Crossing(places, np.shape(best))


def are_apart(runs: Sequence[RunId]) -> bool:
    """Whether several runs have each a seed and a sequence of their own."""
    seeds, names = {run.seed for run in runs}, {run.sequence for run in runs}
    return len(seeds) == len(names) == len(runs) > 1


def number_of(runs: Sequence[RunId]) -> str:
    """How many there are, in words: the seeds, and the sequences they are crossed with."""
    if are_apart(runs):
        return f"{len(runs)} runs, each with a seed and a sequence of its own"
    sequences = len({run.sequence for run in runs})
    crossed = f" x {sequences} sequences" if runs[0].sequence else ""
    return f"{len(runs) // sequences} seeds{crossed}"


def _apart(
    place: Mapping[tuple[int, str], int], seeds: Sequence[int], names: Sequence[str]
) -> list[int]:
    """Places of as many runs as there are without a seed or a sequence in common."""
    from scipy.sparse import csgraph, csr_array  # reports want it; a run goes on without

    has_run = csr_array([[int((seed, name) in place) for name in names] for seed in seeds])
    of_seeds = csgraph.maximum_bipartite_matching(has_run, perm_type="column").tolist()
    pairs = zip(seeds, of_seeds, strict=True)
    return sorted(place[seed, names[name]] for seed, name in pairs if name >= 0)
