"""What a user's hooks return is of the kind that the base class says."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch

from harness.base.answers import check_answers, fits, own_hooks
from harness.base.errors import UserError, WrongAnswer, plug_in


@pytest.mark.parametrize(
    "kind, right, wrong",
    [
        (Any, [None, 3, object], []),
        (None, [None], [0, ""]),
        (int, [3, np.int64(3)], [True, 3.0, None, "3"]),
        (float, [3, 0.5, np.float32(1), float("nan")], [True, None, torch.ones(1)]),
        (str, ["", "x"], [b"x", None]),
        (bool, [True], [1, None]),
        (str | None, ["x", None], [3]),
        (list[int], [[], [1], (1, 2)], [[1.5], [True], 3, {1}, iter([1])]),
        (set[str], [set(), {"a"}], [["a"], {1}]),
        (tuple[int, int], [(1, 2)], [(1,), (1, 2, 3), (1, "x"), [1, 2]]),
        (tuple[str, ...], [(), ("a", "b")], [("a", 1), "ab"]),
        (Sequence[str], [["a"], ("a",), []], [[1], 3, {"a"}]),
        (Iterable[str], [[], iter("ab"), (c for c in "ab")], [3, None]),
        (Iterator[int], [iter([])], [[]]),
        (Mapping[str, float], [{}, {"a": 1}], [{"a": "b"}, {1: 1.0}, [("a", 1)], None]),
        (dict[str, Any], [{"a": None}], [{1: 1}, None]),
        (torch.Tensor | None, [torch.ones(1), None], [1.0]),
        (list[torch.nn.Parameter], [[torch.nn.Parameter(torch.ones(1))]], [[torch.ones(1)]]),
        (Callable[[int], None], [print], [3]),
        (Literal["a"], [3], []),  # not looked at
    ],
)
def test_fits(kind, right, wrong):
    for value in right:
        assert fits(value, kind), value
    for value in wrong:
        assert not fits(value, kind), value


class Base:
    """As Part and Method are."""

    def count(self, n: int) -> int:
        """A number."""
        return n

    def change(self, numbers: torch.Tensor) -> None:
        """Change ``numbers`` in place."""

    def late(self) -> "NotKnownHere":  # noqa: F821
        """Of an import for type checkers alone."""


def test_a_hook_says_at_once_what_it_returns():
    class Own(Base):
        def count(self, n):
            return n if n else None

        def change(self, numbers):
            return numbers.mul_(2) if len(numbers) == 1 else numbers * 2

        def late(self):
            return 3

        def helper(self):
            return object()

    assert own_hooks(Own, Base) == ["count", "change", "late"] and own_hooks(Base, Base) == []
    for _ in range(2):  # under a second label of an order
        check_answers(Own, Base, "own.py")
    own = Own()
    assert own.count(2) == 2 and own.late() == 3 and own.helper()
    with pytest.raises(WrongAnswer, match=r"own.py: Own.count\(\): returns None; int is wanted"):
        own.count(0)
    with (
        pytest.raises(UserError, match=r"^here: own.py: Own.count\(\) returns None; int is wanted"),
        plug_in("here", "count()"),
    ):
        own.count(0)
    numbers = torch.ones(1)
    own.change(numbers)
    assert numbers == 2
    with pytest.raises(WrongAnswer, match="returns a tensor; change what it is given in place"):
        own.change(torch.ones(2))
    assert Base().count("x") == "x"  # the base stays as it is
