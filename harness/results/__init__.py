"""Results folders. ``open_results`` is the door for scripts and notebooks, and needs no PyTorch.

    from harness.results import open_results

It leads to harness.report.frames, the room above, once it is asked for: no file in here does so.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "open_results":
        return importlib.import_module("harness.report.frames").open_results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
