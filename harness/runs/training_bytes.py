"""What training takes of the model's device and of host memory, in bytes, and the passes that fit.

For --plan, and for the micro-batches of a run on a GPU.
"""

from dataclasses import dataclass

from harness.models.memory import MICRO_BATCH_TOKENS, Passes

# Tokens from which a pass keeps a GPU busy: less memory is not had by still shorter ones.
BUSY = 2048
SHORTEST = 256
FRAGMENTS = 0.1  # share of the free memory that is left to the allocator


@dataclass(frozen=True)
class Bytes:
    """Of the model's device, and of host memory."""

    device: float = 0.0
    host: float = 0.0

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(self.device + other.device, self.host + other.host)


def trained_bytes(
    numbers: float, size: int, masters: str, on_gpu: bool, made: bool, moments: float = 8.0
) -> Bytes:
    """Gradients, masters and AdamW's moments of ``numbers`` that are trained.

    size: bytes of a weight of the model; masters: the option; made: whether the numbers are others
    than weights of the model; moments: bytes of both of a number. On a CPU all is host memory, of
    which ``host`` names a part.
    """
    gradients, moments = 4 * numbers, moments * numbers
    if not on_gpu or masters == "device":
        apart = 4 * numbers * (size < 4 or made)
        all_of_them = gradients + moments + apart
        in_host = masters == "host" and size < 4
        return Bytes(host=all_of_them) if in_host else Bytes(all_of_them)
    if made:
        return Bytes(gradients + 4 * numbers, moments)
    return Bytes(gradients, moments) + lower_bytes(numbers, size, masters)


def lower_bytes(numbers: float, size: int, masters: str) -> Bytes:
    """The lower halves of the float32 numbers of a GPU's model."""
    halves = 2 * numbers * (size < 4)
    return Bytes(host=halves) if masters == "host" else Bytes(halves)


def averaged_bytes(weights: float, size: int, masters: str, on_gpu: bool) -> Bytes:
    """A teacher's average, beside the weights of its model."""
    if on_gpu:
        return lower_bytes(weights, size, masters)
    apart = 4.0 * weights * (size < 4)
    return Bytes(host=apart) if masters == "host" else Bytes(apart)


def recomputed_bytes(token: float, layers: int, width: int, size: int) -> float:
    """What a pass keeps of a token where layers are computed again: their inputs, and one layer.

    token: bytes that a pass keeps otherwise; width, size: of a state, in numbers and bytes of one.
    """
    layers = max(1, layers)
    return min(token, layers * width * size + token / layers)


def fitting_passes(
    free: float,
    token: float,
    recomputed: float,
    tokens: int | None = None,
    recomputes: bool | None = None,
) -> Passes:
    """The passes of a GPU that has ``free`` bytes for activations.

    token, recomputed: bytes of a token, with all activations kept and with layers computed again.
    tokens, recomputes: what the user has chosen.

    Passes are as long as fits, up to MICRO_BATCH_TOKENS, in powers of two. Layers are computed
    again, for a third more work, where a pass of BUSY tokens, or of the user's, would not fit.
    """
    room = (1 - FRAGMENTS) * free
    if recomputes is None:
        recomputes = room < token * (tokens or BUSY)
    if tokens is not None:
        return Passes(tokens, recomputes)
    fitting = room / (recomputed if recomputes else token)
    most = MICRO_BATCH_TOKENS[True]
    while most > SHORTEST and most > fitting:
        most //= 2
    return Passes(most, recomputes)
