"""What an order asks to load: its model, its samplers, its evaluator."""

from contextlib import contextmanager

import torch

from harness.evaluation.evaluator import Evaluator
from harness.models.load import load_model
from harness.sampling.settings import REMEDY, version
from harness.sampling.transformers import TransformersSampler
from harness.sampling.vllm import Engine, VLLMSampler


@contextmanager
def engine_for(order):
    """vLLM's engine for as long as ``order`` runs, where it asks for it, else None; it starts with
    its first use.
    """
    engine = None
    if "vllm" in (order.rollout.engine, order.evaluate.engine):
        engine = Engine(order.vllm, order.rollout.temperature)
    try:
        yield engine
    finally:
        if engine:
            engine.close()


def sampler_for(section, engine, model, tokenizer):
    """What samples for a section of the order, its rollout or evaluate."""
    return (
        VLLMSampler(engine, model, tokenizer)
        if section.engine == "vllm"
        else TransformersSampler(model, tokenizer, section.batch_size)
    )


def evaluator_for(order, results):
    return Evaluator(
        results,
        order.suite,
        order.evaluate,
        {s.name: order.limit(s) for s in order.skills},
        {s.name: order.template(s) for s in order.skills},
    )


def load_order_model(order, source=None):
    """The order's model and tokenizer, or those of a checkpoint in folder ``source``."""
    spec = order.model
    return load_model(
        str(source) if source else spec.name,
        spec.dtype,
        spec.device,
        None if source else spec.revision,
        str(source) if source else f"{order.path}: model",
    )


def advice(order, device):
    """One line for a machine on which vLLM would sample faster than what ``order`` asks for; None
    elsewhere.
    """
    if torch.device(device).type != "cuda" or order.rollout.engine == "vllm":
        return None
    return "rollouts are sampled by transformers; vLLM is faster on a GPU: rollout.engine=vllm" + (
        "" if version() else f", after {REMEDY.split(',')[0]}"
    )
