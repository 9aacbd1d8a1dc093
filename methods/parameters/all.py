"""All weights of the model, in float32 masters.

    theta <- AdamW(theta, dL / dtheta)    for every weight theta

State: nothing but the weights. Cost: 16 bytes of memory a weight (master, gradient, AdamW's two
moments); where the model itself is float32, 12 beside it.
"""

from harness.learning.parametrisation import Parametrisation


class All(Parametrisation):
    """Every weight that the model lets learn; the name's options, none, are checked by it."""
