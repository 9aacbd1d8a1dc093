"""records.jsonl while runs go on: whole, in its order, rebuilt as often as its size allows."""

import json
import shutil

import pytest

from harness.base.errors import UserError
from harness.base.files import read_json, write_json, write_jsonl, write_text
from harness.results import writer
from harness.results.folders import ResultsFolder
from harness.results.writer import ResultsWriter


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as the test says.

    ``now`` moves on by hand, and by ``cost`` at every writing of records.jsonl.
    """

    class Clock:
        now = 1000.0
        cost = 0.0
        rebuilt = 0

        def monotonic(self):
            return self.now

    clock = Clock()
    write = writer.write_summed

    def slow(path, text):
        write(path, text)
        if path.name == "records.jsonl" and path.parent.name == "out":
            clock.now += clock.cost
            clock.rebuilt += 1

    monkeypatch.setattr(writer, "time", clock)
    monkeypatch.setattr(writer, "write_summed", slow)
    return clock


def commit(results, run, stage, judged=False):
    partial = results.run(run) / f"stage-{stage}.partial"
    row = {
        "run": run,
        "method": run.split("-")[0],
        "seed": 0,
        "stage": stage,
        "skill": "s",
        "final": True,
        "kind": "skill",
        "name": "s",
        "split": "validation",
        "metric": "accuracy",
        "value": 0.1 * stage,
    }
    write_jsonl(partial / "records.jsonl", [{**row, "step": step} for step in range(3)])
    if judged:
        write_jsonl(partial / "judged.jsonl", [{**row, "metric": "judged"}])
    write_json(partial / "stage.json", {"stage": stage})
    results.commit(partial, run, stage)


def lines(folder):
    return (folder / "records.jsonl").read_text().splitlines()


def naive(folder, stages):
    """The lines of ``stages``, (run, stage) pairs, in the order of the file."""
    return [
        line
        for run, stage in sorted(stages)
        for name in ("records", "judged")
        if (path := folder / "runs" / run / f"stage-{stage}" / f"{name}.jsonl").exists()
        for line in path.read_text().splitlines()
    ]


@pytest.fixture
def out(tmp_path):
    write_json(
        tmp_path / "out" / "results.json",
        {
            "methods": {"b": {"grid": {"of": "g", "values": {}}}},
            "seeds": [0],
            "skills": [{"name": "s", "metric": "accuracy"}],
        },
    )
    return tmp_path / "out"


def test_folders_with_other_names_are_no_stages(out, clock):
    commit(ResultsWriter(out), "a-seed0", 0)
    for name in ("stage-0 (copy)", "stage-", "stage-1.partial", "stage--1"):
        shutil.copytree(out / "runs/a-seed0/stage-0", out / "runs/a-seed0" / name)
    ResultsWriter(out).rebuild()
    assert lines(out) == naive(out, [("a-seed0", 0)])


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("9" * 5000, "holds a whole number of 5,000 digits"),
        ("[" * 99999, "is not JSON"),
        ("{}", "has no `protocol`"),
    ],
)
def test_damaged_files_are_named(text, problem, out):
    results = ResultsWriter(out)
    place = "evaluations/k.json"
    write_text(out / place, text)
    with pytest.raises(UserError, match=f"{place}: {problem}; remove it: it is measured again"):
        results.evaluation("k")
    write_text(out / "protocols.json", text)
    if text == "{}":
        results.protocol("p", {})
        assert read_json(out / "protocols.json") == {"p": {}}
    else:
        with pytest.raises(UserError, match=f"protocols.json: {problem}; put back a whole copy"):
            results.protocol("p", {})


def test_a_damaged_row_is_named_where_a_grid_reads_it(out):
    """Also in a stage of the first version, which has no hashes; and so are half a line."""
    commit(ResultsWriter(out), "a-seed0", 0)
    stage = out / "runs/a-seed0/stage-0"
    (stage / "SHA256SUMS").unlink()
    for text, said in (('{"run": \n', "row 1: is not JSON"), ('{"run": 1}', "ends within a line")):
        write_text(stage / "records.jsonl", text)
        with pytest.raises(UserError, match=rf"stage-0/records\.jsonl.* {said}"):
            ResultsWriter(out).rebuild()


def test_what_a_killed_first_start_left_does_not_make_the_folder_anothers(tmp_path):
    about = {"methods": {}}
    for name in (".lock", ".results.json.partial", ".results.json.node7-a0.123.b1.partial"):
        (tmp_path / name).write_text('{"half')
    (tmp_path / "teacher_check").mkdir()
    assert ResultsWriter(tmp_path).check(about) == about
    (tmp_path / ".records.jsonl.node7-a0.123.b1.partial").touch()
    with pytest.raises(UserError, match="is not empty and holds no results"):
        ResultsWriter(tmp_path).check(about)


STAGES = [(run, stage) for run in ("b-seed0", "a-seed0", "a-seed1") for stage in range(12)]


def test_a_small_file_is_rebuilt_at_every_commit(out, clock):
    results = ResultsWriter(out)
    clock.cost = 5.0
    done = []
    for run, stage in STAGES:
        commit(results, run, stage, judged=stage % 2)
        done.append((run, stage))
        assert lines(out) == naive(out, done)
    assert clock.rebuilt == len(STAGES)


def test_a_large_file_takes_a_fiftieth_of_the_time(out, clock, monkeypatch):
    """Stages of 10 s, 2 s a rebuilding.

    In between the file is that of an earlier moment. The last rebuilding makes up for the rest.
    """
    monkeypatch.setattr(writer, "SMALL", 0)
    results = ResultsWriter(out)
    clock.cost = 2.0
    start = clock.now
    done = []
    seen = 0  # stages whose records the file holds
    for run, stage in STAGES:
        clock.now += 10
        commit(results, run, stage)
        done.append((run, stage))
        now = lines(out)
        assert now in [naive(out, done[:k]) for k in range(seen, len(done) + 1)]
        seen = len(now) // 3
    assert clock.rebuilt == 4 and 2 * (clock.rebuilt - 1) <= (clock.now - start) / 50
    assert seen < len(STAGES)
    results.rebuild()
    assert lines(out) == naive(out, STAGES)
    files = [out / "records.jsonl", out / "selection.json"]
    whole = [file.read_bytes() for file in files]
    ResultsWriter(out).rebuild()
    assert [file.read_bytes() for file in files] == whole
    assert json.loads(whole[1])["g"]["points"][0]["label"] == "b"


def test_what_a_killed_process_left_is_found_by_the_next(out, clock, monkeypatch):
    monkeypatch.setattr(writer, "SMALL", 0)
    first = ResultsWriter(out)
    clock.cost = 1.0
    for stage in range(5):
        commit(first, "a-seed0", stage)
    assert lines(out) == naive(out, [("a-seed0", 0)])
    commit(ResultsWriter(out), "a-seed0", 5)  # another process
    assert lines(out) == naive(out, [("a-seed0", k) for k in range(6)])


def copied(out):
    shutil.copytree(out / "runs" / "sft-seed0", out / "runs" / "sft-seed1")


def copied_beside(out):
    shutil.copytree(out / "runs" / "sft-seed0", out / "runs" / "sft-seed0 (copy)")


def renamed(out):
    (out / "runs" / "sft-seed0").rename(out / "runs" / "sft-seed7")


def exchanged(out):
    run = out / "runs" / "sft-seed0"
    (run / "stage-1").rename(run / "kept")
    (run / "stage-2").rename(run / "stage-1")
    (run / "kept").rename(run / "stage-2")


@pytest.mark.parametrize(
    "change, place, of",
    [
        (copied, "sft-seed1/stage-0", "stage 0"),
        (copied_beside, "sft-seed0 (copy)/stage-0", "stage 0"),
        (renamed, "sft-seed7/stage-0", "stage 0"),
        (exchanged, "sft-seed0/stage-1", "stage 2"),
    ],
)
def test_a_folder_of_another_run_or_stage_is_refused(change, place, of, out):
    """Its records would count twice, or as those of a run that never was."""
    results = ResultsWriter(out)
    for stage in range(3):
        commit(results, "sft-seed0", stage)
    before = (results.folder / "records.jsonl").read_bytes()
    change(results.folder)
    with pytest.raises(UserError) as error:
        results.rebuild()
    assert f'{place}/records.jsonl: is of run "sft-seed0", {of};' in str(error.value)
    assert (results.folder / "records.jsonl").read_bytes() == before
    if change is not copied_beside:  # which is no run's name: a report does not read it
        with pytest.raises(UserError, match=of):
            ResultsFolder(results.folder, {}).runs()
