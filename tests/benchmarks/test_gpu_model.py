"""The cost model of a GPU: kernels counted on the strict device, single terms by hand, what grows
with what, and the table of docs/how-to/gpus.md.
"""

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch

from benchmarks import strict_device
from benchmarks.gpu_model import table as model
from harness.base.files import ROOT
from harness.learning.options import MASTERS
from harness.learning.outlook import Work
from harness.learning.parametrisation import Size
from harness.runs import cards, gpu_cost
from harness.runs.cards import CARDS, Card, Speeds, measured_speeds
from harness.runs.cost import Machine, StepWork, activations, repeated_bytes
from harness.runs.gpu_cost import GPU, Sampling, link_bytes
from tests.benchmarks import kernels

H200 = CARDS["H200 141GB"]
B = 7_615_616_512  # weights of Qwen2.5-7B
VLLM, EAGER = Sampling(vllm=True), Sampling()


def gpu(name="7B", speeds=H200.speeds, sampling=EAGER):
    return GPU(model.shape_of(name), speeds, sampling)


def step(**options):
    """A step of the run with every answer of 1,024 tokens."""
    defaults = {
        **{"prompts": 32, "work": model.work_of_run(1024), "completion": 1024, "passes": 3},
        **{"trained": Size(B, B), "masters": "host_moments", "limit": 4096, "at_once": 32},
    }
    return StepWork(**{**defaults, **options})


# ---- counts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool():
    """A process that knows the strict device."""
    if reason := strict_device.available():
        pytest.skip(reason)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=kernels.begin) as pool:
        yield pool


@pytest.fixture(scope="module")
def counted(pool):
    """Kernels by phase; settings: layers, masters, tokens of a chunk and of a micro-batch, and
    whether layers are computed again.
    """
    settings = [
        (2, "device", 14, 256, False),
        (4, "device", 14, 256, False),
        (4, "device", 7, 256, False),
        (2, "device", 14, 128, False),
        (4, "device", 14, 128, False),
        (4, "device", 14, 256, True),
        (4, "host_moments", 14, 256, False),
    ]
    return dict(zip(settings, pool.map(kernels.kernels, *zip(*settings, strict=True)), strict=True))


def test_kernels_are_those_of_the_strict_device(counted):
    """Two micro-batches of the student and two of the teacher; at 128 tokens four and three."""
    two, four = (counted[layers, "device", 14, 256, False] for layers in (2, 4))
    assert (four["token"] - two["token"]) / 2 == pytest.approx(cards.TOKEN_LAYER, rel=0.05)
    assert two["token"] == pytest.approx(cards.kernels_of_token(2), rel=0.05)
    assert 1.05 < four["masked token"] / four["token"] < 1.2  # as the comment there says
    passes = (four["step"] - two["step"]) / 2
    more = counted[4, "device", 14, 128, False]["step"]
    more = (more - counted[2, "device", 14, 128, False]["step"]) / 2
    # 2 learned + 2 read, and 4 learned + 3 read
    read = (2 * passes - more) / 1
    assert read == pytest.approx(gpu_cost.READ_LAYER, rel=0.1)
    assert (passes - 2 * read) / 2 == pytest.approx(gpu_cost.LEARNED_LAYER, rel=0.05)
    again = counted[4, "device", 14, 256, True]["step"] - four["step"]
    assert again / 4 / 2 == pytest.approx(gpu_cost.AGAIN_LAYER, rel=0.05)
    # 128 tokens of a micro-batch in 10 chunks of 14, or in 19 of 7
    chunks = counted[4, "device", 7, 256, False]["step"] - four["step"]
    assert chunks / 2 / 9 == pytest.approx(gpu_cost.CHUNK, rel=0.05)
    assert four["update"] / four["weights"] == pytest.approx(gpu_cost.UPDATE, rel=0.1)
    streamed = counted[4, "host_moments", 14, 256, False]
    assert streamed["update"] / four["weights"] == pytest.approx(gpu_cost.STREAMED_UPDATE, rel=0.1)
    assert streamed["average"] / four["weights"] == pytest.approx(gpu_cost.AVERAGE, rel=0.1)


def test_kernels_of_moments_in_8_bits(pool):
    found = pool.submit(kernels.kernels, 2, "device", moments="8bit").result()
    each = found["update"] / found["weights"]
    assert each == pytest.approx(gpu_cost.EIGHT_BIT_UPDATE, rel=0.1)


def test_bytes_of_a_token_are_the_reviews():
    """6.0 MiB that a 7B keeps of a token, 0.41 where layers are computed again; under a mask 2.6
    GiB of 8,192 tokens for repeated keys and values.
    """
    memory, config = model.memory_of("7B"), model.shape_of("7B").config
    repeated = repeated_bytes(config, 2)
    assert memory.parameters == B
    assert repeated == 28 * 2 * (28 - 4) * 128 * 2
    assert repeated * 8192 / 2**30 == pytest.approx(2.6, abs=0.05)
    assert activations(model.shape_of("7B")) / 2**20 == pytest.approx(6.0, abs=0.1)
    assert memory.token == activations(model.shape_of("7B")) + repeated
    assert memory.recomputed / 2**20 == pytest.approx(0.41, abs=0.02)


# ---- single terms --------------------------------------------------------------------------------


def test_a_token_by_hand():
    """28 layers of 40 kernels and 38 more, 24 microseconds each: the review has 1,108 kernels and
    27 ms. vLLM reads 7.07 billion weights of two bytes; the review has 4.5 ms.
    """
    eager, vllm = gpu(), gpu(sampling=VLLM)
    assert cards.kernels_of_token(28) == pytest.approx(1108, rel=0.06)
    assert eager.token_seconds(32) == pytest.approx(1158 * 24e-6)
    assert eager.token_seconds(32) == pytest.approx(27e-3, rel=0.06)
    weights = 2 * (B - 152064 * 3584 - 28 * (2 * 3584 + 3584 + 2 * 512) - 3584)
    assert vllm.token_seconds(32) == pytest.approx(weights / (0.8 * 4.8e12) + 0.5e-3, rel=1e-6)
    assert vllm.token_seconds(32) == pytest.approx(4.5e-3, rel=0.1)
    cached = vllm.token_seconds(32, 32 * 1000) - vllm.token_seconds(32)
    assert cached == pytest.approx(32 * 1000 * 28 * 2 * 4 * 128 * 2 / (0.8 * 4.8e12))
    invariant = gpu(sampling=Sampling(vllm=True, invariant=True))
    assert invariant.token_seconds(32) == pytest.approx(1.6 * vllm.token_seconds(32))
    graphs = gpu(sampling=Sampling(graphs=True))
    assert graphs.token_seconds(32) == pytest.approx(weights / (0.8 * 4.8e12) + 1158 * 3e-6)
    # so many rows that products take longer than reading the weights
    assert vllm.token_seconds(10**5) == pytest.approx(weights * 1e5 / (0.42 * 989e12) + 0.5e-3)


def test_products_by_hand():
    """Six operations a weight and learned token, two a scored one; attention and the head apart."""
    body, head, rate = 6_524_829_696, 152064 * 3584, 0.42 * 989e12

    def attended(length):
        return 2 * body + 2 * length * 3584 * 28

    terms = gpu().terms(step())
    student = 32 * (3 * 1624 * attended(1624) + 6 * 1024 * head)
    teacher = 32 * (1774 * attended(1774) + 2 * 1024 * head)
    assert terms.compute == pytest.approx((student + teacher) / rate, rel=1e-3)
    again = gpu().terms(step(recomputed=True)).compute - terms.compute
    assert again == pytest.approx(32 * 1624 * attended(1624) / rate, rel=1e-3)
    lora = gpu().terms(step(passes=2)).compute
    assert terms.compute - lora == pytest.approx(student / 3 / rate, rel=1e-3)
    # the review's 7.7 s hold the reading of prompts, which stands with decoding here
    read = 32 * 600 * attended(600) / rate
    assert terms.compute + read == pytest.approx(7.7, rel=0.05)


def test_an_update_by_hand():
    """61 GB of moments there and back at 50 GB/s, the review's 1.2 to 2.5 s; in memory 60 bytes."""
    assert link_bytes(B, B, "host_moments", 2) == 16 * B
    assert link_bytes(B, B, "host", 2) == 26 * B
    assert link_bytes(B, 0, "host", 2) == 20 * B
    assert link_bytes(B, B, "host", 4) == 16 * B
    assert link_bytes(B, B, "device", 2) == link_bytes(B, B, "device", 2, "8bit") == 0
    assert link_bytes(B, B, "host_moments", 2, "8bit") == 2 * 2.03125 * B
    assert link_bytes(B, B, "host", 2, "8bit") == (2 * 2.03125 + 10) * B
    update = gpu().terms(step()).update
    assert update == pytest.approx(16 * B / (0.78 * 64e9) + 60 * B / (0.8 * 4.8e12))
    assert update == pytest.approx(2.5, rel=0.05) and update <= 3
    on_device = gpu().terms(step(masters="device")).update
    pieces = sum(-(-p.numel() // 2**24) for p in model.shape_of("7B").parameters())
    assert on_device == pytest.approx(max(60 * B / (0.8 * 4.8e12), pieces * 47 * 8e-6))
    eight = gpu().terms(step(masters="device", moments="8bit")).update
    assert eight == pytest.approx(570 * B / (0.8 * 4.8e12))
    assert on_device < eight < update
    slow = Speeds(1e15, 1e15, 1e15)  # only starting kernels takes time
    assert gpu(speeds=slow).terms(step()).update == pytest.approx(pieces * (22 + 35) * 8e-6)


def test_the_head_by_hand():
    """32,768 tokens in chunks of 882: 38. Their logits 20 times for two models, the gradient of 545
    million weights in two bytes twice and in a sum of four twice.
    """
    expected = 20 * 4 * 152064 * 32768 * 2 + 38 * 152064 * 3584 * 12
    assert gpu().terms(step()).head == pytest.approx(expected / (0.8 * 4.8e12))
    assert gpu().terms(step(completion=0)).head == 0


def test_a_small_model_waits_for_python():
    """8 short rows: a pass starts 152 kernels a layer, whatever it computes."""
    work = Work(learned=100)
    seconds = gpu("3B").terms(step(prompts=8, work=work, completion=20)).compute
    assert seconds == pytest.approx(36 * 152 * 24e-6)
    assert gpu("3B").forward(10) == pytest.approx(36 * 26 * 24e-6)
    with_teacher = replace(work, scored=100)
    seconds = gpu("3B").terms(step(prompts=8, work=with_teacher, completion=20)).compute
    assert seconds == pytest.approx(36 * (152 + 26) * 24e-6)


def test_checkpoints_take_a_fiftieth_and_terms_are_the_step():
    terms = gpu().terms(step())
    assert terms.checkpoints == pytest.approx(sum(terms[:4]) / 50)
    assert gpu().learning(step()) == pytest.approx(sum(terms))
    assert gpu().terms(step(work=Work(learned=10))).decode == 0


def test_sampling_takes_as_long_as_its_longest_answer():
    eager, vllm = gpu(), gpu(sampling=VLLM)
    assert eager.sample(100, 50, 64, 80) == pytest.approx(2 * 80 * 1158 * 24e-6)
    assert vllm.sample(100, 50, 1) == pytest.approx(50 * vllm.token_seconds(100, 2500) + 1)
    assert eager.sample(0, 50, 64) == 0
    decode = gpu().terms(step(work=model.work_of_run(250), completion=250, longest=1024)).decode
    assert decode == pytest.approx(gpu().terms(step()).decode)


# ---- what grows with what ------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["flops", "bandwidth", "link"])
def test_a_faster_card_takes_no_longer(field):
    for sampling in (EAGER, VLLM):
        for masters in MASTERS:
            slow = gpu(speeds=H200.speeds, sampling=sampling).learning(step(masters=masters))
            card = replace(H200, **{field: 2 * getattr(H200, field)})
            assert (
                gpu(speeds=card.speeds, sampling=sampling).learning(step(masters=masters)) <= slow
            )


def test_more_work_takes_longer():
    seconds = [gpu(name).learning(step()) for name in ("3B", "7B", "14B")]
    assert seconds[0] < seconds[2] and sorted(
        gpu(n, sampling=VLLM).learning(step()) for n in ("3B", "7B", "14B")
    ) == [gpu(n, sampling=VLLM).learning(step()) for n in ("3B", "7B", "14B")]
    for longer in ({"prompts": 64}, {"work": model.work_of_run(2048)}, {"completion": 2048}):
        assert gpu().learning(step(**longer)) > gpu().learning(step())
    by_masters = [gpu().learning(step(masters=masters)) for masters in MASTERS]
    assert by_masters == sorted(by_masters)


def test_a_larger_card_fits_whatever_a_smaller_one_does():
    sizes = [replace(H200, gib=gib) for gib in range(20, 160, 5)]
    for masters in MASTERS:
        for vllm in (False, True):
            choice = model.Choice("all", masters, vllm)
            fits = [model.fit(card, "7B", choice) is not None for card in sizes]
            assert fits == sorted(fits)
            tokens = [f.passes.tokens for card in sizes if (f := model.fit(card, "7B", choice))]
            assert all(t >= 256 for t in tokens)


# ---- what is promised ----------------------------------------------------------------------------


def test_a_7b_takes_what_is_promised():
    """At most 0.7 h on 141 GB; 80 GB and a host of 128 GiB with ``masters: host``."""
    large = model.best(H200, "7B", "all", vllm=True)
    assert large.choice.masters == "host_moments" and large.hours <= 0.7
    assert model.fit(H200, "7B", model.Choice("all", "device", True)) is None
    eight = model.fit(H200, "7B", model.Choice("all", "device", True, moments="8bit"))
    assert eight.host == 0 and eight.hours < large.hours
    small = model.best(CARDS["H100 80GB"], "7B", "all", vllm=True)
    assert small.choice.masters == "host" and small.host <= 128 and small.gpu <= 79.2
    # the review's 4.3 h: 121 s a step, of which 72 for gradients that no longer move, 13 an update
    now = model.best(H200, "7B", "all", vllm=False)
    assert sum(now.terms) == pytest.approx(121 - 72 - 13 + 2.6, rel=0.05)


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "how-to" / "gpus.md").read_text(encoding="utf-8")
    assert model.table() in page, "python -m benchmarks.gpu_model prints another table"
    assert model.terms() in page, "python -m benchmarks.gpu_model --terms prints another table"


# ---- measuring -----------------------------------------------------------------------------------


def measured_there():
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 5}
    with torch.device("meta"):
        shape = LlamaForCausalLM(LlamaConfig(**small, **heads)).to(torch.bfloat16)
    return [measured_speeds(shape, torch.device(place)) for place in ("cpu", kernels.DEVICE)]


def test_speeds_are_measured(pool):
    """Two layers decode and learn; what cannot be cut so is judged by the product."""
    found = pool.submit(measured_there).result()
    for speeds in found:
        assert speeds.is_measured and min(speeds.product, speeds.copy, speeds.link) > 1e6
        assert speeds.launch != cards.LAUNCH and 1e-7 < speeds.launch < 1e-2


def test_what_cannot_be_cut_is_judged_by_the_product(monkeypatch):
    def broken(shape, device):
        raise RuntimeError("no such layers")

    monkeypatch.setattr(cards, "_beginning", broken)
    monkeypatch.setattr(cards, "seconds_of", lambda *_: 0.5)
    speeds = measured_speeds(model.shape_of("3B"), torch.device("cpu"))
    assert speeds == Speeds(0.42 * 4 * 512**3, 4 * 2**24, 2 * 2**22, is_measured=True)


def test_cards_are_within_their_datasheets():
    for card in CARDS.values():
        assert isinstance(card, Card) and card.source.startswith("NVIDIA")
        speeds = card.speeds
        assert speeds.product < card.flops and speeds.copy < card.bandwidth
        assert speeds.link < card.link < card.bandwidth < card.flops


def test_a_cpu_computes_as_before():
    """``learning`` is the sum that the estimate had."""
    machine = object.__new__(Machine)
    machine.parameters, machine.flops, machine.step = 10, 5.0, 3.0
    work = Work(learned=7, scored=2, read=1, answers=2, sampled=4)
    seconds = machine.learning(step(prompts=6, work=work, at_once=5))
    assert seconds == 6 * (3 * 28 + 12) + 3 * 4 * 3 + 2 * 10 * 48 / 5


def planned_there(path, out, settings):
    from harness.runs.plan import plan
    from harness.runs.reading import read_order

    return plan(read_order(path, settings), out)


def test_a_plan_for_a_gpu(pool, tmp_path):
    """Passes as the run would find them, two checkpoints on the disk, what was measured."""
    from tests.benchmarks.test_strict_device import save_small, write_order

    folder = save_small(tmp_path / "model")
    methods = {"sdft": {}, "short": {"method": "sft", "micro_batch_tokens": 100}}
    path = write_order(tmp_path, methods, folder, "bfloat16")
    text = pool.submit(planned_there, path, tmp_path / "out", []).result()
    keeping_none = ["checkpoints.keep=none", "methods.sdft.gradient_checkpointing=on"]
    again = pool.submit(planned_there, path, tmp_path / "out", keeping_none).result()
    assert re.search(r"TFLOP/s in a training pass, [\d.]+ us a kernel and [\d.e+]+ GB/s from", text)
    assert "passes: 8,192 tokens for sdft, by what is free now\n" in text
    assert "passes: 100 tokens for short, by" in text
    places = (
        r"masters of sdft: ([\d.]+) GiB with device, [\d.]+ GiB and [\d.]+ GiB in host memory with"
    )
    assert re.search(
        places + r" host_moments, [\d.]+ GiB and [\d.]+ GiB in host memory with host", text
    )
    for what in ("moments: 8bit", "parameters: lora"):
        assert re.search(rf"masters of sdft, {what}: [\d.]+ GiB with device, ", text)
    assert "passes: 8,192 tokens for sdft, layers computed again, by" in again
    weights = re.search(r"\(([\d.]+)M parameters", text)
    # 2 for a weight, 12 for masters and moments, 4 for the average; twice
    at_most = 2 * 18 * float(weights[1]) * 1e6 / 2**30
    assert f"disk: 0.0 GiB of weights when done, {at_most:.1f} GiB at most" in again
