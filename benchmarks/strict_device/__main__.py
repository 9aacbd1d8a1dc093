"""Runs a script or a module, with its arguments, in a process that knows the device ``strict``.

python -m benchmarks.strict_device run_sequence.py ORDER.yaml --set model.device=strict
python -m benchmarks.strict_device -m MODULE ...
"""

import runpy
import sys

from benchmarks.strict_device import register
from harness.base.errors import UserError, reported


def main() -> None:
    del sys.argv[0]
    with reported():
        if not sys.argv or sys.argv == ["-m"]:
            raise UserError("strict device", "nothing to run", f"as: {__doc__.splitlines()[2]}")
        register()
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
