"""Where a run was made: processor and revision."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from harness.base.files import ROOT


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        name = next(
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def git_revision():
    """Commit of the checkout, with a mark if it is changed; None outside git."""
    try:
        ask = [
            "git",
            "-C",
            str(ROOT),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ]
        return (
            subprocess.run(ask, capture_output=True, text=True, timeout=10).stdout.strip() or None
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
