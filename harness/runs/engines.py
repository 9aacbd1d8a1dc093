"""What an order asks to load: its model, its samplers, its evaluator."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.base.console import Progress
from harness.base.errors import UserError
from harness.base.files import read_json
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.settings import Evaluate
from harness.models import ranks
from harness.models.flex import FLEX, attend_by_flex, keep_flex
from harness.models.load import load_model, prepare_device, read_model, resolve_device
from harness.models.products import (
    PLAIN,
    Products,
    fixed_products,
    keep_products,
    measured_products,
)
from harness.models.sharded import shard
from harness.results.formats import PRODUCTS, check_shape
from harness.results.writer import ResultsWriter
from harness.runs.order import Order
from harness.sampling.settings import REMEDY, Rollout, version
from harness.sampling.transformers import (
    GRAPHS,
    OWN_WAYS,
    TransformersSampler,
    allow_graphs,
    way_of,
)
from harness.sampling.vllm import Engine, VLLMSampler


def samples_by_vllm(order: Order) -> bool:
    """Whether rollouts or evaluations of an order are vLLM's."""
    return "vllm" in (order.rollout.engine, order.evaluate.engine)


def check_copies(order: Order, on_machine: int) -> None:
    """Raises UserError where the ranks of a machine do not make whole copies of vLLM's weights."""
    of_copy, place = order.vllm.tensor_parallel_size, f"{order.place}: vllm.tensor_parallel_size"
    if not samples_by_vllm(order) or on_machine % of_copy == 0:
        return
    if on_machine == 1:
        problem = "one process holds the weights of vLLM whole"
        raise UserError(place, problem, "leave it out, or start by torchrun (docs/how-to/large.md)")
    problem = f"{of_copy} ranks hold a copy of the weights, and a machine has {on_machine}"
    raise UserError(place, problem, f"take a divisor of {on_machine}")


@contextmanager
def engine_for(order: Order) -> Iterator[Engine | None]:
    """vLLM's engine for as long as ``order`` runs, None if it does not ask for one.

    The engine starts with its first use.
    """
    engine = None
    if samples_by_vllm(order):
        engine = Engine(order.vllm, order.rollout.temperature, order.model.deterministic)
    try:
        yield engine
    finally:
        if engine:
            engine.close()


def sampler_for(
    section: Rollout | Evaluate,
    engine: Engine | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> TransformersSampler | VLLMSampler:
    """What samples for a section of the order, its rollout or evaluate."""
    if section.engine == "vllm":
        assert engine is not None  # engine_for starts one for such an order
        return VLLMSampler(engine, model, tokenizer)
    return TransformersSampler(model, tokenizer, section.batch_size)


def evaluator_for(order: Order, results: ResultsWriter) -> Evaluator:
    """What measures for an order."""
    return Evaluator(
        results,
        order.suite,
        order.evaluate,
        limits={skill.name: order.limit(skill) for skill in order.skills},
        templates={skill.name: order.template(skill) for skill in order.skills},
        chat=order.chat_template.inputs("evaluate"),
        teacher_chat=order.chat_template.inputs("teacher"),
    )


def load_order_model(
    order: Order, source: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The order's model and tokenizer, or those of a checkpoint in folder ``source``."""
    tokenizers = []

    def load(name: str, device: str, revision: str | None, place: str) -> PreTrainedModel:
        dtype, template = _dtype(order), order.model.template
        model, tokenizer = load_model(name, dtype, device, revision, place, template)
        tokenizers.append(tokenizer)
        return model

    return _placed(order, source, load), tokenizers[0]


def reload_order_model(order: Order, source: Path | None = None) -> PreTrainedModel:
    """The model of ``load_order_model`` again: one that was looked at when the run began with it.

    Whoever calls it compares the weights with those on record.
    """

    def load(name: str, device: str, revision: str | None, place: str) -> PreTrainedModel:
        return read_model(name, _dtype(order), device, revision, place)

    return _placed(order, source, load)


def _dtype(order: Order) -> str:
    return str(order.dtype()).removeprefix("torch.")


def _placed(
    order: Order, source: Path | None, load: Callable[[str, str, str | None, str], PreTrainedModel]
) -> PreTrainedModel:
    """The model on its device or devices, as the order wants it to compute.

    load: f(name, device, revision, place).
    """
    spec = order.model
    name, revision, place = spec.name, spec.revision, f"{order.path}: model"
    if source:
        ranks.wait()  # rank 0 has written it
        name, revision = str(ranks.real(source)), None
        place = name
    if ranks.active():
        device = torch.device(device_of_rank(order))
        ranks.mesh(device.type)
        with ranks.in_turn():  # the host has one whole model at a time
            model = load(name, "cpu", revision, place)
            shard(model, order.dtype(), device)
        keep_products(model, PLAIN)
        return model
    model = load(name, spec.device, revision, place)
    if order.products:
        keep_products(model, order.products.sampling)
    if spec.decode == GRAPHS:
        allow_graphs(model)
    if spec.attention == FLEX:
        if source:  # of a run whose base model was tried
            keep_flex(model, True)
        else:
            attend_by_flex(model, f"{place}: attention")
    return model


def device_of_rank(order: Order) -> str:
    """The device of this rank's part of the order's model. Raises UserError without a GPU."""
    if torch.device(resolve_device(order.model.device)).type == "cpu":
        return "cpu"
    device = ranks.device()
    if device == "cpu":
        raise UserError(
            f"rank {ranks.index()}",
            f"this machine has {torch.cuda.device_count()} GPUs, fewer than ranks",
            "give torchrun a --nproc-per-node of as many, or model.device=cpu",
        )
    prepare_device(device)
    return device


def take_products(order: Order, folder: Path) -> None:
    """Let ``order`` compute on a CPU as its results folder began, if it has begun.

    A folder from before products were measured goes on in its dtype, with the products that it had.
    Raises UserError where this machine cannot compute so.
    """
    path = folder / "results.json"
    if _is_on_gpu(order) or not path.exists():
        return
    about = read_json(path, remedy="move the folder away and start again")
    model, kept = about.get("model"), about.get("products")
    dtype = model.get("dtype") if isinstance(model, dict) else None
    if dtype not in ("float32", "bfloat16"):
        return  # no folder of a run, which is refused when it is opened
    if kept is None:
        order.products = Products(dtype, fixed_products(getattr(torch, dtype)))
    else:
        check_shape(path, kept, PRODUCTS, "products")
        order.products = Products(**{key: kept.get(key) for key in Products.__annotations__})
    order.products.check(path, order.model.dtype == "auto")


def measure_products(order: Order, model: PreTrainedModel) -> None:
    """Measure how a CPU best computes the order's model, unless that is known; see products.py."""
    if order.products is None and not _is_on_gpu(order):
        order.products = measured_products(model, order.model.dtype == "auto")
        keep_products(model, order.products.sampling)


def _is_on_gpu(order: Order) -> bool:
    return torch.device(resolve_device(order.model.device)).type != "cpu"


def check_sampling(order: Order, model: PreTrainedModel, progress: Progress) -> None:
    """Find the way of sampling of the order's model, and say it where it is the slow one.

    Raises UserError if there is none.
    """
    place = f"{order.path}: model"
    way = way_of(model, place)
    if way not in OWN_WAYS:
        progress.say(
            f"{type(model).__name__} is sampled by transformers' {way}: the harness's faster "
            "sampler does not give this model's own log-probabilities"
        )


def advice(order: Order, device: str | torch.device) -> str | None:
    """One line for a machine on which vLLM would sample faster than what ``order`` asks for."""
    if torch.device(device).type != "cuda" or order.rollout.engine == "vllm":
        return None
    line = "rollouts are sampled by transformers; vLLM is faster on a GPU: rollout.engine=vllm"
    return line if version() else f"{line}, after {REMEDY.split(',')[0]}"
