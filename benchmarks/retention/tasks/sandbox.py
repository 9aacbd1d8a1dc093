"""Runs a program that a model wrote, shut off from the machine, and says whether it ends well.

The task file humaneval_sandboxed.yaml scores with it. Linux only. The program sees, read-only,
Python, its packages and the system's libraries, and 16 MiB of /tmp of its own; no network, no
process but itself, no other file. It runs without privileges, as user `nobody` where this process
is root's and in a user namespace otherwise. docs/how-to/retention.md says what that keeps out. This
file imports nothing of the project, so that lm-eval's own command can use it too.

The source of the functions that the task file names is part of the protocol of the task: they have
no annotations and keep their text.
"""

import contextlib
import ctypes
import os
import platform
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 3.0  # of wall clock for a program, as in code_eval, which lm-eval's own task uses
STARTUP = 60.0  # seconds in which the interpreter must be up, on a busy machine
MEMORY = 2 << 30
DISK = 16 << 20
OPEN_FILES = 32
CPU_SECONDS = 60
NOBODY = 65534
LARGEST_REPORT = 4096  # bytes that the sandbox may report
# The first byte of a report: the program starts, or the reason why it cannot. Then: it has ended.
STARTED = b">"
FAILED = b"!"
ENDED = b"1"

# Constants of Linux.
NEWNS = 0x20000
NEWUTS = 0x4000000
NEWIPC = 0x8000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000
RDONLY = 1
NOSUID = 2
NODEV = 4
REMOUNT = 32
BIND = 4096
REC = 16384
PRIVATE = 1 << 18
PDEATHSIG = 1
NO_NEW_PRIVS = 38
DETACH = 2
CAPABILITY_VERSION = 0x20080522
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}  # numbers of the system call

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class SandboxError(OSError):
    """This machine cannot shut a program off; nothing was run."""


def run(program: str, seconds: float = SECONDS) -> bool:
    """Whether ``program`` (Python source) runs to its last line within ``seconds`` and the limits.

    An exception, ``sys.exit``, ``os._exit``, a crash and a limit that is reached all count as no.
    Raises SandboxError.
    """
    if platform.machine() not in PIVOT_ROOT or sys.platform != "linux":
        raise SandboxError(
            "code of a model is run on Linux (x86_64, aarch64) only, "
            f"not on {sys.platform} {platform.machine()}"
        )
    report = _report_of(program, seconds)
    if not report.startswith(STARTED):
        reason = report[1:].decode(errors="replace") or "the sandbox did not start"
        raise SandboxError(
            f"code of a model cannot be shut off on this machine ({reason}): user namespaces must "
            "be allowed (in a container: --security-opt seccomp=unconfined, or root with "
            "CAP_SYS_ADMIN)"
        )
    return report == STARTED + ENDED


def _report_of(program: str, seconds: float) -> bytes:
    """What the sandbox writes into its pipe while it runs ``program``."""
    pipe, report = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-I", "-B", __file__, str(report)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        cwd="/",
        pass_fds=(report,),
        start_new_session=True,
    ) as child:
        assert child.stdin is not None
        try:
            os.close(report)
            # A sandbox that ended before it has read the program reports why through the pipe.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(program.encode("utf-8", "surrogatepass"))
                child.stdin.close()
            return _listen(pipe, seconds)
        finally:
            os.close(pipe)
            # The program dies with its parent, even if it has moved to another group.
            os.killpg(child.pid, signal.SIGKILL)


def _listen(pipe: int, seconds: float) -> bytes:
    """All that comes through the pipe until it closes, or for ``seconds`` after its first byte."""
    report = b""
    end = time.monotonic() + STARTUP
    while True:
        remaining = end - time.monotonic()
        if remaining <= 0 or not select.select([pipe], [], [], remaining)[0]:
            return report
        part = os.read(pipe, LARGEST_REPORT)
        if not part:
            return report
        if not report:
            end = time.monotonic() + seconds
        report = (report + part)[:LARGEST_REPORT]


# --- functions that the task file names ---


def checked(docs):
    """The documents as they are; raises SandboxError if nothing could be scored on this machine,
    before the model runs.
    """
    if not run("pass"):
        raise SandboxError("an empty program does not run through in the sandbox")
    return docs


def build_programs(resps, docs):
    """The prompt with the completion, as lm-eval's ``humaneval`` joins them."""
    return [
        [doc["prompt"] + completion for completion in completions]
        for completions, doc in zip(resps, docs, strict=True)
    ]


def pass_at_1(references, predictions):
    """{"pass@1": 1.0 or 0.0} of one problem: references [tests], predictions [[program]]."""
    (tests,), ((program,),) = references, predictions
    return {"pass@1": float(run(program + "\n" + tests))}


# --- inside the sandbox ---


class _Linux:
    """System calls that raise OSError with the name of the call."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)

    def call(self, name: str, *arguments: object) -> None:
        if getattr(self.libc, name)(*arguments) < 0:
            raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")

    def mount(
        self,
        source: str,
        target: str | Path,
        kind: str | None,
        flags: int,
        data: str | None = None,
    ) -> None:
        self.call(
            "mount",
            source.encode(),
            str(target).encode(),
            kind and kind.encode(),
            ctypes.c_ulong(flags),
            data and data.encode(),
        )


def _shut_off(linux: _Linux) -> None:
    """Leave the machine: namespaces of our own, and a root that holds libraries alone.

    The next child is process 1.
    """
    as_root = _leave_namespaces(linux)
    linux.mount("none", "/", None, REC | PRIVATE)
    root = Path("/tmp")
    _mount_libraries(linux, root)
    own = root / "tmp"
    own.mkdir(exist_ok=True)
    if as_root:
        os.chown(own, NOBODY, NOBODY)
    os.chdir(root)
    linux.call("syscall", ctypes.c_long(PIVOT_ROOT[platform.machine()]), b".", b".")
    linux.call("umount2", b".", DETACH)
    os.chdir("/tmp")


def _leave_namespaces(linux: _Linux) -> bool:
    """Enter new namespaces; whether this process is still root of the machine in them."""
    spaces = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    uid = os.getuid()
    gid = os.getgid()
    if uid == 0 and linux.libc.unshare(spaces) == 0:
        return True
    # Anybody else, and root of a container without CAP_SYS_ADMIN: in a user namespace.
    linux.call("unshare", spaces | NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1")
    return False


def _mount_libraries(linux: _Linux, root: Path) -> None:
    """Mount a small file system at ``root`` that shows Python and the libraries, read-only."""
    places = {Path(p) for p in ("/usr", "/lib", "/lib64", "/bin", sys.prefix, sys.base_prefix)}
    outermost = sorted(
        place
        for place in places
        if place.exists() and not any(other in place.parents for other in places)
    )
    # Opened before the mount, which may hide them.
    folders = {place: os.open(place, os.O_PATH) for place in outermost if not place.is_symlink()}
    links = {place: os.readlink(place) for place in outermost if place.is_symlink()}
    options = f"size={DISK},nr_inodes=4096,mode=755"
    linux.mount("none", root, "tmpfs", NOSUID | NODEV, options)
    for place, handle in folders.items():
        inside = root / place.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        # Read-only, nosuid, nodev, noexec: a user namespace may not lift what a mount has.
        flags = os.fstatvfs(handle).f_flag & 0xF
        linux.mount(f"/proc/self/fd/{handle}", inside, None, BIND)
        linux.mount("none", inside, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | flags)
        os.close(handle)
    for place, target in links.items():
        inside = root / place.relative_to("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.symlink_to(target)


def _drop_privileges(linux: _Linux) -> None:
    """Become user nobody, without capabilities and without a way to get any.

    This process also ends when its parent does.
    """
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    no_capabilities = (ctypes.c_uint32 * 6)()
    libc = linux.libc
    if libc.capset(header, no_capabilities) or libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError("privileges cannot be dropped")
    libc.prctl(PDEATHSIG, signal.SIGKILL)


def _set_limits() -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, DISK),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, 1),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, CPU_SECONDS),
    ):
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))


def _wait_for_child(report: int) -> None:
    """Fork; the parent ends when the child has ended, and never returns."""
    child = os.fork()
    if child:
        os.close(report)
        os.waitpid(child, 0)
        os._exit(0)


def _main(report: int) -> None:
    """Run the program from standard input in the sandbox; report: the pipe that is written to."""
    program = sys.stdin.buffer.read()
    try:
        linux = _Linux()
        _shut_off(linux)
        # The child is process 1: when it ends, all that the program may have started ends.
        _wait_for_child(report)
        _drop_privileges(linux)
        # The program is process 2: a process 1 does not die of most signals.
        _wait_for_child(report)
        _set_limits()
    except Exception as error:
        os.write(report, FAILED + f"{error}".encode())
        os._exit(1)
    os.write(report, STARTED)
    exec(compile(program, "program", "exec"), {})
    os.write(report, ENDED)
    os._exit(0)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
