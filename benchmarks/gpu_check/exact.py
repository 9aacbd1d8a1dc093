"""The device's numbers against the CPU's, with the same weights and rows.

The CPU computes with its plain attention, so that even without a GPU the two sides take different
kernels. Differences of log-probabilities are the largest of |a - b| / max(1, |b|), those of losses
|a - b| / max(0.1, |b|), those of norms relative.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.material import make_rows, make_stage, small_checkpoint
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.logprobs import token_logprobs
from harness.learning.packing import Row, completion_states, micro_batches
from harness.learning.teacher import Teacher
from harness.learning.trainer import Trainer, TrainingConfig, cross_entropy
from harness.models.forward import keep_sharing, output_head
from harness.models.load import load_model
from harness.sampling.transformers import TransformersSampler
from methods.grpo import GRPOConfig, PolicyLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LossAndNorm = tuple[float, float]
LIMIT = 2048  # tokens of a micro-batch, the same on both sides


def run(bench: Bench) -> None:
    """Float32 on both sides, then bfloat16 on the device against its own float32."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(small_checkpoint(bench, Path(folder)))
        cpu, tokenizer = load_model(source, "float32", "cpu")
        model, _ = load_model(source, "float32", str(bench.device))
        half, _ = load_model(source, "bfloat16", str(bench.device))
    vocabulary = cpu.config.get_text_config().vocab_size
    lengths = [9, 40, 17, 120] if bench.tiny else [30, 200, 64, 130]
    rows = make_rows(vocabulary, lengths, 12 if bench.tiny else 48, each=2)

    with sdpa_kernel(SDPBackend.MATH):
        expected = logprobs(cpu, rows)
    bench.at_most("log-probabilities", distance(logprobs(model, rows), expected), 1e-5)
    trees(bench, model, tokenizer, rows)
    losses(bench, cpu, model, tokenizer, rows)
    answers(bench, cpu, model, tokenizer, vocabulary)
    for name, net, limit in (("float32", model, 1e-4), ("bfloat16", half, 0.02)):
        sampled(bench, name, net, tokenizer, vocabulary, limit)
    loss, _ = supervised(model, tokenizer, rows)
    rounded, _ = supervised(half, tokenizer, rows)
    bench.at_most("bfloat16 loss against float32", abs(rounded / loss - 1), 0.02)
    # Random weights have one loss, whatever their layers do; the probabilities tell them apart.
    apart = (logprobs(half, rows) - logprobs(model, rows)).abs().mean().item()
    bench.at_most("bfloat16 against float32, mean difference", apart, 0.03, "nats")


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest |a - b| / max(1, |b|)."""
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().item()


@torch.no_grad()
def logprobs(model: "PreTrainedModel", rows: Sequence[Row]) -> torch.Tensor:
    """Log-probabilities of all completion tokens, row after row, as the trainer computes them."""
    head = output_head(model)
    by_place: dict[tuple[int, int], torch.Tensor] = {}
    for batch in micro_batches(model, rows, LIMIT):
        states, positions = completion_states(model, rows, batch)
        values = token_logprobs(head(states).float(), positions.tokens)
        by_place |= dict(zip(positions.places, values.cpu(), strict=True))
    return torch.stack([by_place[place] for place in sorted(by_place)])


def trees(
    bench: Bench, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: list[Row]
) -> None:
    """Completions that share their prompt's row, under a mask, against rows of their own."""
    together, norm = supervised(model, tokenizer, rows)
    shared = logprobs(model, rows)
    keep_sharing(model, False)
    apart, norm_apart = supervised(model, tokenizer, rows)
    bench.at_most(
        "shared prompts, log-probabilities", distance(shared, logprobs(model, rows)), 1e-5
    )
    bench.at_most("shared prompts, loss", abs(together / apart - 1), 1e-5)
    bench.at_most("shared prompts, gradient norm", abs(norm / norm_apart - 1), 1e-4)
    keep_sharing(model, True)


def supervised(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: list[Row]
) -> LossAndNorm:
    """Loss of SFT, and its gradient's norm."""
    return one_step(
        model, tokenizer, lambda trainer: trainer.token_mean(rows, cross_entropy)["loss"]
    )


def one_step(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    backward: Callable[[Trainer], float],
    fused_losses: bool = False,
) -> LossAndNorm:
    """Loss and gradient norm of one step, which leaves the weights as they are."""
    stage = make_stage(model, tokenizer, fused_losses=fused_losses)
    trainer = Trainer(stage, TrainingConfig(micro_batch_tokens=LIMIT))
    loss = backward(trainer)
    gradients = [
        master.grad.double() for master in trainer.masters.values() if master.grad is not None
    ]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item()
    for master in trainer.masters.values():
        master.grad = None
    trainer.close()
    return loss, norm


def losses(
    bench: Bench,
    cpu: "PreTrainedModel",
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[Row],
) -> None:
    """Loss and norm of every objective on both sides."""
    for name, objective in objectives(rows).items():
        with sdpa_kernel(SDPBackend.MATH):
            expected = one_step(cpu, tokenizer, objective)
        found = one_step(model, tokenizer, objective)
        loss = abs(found[0] - expected[0]) / max(0.1, abs(expected[0]))
        bench.at_most(f"{name}, loss {expected[0]:.3g} nats", loss, 1e-4)
        bench.at_most(f"{name}, gradient norm", abs(found[1] / expected[1] - 1), 1e-4)


def objectives(rows: list[Row]) -> dict[str, Callable[[Trainer], float]]:
    """A backward pass of each kind of loss."""
    wisdom = [300 + i for i in range(40)]  # what the teacher sees before the prompt
    teacher_rows = [Row(wisdom + row.prompt, row.completion) for row in rows]

    def supervise(trainer: Trainer) -> float:
        return trainer.token_mean(rows, cross_entropy)["loss"]

    def distilled(estimator: str) -> Callable[[Trainer], float]:
        config = DistillationConfig(estimator=estimator)

        def backward(trainer: Trainer) -> float:
            teacher = Teacher(trainer.stage, 1, LIMIT)
            return distil(trainer, teacher, rows, teacher_rows, config)["loss"]

        return backward

    def reinforced(trainer: Trainer) -> float:
        advantages = torch.tensor([(-1.0) ** i * (1 + i % 3) for i in range(len(rows))])
        config = GRPOConfig(kl_beta=0.1, micro_batch_tokens=LIMIT)
        reference = Teacher(trainer.stage, 0, LIMIT)
        unused = [[0.0] * len(row.completion) for row in rows]  # without importance weights
        loss = PolicyLoss(trainer.stage, config, rows, advantages, unused, reference)
        return trainer.backward(loss.rows, loss)

    estimators = ("full", "sampled", "rao_blackwell", "top_k")
    sdft = {f"SDFT {estimator}": distilled(estimator) for estimator in estimators}
    return {"SFT": supervise, **sdft, "GRPO": reinforced}


def answers(
    bench: Bench,
    cpu: "PreTrainedModel",
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: int,
) -> None:
    """Greedy answers: a tie of two tokens may fall either way, more may not differ."""
    prompts = [row.prompt for row in make_rows(vocabulary, [20 + 3 * i for i in range(32)], 1)]
    ours, theirs = (
        TransformersSampler(net, tokenizer).sample(prompts, max_new_tokens=16, temperature=0)
        for net in (model, cpu)
    )
    equal = sum(a[0].token_ids == b[0].token_ids for a, b in zip(ours, theirs, strict=True))
    bench.judge("greedy answers equal", equal, "of 32", "at least 31", equal >= 31)


def sampled(
    bench: Bench,
    name: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: int,
    limit: float,
) -> None:
    """Log-probabilities that the sampler notes against those that the trainer computes."""
    prompts = [row.prompt for row in make_rows(vocabulary, [10, 35, 60, 81], 1, seed=1)]
    groups = TransformersSampler(model, tokenizer).sample(prompts, max_new_tokens=24, n=4, seed=3)
    pairs = zip(prompts, groups, strict=True)
    rows = [Row(prompt, answer.token_ids) for prompt, group in pairs for answer in group]
    noted = torch.tensor(
        [value for group in groups for answer in group for value in answer.logprobs]
    )
    difference = (noted - logprobs(model, rows)).abs()
    # bfloat16 rounds both sides: single tokens may be further apart
    figure = difference.max() if name == "float32" else difference.mean()
    kind = "largest" if name == "float32" else "mean"
    bench.at_most(f"{name}, sampler and trainer, {kind} difference", figure.item(), limit, "nats")
