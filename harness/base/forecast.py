"""How long an order still takes: what its cost model says, corrected by what it has taken so far.

The model says how long each stage learns and measures. Both are multiplied by a factor: the time
that such work has taken, over what the model said of it. Before anything is done the factor is 1;
it moves as work is done, since the model's word counts as much as TRUST of the whole order. So the
first step, which is slow, moves it little, and a machine of another speed is known after some
hundredths. What an earlier start did counts as done and moves no factor.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

TRUST = 0.02  # of the order's work: how much of it must be done to weigh as much as the model
LEAST = 1e-3  # factor
LEARNING, MEASURING, BETWEEN = "learning", "measuring", "between"


@dataclass
class Expected:
    """What the model says of a stage, in seconds, and the share of it that is done, from 0 to 1.

    label: of the method; pieces: {what is measured: seconds}; is_known: whether the seconds are
    those of other runs of the folder, so that they need another factor than the model's.
    """

    label: str
    learning: float
    measuring: float
    pieces: Mapping[str, float] = field(default_factory=dict)
    is_known: bool = False
    learned: float = 0.0
    measured: float = 0.0
    is_over: bool = False


@dataclass
class _Taken:
    """Seconds that the model gave to work that is done, and those that it took."""

    expected: float = 0.0
    actual: float = 0.0

    def factor(self, trust: float, usual: float = 1.0) -> float:
        """Actual over expected; as long as little of ``trust`` is done, rather ``usual``.

        Between the two by logarithms, so that one slow step is not taken for all of them.
        """
        if self.expected <= 0 or trust <= 0:
            return usual
        weight = self.expected**2 / (self.expected**2 + trust**2)
        ratio = max(self.actual / self.expected, LEAST)
        return float(ratio**weight * usual ** (1 - weight))


class HowFar(NamedTuple):
    """How much of something is done, from 0 to 1, and the seconds that are left; None: unknown."""

    done: float
    left: float | None


class Forecast:
    """The work of all runs of an order, each a list of stages, and the time that is left.

    runs: {name: its stages}, that of the base model first; is_timed: whether the seconds are more
    than proportions, so that a time is left before anything is done.
    """

    def __init__(
        self, runs: Mapping[str, Sequence[Expected]] | None = None, is_timed: bool = True
    ) -> None:
        self.runs = runs or {}
        self.is_timed = is_timed
        self._place = "", 0
        self._stage = Expected("", 0.0, 0.0)
        self._doing, self._since = BETWEEN, time.monotonic()
        self._spent = 0.0  # of what is done now, since it last got on
        self._taken: dict[tuple[str, str, bool], _Taken] = {}
        self._between, self._over = 0.0, 0  # seconds of neither kind; stages done by this start
        self._piece, self._begun = 0.0, 0.0  # seconds of what is measured; the share before it
        self._most: dict[object, float] = {}  # shares that were shown, which do not go back

    # ---- what the runs tell ----------------------------------------------------------------------

    def take_over(self, other: "Forecast") -> None:
        """Go on from another one, made before the stages were known: its place is this one's."""
        self.enter(*other._place, other._stage.learned)
        self.doing(other._doing)

    def over_before(self, run: str, stages: int) -> None:
        """An earlier start has done the first ``stages`` of a run."""
        for stage in list(self.runs.get(run, ()))[:stages]:
            self._finish(stage)

    def enter(self, run: str, stage: int, learned: float = 0.0) -> None:
        """A stage begins; learned: the share of its steps that an earlier start has done."""
        self.doing(BETWEEN)
        stages = self.runs.get(run, ())
        self._place = run, stage
        self._stage = stages[stage] if stage < len(stages) else Expected("", 0.0, 0.0)
        self._stage.learned = learned
        self._piece = self._begun = 0.0

    def doing(self, kind: str) -> str:
        """LEARNING, MEASURING or BETWEEN from now on; returns what it was."""
        before = self._doing
        if before == MEASURING:
            self._close_piece()
        self._tick()
        if before == BETWEEN:
            self._between += self._spent
        elif before == LEARNING and self._stage.learned >= 1:  # work behind the last step
            self._of(LEARNING).actual += self._spent
        self._spent, self._doing = 0.0, kind
        return before

    def learned(self, share: float) -> None:
        """So much of the stage's steps is done."""
        done = min(share, 1.0) - self._stage.learned
        if done > 0:
            self._stage.learned += done
            self._count(LEARNING, done * self._stage.learning)

    def measures(self, piece: str) -> None:
        """A piece of the stage's measuring begins."""
        self._close_piece()
        self._piece = self._stage.pieces.get(piece, 0.0)

    def measured(self, share: float) -> None:
        """So much of the present piece is done. Of one that was on record before nobody says it."""
        if self._stage.measuring <= 0:
            return
        at = self._begun + self._piece * min(share, 1.0) / self._stage.measuring
        done = min(at, 1.0) - self._stage.measured
        if done > 0:
            self._stage.measured += done
            self._count(MEASURING, done * self._stage.measuring)

    def over(self) -> None:
        """The present stage is over."""
        self.doing(BETWEEN)
        self._finish(self._stage)
        self._over += 1

    def _close_piece(self) -> None:
        if self._stage.measuring > 0:
            at = min(1.0, self._begun + self._piece / self._stage.measuring)
            self._stage.measured = max(self._stage.measured, at)
            self._begun = self._stage.measured
        self._tick()
        self._piece = self._spent = 0.0

    @staticmethod
    def _finish(stage: Expected) -> None:
        stage.learned = stage.measured = 1.0
        stage.is_over = True

    def _count(self, kind: str, seconds: float) -> None:
        """Work that the model gave ``seconds`` is done, and took the time since it last got on."""
        self._tick()
        taken = self._of(kind)
        taken.expected += seconds
        taken.actual += self._spent
        self._spent = 0.0

    def _tick(self) -> None:
        now = time.monotonic()
        self._spent += now - self._since
        self._since = now

    def _of(self, kind: str) -> _Taken:
        label = self._stage.label if kind == LEARNING else ""
        return self._taken.setdefault((kind, label, self._stage.is_known), _Taken())

    # ---- what is left ----------------------------------------------------------------------------

    @property
    def of_order(self) -> HowFar:
        """Of all runs."""
        return self._share("", self._all())

    @property
    def of_run(self) -> HowFar:
        """Of the present run."""
        run, _ = self._place
        return self._share(run, self.runs.get(run, ()))

    @property
    def of_stage(self) -> HowFar:
        """Of the present stage."""
        return self._share(self._place, [self._stage])

    def _all(self) -> list[Expected]:
        return [stage for run in self.runs.values() for stage in run]

    def _share(self, key: object, stages: Sequence[Expected]) -> HowFar:
        learning, measuring = self._factors(LEARNING), self._factors(MEASURING)
        rest = self._between / (self._over + 1)
        done = left = 0.0
        for stage in stages:
            of = stage.label, stage.is_known
            for seconds, share in (
                (stage.learning * learning.get(of, 1.0), stage.learned),
                (stage.measuring * measuring.get(of, 1.0), stage.measured),
            ):
                done += seconds * share
                left += seconds * (1 - share)
            done, left = done + rest * stage.is_over, left + rest * (not stage.is_over)
        share = done / (done + left) if done + left > 0 else 0.0
        self._most[key] = max(self._most.get(key, 0.0), min(share, 1.0))
        if not (self.is_timed or self._taken):
            return HowFar(self._most[key], None)
        since = self._spent + time.monotonic() - self._since  # while nothing is heard, time goes on
        return HowFar(self._most[key], max(0.0, left - since))

    def _factors(self, kind: str) -> dict[tuple[str, bool], float]:
        """{(label, is_known): actual over expected seconds of this kind of work}."""
        stages = self._all()
        trust = TRUST * sum(stage.learning + stage.measuring for stage in stages)
        factors = {}
        for is_known in (False, True):
            every, of_kind = _Taken(), _Taken()
            for (of, _, known), taken in list(self._taken.items()):  # a thread may paint
                for pool in (every, of_kind) if of == kind else (every,):
                    pool.expected += taken.expected * (known == is_known)
                    pool.actual += taken.actual * (known == is_known)
            usual = of_kind.factor(trust, every.factor(trust))
            for label in {stage.label for stage in stages}:
                own = self._taken.get((kind, label, is_known), _Taken())
                factors[label, is_known] = own.factor(trust, usual)
        return factors
