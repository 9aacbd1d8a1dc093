"""How long passes on a GPU are: what training takes beside them, and what a resumed run finds."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, LlamaConfig

from harness.base.errors import UserError
from harness.base.files import write_sealed
from harness.learning.outlook import Work
from harness.learning.parametrisation import Size
from harness.learning.trainer import TrainingConfig
from harness.models.memory import Passes
from harness.runs.cost import EngineBytes, Memory
from harness.runs.passes import passes_of
from harness.runs.reading import read_order

LLAMA = LlamaConfig(
    **{"vocab_size": 300, "hidden_size": 96, "intermediate_size": 200},
    **{"num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2},
)


@pytest.mark.parametrize("masters, each", [("device", 20), ("host_moments", 10), ("host", 6)])
def test_passes_have_what_training_leaves(masters, each):
    """SDFT in bfloat16 beside the model: 2 for the teacher, 4 for gradients; 8 for moments, 4 for
    masters and 2 for averages; or 2 for each of the latter; or nothing more.
    """
    with init_empty_weights():
        shape = AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    memory = Memory(shape, torch.bfloat16, "cuda")
    weights = sum(p.numel() for p in shape.parameters())
    work, trained = Work(scored=1, copies=1, averaged=True), Size(weights, weights)
    taken = weights * each + 6 * 4 * 2**27  # and a chunk of logits

    def passes(room, layered=True, **options):
        config = TrainingConfig(masters=masters, **options)
        return memory.passes(taken + room / 0.9 + 1, config, work, trained, layered)

    assert passes(8192 * memory.token) == Passes(8192)
    assert passes(8191 * memory.token) == Passes(4096)
    assert passes(2047 * memory.token) == Passes(4096, True)
    assert passes(2047 * memory.token, layered=False) == Passes(1024)
    assert passes(2047 * memory.token, gradient_checkpointing=False) == Passes(1024)
    assert passes(0, micro_batch_tokens=100) == Passes(100, True)
    assert passes(-1e12) == Passes(256, True)


def test_flex_attention_repeats_no_keys():
    """Where four query heads more than two keys' heads are not copied, longer passes fit."""
    with init_empty_weights():
        shape = AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    usual, flex = (Memory(shape, torch.bfloat16, "cuda", repeats) for repeats in (True, False))
    assert usual.token - flex.token == 3 * 2 * (6 - 2) * 16 * 2
    assert flex.token == Memory(shape, torch.bfloat16, "cpu").token


@pytest.mark.parametrize("rows, learning", [(10**6, False), (0, True)])
def test_an_engine_answers_or_sleeps(rows, learning):
    """The larger of a micro-batch with what sleeps, and answers without gradients."""
    with init_empty_weights():
        shape = AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    memory = Memory(shape, torch.bfloat16, "cuda")
    weights = sum(p.numel() for p in shape.parameters())
    engine = EngineBytes(awake=1e7 * rows + 1.0, asleep=5e5)
    config, passes = TrainingConfig(masters="host"), Passes(1000, True)
    on_device, host = memory.of(config, Work(), 10, 0, passes=passes, engine=engine)
    micro_batch = 1000 * memory.recomputed + 3 * 4 * 1000 * 300 + 5e5
    held = 2 * weights + 4 * weights
    expected = held + micro_batch if learning else held - 4 * weights + engine.awake
    assert on_device * 2**30 == pytest.approx(expected)
    assert host * 2**30 == pytest.approx(10 * weights)


def test_a_resumed_run_finds_its_passes(tmp_path):
    live = SimpleNamespace(
        model=SimpleNamespace(device=torch.device("meta")),
        method=SimpleNamespace(trains=True, has_own_loop=False),
        results=SimpleNamespace(run=lambda name: tmp_path),
        run=SimpleNamespace(name="sft-seed0"),
    )
    path = tmp_path / "passes.json"
    write_sealed(path, {"tokens": 512, "recomputed": True, "free": 1})
    assert passes_of(live) == Passes(512, True)
    path.write_text(path.read_text().replace("512", "513"))
    with pytest.raises(UserError, match=r"remove it: the run's passes are sized again"):
        passes_of(live)
    live.model.device = torch.device("cpu")
    assert passes_of(live) is None


def test_layers_that_nobody_knows_are_refused_before_the_start(order_file):
    order = read_order(order_file(methods={"sft": {"gradient_checkpointing": True}}))
    spec = order.methods["sft"]
    with pytest.raises(UserError) as caught:
        spec.check_model(torch.nn.Linear(2, 2), None, None)
    assert str(caught.value).endswith(
        "methods.sft: gradient_checkpointing: transformers does not say what the layers of Linear "
        "are; leave it out"
    )
    with pytest.raises(UserError, match=r"unknown value 'sometimes'"):
        read_order(order_file(methods={"sft": {"gradient_checkpointing": "sometimes"}}))
