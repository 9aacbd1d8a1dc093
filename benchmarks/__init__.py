"""What is measured by the harness, and what measures it."""

import harness  # noqa: F401  it says how threads wait, before PyTorch loads
