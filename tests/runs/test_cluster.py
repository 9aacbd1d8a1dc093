"""Many runs by Ray's workers, and the script of docs/how-to/cluster.md for a job array."""

import os
import re
import subprocess
import sys
import time

import pytest

import run_sequence
from benchmarks.torture.material import make_material, order_of, write_order
from benchmarks.torture.starts import contents, differences
from harness.base.errors import UserError
from harness.base.files import ROOT, write_sealed
from harness.results.status import status_of
from harness.runs.cluster import Workers
from harness.runs.placing import gives_way
from harness.runs.worker import halve_passes

SBATCH = """#!/bin/bash
# A stand-in for Slurm's: starts the jobs of an array at once, and waits for them.
count=$(sed -n 's/^#SBATCH --array=1-//p' "$1")
for i in $(seq 1 ${JOBS:-$count}); do
  SLURM_JOB_ID=$i SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_TASK_COUNT=${JOBS:-$count} bash "$1" &
done
for job in $(jobs -p); do wait "$job" || code=$?; done
exit ${code:-0}
"""


def script():
    """The first script of the page on clusters."""
    text = (ROOT / "docs/how-to/cluster.md").read_text()
    return re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]


@pytest.fixture(scope="module")
def order(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    make_material(folder)
    changes = {
        "checkpoints": {"minutes": 0, "keep": "last"},
        "budget": {"prompts": 4, "batch_size": 4},
    }
    return write_order(folder, "two", order_of(folder, ["sft", "sdft"], **changes))


@pytest.fixture(scope="module")
def alone(order):
    """What one process makes of the order."""
    out = order.parent / "alone"
    words = [sys.executable, "run_sequence.py", str(order), "--out", str(out)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    return contents(out)


def test_the_slurm_script_runs_an_array(order, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "srun": '#!/bin/bash\nexec "$@"\n',
        "python": f'#!/bin/bash\nexec {sys.executable} "$@"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "array.sh").write_text(script())
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "ORDER": str(order),
        "RESULTS": str(tmp_path / "out"),
        "JOBS": "2",
    }
    done = subprocess.run(
        ["sbatch", str(tmp_path / "array.sh")], cwd=ROOT, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    status = status_of(tmp_path / "out")
    assert status.count("done") == 2 and status.is_over


@pytest.mark.parametrize("text", ["0", "many", "host", ":6379", "-1"])
def test_workers_are_auto_a_number_or_an_address(text):
    with pytest.raises(UserError, match="is none of auto, N and HOST:PORT"):
        Workers.read(text)
    assert Workers.read("auto") == ("", 0) and Workers.read("3") == ("", 3)
    assert Workers.read("head:6379") == ("head:6379", 0)


@pytest.mark.parametrize(
    "more, said",
    [
        (["--shard", "1/2"], "--shard does not go with --workers"),
        (["--live"], "--live does not go with --workers"),
        (["--gpu-share", "2"], "--gpu-share 2.0: must be above 0 and at most 1"),
        ([], "--workers: Ray is not installed; pip install -r requirements-cluster.txt"),
    ],
)
def test_what_workers_do_not_go_with(more, said, order, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["run_sequence.py", str(order), "--out", str(tmp_path / "out"), "--workers", "2", *more]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        run_sequence.main()
    assert caught.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_share_of_a_gpu_is_of_workers(order, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_sequence.py", str(order), "--gpu-share", "0.5"])
    with pytest.raises(SystemExit) as caught:
        run_sequence.main()
    assert caught.value.code == 2 and "--gpu-share is of --workers" in capsys.readouterr().err


def test_a_run_makes_room_only_near_the_end():
    running = {"a": 9000.0, "b": 2000.0}
    assert gives_way({"c": 8000.0}, running, 2) == "b"
    assert gives_way({"c": 2100.0}, running, 2) is None  # too little is gained
    many = {f"{i}": 8000.0 for i in range(9)}
    assert gives_way(many, running, 2) is None  # it is early: others will end soon enough


def test_passes_are_halved_once(tmp_path):
    assert not halve_passes(tmp_path)
    write_sealed(tmp_path / "passes.json", {"tokens": 4096, "recomputed": False, "free": 1})
    assert halve_passes(tmp_path) and not halve_passes(tmp_path)


def test_workers_that_are_killed_end_in_the_records_of_one_process(order, alone, tmp_path):
    pytest.importorskip("ray")
    words = [sys.executable, "run_sequence.py", str(order), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*words, "--workers", "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    killed = False
    leases = tmp_path / "out/leases/runs"
    while process.poll() is None:
        if not killed and leases.exists() and (held := list(leases.glob("sdft*.1"))):
            pid = int(re.search(r'"pid": (\d+)', held[0].read_text())[1])
            os.kill(pid, 9)
            killed = True
        time.sleep(0.1)
    said = process.stderr.read()
    assert process.returncode == 0 and killed and "its process died" in said, said
    assert differences(contents(tmp_path / "out"), alone) == []
