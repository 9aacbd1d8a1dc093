"""What learning takes: counts and seconds of a stage, and of a run so far."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from harness.base.files import read_json
from harness.results.writer import BEFORE, ResultsWriter


@dataclass(frozen=True)
class Amounts:
    """What learning took: optimizer steps, prompts drawn, tokens, seconds."""

    steps: int = 0
    prompts: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Amounts") -> "Amounts":
        return Amounts(
            self.steps + other.steps,
            self.prompts + other.prompts,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
        )


def amounts_before(results: ResultsWriter, run: str, number: int) -> Amounts:
    """What the stages of a run before stage ``number`` took."""
    total = Amounts()
    for k in range(number):
        path = results.stage(run, k) / "stage.json"
        stage = read_json(path, "steps", "prompts", "tokens", "seconds", remedy=BEFORE)
        seconds = stage["seconds"]["training"] + stage["seconds"]["sampling"]
        total += Amounts(stage["steps"], stage["prompts"], stage["tokens"], seconds)
    return total


def measured_seconds(
    results: ResultsWriter, stem: str, seeds: Iterable[int], number: int
) -> tuple[float, float] | None:
    """Mean seconds of learning, and of all, in stage ``number`` of a folder's runs of all seeds.

    stem: of the runs' names. None if there are none.
    """
    found = []
    for seed in seeds:
        path = results.stage(f"{stem}-seed{seed}", number) / "stage.json"
        if path.exists():
            seconds = read_json(path, "seconds")["seconds"]
            found.append((seconds["training"] + seconds["sampling"], sum(seconds.values())))
    if not found:
        return None
    learning, in_all = zip(*found, strict=True)
    return statistics.fmean(learning), statistics.fmean(in_all)
