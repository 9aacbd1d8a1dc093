"""Reads an arithmetic expression of whole numbers exactly, and runs nothing: no ``eval``.

expression = term (("+" | "-") term)*
term       = factor (("*" | "/" | "//") factor)*
factor     = number | "(" expression ")"
"""

import re
from fractions import Fraction
from typing import NamedTuple

LONGEST = 200  # characters; a longer answer is no expression of a few numbers
TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})


class Reading(NamedTuple):
    """Of an expression: its exact value, its numbers as written, whether all divisions are even."""

    value: Fraction
    numbers: list[int]
    whole: bool


def read_expression(written: str) -> Reading | None:
    """The reading of a text that is one expression and nothing else.

    None for anything else, such as a sign before a number, a division by 0 or an equation.
    """
    tokens = _tokens(written.translate(SIGNS).replace("//", "/"))
    if not tokens:
        return None
    reader = _Reader(tokens)
    try:
        value = reader.expression()
    except (ValueError, ZeroDivisionError):
        return None
    if reader.place != len(tokens):
        return None
    return Reading(value, reader.numbers, reader.whole)


def _tokens(written: str) -> list[str]:
    """Numbers, operators and brackets; [] where there is anything else, or too much."""
    written = written.strip()
    if len(written) > LONGEST:
        return []
    tokens, end = [], 0
    while end < len(written):
        match = TOKEN.match(written, end)
        if match is None:
            return []
        tokens.append(match[1])
        end = match.end()
    return tokens


class _Reader:
    """Recursive descent; LONGEST bounds its depth."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.place = 0
        self.numbers: list[int] = []
        self.whole = True

    def expression(self) -> Fraction:
        value = self.term()
        while sign := self.take("+", "-"):
            other = self.term()
            value = value + other if sign == "+" else value - other
        return value

    def term(self) -> Fraction:
        value = self.factor()
        while sign := self.take("*", "/"):
            other = self.factor()
            value = value * other if sign == "*" else value / other
            # A quotient that is no whole number can become one again: the division counts.
            self.whole &= value.denominator == 1
        return value

    def factor(self) -> Fraction:
        if self.take("("):
            value = self.expression()
            if not self.take(")"):
                raise ValueError("a bracket is open")
            return value
        if self.place == len(self.tokens) or not self.tokens[self.place].isdigit():
            raise ValueError("a number is wanted")
        self.numbers.append(int(self.tokens[self.place]))
        self.place += 1
        return Fraction(self.numbers[-1])

    def take(self, *signs: str) -> str:
        """The next token where it is one of ``signs``; empty otherwise."""
        if self.place < len(self.tokens) and self.tokens[self.place] in signs:
            self.place += 1
            return self.tokens[self.place - 1]
        return ""
