"""What the allocator is told, and what is free."""

import torch

from harness.models import load, memory
from harness.models.memory import ALLOCATOR, free_memory


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


def test_the_hosts_free_memory_is_a_number():
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
