"""What a part finds: figures, their marks and a verdict. Nothing here imports PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PASS, FAIL, SKIPPED = "PASS", "FAIL", "SKIPPED"


@dataclass
class Check:
    """One figure and its mark. ok: None where the figure has no mark or is not judged here."""

    name: str
    value: Any
    unit: str = ""
    mark: str = ""
    ok: bool | None = None

    @property
    def figure(self) -> str:
        """The value as people read it."""
        if self.value is None:
            return "not installed"
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{value} {self.unit}".strip()

    @property
    def word(self) -> str:
        """PASS, FAIL, "printed" for a mark that is not judged here, or nothing."""
        return {True: PASS, False: FAIL, None: "printed" if self.mark else ""}[self.ok]

    def line(self) -> str:
        """``FAIL     largest difference: 2e-05, wanted at most 1e-05``."""
        return f"{self.word:<8} {self.name}: {self.figure}" + (
            f", wanted {self.mark}" if self.mark else ""
        )


@dataclass
class PartResult:
    """What a part found.

    about: the machine, versions and model that it holds for. reason: why it was skipped or failed
    beside its figures.
    """

    part: str
    verdict: str
    reason: str = ""
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def missed(self) -> bool:
        """Whether a judged figure misses its mark."""
        return any(check.ok is False for check in self.checks)

    def json(self) -> str:
        """The result in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path) -> PartResult | None:
        """The result in a file; None where there is none, or no whole one."""
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**row, "checks": [Check(**check) for check in row["checks"]]})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def table(results: Sequence[PartResult]) -> str:
    """Every part and figure, in columns."""
    rows = [("part", "verdict", "figure", "value", "wanted")]
    for result in results:
        rows.append((result.part, result.verdict, result.reason, f"{result.seconds:.0f} s", ""))
        rows += [("", check.word, check.name, check.figure, check.mark) for check in result.checks]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
