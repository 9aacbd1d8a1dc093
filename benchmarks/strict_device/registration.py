"""Makes the device known to PyTorch and to the harness."""

import torch

from benchmarks.strict_device import runtime
from benchmarks.strict_device.build import PLACE
from harness.base.errors import UserError
from harness.models import load

NAME = "strict"


def register() -> None:
    """Make the device ``strict`` known to this process, with its module ``torch.strict``.

    It comes before the first backward pass of the process: PyTorch then gives each device that it
    knows a thread. Calls after the first one do nothing. Raises UserError where the library cannot
    be built, where the process has another such device, or where it is too late.
    """
    if NAME in load.DEVICE_TYPES:
        return
    if not hasattr(torch, NAME):
        _tell_pytorch()
    _check_backward()
    runtime.reset_counts()
    load.DEVICE_TYPES.add(NAME)


def _tell_pytorch() -> None:
    other = torch._C._get_privateuse1_backend_name()
    if other != "privateuseone":
        raise UserError(PLACE, f"this process has the device {other}, and PyTorch takes one alone")
    runtime.loaded().strict_register()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, runtime)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)


def _check_backward() -> None:
    weight = torch.ones(1, device=NAME, requires_grad=True)
    try:
        weight.sum().backward()
    except RuntimeError:
        raise UserError(
            PLACE,
            "this process has made a backward pass without it",
            "register it before, or start another process: python -m benchmarks.strict_device",
        ) from None
