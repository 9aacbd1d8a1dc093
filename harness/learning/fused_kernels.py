"""Triton kernels of fused.py: a program takes one token and walks over its logits in blocks.

Logits are read in the dtype that they have and computed in float32, in a fixed order and without
atomics: the numbers repeat to the bit. No GPU has run these kernels; Triton's interpreter has
(tests/learning/test_fused.py). They import Triton, so nothing imports them where it is missing.
"""

from typing import Any

import torch
import triton
import triton.language as tl

LONGEST = 8192  # logits of a block
WARPS = 8


def logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities [tokens] of the tokens, what ``logprobs_gradient`` needs)."""
    values, sums = _outputs(logits, 2)
    _start(_logprobs, temperature, logits, *logits.stride(), tokens, values, sums)
    return values, sums


def logprobs_gradient(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    sums: torch.Tensor,
    gradient: torch.Tensor,
    temperature: float,
) -> None:
    """Write the gradient over the logits; gradient [tokens]: of the log-probabilities."""
    arguments = (*logits.stride(), tokens, sums, gradient.float().contiguous())
    _start(_logprobs_gradient, temperature, logits, *arguments)


def forward_kl(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(KL(teacher || student) [tokens] in nats, what ``forward_kl_gradient`` needs)."""
    values, sums = _outputs(student, 4)
    both = (*student.stride(), teacher, *teacher.stride())
    _start(_forward_kl, temperature, student, *both, values, sums)
    return values, sums


def forward_kl_gradient(
    student: torch.Tensor,
    teacher: torch.Tensor,
    sums: torch.Tensor,
    gradient: torch.Tensor,
    temperature: float,
) -> None:
    """Write the gradient over the student's logits; gradient [tokens]: of the divergences."""
    both = (*student.stride(), teacher, *teacher.stride())
    _start(_forward_kl_gradient, temperature, student, *both, sums, gradient.float().contiguous())


def _outputs(logits: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 tensors [tokens] and [tokens, width]."""
    values = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    return values, values.new_empty(len(logits), width)


def _start(kernel: Any, temperature: float, logits: torch.Tensor, *arguments: Any) -> None:
    """Run a kernel on every row of logits [tokens, vocabulary]."""
    rows, vocabulary = logits.shape
    block = min(LONGEST, triton.next_power_of_2(vocabulary))
    with torch.cuda.device_of(logits):
        kernel[(rows,)](
            logits, *arguments, vocabulary, 1 / temperature, BLOCK=block, num_warps=WARPS
        )


@triton.jit
def _sums(logits, step, vocabulary, scale, BLOCK: tl.constexpr):
    """The largest of a row's scaled logits x, and the log of the sum of exp(x - largest)."""
    largest = -3.0e38  # not -inf, of which a block of -inf would make NaN
    total = 0.0
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(logits + columns * step, mask=columns < vocabulary, other=-float("inf"))
        x = x.to(tl.float32) * scale
        new = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(x - new), 0)
        largest = new
    return largest, tl.log(total)


@triton.jit
def _logprobs(
    logits,
    row_step,
    step,
    tokens,
    values,
    sums,
    vocabulary,
    scale,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_step
    largest, log_sum = _sums(logits, step, vocabulary, scale, BLOCK)
    chosen = tl.load(logits + tl.load(tokens + row) * step).to(tl.float32) * scale
    tl.store(values + row, chosen - largest - log_sum)
    tl.store(sums + 2 * row, largest)
    tl.store(sums + 2 * row + 1, log_sum)


@triton.jit
def _logprobs_gradient(
    logits,
    row_step,
    step,
    tokens,
    sums,
    gradient,
    vocabulary,
    scale,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_step
    largest = tl.load(sums + 2 * row)
    log_sum = tl.load(sums + 2 * row + 1)
    token = tl.load(tokens + row)
    factor = tl.load(gradient + row) * scale
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        x = tl.load(logits + columns * step, mask=inside, other=0.0).to(tl.float32) * scale
        slope = tl.where(columns == token, 1.0, 0.0) - tl.exp(x - largest - log_sum)
        tl.store(logits + columns * step, slope * factor, mask=inside)


@triton.jit
def _forward_kl(
    student,
    student_row,
    student_step,
    teacher,
    teacher_row,
    teacher_step,
    values,
    sums,
    vocabulary,
    scale,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * student_row
    teacher += row * teacher_row
    largest_p, log_sum_p = _sums(student, student_step, vocabulary, scale, BLOCK)
    largest_q, log_sum_q = _sums(teacher, teacher_step, vocabulary, scale, BLOCK)
    total = 0.0
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        s = tl.load(student + columns * student_step, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(teacher + columns * teacher_step, mask=inside, other=0.0).to(tl.float32)
        log_p = s * scale - largest_p - log_sum_p
        log_q = t * scale - largest_q - log_sum_q
        total += tl.sum(tl.where(inside, tl.exp(log_q) * (log_q - log_p), 0.0), 0)
    tl.store(values + row, total)
    tl.store(sums + 4 * row, largest_p)
    tl.store(sums + 4 * row + 1, log_sum_p)
    tl.store(sums + 4 * row + 2, largest_q)
    tl.store(sums + 4 * row + 3, log_sum_q)


@triton.jit
def _forward_kl_gradient(
    student,
    student_row,
    student_step,
    teacher,
    teacher_row,
    teacher_step,
    sums,
    gradient,
    vocabulary,
    scale,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * student_row
    teacher += row * teacher_row
    largest_p = tl.load(sums + 4 * row)
    log_sum_p = tl.load(sums + 4 * row + 1)
    largest_q = tl.load(sums + 4 * row + 2)
    log_sum_q = tl.load(sums + 4 * row + 3)
    factor = tl.load(gradient + row) * scale
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        s = tl.load(student + columns * student_step, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(teacher + columns * teacher_step, mask=inside, other=0.0).to(tl.float32)
        p = tl.exp(s * scale - largest_p - log_sum_p)
        q = tl.exp(t * scale - largest_q - log_sum_q)
        tl.store(student + columns * student_step, (p - q) * factor, mask=inside)
