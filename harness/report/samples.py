"""A few completions of every skill and method, followed through the stages, for the page."""

from typing import TypedDict

from harness.report.data import ReportData
from harness.results.folders import Json

MOST = 240  # questions on a page
EACH = 3  # questions of a skill and method
STAGES = 5  # of a longer order only base, own stage and end are shown
TEXT = 1200  # letters of a text

Evaluations = dict[int, dict[str, Json]]  # {stage: {item id: item}}


class Answer(TypedDict):
    """An answer after ``stage``, which taught the skill ``name`` (stage 0: base)."""

    stage: int
    name: str
    completion: str
    score: float | None
    finished: bool


class Question(TypedDict):
    id: str
    prompt: str
    reference: str
    answers: list[Answer]


class Group(TypedDict):
    """The questions of one skill, answered by one run of a method."""

    label: str
    skill: str
    seed: int
    sequence: str
    items: list[Question]


def choose(results: ReportData) -> list[Group]:
    """Questions of every skill and method, from the first run that has evaluations on disk.

    Questions whose score changed come first: one learned and kept, one lost again, one never
    learned.
    """
    groups: list[Group] = []
    room = MOST
    for name in results.skills:
        for label, series in results.series.items():
            if name not in series.order or room <= 0:
                continue
            if group := _group(results, label, name, min(EACH, room)):
                groups.append(group)
                room -= len(group["items"])
    return groups


def _group(results: ReportData, label: str, skill: str, most: int) -> Group | None:
    """At most ``most`` questions of the first run of a label that has any; None without one."""
    metric = results.metric[skill]
    for run, each in enumerate(results.runs[label]):
        order = results.order_of(label, run)
        own = order.index(skill) + 1
        evaluations = _evaluations(results, label, run, own)
        if evaluations:
            ids = _pick(evaluations, metric, own)
            items = [_follow(evaluations, item, metric, order) for item in ids[:most]]
            return Group(
                label=label, skill=skill, seed=each.seed, sequence=each.sequence, items=items
            )
    return None


def _evaluations(results: ReportData, label: str, run: int, own: int) -> Evaluations:
    """The items with a completion of the skill that stage ``own`` teaches, at the stages shown."""
    folder = results.runs[label][run].folder
    T = len(results.series[label].order)
    stages = range(T + 1) if T <= STAGES else sorted({0, own, T})
    evaluations = {}
    for stage in stages:
        evaluation = results.evaluation(folder, results.keys["R", label][run, stage, own - 1])
        items = evaluation.get("items") or []
        answered = {str(item.get("id")): item for item in items if "completion" in item}
        if answered:
            evaluations[stage] = answered
    return evaluations


def _pick(evaluations: Evaluations, metric: str, own: int) -> list[str]:
    """Ids of the EACH items that show most: one of each kind first, then the next of each."""
    first = min(evaluations)
    last = max(evaluations)
    stages = (first, own if own in evaluations else last, last)
    kinds: dict[int, list[str]] = {}
    for item in evaluations[first]:
        scores = [_score(evaluations[stage].get(item), metric) for stage in stages]
        right = [score >= 0.5 for score in scores if score is not None]
        if len(right) == len(stages):
            kinds.setdefault(_kind(*right), []).append(item)
    ids = [
        of_kind[n] for n in range(EACH) for _, of_kind in sorted(kinds.items()) if n < len(of_kind)
    ]
    return (ids or list(evaluations[first]))[:EACH]


def _kind(base: bool, taught: bool, end: bool) -> int:
    """The kind of an item that was right (or wrong) at the base, its own stage and the end."""
    if taught and end and not base:
        return 0  # learned and kept
    if taught and not end:
        return 1  # lost again
    if not taught and not end:
        return 2  # never learned
    return 3


def _follow(evaluations: Evaluations, item: str, metric: str, order: tuple[str, ...]) -> Question:
    """One item with its answers at all stages."""
    answers: list[Answer] = []
    latest: Json = {}
    for stage, items in sorted(evaluations.items()):
        if item not in items:
            continue
        latest = items[item]
        answers.append(
            Answer(
                stage=stage,
                name="base" if stage == 0 else order[stage - 1],
                completion=cut(latest.get("completion")),
                score=_score(latest, metric),
                finished=latest.get("finished", True),
            )
        )
    return Question(
        id=item,
        prompt=cut(latest.get("prompt")),
        reference=cut(latest.get("reference")),
        answers=answers,
    )


def _score(item: Json | None, metric: str) -> float | None:
    value = ((item or {}).get("scores") or {}).get(metric)
    return None if value is None else float(value)


def cut(text: object) -> str:
    """A text of at most TEXT letters, with a note on what is cut off."""
    text = "" if text is None else str(text)
    return text if len(text) <= TEXT else text[:TEXT] + f" … ({len(text) - TEXT} more letters)"
