"""The kernels by which vLLM samples on a GPU, in Triton's interpreter: what the harness takes from
them. On a CPU vLLM has another model runner, so that no other test runs this code.
"""

import importlib.metadata
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from harness.base.files import ROOT


def vllms_kernels():
    """(compute_topk_scores, apply_temperature, gumbel_sample) of vLLM's second model runner."""
    from triton.backends import backends

    # vLLM takes Triton for missing where it has no driver, and a CPU's build wants this backend.
    backends["cpu"] = SimpleNamespace(driver=None)
    versions = importlib.metadata.version
    importlib.metadata.version = lambda name: "0+cpu" if name == "vllm" else versions(name)
    from vllm.triton_utils import HAS_TRITON

    assert HAS_TRITON
    from vllm.v1.worker.gpu.sample.gumbel import apply_temperature, gumbel_sample
    from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores

    return compute_topk_scores, apply_temperature, gumbel_sample


def interpreted():
    scores_of, apply_temperature, gumbel_sample = vllms_kernels()
    logits = 3 * torch.randn(6, 1500, generator=torch.Generator().manual_seed(0))
    # rows of four requests, of which the last is greedy
    requests = torch.tensor([0, 1, 2, 3, 1, 0], dtype=torch.int32)
    temperatures = torch.tensor([1.0, 0.7, 1.5, 0.0])
    seeds = torch.tensor([11, 12, 2**40 + 13, 14])
    places = torch.tensor([5, 5, 7, 0, 6, 5])

    processed = logits.clone()
    apply_temperature(processed, requests, temperatures)
    divisors = torch.tensor([1.0, 0.7, 1.5, 1.0, 0.7, 1.0])[:, None]
    torch.testing.assert_close(processed, logits / divisors)

    def sample(rows, of):
        given = (requests[rows], temperatures, seeds, places[rows])
        return gumbel_sample(of[rows], *given, apply_temperature=False, is_drafting=False)

    everyone = list(range(6))
    tokens = sample(everyone, processed)
    assert tokens[3] == logits[3].argmax()
    # draws go by seed and place, not by what is sampled beside
    for row in everyone:
        assert sample([row], processed) == tokens[row]
    same = processed.clone()
    same[5] = same[0]  # the same request at the same place
    assert sample(everyone, same)[5] == tokens[0]
    assert len({int(sample([0], processed + 0 * place)) for place in range(2)}) == 1

    found = scores_of(processed, 0, tokens)
    wanted = processed.log_softmax(-1).gather(1, tokens[:, None])
    torch.testing.assert_close(found.logprobs, wanted, rtol=1e-6, atol=1e-6)
    ranks = (processed >= processed.gather(1, tokens[:, None])).sum(1)
    assert torch.equal(found.selected_token_ranks, ranks)

    # frequencies of 400 places: the softmax, within four standard errors
    few = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    count = 400
    drawn = gumbel_sample(
        few.expand(count, -1).contiguous(),
        torch.zeros(count, dtype=torch.int32),
        temperatures,
        seeds,
        torch.arange(count),
        apply_temperature=False,
        is_drafting=False,
    )
    p = few.softmax(-1)[0]
    shares = torch.bincount(drawn, minlength=4) / count
    assert ((shares - p).abs() < 4 * (p * (1 - p) / count).sqrt()).all(), shares
    print("interpreted")


def test_vllms_kernels_do_what_the_harness_expects():
    """Processed log-probabilities hold the temperature, ranks count from 1, and draws are keyed."""
    pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")
    pytest.importorskip("triton", reason="Triton is not installed")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tests.sampling import test_vllm_kernels as t; t.interpreted()",
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1:] == ["interpreted"], done.stderr[-3000:]
