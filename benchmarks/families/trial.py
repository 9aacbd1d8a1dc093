"""One family, tried: does it train, does it sample, and are the log-probabilities its own?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.families.shapes import shape_of
from harness.base.errors import UserError
from harness.learning.packing import Row, completion_states, micro_batches
from harness.models.forward import can_share_prompts, output_head
from harness.models.load import cannot_load, check_passes
from harness.sampling.transformers import TransformersSampler, way_of

PLACE = "model"
LENGTHS = (3, 7, 20, 33, 70, 80)  # of the prompts: on both sides of windows and borders
NEW_TOKENS = 12
NEAR = 0.01  # nats, by which a recurrence may differ from itself; others differ by 1e-5
TEMPLATE = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"


@dataclass(frozen=True)
class Trial:
    """What became of a family.

    way: of sampling; shares: whether rows share prompts; sampling, training: largest distance of
    log-probabilities from the model's own unpadded pass, in nats; problem: why it does not work.
    """

    name: str
    model: str = ""
    way: str = ""
    shares: bool = False
    sampling: float = float("nan")
    training: float = float("nan")
    seconds: float = 0.0
    problem: str = ""


def tried(name: str, dtype: torch.dtype = torch.float32) -> Trial:
    """Load, check, sample, and compute the training pass of a family's tiny random model."""
    start = time.perf_counter()
    kind = ""
    try:
        model = tiny_model(name, dtype)
        kind = type(model).__name__
        check_passes(name, model, PLACE)
        way = way_of(model)
        rows, logprobs = sampled_rows(model)
        own = [own_logprobs(model, row) for row in rows]
        sampling = distance(logprobs, own)
        training = distance(trained_logprobs(model, rows), own)
        shares = can_share_prompts(model)
    except UserError as error:
        problem = str(error).removeprefix(f"{PLACE}: ")
        return Trial(name, kind, problem=problem, seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    problem = "" if max(sampling, training) <= NEAR else "wrong log-probabilities"
    return Trial(name, kind, way, shares, sampling, training, seconds, problem)


def tiny_model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A random model of the family in eval mode. Raises UserError where transformers makes none."""
    torch.manual_seed(0)
    # Missing packages and families without a causal model raise anything, as in loading.
    try:
        model = AutoModelForCausalLM.from_config(shape_of(name))
    except Exception as error:
        raise cannot_load(name, error, PLACE) from None
    return model.to(dtype).eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, and one that ends a turn."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def sampled_rows(model: PreTrainedModel) -> tuple[list[Row], list[torch.Tensor]]:
    """Two sampled completions of each of some ragged prompts, and their log-probabilities."""
    sampler = TransformersSampler(model, byte_tokenizer(), batch_size=8)
    prompts = [[(7 * i * i + 3 * k) % 250 + 1 for i in range(n)] for k, n in enumerate(LENGTHS)]
    groups = sampler.sample(prompts, max_new_tokens=NEW_TOKENS, n=2, seed=1)
    rows, logprobs = [], []
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            rows.append(Row(prompt, completion.token_ids))
            logprobs.append(torch.tensor(completion.logprobs))
    return rows, logprobs


@torch.no_grad()
def own_logprobs(model: PreTrainedModel, row: Row) -> torch.Tensor:
    """Of each completion token, by the model's own pass: one row, no padding, no cache."""
    ids = torch.tensor([row.prompt + row.completion[:-1]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 :]
    tokens = torch.tensor(row.completion)[:, None]
    return logits.float().log_softmax(-1).gather(-1, tokens)[:, 0]


def trained_logprobs(model: PreTrainedModel, rows: Sequence[Row]) -> list[torch.Tensor]:
    """Of each completion token, by the passes of training; their gradient is computed as well.

    Raises UserError for a gradient that is not finite.
    """
    head = output_head(model)
    out: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for batch in micro_batches(model, rows, limit=256):
        states, positions = completion_states(model, rows, batch)
        logprobs = head(states).float().log_softmax(-1)
        picked = logprobs.gather(-1, positions.tokens[:, None])[:, 0]
        (-picked.mean()).backward()
        for row in {row for tree in batch for row in tree}:
            out[row] = picked.detach()[positions.rows == row]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise UserError(PLACE, "its gradient is not finite", "use another model")
    return out


def distance(ours: Sequence[torch.Tensor], own: Sequence[torch.Tensor]) -> float:
    """The largest difference in nats."""
    return max((a - b).abs().max().item() for a, b in zip(ours, own, strict=True))
