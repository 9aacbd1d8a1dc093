"""How long the training passes of a run are: decided once, by what a GPU has free then.

The length of a micro-batch decides in which order gradients are added, so a resumed run must not
find another one.
"""

from collections.abc import Iterable

from harness.base.files import read_json, write_sealed
from harness.models import ranks
from harness.models.flex import FLEX
from harness.models.load import source_of
from harness.models.memory import Passes, free_memory
from harness.models.recompute import can_recompute
from harness.runs.cost import Memory
from harness.runs.estimate import outlooks_of, work_of
from harness.runs.one_run import OneRun
from harness.runs.plan import model_shape
from harness.runs.ranks_cost import PartsMemory
from harness.skills.skill import Skill

REMEDY = "remove it: the run's passes are sized again"


def passes_of(live: OneRun) -> Passes | None:
    """The passes of all stages of a run; None on a CPU, and where a method has its own loop.

    ``passes.json`` in the run's folder has them, from the first stage on that teaches. Before that
    no optimizer and no teacher takes memory, and a sleeping engine has what it keeps.
    """
    method = live.method
    if live.model.device.type == "cpu" or not method.trains or method.has_own_loop:
        return None
    path = live.results.run(live.run.name) / "passes.json"
    kept = {}
    if path.exists():
        kept = read_json(path, "tokens", "recomputed", remedy=REMEDY)
    if kept and kept.get("ranks", 1) == ranks.count():
        return Passes(int(kept["tokens"]), bool(kept["recomputed"]))
    free = min(ranks.gathered(free_memory(live.model.device)))
    stages = _fitting(live, free)
    passes = Passes(min(p.tokens for p in stages), any(p.recomputed for p in stages))
    found = {"tokens": passes.tokens, "recomputed": passes.recomputed, "free": free}
    write_sealed(path, {**found, "ranks": ranks.count()} if ranks.active() else found)
    return passes


def _fitting(live: OneRun, free: int) -> list[Passes]:
    """The passes that fit each stage of the run by itself; free: bytes."""
    order, spec = live.order, live.spec
    shape = model_shape(order, source_of(order.model.name), f"{order.path}: model")
    repeats = order.model.attention != FLEX
    memory = Memory(shape, live.model.dtype, live.model.device, repeats)
    outlooks = outlooks_of(order, live.tokenizer, memory.parameters)
    layered = can_recompute(live.model)
    parts = PartsMemory(shape, memory, ranks.count())
    found = []
    for number, skills in enumerate(live.run.stages, 1):
        own, *_ = _budgets(live, skills)
        earlier = [each for k in live.run.stages[: number - 1] for each in _budgets(live, k)]
        later = len(live.run.stages) - number
        stage = work_of(spec, shape, outlooks, own, later, earlier)
        asked = spec.config, stage.work, stage.trained
        if ranks.active():
            found.append(parts.passes(free + parts.model, *asked))
        else:
            found.append(memory.passes(free, *asked, layered))
    return found


def _budgets(live: OneRun, skills: Iterable[int]) -> list[tuple[Skill, int]]:
    """(skill, its budget) of the skills of a stage, by their numbers."""
    chosen = [live.order.skills[number - 1] for number in skills]
    return [(skill, live.order.prompts(skill, live.spec.config)) for skill in chosen]
