"""The sandbox of HumanEval: verdicts equal those of plain execution; what a program cannot reach,
and the limits.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from harness.evaluation.suite import FOLDER
from tests.benchmarks.test_paper_suite import PROBLEMS

SCRIPT = FOLDER / "tasks" / "sandbox.py"
IS_ARM = platform.machine() == "aarch64"
NUMBERS = {"clone": 220, "keyctl": 219} if IS_ARM else {"clone": 56, "keyctl": 250}


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


@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x10000000)",  # a user namespace, in which a program has all capabilities
        "libc.unshare(0x4000000)",
        "libc.setns(0, 0)",
        f"libc.syscall({NUMBERS['clone']}, 0x10000011, 0, 0, 0, 0)",
        "libc.syscall(435, struct.pack('11Q', 0x10000000, 0, 0, 0, 17, *[0] * 6), 88)",  # clone3
        "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        "libc.syscall(430, b'tmpfs', 0)",  # fsopen
        "libc.syscall(425, 4, bytes(200))",  # io_uring_setup
        "libc.ptrace(0, 0, 0, 0)",
        f"libc.syscall({NUMBERS['keyctl']}, 0, -3, 0)",
    ],
)
def test_calls_that_lead_deep_into_the_kernel_are_refused(sandbox, call):
    assert sandbox.run(
        "import ctypes, errno, struct\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"assert {call} == -1\nassert ctypes.get_errno() in (errno.EPERM, errno.ENOSYS)"
    )


def test_sockets_that_know_no_namespace_are_refused(sandbox):
    for family in (38, 40):  # the kernel's cryptography; the host of a virtual machine
        assert not sandbox.run(f"import socket; socket.socket({family}, 1)")
    assert sandbox.run("import socket; socket.socket(socket.AF_UNIX).close()")


def test_a_program_has_a_session_keyring_of_its_own(sandbox, monkeypatch, tmp_path):
    """As a script without the filter shows, which refuses the call."""
    number = NUMBERS["keyctl"]
    keyring = ctypes.CDLL(None).syscall(number, 0, -3, 1)
    if keyring < 0:
        pytest.skip("there are no keyrings here")
    script = tmp_path / "a" / "b" / "c" / "d.py"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.read_text().replace("        _forbid_calls(linux)\n", ""))
    monkeypatch.setattr(sandbox, "__file__", str(script))
    assert sandbox.run(
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        f"assert libc.syscall({number}, 0, -3, 0) not in (-1, {keyring})"
    )


def test_a_program_dies_with_the_harness(sandbox, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import sandbox\n"
        "sandbox.run('import time; time.sleep(600)', 600)"
    )
    before = _sandboxes()
    with subprocess.Popen([sys.executable, "-c", code]) as harness:
        try:
            end = time.monotonic() + 20
            while len(_sandboxes() - before) < 3:  # the outer half, process 1 and the program
                assert time.monotonic() < end, "the sandbox does not start"
                time.sleep(0.05)
        finally:
            harness.kill()
    end = time.monotonic() + 5
    while _sandboxes() - before:
        assert time.monotonic() < end, "a program goes on without its harness"
        time.sleep(0.05)


def _sandboxes():
    return {p for p in os.listdir("/proc") if p.isdigit() and _runs_sandbox(p)}


def test_a_checkout_and_a_python_below_tmp_do_not_show(sandbox, tmp_path):
    """Also where their path has blanks and other letters; packages can be imported."""
    place = tmp_path / "ein Ort é 数"
    environment = place / ".venv"
    venv.create(environment, with_pip=False, symlinks=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "mine" / "inner").mkdir(parents=True)
    (packages / "mine" / "__init__.py").write_text("")
    (packages / "mine" / "inner" / "__init__.py").write_text("VALUE = 42")
    script = place / "benchmarks" / "retention" / "tasks" / "sandbox.py"
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    code = (
        "import sys; sys.path.insert(0, 'benchmarks/retention/tasks'); import sandbox\n"
        "sys.exit(not sandbox.run(sys.argv[1]))"
    )
    program = (
        "import json, os, sys, xml.dom.minidom\nfrom mine.inner import VALUE\n"
        "assert VALUE == 42 and os.listdir('/tmp') == [] and sys.prefix.startswith('/python/')\n"
        f"assert not os.path.exists({str(place)!r}) and not os.path.exists({sys.prefix!r})"
    )
    done = subprocess.run([environment / "bin" / "python", "-c", code, program], cwd=place)
    assert done.returncode == 0
