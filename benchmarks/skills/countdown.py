"""Countdown: reach a target with given numbers, each used once; generated with a seed, no network.

The task of Retaining by Doing (Chen et al. 2025, arXiv 2510.18874), whose own rows are not used:
these are drawn here, each from an expression, so that a solution is known. An answer is verified
exactly by a reader of expressions that runs nothing.
"""

import random
import re
from collections import Counter

from benchmarks.skills._arithmetic import Reading, read_expression
from harness.skills.skill import Example, Skill

SIZES = {"train": 4000, "validation": 200, "test": 500}
SEED = 20251021
MOST = 99  # of a number, a step and a target
BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
PROMPT = (
    "Use each of the numbers {numbers} exactly once, with +, -, * and /, to make {target}. Every "
    "division must come out even. End with the expression alone in \\boxed{{}}."
)


def expression_of(completion: str) -> str:
    """What an answer gives as its expression: the last box, or all of it without one.

    Of boxes in a box the innermost, as in the source, which looks into a box once more.
    """
    while boxes := BOXED.findall(completion):
        completion = boxes[-1]
    return completion


def reading_of(completion: str, reference: dict) -> Reading | None:
    """Of an answer that uses exactly the given numbers; None otherwise."""
    reading = read_expression(expression_of(completion))
    if reading is None or Counter(reading.numbers) != Counter(reference["numbers"]):
        return None
    return reading


def accuracy(completion: str, reference: dict) -> float:
    """1 if the expression uses each number once, divides evenly and makes the target.

    The source's rule: steps may be negative or above 99. Its reader is Python's parser, which
    takes some other writings (docs/reference/skills/countdown.md).
    """
    reading = reading_of(completion, reference)
    return float(reading is not None and reading.whole and reading.value == reference["target"])


def accuracy_fractions(completion: str, reference: dict) -> float:
    """The same where a division need not come out even: the value is exact."""
    reading = reading_of(completion, reference)
    return float(reading is not None and reading.value == reference["target"])


def ladder(completion: str, reference: dict) -> float:
    """The reward: 1 if right, otherwise a sum of parts.

    0.1 for a box, 0.1 for an expression in the answer, 0.2 if it uses exactly the numbers.
    """
    if accuracy(completion, reference):
        return 1.0
    return (
        0.1 * bool(BOXED.search(completion))
        + 0.1 * (read_expression(expression_of(completion)) is not None)
        + 0.2 * (reading_of(completion, reference) is not None)
    )


class Countdown(Skill):
    """Three or four numbers from 1 to 99 and a target from 10 to 99.

    reference: ``{"numbers": [...], "target": n}``.
    """

    name = "countdown"
    description = (
        "Countdown: reach a target with each of three or four numbers once; generated, exact grader"
    )
    max_new_tokens = 96
    metrics = {"accuracy": accuracy, "accuracy_fractions": accuracy_fractions}
    checksums = {
        "train": "f74ddc5de0da70b1599aef08949aef8037e24f1993b90091c2ef17fcb7eb9b26",
        "validation": "b9072c2e0c08c5d5cf589b3fb2d484509353b9f501e8465e7421cf0f9ea21ca3",
        "test": "a1ea9051542b2d56b2ce57165a8268ef3a076ca6c7553cbdb51565b0e17c5c13",
    }

    def load(self, split):
        """Questions with different numbers: no set of numbers occurs twice, in any split."""
        rng = random.Random(SEED)
        seen: set[tuple[int, ...]] = set()
        rows = {}
        for name, size in SIZES.items():
            rows[name] = []
            while len(rows[name]) < size:
                numbers, steps, target, expression = _draw(rng, 3 + len(rows[name]) % 2)
                if tuple(sorted(numbers)) not in seen:
                    seen.add(tuple(sorted(numbers)))
                    identity = f"{name}/{len(rows[name])}"
                    rows[name].append(_example(identity, numbers, steps, target, expression))
        return rows[split]

    def reward(self, completion, reference):
        return ladder(completion, reference)

    def feedback(self, completion, reference):
        """What is wrong with an answer, in words; None where it is right. No solution is in it."""
        if accuracy(completion, reference):
            return None
        reading = read_expression(expression_of(completion))
        if reading is None:
            return "The answer does not end in one expression of numbers, +, -, *, / and brackets."
        wanted = ", ".join(map(str, reference["numbers"]))
        if Counter(reading.numbers) != Counter(reference["numbers"]):
            used = ", ".join(map(str, reading.numbers))
            return f"The expression uses {used}; it has to use each of {wanted} exactly once."
        if reading.value != reference["target"]:
            return f"The expression makes {reading.value}, not {reference['target']}."
        return "A division in the expression does not come out even."


def _draw(rng: random.Random, count: int) -> tuple[list[int], list[str], int, str]:
    """(numbers, steps of a solution as equations, target, solution) of a drawn question.

    Two values are joined at a time until one is left; steps stay whole and from 1 to MOST.
    """
    while True:
        numbers = [rng.randint(1, MOST) for _ in range(count)]
        values = [(number, str(number), False) for number in numbers]  # value, written, a sum?
        steps: list[str] = []
        while len(values) > 1:
            rng.shuffle(values)
            (a, x, x_sum), (b, y, y_sum) = values.pop(), values.pop()
            made = _join(rng, a, b)
            if made is None:
                break
            sign, value = made
            steps.append(f"{a} {sign} {b} = {value}")
            if sign in "*/":
                x = f"({x})" if x_sum else x
            # Behind a minus or a division, and a sum in a product, brackets keep the order.
            y = f"({y})" if not y.isdigit() and (y_sum or sign == "/") and sign != "+" else y
            values.append((value, f"{x} {sign} {y}", sign in "+-"))
        else:
            target, written, _ = values[0]
            if 10 <= target <= MOST and target not in numbers:
                return numbers, steps, target, written


def _join(rng: random.Random, a: int, b: int) -> tuple[str, int] | None:
    """A drawn operator with its value from 1 to MOST; None where none has one."""
    results = [("+", a + b), ("-", a - b), ("*", a * b)]
    if a % b == 0:
        results.append(("/", a // b))
    good = [(sign, value) for sign, value in results if 1 <= value <= MOST]
    return rng.choice(good) if good else None


def _example(
    identity: str, numbers: list[int], steps: list[str], target: int, expression: str
) -> Example:
    question = PROMPT.format(numbers=", ".join(map(str, numbers)), target=target)
    demonstration = "\n".join([*steps, f"\\boxed{{{expression}}}"])
    prompt = [{"role": "user", "content": question}]
    return Example(identity, prompt, demonstration, {"numbers": numbers, "target": target})
