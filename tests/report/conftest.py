"""Results folders and the browser that several test files of the report share."""

from pathlib import Path
from typing import NamedTuple

import pytest

from harness.report.build import write_report
from tests.fabricate import fabricate


class Reported(NamedTuple):
    """A results folder, and the terminal text and the page of its report."""

    folder: Path
    text: str
    page: Path


@pytest.fixture(scope="session")
def three(tmp_path_factory) -> Path:
    """Three seeds of three methods, of which one takes more steps."""
    folder = tmp_path_factory.mktemp("results") / "three"
    return fabricate(folder, seeds=(0, 1, 2), steps={"sdft": 18}, n=40)


@pytest.fixture(scope="session")
def reported(three) -> Reported:
    text, page = write_report(three)
    return Reported(three, text, page)
