"""Prepares the embedded model: ``python -m harness.models``."""

from harness.base.errors import reported
from harness.models.embedded import embedded_checkpoint

if __name__ == "__main__":
    with reported():
        print(f"embedded model: {embedded_checkpoint()}")
