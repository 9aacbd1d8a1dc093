"""What the allocator is told, and what is free."""

import os
from contextlib import nullcontext

import pytest
import torch

from harness.models import load, memory
from harness.models.memory import ALLOCATOR, free_memory
from harness.runs import provenance
from harness.runs.reading import read_order
from harness.sampling import vllm_setup


def test_a_gpus_segments_grow_unless_the_user_says_otherwise(monkeypatch):
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    assert memory.allocator_settings() is None
    memory.let_segments_grow()
    assert memory.allocator_settings() == "expandable_segments:True"
    for name in ALLOCATOR:
        for other in ALLOCATOR:
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(name, "max_split_size_mb:64")
        memory.let_segments_grow()
        assert memory.allocator_settings() == "max_split_size_mb:64"
        assert os.environ[ALLOCATOR[0]] == "max_split_size_mb:64"  # where vLLM looks for it


def test_the_allocator_is_told_with_the_device(monkeypatch):
    """Before anything is on it; a CPU's process has nothing to be told."""
    told = []
    monkeypatch.setattr(load, "let_segments_grow", lambda: told.append("grow"))
    monkeypatch.setattr(load, "keep_freed_memory", lambda: told.append("keep"))
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: None)
    monkeypatch.setattr(load, "allow_repeatable_products", lambda: None)
    load.prepare_device("cpu")
    load.prepare_device("cuda:0")
    assert told == ["keep", "grow"]


def test_a_run_records_whether_segments_do_grow(monkeypatch):
    """By what PyTorch says, not by the environment."""
    for kinds, grow in (([False, True], True), ([False], False), ([], False)):
        segments = [{"is_expandable": kind} for kind in kinds]
        monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda segments=segments: segments)
        assert provenance._allocator(torch.device("cuda", 0))["segments_grow"] is grow
    assert provenance._allocator(torch.device("cpu")) == {}


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_an_order_tells_them_before_it_looks_at_a_gpu(engine, order_file, monkeypatch):
    """With the first look PyTorch starts CUDA, and reads its allocator's settings."""
    names = (*ALLOCATOR, vllm_setup.INVARIANT, *vllm_setup.INVARIANT_PRODUCTS)
    for name in names:
        monkeypatch.setenv(name, "")  # so that all of them are taken back at the end
        monkeypatch.delenv(name)
    looks = []

    def look(*_, **__):
        looks.append({name: os.environ[name] for name in names if name in os.environ})
        return (9, 0)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", look)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", look)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: None)
    monkeypatch.setattr("harness.runs.order.version", lambda: "vllm 0.31.0")
    changes = ["model.device=cuda", "model.dtype=auto", f"rollout.engine={engine}"]
    order = read_order(order_file(), changes)
    assert order.dtype() == torch.bfloat16
    assert all(seen[ALLOCATOR[0]] == "expandable_segments:True" for seen in looks) and looks
    # of vLLM's batch-invariant mode, or the one that repeats
    workspace = ":16:8" if engine == "vllm" else ":4096:8"
    assert looks[-1]["CUBLAS_WORKSPACE_CONFIG"] == workspace
    assert (vllm_setup.INVARIANT in looks[-1]) == (engine == "vllm")


def test_the_hosts_free_memory_is_a_number():
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
