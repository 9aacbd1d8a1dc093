"""Jobs of an array: each goes past what another works on, and takes up what is left."""

import pytest

from harness.base.errors import UserError
from harness.results.formats import FAILED
from harness.results.writer import ResultsWriter
from harness.runs.reading import read_order
from harness.runs.shards import Shard, claimed, is_ready, needs


@pytest.fixture
def results(tmp_path):
    return ResultsWriter(tmp_path / "out")


def finish(results, run):
    for stage in range(len(run.stages) + 1):
        folder = results.stage(run.name, stage)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stage.json").touch()


def worked_on(order, results, shard):
    """Names of the runs that a job gets, each finished at once."""
    names = []
    for run in claimed(order, results, shard):
        names.append(run.name)
        finish(results, run)
    return names


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_is_one_of_so_many(text):
    with pytest.raises(UserError, match=r"--shard .* is no I/N"):
        Shard.read(text)
    assert Shard.read("4/4") == (4, 4)


def test_each_job_begins_with_its_own_and_leaves_nothing(order_file, results):
    order = read_order(order_file(seeds=[0, 1]))
    names = [run.name for run in order.runs()]
    other = results.owners.claim(names[1])  # what another works on
    found = worked_on(order, results, Shard(2, 3))
    assert found[:1] == [names[4]] and set(found) == {*names} - {names[1]}
    other.release()
    assert worked_on(order, results, Shard(3, 3)) == [names[2], names[5], names[1]]
    assert results.owners.holders() == {} and results.lease is None


def test_failed_runs_of_others_are_not_tried_again(order_file, results):
    order = read_order(order_file(seeds=[0, 1]))
    for run in order.runs()[:2]:
        results.run(run.name).mkdir(parents=True)
        (results.run(run.name) / FAILED).write_text("no memory")
    found = worked_on(order, results, Shard(1, 2))
    assert order.runs()[0].name in found and order.runs()[1].name not in found


def test_a_run_waits_for_the_runs_that_it_reads(order_file, results):
    sft = {"method": "sft", "learning_rate": 1e-3}
    methods = {
        "stm": {**sft, "with": {"stm": {"threshold": 300}, "matched_norm": None}},
        "control": {**sft, "with": {"matched_norm": {"like": "stm", "of": "distance"}}},
    }
    order = read_order(order_file(methods=methods, relearning=["stm"]))
    stm, control, again = order.runs()
    assert [needs(order, run) for run in order.runs()] == [set(), {stm.name}, {stm.name}]
    assert not is_ready(order, results, control) and not is_ready(order, results, again)
    found = worked_on(order, results, Shard(3, 3))  # its own is one that waits
    assert found[0] == stm.name and sorted(found) == sorted(run.name for run in order.runs())
