"""Weights by name: float32 copies of a model's parameters, and the check that names agree.

Copies are paired with parameters by name, never by position: a model may have frozen parameters,
and then only some of its parameters have a copy.
"""

from collections.abc import Iterable, Mapping

import torch


def float32_weights(
    parameters: Mapping[str, torch.Tensor], place: torch.device
) -> dict[str, torch.Tensor]:
    """Float32 weights on ``place`` by name: the parameter itself where it is that, else a copy."""
    return {
        name: parameter
        if parameter.dtype == torch.float32 and parameter.device == place
        else parameter.detach().to(place, torch.float32, copy=True)
        for name, parameter in parameters.items()
    }


def check_names(names: Iterable[str], expected: Iterable[str], owner: str) -> None:
    """Raises ValueError naming the first weight that only one of two sets of names has.

    owner: what has ``names``, for the message, as "the checkpoint of the trainer".
    """
    present = dict.fromkeys(names)
    wanted = dict.fromkeys(expected)
    for name in wanted:
        if name not in present:
            raise ValueError(f"{owner} has no weight {name!r}")
    for name in present:
        if name not in wanted:
            raise ValueError(f"{owner} has a weight {name!r}, which is unknown here")


class Weights(dict[str, torch.Tensor]):
    """Tensors by name that ``stage.keep`` can hold; on the CPU after a resume."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.clear()
        self.update(state)
