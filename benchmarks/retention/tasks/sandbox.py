"""Runs a program that a model wrote, shut off from the machine, and says whether it came to its
end.

The task file humaneval_sandboxed.yaml scores with it. Linux only. The program sees, read-only,
Python, its packages and the system's libraries, and 16 MiB of /tmp of its own; no network, no
process but itself, no other file. It runs without privileges, as user `nobody` where this process
is root's and in a user namespace otherwise. docs/retention.md says what that keeps out. This file
imports nothing of the project, so that lm-eval's own command can use it too.
"""

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
MEMORY, DISK, OPEN_FILES = 2 << 30, 16 << 20, 32
NOBODY = 65534
STARTUP = 60.0  # seconds in which the interpreter must be up, on a busy machine

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PDEATHSIG, NO_NEW_PRIVS, DETACH = 1, 38, 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


class SandboxError(OSError):
    """This machine cannot shut a program off; nothing was run."""


def run(program, seconds=SECONDS):
    """Whether ``program`` (Python source) runs to its last line within ``seconds`` and the limits
    above.

    An exception, ``sys.exit``, ``os._exit``, a crash and a limit that is met all count as no.
    Raises SandboxError.
    """
    if platform.machine() not in PIVOT_ROOT or sys.platform != "linux":
        raise SandboxError(
            f"code of a model is run on Linux (x86_64, aarch64) only, not on {sys.platform} {platform.machine()}"
        )
    said, report = os.pipe()
    environment = {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-I", "-B", __file__, str(report)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        pass_fds=(report,),
        start_new_session=True,
    ) as child:
        try:
            os.close(report)
            try:
                child.stdin.write(program.encode("utf-8", "surrogatepass"))
                child.stdin.close()
            except BrokenPipeError:
                pass  # what it has to say about that comes through the pipe
            heard = _listen(said, seconds)
        finally:
            os.close(said)
            # the program dies with its parent, whatever group it has moved to
            os.killpg(child.pid, signal.SIGKILL)
    if not heard.startswith(b">"):
        reason = heard[1:].decode(errors="replace") or "the sandbox did not start"
        raise SandboxError(
            f"code of a model cannot be shut off on this machine ({reason}): user namespaces must be allowed "
            "(in a container: --security-opt seccomp=unconfined, or root with CAP_SYS_ADMIN)"
        )
    return heard == b">1"


def _listen(pipe, seconds):
    """All that comes through the pipe until it closes or ``seconds`` have gone since its first
    byte.
    """
    heard, end = b"", time.monotonic() + STARTUP
    while (left := end - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
        part = os.read(pipe, 4096)
        if not part:
            break
        if not heard:
            end = time.monotonic() + seconds
        heard = (heard + part)[:4096]
    return heard


# --- what lm-eval's task file names ---


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
        for completions, doc in zip(resps, docs)
    ]


def pass_at_1(references, predictions):
    """{"pass@1": 1.0 or 0.0} of one problem: references [tests], predictions [[program]]."""
    (tests,), ((program,),) = references, predictions
    return {"pass@1": float(run(program + "\n" + tests))}


# --- inside ---


def _shut_off():
    """Leave the machine: namespaces of our own, and a root that holds libraries alone. The next
    child is process 1.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name, *arguments):
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")

    def mount(source, target, kind, flags, data=None):
        call(
            "mount",
            source.encode(),
            str(target).encode(),
            kind and kind.encode(),
            ctypes.c_ulong(flags),
            data and data.encode(),
        )

    spaces, uid, gid = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET, os.getuid(), os.getgid()
    outside = uid == 0 and libc.unshare(spaces) == 0
    if not outside:  # anybody, and root of a container without CAP_SYS_ADMIN
        call("unshare", spaces | NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1")
    mount("none", "/", None, REC | PRIVATE)
    root = Path("/tmp")
    seen = {Path(p) for p in ("/usr", "/lib", "/lib64", "/bin", sys.prefix, sys.base_prefix)}
    seen = sorted(p for p in seen if p.exists() and not any(q in p.parents for q in seen))
    # the new root may hide them
    held = {p: os.open(p, os.O_PATH) for p in seen if not p.is_symlink()}
    links = {p: os.readlink(p) for p in seen if p.is_symlink()}
    mount("none", root, "tmpfs", NOSUID | NODEV, f"size={DISK},nr_inodes=4096,mode=755")
    for path, handle in held.items():
        inside = root / path.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        # read-only, nosuid, nodev, noexec: a user namespace may not lift them
        flags = os.fstatvfs(handle).f_flag & 0xF
        mount(f"/proc/self/fd/{handle}", inside, None, BIND)
        mount("none", inside, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | flags)
        os.close(handle)
    for path, target in links.items():
        inside = root / path.relative_to("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.symlink_to(target)
    own = root / "tmp"
    own.mkdir(exist_ok=True)
    if outside:
        os.chown(own, NOBODY, NOBODY)
    os.chdir(root)
    call("syscall", ctypes.c_long(PIVOT_ROOT[platform.machine()]), b".", b".")
    call("umount2", b".", DETACH)
    os.chdir("/tmp")
    return libc


def _no_privileges(libc):
    """User nobody, no capabilities and no way to get any; and the end of the parent is ours."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) or libc.prctl(
        NO_NEW_PRIVS, 1, 0, 0, 0
    ):
        raise OSError("privileges cannot be dropped")
    libc.prctl(PDEATHSIG, signal.SIGKILL)


def _limits():
    for what, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, DISK),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, 1),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, 60),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _wait_for_child(report):
    """Fork; the parent ends when the child has ended, and never returns."""
    child = os.fork()
    if child:
        os.close(report)
        os.waitpid(child, 0)
        os._exit(0)


def _main(report):
    program = sys.stdin.buffer.read()
    try:
        libc = _shut_off()
        # the child is process 1: when it ends, all that the program may have started ends
        _wait_for_child(report)
        _no_privileges(libc)
        # the program is process 2: a process 1 does not die of most signals
        _wait_for_child(report)
        _limits()
    except Exception as error:
        os.write(report, f"!{error}".encode())
        os._exit(1)
    os.write(report, b">")
    exec(compile(program, "program", "exec"), {})
    os.write(report, b"1")
    os._exit(0)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
