"""A strict second device without a GPU: computes on the CPU, refuses what a GPU would refuse.

``register()`` makes the device ``strict`` known to PyTorch, and to orders as ``model.device``.
``python -m benchmarks.strict_device run_sequence.py ORDER.yaml --set model.device=strict`` runs a
command of the project on it.
"""

from benchmarks.strict_device.build import available
from benchmarks.strict_device.registration import NAME, register
from benchmarks.strict_device.runtime import counts, reset_counts

__all__ = ["NAME", "available", "counts", "register", "reset_counts"]
