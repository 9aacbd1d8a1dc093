"""A run that is killed anywhere, as often as one likes, ends in the files of a run that was left
alone.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from benchmarks.torture.starts import fork_server
from harness.base.console import STAMP
from tests.conftest import write_rows
from tests.runs.processes import Runner, assert_same, contents

# a lone letter is what a random model gets right now and then
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789")


METHODS = {
    "sft": {"learning_rate": 1e-3},
    "sdft": {"learning_rate": 1e-3, "ema_alpha": 0.2},
    "grpo": {"learning_rate": 1e-3, "group_size": 4},
}


# What these keep between two steps is more: a corpus, the teacher's samples, a second phase.
BASELINES = {
    "cpt": {"learning_rate": 1e-3},
    "offline_distillation": {"learning_rate": 1e-3, "generations": 9},
    "sft_reinvoke": {"learning_rate": 1e-3, "reinvoke_prompts": 10},
}


@pytest.fixture(scope="module")
def processes():
    """The context whose children start with all imports done."""
    return fork_server()


@pytest.fixture(scope="module")
def orders(tiny, tmp_path_factory):
    """A function from a name and changed keys to an order file with two skills in which the tiny
    model has some success.
    """
    folder = tmp_path_factory.mktemp("orders")
    for skill in ("vowels", "digits"):
        for split, count in (("train", 20), ("validation", 3), ("test", 6)):
            write_rows(
                folder / f"{skill}-{split}.jsonl",
                [
                    {
                        "prompt": f"{skill} {split} {i}?",
                        "demonstration": f"{skill[0]}{i}!",
                        "reference": LETTERS,
                        "source": f"{skill} {i // 2}",
                    }
                    for i in range(count)
                ],
            )

    def write(name, **changes):
        order = {
            "name": "tiny",
            "model": {"name": str(tiny), "dtype": "float32", "device": "cpu"},
            "skills": [
                {
                    "name": s,
                    "train": f"{s}-train.jsonl",
                    "test": f"{s}-test.jsonl",
                    "grader": "contains",
                    "max_new_tokens": 10,
                }
                for s in ("vowels", "digits")
            ],
            "methods": METHODS,
            "budget": {"prompts": 30, "batch_size": 4},
            "evaluate": {"every_steps": 3},
            "checkpoints": {"minutes": 0, "keep": "all"},
            **changes,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(order, sort_keys=False))
        return folder / f"{name}.yaml"

    return write


@pytest.fixture(scope="module")
def left_alone(processes, orders, tmp_path_factory):
    """A function to the results of an undisturbed run of one method, and the seconds it took."""
    known = {}

    def get(method):
        if method not in known:
            order = orders(method, methods={method: {**METHODS, **BASELINES}[method]})
            runner = Runner(processes, order, tmp_path_factory.mktemp("alone") / "out")
            start = time.monotonic()
            assert runner.run() == 0, runner.text()
            known[method] = contents(runner.out), time.monotonic() - start
        return known[method]

    return get


# Each start goes on from where the one before was killed; together they cover a stage's whole life.
PLACES = [
    ("text", "within", 1),
    ("replace", "before", 1),
    ("evaluation", "before", 1),
    ("evaluation", "after", 1),
    ("commit", "before", 1),
    ("rebuild", "before", 1),
    ("update", "before", 1),
    ("checkpoint", "within", 1),
    ("checkpoint", "after", 1),
    ("update", "after", 2),
    ("checkpoint", "within", 2),
    ("evaluation", "before", 1),
    ("evaluation", "after", 1),
    ("sample", "before", 1),
    ("sample", "after", 2),
    ("update", "after", 1),
    ("replace", "after", 2),
    ("weights", "before", 1),
    ("text", "within", 2),
    ("weights", "after", 1),
    ("commit", "before", 1),
    ("commit", "after", 1),
    ("unlink", "before", 1),
    ("checkpoint", "after", 3),
    ("replace", "after", 3),
    ("commit", "before", 1),
    ("rebuild", "before", 1),
    ("rebuild", "before", 1),
]


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_every_kind_of_place(method, processes, orders, left_alone, tmp_path):
    wanted, _ = left_alone(method)
    runner = Runner(processes, orders(method, methods={method: METHODS[method]}), tmp_path / "out")
    for place in PLACES:
        if method == "sft" and place[0] == "sample":  # it samples in evaluations only
            continue
        assert runner.run(*place) == -signal.SIGKILL, (place, runner.text())
    assert runner.run() == 0, runner.text()
    assert_same(contents(runner.out), wanted)


@pytest.mark.parametrize("method", BASELINES)
def test_baselines_are_killed_too(method, processes, orders, left_alone, tmp_path):
    """Around what they write before the first step, within a phase and at its border (the eighth
    step).
    """
    wanted, _ = left_alone(method)
    runner = Runner(
        processes, orders(method, methods={method: BASELINES[method]}), tmp_path / "out"
    )
    for place in [
        ("commit", "after", 1),
        ("replace", "before", 1),
        ("replace", "after", 2),
        ("text", "within", 2),
        ("update", "before", 1),
        ("update", "after", 3),
        ("checkpoint", "after", 6),
        ("update", "before", 2),
        ("commit", "before", 1),
        ("text", "within", 1),
    ]:
        assert runner.run(*place) == -signal.SIGKILL, (place, runner.text())
    assert runner.run() == 0, runner.text()
    assert_same(contents(runner.out), wanted)


def test_undisturbed_runs_learn_something(left_alone):
    """What the other tests compare is no constant: weights change in every stage, GRPO sees
    rewards.
    """
    for method in METHODS:
        files, _ = left_alone(method)
        weights = [
            files[f"runs/{method}-seed0/stage-{k}/weights/model.safetensors"] for k in (1, 2)
        ]
        steps = [
            row for k in (1, 2) for row in files[f"runs/{method}-seed0/stage-{k}/training.jsonl"]
        ]
        assert len(set(weights)) == 2 and [row["step"] for row in steps] == list(range(1, 17))
        assert method != "grpo" or len({row["reward"] for row in steps}) > 2
        values = [row["value"] for row in files["records.jsonl"] if row["metric"] == "contains"]
        assert len(values) == 2 * (1 + 3 + 3) and len(set(values)) > 1


@pytest.mark.parametrize("spot, when", [("replace", "after"), ("text", "within")])
def test_killed_at_later_and_later_files(spot, when, processes, orders, left_alone, tmp_path):
    """At the first, fourth, seventh, ... rename or write of a start, until a start has fewer left
    to do.
    """
    wanted, _ = left_alone("sft")
    runner, count = (
        Runner(processes, orders("sft", methods={"sft": METHODS["sft"]}), tmp_path / "out"),
        1,
    )
    while (code := runner.run(spot, when, count)) == -signal.SIGKILL:
        count += 3
    assert code == 0, runner.text()
    assert count >= 13
    assert_same(contents(runner.out), wanted)


def test_killed_at_random_moments(processes, orders, left_alone, tmp_path):
    """Five times in a row, at moments that nobody chose, for an order of all three methods."""
    whole = {
        name: value
        for method in METHODS
        for name, value in left_alone(method)[0].items()
        if name.startswith("runs/")
    }
    seconds = sum(left_alone(method)[1] for method in METHODS)
    runner = Runner(processes, orders("all"), tmp_path / "out")
    for _ in range(5):
        process = runner.start()
        process.join(random.uniform(0.1, 0.3) * seconds)
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0), runner.text()
    assert runner.run() == 0, runner.text()
    found = contents(runner.out)
    assert_same({name: value for name, value in found.items() if name.startswith("runs/")}, whole)
    rows = [row for method in sorted(METHODS) for row in left_alone(method)[0]["records.jsonl"]]
    assert found["records.jsonl"] == rows
    for method in METHODS:
        for name, value in left_alone(method)[0].items():
            if name.startswith("evaluations/"):
                assert found[name] == value


@pytest.mark.parametrize("keep", ["last", "none"])
def test_disk_is_given_back_even_after_a_kill(keep, processes, orders, tmp_path):
    """Killed right after each commit, when checkpoint and old weights still stand: the next start
    removes them.
    """
    order = orders(
        f"keep-{keep}", methods={"sft": METHODS["sft"]}, checkpoints={"minutes": 0, "keep": keep}
    )
    runner = Runner(processes, order, tmp_path / "out")
    for _ in range(3):
        assert runner.run("rebuild", "before", 1) == -signal.SIGKILL
    assert (runner.out / "runs/sft-seed0/stage-2/checkpoint/state.pt").exists()
    assert runner.run() == 0, runner.text()
    run = runner.out / "runs/sft-seed0"
    assert not list(run.glob("*/checkpoint"))
    assert [p.parent.name for p in run.glob("*/weights")] == (["stage-2"] if keep == "last" else [])


def test_ctrl_c_says_one_line_and_resumes(processes, orders, left_alone, tmp_path):
    wanted, _ = left_alone("sdft")
    runner = Runner(processes, orders("sdft", methods={"sdft": METHODS["sdft"]}), tmp_path / "out")
    assert runner.run("update", "after", 3, signal.SIGINT) == 130
    lines = [line for line in runner.text().splitlines() if not STAMP.match(line)]
    assert len(lines) == 2 and lines[0].startswith("stops after this step and a checkpoint; ")
    assert lines[1].startswith("stopped: ") and "go on with: " in lines[1], lines
    assert runner.run("sample", "before", 2, signal.SIGINT) == 130
    assert runner.run() == 0, runner.text()
    assert_same(contents(runner.out), wanted)
    earlier = json.loads((runner.out / "runs/sdft-seed0/run.json").read_text())["earlier"]
    # the rest was the same
    assert len(earlier) == 2 and {key for start in earlier for key in start} <= {
        "started",
        "first_stage",
    }


def test_a_second_process_is_refused_and_the_first_is_not_disturbed(
    processes, orders, left_alone, tmp_path
):
    wanted, _ = left_alone("sft")
    order = orders("sft", methods={"sft": METHODS["sft"]})
    first = Runner(processes, order, tmp_path / "out")
    # stands still in the middle of a stage
    process = first.start("update", "after", 3, signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        time.sleep(0.05)
    second = Runner(processes, order, tmp_path / "out")
    second.log = tmp_path / "second.log"
    assert second.run() == 2
    said = [line for line in second.text().splitlines() if not STAMP.match(line)]
    assert said == [
        f"error: {tmp_path}/out/runs/sft-seed0: another process works on this run; "
        "wait for it, or choose another --method, --seed or --sequence; --shard 1/1 goes past"
    ]
    os.kill(process.pid, signal.SIGCONT)
    process.join(150)
    assert process.exitcode == 0, first.text()
    assert_same(contents(first.out), wanted)


def test_processes_share_a_folder(processes, orders, left_alone, tmp_path):
    """One process a method, all at once: nothing of the shared files is lost."""
    order = orders("all")
    runners = [Runner(processes, order, tmp_path / "out", "--method", method) for method in METHODS]
    for runner, method in zip(runners, METHODS, strict=True):
        runner.log = tmp_path / f"{method}.log"
    started = [runner.start() for runner in runners]
    for process, runner in zip(started, runners, strict=True):
        process.join(150)
        assert process.exitcode == 0, runner.text()
    found = contents(tmp_path / "out")
    alone = {name: value for method in METHODS for name, value in left_alone(method)[0].items()}
    assert set(found) == set(alone)
    assert found["records.jsonl"] == [
        row for method in sorted(METHODS) for row in left_alone(method)[0]["records.jsonl"]
    ]
    assert found["protocols.json"] == alone["protocols.json"]
    assert list(found["results.json"]["methods"]) and set(found["results.json"]["methods"]) == set(
        METHODS
    )


# What refuses: a text, a checkpoint (torch.save) and weights (safetensors) each raise in a way of
# their own.
@pytest.mark.parametrize("file_limit, minutes", [(600, 0), (60_000, 0), (60_000, 10)])
def test_a_disk_that_takes_no_more(file_limit, minutes, processes, orders, left_alone, tmp_path):
    wanted, _ = left_alone("sft")
    order = orders(
        f"limit-{minutes}",
        methods={"sft": METHODS["sft"]},
        checkpoints={"minutes": minutes, "keep": "all"},
    )
    runner = Runner(processes, order, tmp_path / "out")
    assert runner.run(file_limit=file_limit) == 2, runner.text()
    lines = [line for line in runner.text().splitlines() if not STAMP.match(line)]
    assert (
        len(lines) == 1
        # the very first write is a trial of saving, in a folder of its own
        and (file_limit < 1000 or lines[0].startswith(f"error: {tmp_path}/out"))
        and lines[0].startswith("error: ")
        and "File too large; make room" in lines[0]
    ), runner.text()
    assert runner.run() == 0, runner.text()
    assert_same(contents(runner.out), wanted)


def test_half_a_checkpoint_is_named(processes, orders, left_alone, tmp_path):
    """What no kill leaves: the disk itself has lost a part."""
    wanted, _ = left_alone("sft")
    runner = Runner(processes, orders("sft", methods={"sft": METHODS["sft"]}), tmp_path / "out")
    assert runner.run("update", "after", 3) == -signal.SIGKILL
    state = runner.out / "runs/sft-seed0/stage-1.partial/checkpoint/state.pt"
    os.truncate(state, state.stat().st_size // 2)
    assert runner.run() == 2, runner.text()
    assert (
        f"error: {state}: is not what was written (its SHA-256 is not that of SHA256SUMS); "
        "remove it: the stage starts over\n" in runner.text()
    )
    state.unlink()
    assert runner.run() == 0, runner.text()
    assert_same(contents(runner.out), wanted)


def test_full_disk(processes, orders, left_alone, tmp_path):
    """The kernel's own "no space left", met by a checkpoint."""
    wanted, _ = left_alone("sft")
    runner = Runner(processes, orders("sft", methods={"sft": METHODS["sft"]}), tmp_path / "out")
    assert runner.run("checkpoint", "full", 1) == 2, runner.text()
    lines = [line for line in runner.text().splitlines() if not STAMP.match(line)]
    assert len(lines) == 1 and lines[0].startswith(
        f"error: {tmp_path}/out: No space left on device; make room"
    ), runner.text()
    assert runner.run() == 0, runner.text()
    assert_same(contents(runner.out), wanted)


THREADED = {"checkpoints": {"minutes": 1e-9, "keep": "all"}}


def test_killed_while_a_thread_writes(processes, orders, left_alone, tmp_path):
    """Before, within and behind the writing of a checkpoint, and in the steps beside it."""
    wanted, _ = left_alone("sdft")
    order = orders("threaded", methods={"sdft": METHODS["sdft"]}, **THREADED)
    runner = Runner(processes, order, tmp_path / "out")
    for place in (
        ("checkpoint", "within", 2),
        ("replace", "after", 3),
        ("checkpoint", "after", 2),
        ("commit", "before", 1),
    ):
        assert runner.run(*place, threaded=True) == -signal.SIGKILL, (place, runner.text())
    assert runner.run(threaded=True) == 0, runner.text()
    assert "goes on after step" in runner.text()
    assert_same(contents(runner.out), wanted)


def test_a_full_disk_that_a_thread_meets(processes, orders, left_alone, tmp_path):
    """The run ends with the line that it ends with otherwise, and goes on later."""
    wanted, _ = left_alone("sft")
    order = orders("threaded-sft", methods={"sft": METHODS["sft"]}, **THREADED)
    runner = Runner(processes, order, tmp_path / "out")
    assert runner.run("checkpoint", "full", 2, threaded=True) == 2, runner.text()
    lines = [line for line in runner.text().splitlines() if not STAMP.match(line)]
    assert len(lines) == 1 and lines[0].startswith(
        f"error: {tmp_path}/out: No space left on device; make room"
    ), runner.text()
    assert runner.run() == 0, runner.text()
    assert_same(contents(runner.out), wanted)


def test_killed_with_a_real_model(processes, tmp_path):
    """SmolLM2-135M: two steps, killed after the checkpoint of the first."""
    from harness.models.embedded import embedded_checkpoint

    rows = [
        {
            "prompt": f"Say the word number {i}.",
            "demonstration": f"word {i}",
            "reference": f"word {i}",
        }
        for i in range(8)
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", rows[:2])
    (tmp_path / "order.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"name": str(embedded_checkpoint()), "dtype": "float32", "device": "cpu"},
                "skills": [
                    {
                        "name": "words",
                        "train": "train.jsonl",
                        "test": "test.jsonl",
                        "grader": "token_f1",
                        "max_new_tokens": 4,
                    }
                ],
                "methods": {"sft": {"learning_rate": 1e-4}},
                "budget": {"prompts": 8, "batch_size": 4},
            }
        )
    )
    try:
        alone, killed = (
            Runner(processes, tmp_path / "order.yaml", tmp_path / name)
            for name in ("alone", "killed")
        )
        assert alone.run() == 0, alone.text()
        killed.arguments += ["--set", "checkpoints.minutes=0"]
        assert killed.run("update", "after", 2) == -signal.SIGKILL
        killed.arguments[-1] = "checkpoints.minutes=10"  # a checkpoint is 1.6 GB
        assert (tmp_path / "killed/runs/sft-seed0/stage-1.partial/checkpoint/state.pt").exists()
        assert killed.run() == 0, killed.text()
        assert "goes on after step 1" in killed.text()
        assert_same(contents(killed.out), contents(alone.out))
    finally:
        for name in ("alone", "killed"):  # a gigabyte
            shutil.rmtree(tmp_path / name, ignore_errors=True)
