"""Builds the device's library from device.cpp, once for each PyTorch.

It wants a C++20 compiler and the headers that PyTorch's package ships, nothing else: no header of
Python, no ninja. It takes about six seconds.
"""

import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from harness.base.errors import UserError
from harness.models.embedded import cache_folder

SOURCE = Path(__file__).with_name("device.cpp")
COMPILERS = ("g++", "c++", "clang++")
PLACE = "strict device"
SECONDS = 300  # after which a compiler has hung


def available() -> str | None:
    """None if this machine has the device's library or can build it, which it then does.

    Otherwise the reason, in one line.
    """
    try:
        library()
    except UserError as error:
        return str(error)
    return None


@functools.cache
def library() -> Path:
    """Path of the library for the PyTorch that runs, which the first call on a machine builds.

    Raises UserError where there is no compiler, or where it fails.
    """
    options = _options()
    path = cache_folder() / "strict_device" / f"{_key(options)}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes may build at once: each in a folder of its own, and the last rename stays.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            _compile([*options, "-o", str(built)])
            os.replace(built, path)
    return path


def _options() -> list[str]:
    root = Path(torch.__file__).parent
    # -isystem: warnings about PyTorch's own headers are nobody's here.
    headers = [root / "include", root / "include" / "torch" / "csrc" / "api" / "include"]
    return [
        *("-std=c++20", "-O1", "-fPIC", "-shared"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(part for header in headers for part in ("-isystem", str(header))),
        *(str(SOURCE), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]


def _key(options: list[str]) -> str:
    """What the library depends on, as 16 hexadecimal digits."""
    parts = [SOURCE.read_text(encoding="utf-8"), torch.__version__, torch.version.git_version]
    return hashlib.sha256("\0".join([*parts, *options]).encode()).hexdigest()[:16]


def _compile(arguments: list[str]) -> None:
    """Raises UserError where there is no compiler, or where it fails."""
    command = [*_compiler(), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(PLACE, f"{command[0]} does not run ({error})") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[-1])
        raise UserError(PLACE, f"{command[0]} cannot build it ({reason[:200]})")


def _compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, or the first one that is found."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    names = named[0] if named else ", ".join(COMPILERS)
    raise UserError(PLACE, f"there is no C++ compiler ({names})", "install g++, or set CXX")
