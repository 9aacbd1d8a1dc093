"""vLLM on the ranks of torchrun: copies of the weights, or one in parts (`make test-vllm`)."""

import pytest
import yaml

from benchmarks.ranks_check.check import distance, run
from harness.sampling.settings import version
from tests.conftest import read_lines, save_tiny

if version() is None:
    pytest.skip(
        "vLLM is not installed; make test-vllm runs these in an environment of its own",
        allow_module_level=True,
    )

from tests.sampling.test_vllm_sampler import vllm_order

METHODS = ("sdft", "grpo")
# vLLM adds in another order than the model does, and GRPO takes ratios of both
TOLERANCE = 1e-4
RETENTION = [
    {"task": "embedded_commonsense", "metric": "acc,none", "chance": 0.5},
    {"task": "embedded_following", "metric": "inst_level_loose_acc,none"},
]


def values(out):
    """{what: number} of all records."""
    keys = ("method", "stage", "kind", "name", "metric")
    rows = read_lines(out / "records.jsonl")
    return {tuple(row[key] for key in keys): row["value"] for row in rows}


def test_ranks_sample_and_score_as_one_process(tmp_path):
    """A copy on each of two ranks, and one copy in tensor parallelism over both."""
    folder = save_tiny(
        tmp_path / "wide",
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=2048,
    )
    vllm_order(folder, tmp_path)
    order = yaml.safe_load((tmp_path / "order.yaml").read_text())
    order["methods"] = {name: order["methods"][name] for name in METHODS}
    order["retention"] = [{**task, "limit": 6} for task in RETENTION]
    starts = {"alone": (0, 1), "copies": (2, 1), "parts": (2, 2)}
    for name, (ranks, of_copy) in starts.items():
        order["vllm"]["tensor_parallel_size"] = of_copy
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(order))
        run(path, tmp_path / name, ranks)
    alone = values(tmp_path / "alone")
    assert {kind for _, _, kind, _, _ in alone} >= {"skill", "retention"}
    for name in ("copies", "parts"):
        assert values(tmp_path / name) == pytest.approx(alone, abs=TOLERANCE)
        for method in METHODS:
            assert distance(tmp_path / "alone", tmp_path / name, method) <= TOLERANCE
