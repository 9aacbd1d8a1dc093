"""Models, tokenizers, rows and skills that a check makes on the spot."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_check.bench import Bench
from harness.learning.packing import Row
from harness.learning.stage import Stage
from harness.sampling.transformers import TransformersSampler
from harness.skills.skill import Example, Skill

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2 = {  # SmolLM2-135M
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
QWEN = {  # Qwen2.5-7B
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
TINY = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
# Tokens behind those of single bytes: words of one letter, with signs that a grader leaves out. So
# the answers of a random model have words, and some of them are right.
LETTERS, SIGNS = "bcdfgh", "!?.,"
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def small_config(tiny: bool) -> PreTrainedConfig:
    """A Llama of SmolLM2-135M's shape."""
    from transformers import LlamaConfig

    return LlamaConfig(**(SMOLLM2 | TINY if tiny else SMOLLM2))


def large_config(tiny: bool, layers: int | None = None) -> PreTrainedConfig:
    """A Qwen2 of the 7B's shape, or of its first ``layers`` layers."""
    from transformers import Qwen2Config

    config: PreTrainedConfig = Qwen2Config(**(QWEN | TINY if tiny else QWEN))
    if layers and not tiny:
        config.num_hidden_layers = layers
        config.layer_types = config.layer_types[:layers]
    return config


def make_model(
    config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """Random weights, made on the device: a 7B is there in seconds."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    """A tokenizer of ``vocabulary`` tokens: bytes, words of one letter, and those of a chat."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += itertools.islice(_words(), vocabulary - len(tokens) - len(SPECIAL))
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    end, *others = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=end, pad_token=end, bos_token=end
    )
    tokenizer.add_special_tokens({"additional_special_tokens": others})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _words() -> Any:
    """Different tokens without end, each of which reads as one letter."""
    for length in itertools.count():
        for signs in itertools.product(SIGNS, repeat=length):
            for letter in LETTERS:
                yield "Ġ" + letter + "".join(signs)


def save_small_model(folder: Path, tiny: bool) -> Path:
    """A checkpoint of random float32 weights with a tokenizer that fits."""
    from harness.models.checkpoint import save_checkpoint

    config = small_config(tiny)
    tokenizer = make_tokenizer(config.vocab_size)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model = make_model(config, torch.float32, torch.device("cpu"))
    save_checkpoint(model, tokenizer, folder)
    return folder


def make_rows(
    vocabulary: int, prompts: list[int], answers: int, each: int = 1, seed: int = 0
) -> list[Row]:
    """Random rows: ``each`` completions of ``answers`` tokens of every prompt.

    prompts: their lengths in tokens.
    """
    generator = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(300, vocabulary) for _ in range(count)]

    rows = []
    for length in prompts:
        prompt = tokens(length)
        rows += [Row(prompt, tokens(answers)) for _ in range(each)]
    return rows


class NoSkill(Skill):
    """A skill without examples, for a stage whose rows a check makes itself."""

    name = "none"

    def load(self, split: str) -> list[Example]:
        return []


def make_stage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    answers: int = 64,
    deterministic: bool = True,
    fused_losses: bool = False,
) -> Stage:
    """A stage for single steps; answers: tokens of a rollout at most."""
    return Stage(
        model=model,
        tokenizer=tokenizer,
        sampler=TransformersSampler(model, tokenizer, batch_size=128),
        skill=NoSkill(),
        seed=0,
        index=1,
        prompts=1,
        batch_size=1,
        max_new_tokens=answers,
        deterministic=deterministic,
        fused_losses=fused_losses,
    )


def write_skill(
    folder: Path, name: str, counts: dict[str, int], answer_words: int, beginning: str
) -> dict[str, Any]:
    """JSONL files of a skill whose answers are words of one letter; returns its entry in an order.

    counts: rows of each split; beginning: of every question, with its name, split and number i.
    """
    generator = random.Random(name)
    for split, count in counts.items():
        rows = []
        for i in range(count):
            answer = " ".join(generator.choice(LETTERS) for _ in range(answer_words))
            question = beginning.format(name=name, split=split, i=i)
            question += "which letters? " * (1 + i % 3)
            rows.append({"prompt": question, "demonstration": answer, "reference": answer})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}-{split}.jsonl").write_text(lines, encoding="utf-8")
    files = {split: f"{name}-{split}.jsonl" for split in counts}
    return {"name": name, **files, "grader": "token_f1", "max_new_tokens": 4 * answer_words}


def small_checkpoint(bench: Bench, folder: Path) -> Path:
    """The folder that --model names, or a checkpoint of random weights in ``folder``."""
    return Path(bench.model) if bench.model else save_small_model(folder / "model", bench.tiny)
