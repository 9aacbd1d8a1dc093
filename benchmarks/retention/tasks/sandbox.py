"""Runs a program that a model wrote, shut off from the machine, and says whether it ends well.

The task file humaneval_sandboxed.yaml scores with it. Linux only. The program sees, read-only,
Python, its packages and the system's libraries, and 16 MiB of /tmp of its own; no network, no
process but itself, no other file. It runs without privileges, as user `nobody` where this process
is root's and in a user namespace otherwise, and dies with this process. docs/how-to/retention.md
says what that keeps out. This file imports nothing of the project, so that lm-eval's own command
can use it too.

The source of the functions that the task file names is part of the protocol of the task: they have
no annotations and keep their text.
"""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
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
NEW_ANY = 0x7E020080  # all flags of clone that make a namespace
RDONLY = 1
NOSUID = 2
NODEV = 4
REMOUNT = 32
BIND = 4096
REC = 16384
PRIVATE = 1 << 18
PDEATHSIG = 1
NO_NEW_PRIVS = 38
SECCOMP = 22
SECCOMP_FILTER = 2
DETACH = 2
JOIN_SESSION_KEYRING = 1
CAPABILITY_VERSION = 0x20080522
FAMILIES = (1, 2, 10, 16)  # of sockets: UNIX, IPv4, IPv6, netlink; others know no namespace
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of system calls on x86_64 and aarch64.
CLONE, CLONE3, SOCKET, PIVOT_ROOT, KEYCTL = (56, 220), (435, 435), (41, 198), (155, 41), (250, 219)
FORBIDDEN = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": PIVOT_ROOT,
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": KEYCTL,
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
}

SYSTEM = ("/usr", "/lib", "/lib64", "/bin")  # shown in their places
CHECKOUT = Path(__file__).resolve().parents[3]
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
    if platform.machine() not in ARCHITECTURES or sys.platform != "linux":
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
        [sys.executable, "-I", "-B", __file__, str(report), str(os.getpid())],
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
        self.machine = list(ARCHITECTURES).index(platform.machine())

    def call(self, name: str, *arguments: object) -> None:
        if getattr(self.libc, name)(*arguments) < 0:
            raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")

    def number(self, of: tuple[int, int]) -> int:
        """The number of a system call on this machine."""
        return of[self.machine]

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
            os.fsencode(source),
            os.fsencode(target),
            kind and kind.encode(),
            ctypes.c_ulong(flags),
            data and data.encode(),
        )


def _die_with_parent(linux: _Linux, has_ended: Callable[[], bool]) -> None:
    """This process ends when its parent does, also if that has ended already.

    A change of user or of user namespace undoes it.
    """
    linux.call("prctl", PDEATHSIG, signal.SIGKILL)
    if has_ended():
        os._exit(1)


def _shut_off(linux: _Linux) -> None:
    """Leave the machine: namespaces of our own, and a root that holds libraries alone.

    The next child is process 1.
    """
    # A program could read keys of a keyring that it shares with us. Where there is no such call,
    # there are no keys.
    linux.libc.syscall(ctypes.c_long(linux.number(KEYCTL)), JOIN_SESSION_KEYRING, None)
    as_root = _leave_namespaces(linux)
    linux.mount("none", "/", None, REC | PRIVATE)
    root = Path("/tmp")
    moved = _mount_libraries(linux, root)
    own = root / "tmp"
    own.mkdir()
    if as_root:
        os.chown(own, NOBODY, NOBODY)
    os.chdir(root)
    linux.call("syscall", ctypes.c_long(linux.number(PIVOT_ROOT)), b".", b".")
    linux.call("umount2", b".", DETACH)
    os.chdir("/tmp")
    _move_python(moved)


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


def _mount_libraries(linux: _Linux, root: Path) -> dict[str, str]:
    """Mount a small file system at ``root`` that shows Python and the libraries, read-only.

    Folders of Python outside of SYSTEM are shown under /python, whatever path they have: it may lie
    under /tmp or name a person. Returns {their path: their path in the new root}.
    """
    system = [Path(place) for place in SYSTEM if os.path.exists(place)]
    shown = {place: place for place in system if not place.is_symlink()}  # by real path
    links = {place: os.readlink(place) for place in system if place.is_symlink()}
    moved: dict[str, str] = {}
    for prefix in dict.fromkeys((sys.prefix, sys.base_prefix, sys.exec_prefix)):
        real = Path(os.path.realpath(prefix))
        is_shown = any(place in (real, *real.parents) for place in shown if place in system)
        if real != Path("/") and (not is_shown or CHECKOUT in real.parents):
            place = shown.setdefault(real, Path(f"/python/{len(shown)}"))
            moved |= {prefix: str(place), str(real): str(place)}
    # Opened before the mount, which may hide them.
    handles = {place: os.open(real, os.O_PATH) for real, place in shown.items()}
    options = f"size={DISK},nr_inodes=4096,mode=755"
    linux.mount("none", root, "tmpfs", NOSUID | NODEV, options)
    for place, handle in handles.items():
        inside = root / place.relative_to("/")
        inside.mkdir(parents=True)
        # Read-only, nosuid, nodev, noexec: a user namespace may not lift what a mount has.
        flags = os.fstatvfs(handle).f_flag & 0xF
        linux.mount(f"/proc/self/fd/{handle}", inside, None, BIND)
        linux.mount("none", inside, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | flags)
        os.close(handle)
    for place, target in links.items():
        (root / place.relative_to("/")).symlink_to(target)
    if (hidden := root / CHECKOUT.relative_to("/")).is_dir():  # a checkout below /usr
        linux.mount("none", hidden, "tmpfs", RDONLY | NOSUID | NODEV, "size=0,nr_inodes=1")
    return moved


def _move_python(moved: dict[str, str]) -> None:
    """Let this interpreter find its modules in their new places."""

    def new(path: str) -> str:
        for old in sorted(moved, key=len, reverse=True):
            if path == old or path.startswith(old + "/"):
                return moved[old] + path[len(old) :]
        return path

    sys.path[:] = map(new, sys.path)
    for name in ("prefix", "base_prefix", "exec_prefix", "base_exec_prefix", "executable"):
        setattr(sys, name, new(getattr(sys, name)))
    for module in list(sys.modules.values()):
        folders = getattr(module, "__path__", None)
        if isinstance(folders, list):
            folders[:] = map(new, folders)
    sys.path_importer_cache.clear()


def _drop_privileges(linux: _Linux) -> None:
    """Become user nobody, without capabilities and without a way to get any."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    no_capabilities = (ctypes.c_uint32 * 6)()
    libc = linux.libc
    if libc.capset(header, no_capabilities) or libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError("privileges cannot be dropped")


def _forbid_calls(linux: _Linux) -> None:
    """Forbid system calls that no program of a test needs and that reach far into the kernel.

    Among them: new namespaces, in which a program would have all capabilities, and io_uring.
    """
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06  # of BPF
    number, architecture, first = 0, 4, 16  # offsets in struct seccomp_data
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000
    denied, unknown = (end, 0, 0, refuse | errno.EPERM), (end, 0, 0, refuse | errno.ENOSYS)
    filters = [
        (load, 0, 0, architecture),
        (equal, 1, 0, ARCHITECTURES[platform.machine()]),
        (end, 0, 0, kill),
        (load, 0, 0, number),
        (at_least, 0, 1, 0x40000000),  # the calls of x32
        denied,
        (equal, 0, 1, linux.number(CLONE3)),  # its flags cannot be read; libraries then use clone
        unknown,
    ]
    for of in FORBIDDEN.values():
        filters += [(equal, 0, 1, linux.number(of)), denied]
    filters += [
        (equal, 0, 3, linux.number(CLONE)),
        (load, 0, 0, first),
        (any_bit, 0, 2 + len(FAMILIES) + 2, NEW_ANY),
        denied,
        (equal, 0, len(FAMILIES) + 2, linux.number(SOCKET)),
        (load, 0, 0, first),
    ]
    filters += [(equal, len(FAMILIES) - i, 0, family) for i, family in enumerate(FAMILIES)]
    filters += [denied, (end, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in filters))
    program = struct.pack("@HP", len(filters), ctypes.addressof(code))
    linux.call("prctl", SECCOMP, SECCOMP_FILTER, program, 0, 0)


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


def _wait_for_child(report: int) -> Callable[[], bool]:
    """Fork; the parent ends when the child has ended, and never returns.

    Returns, in the child, a function that tells whether the parent has ended.
    """
    mark, held = os.pipe()  # its end is seen where the parent has ended
    child = os.fork()
    if child:
        os.close(report)
        os.waitpid(child, 0)
        os._exit(0)
    os.close(held)
    return lambda: bool(select.select([mark], [], [], 0)[0])


def _main(report: int, harness: int) -> None:
    """Run the program from standard input in the sandbox.

    report: the pipe that is written to; harness: process with which the sandbox dies.
    """
    try:
        linux = _Linux()
        _die_with_parent(linux, lambda: os.getppid() != harness)
        program = sys.stdin.buffer.read()
        _shut_off(linux)
        _die_with_parent(linux, lambda: os.getppid() != harness)
        # The child is process 1: when it ends, all that the program may have started ends.
        is_orphan = _wait_for_child(report)
        _drop_privileges(linux)
        _die_with_parent(linux, is_orphan)
        # The program is process 2: a process 1 does not die of most signals.
        _wait_for_child(report)
        _forbid_calls(linux)
        _set_limits()
    except Exception as error:
        os.write(report, FAILED + f"{error}".encode())
        os._exit(1)
    os.write(report, STARTED)
    exec(compile(program, "program", "exec"), {})
    os.write(report, ENDED)
    os._exit(0)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
