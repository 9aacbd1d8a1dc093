"""Everything drawn once."""

import pytest

from benchmarks.paper.write import write_paper
from tests.benchmarks.paper.folders import (
    context_folder,
    further_folder,
    generations_folder,
    sequence_folder,
    skill_folder,
)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Everything drawn once, from a folder of results folders: (text, page)."""
    parent = tmp_path_factory.mktemp("results")
    sequence_folder(parent / "sequence")
    skill_folder(
        parent / "one",
        {"sft": [0.5], "sdft": [0.4]},
        {"sft": [0.6], "sdft": [0.8]},
        experiment=["table_5", "figure_5_left"],
    )
    skill_folder(
        parent / "two",
        {"sft": [0.3, 0.5, 0.4], "sdft": [0.6, 0.7, 0.8]},
        {"sft": [0.8] * 3, "sdft": [0.8] * 3},
        (0, 1, 2),
        skill="tools",
    )
    further_folder(parent / "further")
    generations_folder(parent / "generations")
    context_folder(parent / "contexts")
    return write_paper([parent])
