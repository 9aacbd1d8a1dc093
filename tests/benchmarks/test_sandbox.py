"""The sandbox of HumanEval: verdicts equal those of plain execution; what a program cannot reach,
and the limits.
"""

import os
import time
from pathlib import Path

import pytest

from harness.evaluation.suite import FOLDER
from tests.benchmarks.test_paper_suite import PROBLEMS

SCRIPT = FOLDER / "tasks" / "sandbox.py"


@pytest.fixture
def sandbox(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "tasks"))
    import sandbox

    try:
        sandbox.checked([])
    except sandbox.SandboxError as error:
        pytest.skip(str(error))
    return sandbox


def plain(program):
    """Whether the program runs through here; only for programs that are known."""
    try:
        exec(compile(program, "program", "exec"), {})
    except BaseException:
        return False
    return True


def test_verdicts_equal_plain_execution(sandbox):
    """HumanEval's own solutions, right and with an operator turned round (known programs, so they
    may run here too).
    """
    verdicts = []
    for problem in PROBLEMS[:12]:
        solution = problem["canonical_solution"]
        for body in (
            solution,
            solution.replace("<", ">").replace(" + ", " - "),
            "    return None\n",
        ):
            program, tests = (
                problem["prompt"] + body,
                f"{problem['test']}\ncheck({problem['entry_point']})",
            )
            expected = plain(f"{program}\n{tests}")
            assert sandbox.pass_at_1([tests], [[program]]) == {"pass@1": float(expected)}, problem[
                "task_id"
            ]
            verdicts.append(expected)
        assert verdicts[-3] and not verdicts[-1]
    assert sandbox.build_programs([["a", "b"], ["c"]], [{"prompt": "1"}, {"prompt": "2"}]) == [
        ["1a", "1b"],
        ["2c"],
    ]


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "1 / 0",
        "x = (",
        "'''",
        "\ud800",
        "raise KeyboardInterrupt",
        "import os; os.kill(os.getpid(), 9)",
        "import ctypes; ctypes.string_at(0)",
        "input()",
        "def f(): f()\nf()",
    ],
)
def test_what_does_not_reach_its_end_has_not_passed(sandbox, program):
    assert sandbox.run(program) is False
    assert sandbox.run("print('x' * 10**6)\nimport sys; sys.stderr.write('y' * 10**6)") is True


def test_no_network(sandbox):
    """Neither out nor to this machine: a server that listens here is not reached."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        attempt = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert plain(attempt)
        assert not sandbox.run(attempt)
    assert sandbox.run(
        "import socket\nassert [name for _, name in socket.if_nameindex()] == ['lo']"
    )


def test_no_files_of_this_machine(sandbox, tmp_path):
    (tmp_path / "secret").write_text("42")
    os.chmod(tmp_path, 0o755)
    assert plain(f"open({str(tmp_path / 'secret')!r}).read()")
    assert not sandbox.run(f"open({str(tmp_path / 'secret')!r}).read()")
    assert sandbox.run(
        "import os\n"
        "for place in ('/etc', '/home', '/proc', '/sys', '/dev', '/var', '/run'):\n"
        "    assert not os.path.exists(place), place\n"
        f"assert not os.path.exists({str(SCRIPT)!r})\n"
        "assert os.listdir('/tmp') == [] and os.getcwd() == '/tmp'"
    )
    assert not sandbox.run("open('/usr/written', 'w')") and not Path("/usr/written").exists()
    assert not sandbox.run(f"open({os.path.join(os.__file__)!r}, 'a')")
    assert sandbox.run("open('/tmp/own', 'w').write('x' * 1000)") and not Path("/tmp/own").exists()


def test_no_privileges_and_no_processes(sandbox):
    assert sandbox.run(
        "import os\n"
        "assert os.getuid() == os.geteuid() == os.getgid() == 65534 and os.getpid() == 2\n"
        "device = lambda: os.mknod('/tmp/d', 0o20666, os.makedev(1, 3))\n"
        "for harm in (lambda: os.setuid(0), lambda: os.chroot('/tmp'), device):\n"
        "    try:\n        harm()\n    except OSError:\n        continue\n    raise AssertionError"
    )
    assert sandbox.run(
        f"import os\ntry:\n    os.kill({os.getpid()}, 0)\n"
        "except ProcessLookupError:\n    pass\nelse:\n    1 / 0"
    )
    assert not sandbox.run("import os; os.fork()")
    assert not sandbox.run("import threading; threading.Thread(target=print).start()")
    assert not sandbox.run("import subprocess; subprocess.run(['/bin/true'])")
    assert not sandbox.run(
        "import os; assert 'HOME' in os.environ or 'HF_ALLOW_CODE_EVAL' in os.environ"
    )


def test_limits(sandbox):
    for program in (
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal, time; signal.pause()",
        "try:\n    while True: pass\nexcept BaseException: pass",
    ):
        start = time.monotonic()
        assert sandbox.run(program, seconds=0.5) is False
        assert time.monotonic() - start < 30
    assert not sandbox.run("x = bytearray(4 << 30)")
    assert sandbox.run("x = bytearray(256 << 20)")
    assert not sandbox.run("open('/tmp/x', 'wb').write(b'x' * (20 << 20))")
    # together more than /tmp holds
    assert not sandbox.run("for i in range(20): open(f'/tmp/{i}', 'wb').write(b'x' * (1 << 20))")
    assert not sandbox.run("files = [open('/tmp/x', 'w') for _ in range(64)]")


def test_nothing_is_left_running_or_open(sandbox):
    before = set(os.listdir("/proc/self/fd"))
    sandbox.run("import os, time\nos.setsid()\ntime.sleep(300)", seconds=0.3)
    assert set(os.listdir("/proc/self/fd")) == before
    end = time.monotonic() + 20
    while any(_runs_sandbox(p) for p in os.listdir("/proc") if p.isdigit()):
        assert time.monotonic() < end, "a program goes on after its time"
        time.sleep(0.1)


def _runs_sandbox(pid):
    try:
        parts = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(SCRIPT).encode() in parts


def test_a_machine_that_cannot_shut_off_refuses(sandbox, monkeypatch):
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    with pytest.raises(sandbox.SandboxError, match="riscv64"):
        sandbox.run("pass")
    monkeypatch.undo()
    # the inner half does not start: nothing is scored
    monkeypatch.setattr(sandbox, "__file__", "/nowhere.py")
    with pytest.raises(OSError, match="cannot be shut off"):
        sandbox.run("pass")
