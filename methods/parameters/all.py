"""All weights of the model, in float32 masters.

State: nothing but the weights. Memory: 16 bytes a weight (master, gradient, AdamW's two moments).
Where the model itself is float32, 12 beside it.
"""

from harness.learning.parametrisation import Parametrisation


class All(Parametrisation):
    """Every weight that the model lets learn."""
