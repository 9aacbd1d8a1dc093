"""A sample of each campaign of benchmarks/torture."""

import pytest

from benchmarks.torture.claims import claim_by_many
from benchmarks.torture.kills import kill_at_random, kill_jobs
from benchmarks.torture.material import METHODS, make_material
from benchmarks.torture.orders import mutate_orders
from benchmarks.torture.tears import tear_every_file
from harness.base.files import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torture")
    make_material(folder)
    return folder


def test_all_methods_are_tried():
    assert set(METHODS) == {p.stem for p in (ROOT / "methods").glob("*.py")} - {"__init__"}


def test_killed_runs_end_as_undisturbed_ones(folder):
    found = kill_at_random(folder, 2, seed=1, methods=["sdft"], say=lambda line: None)
    assert found.faults == [] and found.kills == {"sdft": 2} and found.ended >= 1


def test_killed_jobs_of_an_array_end_as_one_process(folder):
    found = kill_jobs(folder, 1, seed=3, seeds=1, say=lambda line: None)
    assert found.faults == [] and found.kills == {"jobs": 1} and found.ended >= 2


def test_claims_over_nfs(tmp_path):
    found = claim_by_many(tmp_path / "out", 40, processes=8)
    assert found.faults == [] and found.claims == 40


def test_damaged_files_are_refused_or_harmless(folder):
    found = tear_every_file(folder, seed=5, most=4, say=lambda line: None)
    assert found.faults == []
    assert found.refused["report.py"] + found.harmless["report.py"] == 4


def test_mutated_orders_are_refused_in_one_line_or_valid(folder):
    found = mutate_orders(folder, 12, seed=2, say=lambda line: None)
    assert found.faults == [] and found.refused + found.valid == 12
