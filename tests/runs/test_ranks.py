"""One run on several ranks of torchrun: the numbers of one process, shares, refusals, the plan.

A short form of ``python -m benchmarks.ranks_check``, on 2 ranks.
"""

import pytest
import torch

from benchmarks.gpu_model.table import shape_of, trained_by, work_of_run
from benchmarks.ranks_check.check import TOLERANCE, distance, order_for, run
from harness.base.errors import UserError
from harness.learning.packing import Row
from harness.learning.shares import shares
from harness.runs.cards import CARDS
from harness.runs.cost import StepWork
from harness.runs.on_ranks import check_order
from harness.runs.ranks_cost import Fleet, RanksCost, fleet_of
from harness.runs.ranks_plan import plan_on_ranks
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from methods.sdft import SDFTConfig

LABELS = ("sft_replay", "sdft_lora", "sft_host_moments")


def test_two_ranks_log_what_one_process_logs(tmp_path):
    order = order_for(tmp_path, LABELS, budget={"prompts": 8, "batch_size": 4}, evaluate={})
    run(order, tmp_path / "ranks", 2)
    run_order(read_order(order, [], [], [], []), tmp_path / "alone")
    for label in LABELS:
        assert distance(tmp_path / "alone", tmp_path / "ranks", label) <= TOLERANCE


def test_every_row_is_in_one_share_and_shares_are_even():
    rows = [Row([1], [2] * length) for length in (5, 1, 7, 3, 3, 9, 2, 2)]
    found = shares(rows, 3)
    assert sorted(i for share in found for i in share) == list(range(len(rows)))
    tokens = [sum(len(rows[i].completion) for i in share) for share in found]
    assert max(tokens) - min(tokens) <= 9
    assert shares(rows[:1], 2) in ([[0], []], [[], [0]])
    assert shares([], 2) == [[], []]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"methods": {"sdpo": {}}},
            "methods.sdpo: the method does not run on the ranks of torchrun",
        ),
        ({"methods": {"sft": {"with": {"ewc": {}}}}}, "with: ewc does not run"),
        ({"methods": {"sft": {"parameters": "dora"}}}, "parameters: dora does not run"),
        ({"methods": {"sft": {"masters": "host"}}}, "take masters: host_moments"),
        ({"methods": {"sft": {"moments": "8bit"}}}, "moments in 8 bits do not run"),
    ],
)
def test_what_ranks_cannot_do_is_refused_before_anything_loads(order_file, changes, said):
    order = read_order(order_file(**changes), [], [], [], [])
    with pytest.raises(UserError, match=said):
        check_order(order, 2)


def test_plan_on_gpus(order_file):
    order = read_order(order_file(methods={"sdft": {}}), [], [], [], [])
    lines = plan_on_ranks(order, "8x80").splitlines()
    assert "8 x H100 80GB" in lines[0]
    assert [line.split()[:2] for line in lines[4:]] == [["sdft", "vowels"], ["sdft", "digits"]]
    with pytest.raises(UserError, match=r"--gpus: '8' is no number of GPUs"):
        fleet_of("8")


def test_parts_of_a_weight_and_memory_shrink_with_the_ranks():
    shape = shape_of("7B")
    work, (trained, passes) = work_of_run(1024), trained_by("7B", "all")
    step = StepWork(32, work, 1024, passes, trained, "device", 1, 32, longest=1024)
    gib = [
        RanksCost(shape, torch.bfloat16, Fleet(count, CARDS["H100 80GB"]))
        .share(SDFTConfig(), work, trained, step, 32 * 1624)
        .gib
        for count in (4, 8, 16)
    ]
    assert gib == sorted(gib, reverse=True)


def test_vllm_holds_whole_copies_on_a_machine(order_file, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.runs.order.version", lambda: "vllm 0")
    path = order_file(rollout={"engine": "vllm"}, vllm={"tensor_parallel_size": 4})
    order = read_order(path, [], [], [], [])
    said = "vllm.tensor_parallel_size: one process holds the weights of vLLM whole"
    with pytest.raises(UserError, match=said):
        run_order(order, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    said = "4 ranks hold a copy of the weights, and a machine has 6"
    with pytest.raises(UserError, match=said):
        check_order(order, 6)
    with pytest.raises(UserError, match=said):
        plan_on_ranks(order, "6x80")
    check_order(order, 8)
