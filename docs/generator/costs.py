"""What a method or part costs, as --plan counts it: its ``work`` of symbols instead of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from generator.text import grid
from harness.learning.made_weights import MadeWeights
from harness.learning.method import Method
from harness.learning.outlook import Work
from harness.learning.parametrisation import Parametrisation
from harness.learning.part import Part
from methods.sft import SFT

PROMPTS = 128  # of the budget of each skill, as many as it has examples
SIDE = 1024  # of the linear map for which numbers are counted
LEGEND = (
    "For each prompt of the budget, with the defaults, in the second of three stages of "
    f"{PROMPTS} prompts. Tokens: P of a prompt, D of a demonstration, A of a sampled answer, "
    "Q of what a teacher reads before it. Bytes: B of a prompt or an answer, E of an example as "
    "it is kept. N: weights in products, of all weights alike."
)
# They ask a tokenizer, or train nothing: the docstring says what they cost.
NOT_SYMBOLIC = ("cpt", "in_context", "sft_reinvoke", "trl")


class Terms:
    """A sum of symbols with factors; the symbol "" is 1. It is multiplied by numbers alone."""

    def __init__(self, **factors: float) -> None:
        self.factors = {symbol: factor for symbol, factor in factors.items() if factor}

    def __add__(self, other: Terms | float) -> Terms:
        more = other.factors if isinstance(other, Terms) else {"": other}
        symbols = dict.fromkeys([*self.factors, *more])
        return Terms(**{s: self.factors.get(s, 0) + more.get(s, 0) for s in symbols})

    def __mul__(self, factor: float) -> Terms:
        return Terms(**{symbol: own * factor for symbol, own in self.factors.items()})

    def __truediv__(self, divisor: float) -> Terms:
        return self * (1 / divisor)

    __radd__, __rmul__ = __add__, __mul__

    def __float__(self) -> float:
        """With 1 for every symbol."""
        return float(sum(self.factors.values()))

    def __bool__(self) -> bool:
        return bool(self.factors)

    def __gt__(self, other: Terms | float) -> bool:
        return float(self) > float(other)

    def __lt__(self, other: Terms | float) -> bool:
        return float(self) < float(other)

    def __str__(self) -> str:
        terms = []
        for symbol, factor in self.factors.items():
            number = f"{factor:.3g}" if factor < 1000 else f"{factor:,.0f}"
            terms.append(symbol if symbol and number == "1" else f"{number} {symbol}".strip())
        return " + ".join(terms) or "0"


def outlook() -> Any:
    """What ``work`` is asked with, as harness.learning.outlook.Outlook."""
    skill = SimpleNamespace(examples=lambda split=None: [None] * PROMPTS)
    return SimpleNamespace(
        prompt=Terms(P=1),
        demonstration=Terms(D=1),
        answer=Terms(A=1),
        teacher_prompt=lambda *_, **__: Terms(Q=1),
        prompt_bytes=Terms(B=1),
        answer_bytes=Terms(B=1),
        example_bytes=Terms(E=1),
        parameters=Terms(N=1),
        prompts=PROMPTS,
        later=1,
        earlier=(),
        size_of=lambda start: 1.0,
        skill=skill,
    )


def work_of(method: type[Method], part: type[Part] | None = None) -> Work:
    """The work of a method with its defaults, and with a part that joins it."""
    asked = outlook()
    asked.earlier = [outlook()]
    work = method(method.Config()).work(asked)
    return part(part.Config()).work(asked, work, asked.earlier) if part else work


def rows(work: Work) -> dict[str, Terms | float]:
    """The rows of the table."""
    sampled = (work.answers + work.beforehand) * work.sampled
    other = work.scored + work.read + sampled
    held = work.held.factors.get("N", 0) / 4 if isinstance(work.held, Terms) else 0
    return {
        "tokens in passes forward and backward": work.learned,
        "tokens in passes forward alone": work.scored + work.read,
        "tokens sampled": sampled,
        "FLOPs / N: 6 a learned token, 2 any other": 6 * work.learned + 2 * other,
        "copies of the model in memory": work.copies + len(work.starts),
        "float32 numbers in memory for each weight": held + work.averaged,
        "prompts drawn beside the budget, in all": work.further,
        "bytes kept for the next stage": work.kept,
    }


def cost_table(of: Sequence[tuple[str, Work]]) -> str:
    """Columns of work under their headings, without rows of zeros."""
    columns = [rows(work) for _, work in of]
    lines = [
        (name, *(str(each[name] + Terms()) for each in columns))
        for name in columns[0]
        if any(map(bool, (each[name] for each in columns)))
    ]
    return LEGEND + "\n\n" + grid(["", *(heading for heading, _ in of)], lines)


def method_cost(name: str, method: type[Method]) -> str:
    """The table of a method beside SFT; "" where its work is not one of symbols."""
    if name in NOT_SYMBOLIC:
        return ""
    plain = [("`sft`", work_of(SFT))] if name != "sft" else []
    return cost_table([*plain, (f"`{name}`", work_of(method))])


def part_cost(name: str, part: type[Part]) -> str:
    """The table of SFT with a part beside SFT alone."""
    return cost_table([("`sft`", work_of(SFT)), (f"`sft` with `{name}`", work_of(SFT, part))])


def parameters_cost(trained: type[Parametrisation]) -> str:
    """FLOPs of a learned token, and numbers of one linear map."""
    flops = "4 N + 6 n" if trained.passes < Parametrisation.passes else "6 N"
    lines = [("FLOPs of a learned token", flops)]
    own = trained(trained.Config())
    if isinstance(own, MadeWeights):
        weight = torch.empty(SIDE, SIDE, device="meta")
        lines.append((f"numbers that learn of a map [{SIDE}, {SIDE}]", f"{own.count(weight):,}"))
        if beside := own.beside(weight):
            lines.append(("float32 numbers that stay beside W_0", f"{beside:,}"))
    legend = "N: weights in products. n: numbers of the adapter. Scored and sampled tokens: 2 N."
    return legend + "\n\n" + grid(("with the defaults", ""), lines)
