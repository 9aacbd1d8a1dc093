"""The text that --plan prints: what an order will do, and an estimate of time, memory and disk."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.base.console import clock
from harness.base.power import Variation
from harness.learning.moments import EIGHT_BITS, MOMENT_BYTES
from harness.models.chat import stop_tokens
from harness.models.checkpoint import check_saving
from harness.models.load import check_tokens, empty_model, load_tokenizer, resolve_device
from harness.results.formats import OF_SEQUENCE
from harness.results.overlap import sentence
from harness.results.writer import ResultsWriter
from harness.runs.context import check_context
from harness.runs.cost import GIB
from harness.runs.engines import advice, take_products
from harness.runs.estimate import estimate_order
from harness.runs.measuring_cost import example_count
from harness.runs.methods import MethodSpec
from harness.runs.order import Order
from harness.runs.order_cost import OrderCost, StageCost
from harness.runs.power import power_lines
from harness.runs.references import without_runs
from harness.sampling.vllm import KV_CACHE_GIB


def plan(
    order: Order,
    folder: str | Path,
    measured: Mapping[str, tuple[Variation, int]] | None = None,
) -> str:
    """The text that --plan prints; measured: see ``power_lines``.

    Loads the tokenizer and the model's configuration, no weights; a GPU is timed with random ones
    (``measured_speeds``). Raises UserError for what would
    stop the start as well: a model that cannot be had, or a folder of another order.
    """
    take_products(order, Path(folder))
    place = f"{order.path}: model"
    model = order.model
    tokenizer, source = load_tokenizer(model.name, model.revision, place, model.template)
    notes = order.check_prompts(tokenizer) + check_context(order, tokenizer, source)
    shape = model_shape(order, source, place)
    check_tokens(order.model.name, shape, tokenizer, place)
    stop_tokens(shape, tokenizer, place)
    check_saving(shape, tokenizer, place)
    check_models(order.methods.values(), order, shape, tokenizer)
    results = ResultsWriter(folder)
    if (results.folder / "results.json").exists():
        results.check(order.about())
    cost = estimate_order(order, tokenizer, shape, results)
    notes = [*without_runs(order), *notes]
    vocabulary: int = shape.config.get_text_config().vocab_size
    lines = [*_head(order, cost), *_table(order, cost), "", *_summary(order, cost, vocabulary)]
    try:
        lines += power_lines(order, cost, results, measured or {})
    except ModuleNotFoundError as error:
        lines.append(f"power: not counted, {error.name} is not installed")
    return "\n".join([*lines, *notes, f"results: {folder}"])


def check_models(
    specs: Iterable[MethodSpec],
    order: Order,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Raises UserError for a method that learns nothing of the model, or cannot be set up.

    model: may be on the meta device.
    """
    for spec in specs:
        spec.check_model(model, tokenizer, order.chat_template.inputs("student"))


def model_shape(order: Order, source: str, place: str) -> PreTrainedModel:
    """The order's model on the meta device: sizes without weights."""
    spec = order.model
    return empty_model(spec.name, source, spec.revision, order.dtype(), place)


def _head(order: Order, cost: OrderCost) -> Iterator[str]:
    dtype = str(order.dtype()).removeprefix("torch.")
    runs = order.runs()
    references = sum(bool(run.reference) for run in runs)
    yield (
        f"{order.name}: {len(runs)} runs "
        f"({len(order.methods)} methods x {len(order.seeds)} seeds"
        f"{'' if '' in order.sequences else f' x {len(order.sequences)} sequences'}"
        f"{f', {references} references of one stage' if references else ''}), "
        f"{len(order.skills)} stages each, "
        f"model {order.model.name} ({cost.parameters / 1e6:.0f}M parameters, {dtype})"
    )
    yield ""


def _table(order: Order, cost: OrderCost) -> Iterator[str]:
    width = max(16, *(len(_name(stage)) + 2 for stage in cost.stages))
    yield (
        f"{'method':<{width}}{'skill':<18}{'prompts':>8}{'batch':>7}{'steps':>7}"
        f"{'evaluations':>13}{'about':>10}"
    )
    for stage in cost.stages:
        yield _row(stage, width)


def _name(stage: StageCost) -> str:
    sequence = f"{OF_SEQUENCE}{stage.sequence}" if stage.sequence else ""
    return f"{stage.label}{sequence} {stage.reference}".rstrip()


def _row(stage: StageCost, width: int) -> str:
    return (
        f"{_name(stage):<{width}}{stage.skill:<18}{stage.prompts:>8}{stage.batch_size:>7}"
        f"{stage.steps:>7}{stage.evaluations:>13}{clock(stage.seconds):>10}"
        + ("  measured" if stage.is_measured else "")
    )


def _summary(order: Order, cost: OrderCost, vocabulary: int) -> Iterator[str]:
    """The lines below the table."""
    yield _evaluations_line(order, cost)
    yield from _further_lines(order, cost)
    yield from _trained_lines(order, cost)
    yield from _shown_lines(cost)
    yield from _kept_lines(cost)
    yield from _sequence_lines(order, cost)
    yield from _grid_lines(order)
    for overlap in order.overlaps:
        yield f"overlap of test and train: {sentence(overlap)}"
    yield from _judge_lines(order, cost)
    yield (
        f"time: about {clock(cost.seconds)} on this machine "
        f"({cost.machine})" + (", retention not counted" if cost.uncounted else "")
    )
    yield "memory: about " + ", ".join(
        f"{_amounts(peak)} for {label}" for label, peak in cost.memory.items()
    )
    yield from _choice_lines(order, cost)
    for label, passes in cost.passes.items():
        again = ", layers computed again" if passes.recomputed else ""
        yield f"passes: {passes.tokens:,} tokens for {label}{again}, by what is free now"
    weights = cost.parameters * order.dtype().itemsize
    yield from _engine_lines(order, weights, vocabulary)
    yield _disk_line(order, cost, weights)


def _choice_lines(order: Order, cost: OrderCost) -> Iterator[str]:
    """What AdamW's moments in 8 bits mean, and what other choices take on a GPU."""
    for label, spec in order.methods.items():
        if spec.config.moments == EIGHT_BITS:
            each = MOMENT_BYTES[EIGHT_BITS]
            yield (
                f"moments of {label}: 8 bits, {each:.2f} bytes a number for 8; numbers near "
                "AdamW's, not its own"
            )
    for label, choices in cost.choices.items():
        for what in dict.fromkeys(what for what, _ in choices):
            peaks = ", ".join(
                f"{_amounts(peak)} with {masters}"
                for (of, masters), peak in choices.items()
                if of == what
            )
            yield f"masters of {label}{f', {what}' if what else ''}: {peaks}"


def _amounts(peak: tuple[float, float]) -> str:
    device, host = peak
    return f"{device:.1f} GiB" + (f" and {host:.1f} GiB in host memory" if host else "")


def _evaluations_line(order: Order, cost: OrderCost) -> str:
    line = f"evaluations: {cost.evaluations}, {cost.answers:,} answers in all"
    tasks = len(order.suite.tasks) if order.suite else 0
    if tasks:
        line += f"; {tasks} retention task{'s' * (tasks > 1)} after each stage, "
        line += (
            f"not counted ({cost.uncounted})"
            if cost.uncounted
            else f"about {clock(cost.retention)} each time"
        )
    if order.suite and not cost.uncounted and (continuous := order.suite.with_margins()):
        line += f"; of {continuous} also margin (nats) and probability, from the same passes"
    return line


def _further_lines(order: Order, cost: OrderCost) -> Iterator[str]:
    """pass@k, KL, drift, teacher and oracle, where the order asks for them."""
    skills = cost.skills.values()

    def line(text: str, seconds: float) -> str:
        return f"{text}; about {clock(seconds)} for each skill once"

    if order.pass_at_k:
        prompts = order.pass_at_k.prompts or "all"
        text = f"pass@k: {order.pass_at_k.samples} answers to each of {prompts} prompts"
        yield line(text, sum(skill.pass_at_k for skill in skills))
    if order.kl:
        text = "KL to the base policy: a second copy of the model in memory meanwhile"
        yield line(text, sum(skill.kl for skill in skills))
    if order.drift:
        what = f"{order.drift.prompts} prompts"
        if order.drifts:
            what += f" of each kind ({', '.join(order.drift.along)})"
        most = "at most about" if "old" in order.drifts else "about"
        yield f"drift from the base on {what}: {most} {clock(cost.drift)} each time"
    if order.evaluate.teacher:
        text = "accuracy of the teacher: once, at the base"
        yield line(text, sum(skill.teacher for skill in skills))
    if order.evaluate.oracle:
        answers = sum(skill.oracle_answers for skill in skills)
        text = f"oracle retrieval: once, at the base, {answers:,} answers"
        yield line(text, sum(skill.oracle for skill in skills))


LOW_RATE = 5e-5  # up to which a learning rate is one for all weights


def _trained_lines(order: Order, cost: OrderCost) -> Iterator[str]:
    """What methods train that do not train all weights."""
    counts = {stage.label: stage.trained for stage in cost.stages}
    for label, spec in order.methods.items():
        if spec.parameters is None:
            continue
        line = f"parameters: {label} trains {counts[label]:,} numbers ({spec.parameters.name})"
        rate = spec.config.learning_rate
        if spec.parameters.cls.makes and rate <= LOW_RATE:
            line += f"; learning_rate {rate:g} suits all weights, adapters want about 10 times it"
        yield line


def _shown_lines(cost: OrderCost) -> Iterator[str]:
    """What methods read before each question that is evaluated."""
    lines = [
        f"{stage.label}: demonstrations of about {stage.shown:.0f} tokens before each "
        f"question of {stage.skill}"
        for stage in cost.stages
        if stage.shown
    ]
    yield from dict.fromkeys(lines)  # stages of other sequences and references repeat them


def _sequence_lines(order: Order, cost: OrderCost) -> Iterator[str]:
    """What each sequence of ``orders`` is, and what its runs take with those that relearn."""
    runs = order.runs()
    for name, stages in cost.sequences.items():
        skills = ", ".join(skill.name for skill in order.in_sequence(name))
        count = sum(run.sequence == name for run in runs)
        seconds = sum(stage.seconds for stage in stages) * cost.seeds
        yield f"sequence {name}: {skills}; {count} runs, about {clock(seconds)}"


def _kept_lines(cost: OrderCost) -> Iterator[str]:
    """What methods, parts and parametrisations keep for later stages: the most of all stages."""
    most: dict[tuple[str, str], tuple[float, float]] = {}
    for stage in cost.stages:
        for holder, (size, rows) in stage.held.items():
            before = most.get((stage.label, holder), (0.0, 0.0))
            most[stage.label, holder] = (max(size, before[0]), max(rows, before[1]))
    for (label, holder), (size, rows) in most.items():
        if size or rows:
            amount = f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"
            also = f", {rows:.0f} rows with gold answers" if rows else ""
            yield f"{label}: {holder} keeps about {amount} between stages{also}"


def _grid_lines(order: Order) -> Iterator[str]:
    labels = [spec.grid_of for spec in order.methods.values() if spec.grid_of]
    for label in dict.fromkeys(labels):
        yield (
            f"grid of {label}: {labels.count(label)} points; "
            "the best on the validation split is the one reported"
        )


def _judge_lines(order: Order, cost: OrderCost) -> Iterator[str]:
    """How many verdicts a judge is asked for; without a judge, what grades in its place.

    Equal answers to a question are judged once, so there may be fewer verdicts.
    """
    verdicts: dict[str, int] = {}
    for skill in order.skills:
        if not skill.judge:
            continue
        if order.judge is None:
            yield f"judge: none is configured; {skill.name} is graded by {skill.metric}"
            continue
        for split in order.splits(skill):
            oracle = order.evaluate.oracle and split in order.reported(skill)
            times = cost.times[skill.name] + oracle
            answers = example_count(skill, split, order.evaluate.examples)
            verdicts[f"{skill.name} {split}"] = answers * times
    if order.judge is not None and verdicts:
        parts = ", ".join(f"{where} {count:,}" for where, count in verdicts.items())
        yield f"judge {order.judge.model}: at most {sum(verdicts.values()):,} verdicts ({parts})"


def _engine_lines(order: Order, weights: int, vocabulary: int) -> Iterator[str]:
    """What vLLM costs, or would spare; weights: bytes of the model; vocabulary: tokens."""
    device = resolve_device(order.model.device)
    if line := advice(order, device):
        yield line
    uses = [
        name
        for name, section in (("rollouts", order.rollout), ("evaluation", order.evaluate))
        if section.engine == "vllm"
    ]
    if uses:
        on_gpu = torch.device(device).type != "cpu"
        room = order.vllm.kv_cache_gib or KV_CACHE_GIB["cuda" if on_gpu else "cpu"]
        asleep = order.vllm.asleep(vocabulary) / GIB
        yield (
            f"vLLM for {' and '.join(uses)}: {weights / GIB + room:.1f} GiB "
            + (f"of it, {asleep:.1f} GiB while the model learns" if on_gpu else "on top")
        )


def _disk_line(order: Order, cost: OrderCost, weights: int) -> str:
    """weights: bytes of one checkpoint.

    While a run goes on there are two checkpoints of its stage, one of them being written: weights,
    the state of the optimizer, the method's copies of the model in float32, and what the method
    remembers.
    """
    keep = order.checkpoints.keep
    runs = order.runs()
    sequences = sum(not run.reference for run in runs)
    weights_kept = {"last": sequences, "all": sum(len(run.stages) for run in runs), "none": 0}[keep]
    kept = 0.0  # The last stage of a run keeps nothing for a later one.
    if keep == "all":
        stages = [stage for stage in cost.stages if not stage.is_last]
        kept = sum(stage.kept for stage in stages) * len(order.seeds)  # of a reference it is 0
    at_end = weights_kept * weights + kept
    at_most = at_end + 2 * max(weights + stage.state + stage.kept for stage in cost.stages)
    what = "weights and of what methods keep" if kept else "weights"
    return f"disk: {at_end / GIB:.1f} GiB of {what} when done, {at_most / GIB:.1f} GiB at most"
