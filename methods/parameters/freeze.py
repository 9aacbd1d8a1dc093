"""Some weights learn, the others stay as they are.

    theta <- AdamW(theta, dL / dtheta)    for the chosen weights theta alone

``layers`` chooses decoder layers, ``modules`` what of them learns: ``attention`` or ``mlp`` alone,
norms left out then, or ``all``. Weights outside of layers, as the last norm, learn with all modules
of all layers. ``embeddings`` lets embeddings and output head learn, which often are one matrix.

Parts see the weights that learn alone: a penalty is of them, since the others do not move.

State: nothing but the weights. Cost: 16 bytes of memory for each weight that learns, and the
products of a training pass over all weights.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError
from harness.base.settings import option
from harness.learning.parametrisation import (
    Parametrisation,
    ParametrisationConfig,
    embeddings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER = re.compile(r"\.(\d+)\.")  # its number in a weight's name
KINDS = {
    "attention": re.compile(r"\.\w*(?:attn|attention)\w*\."),
    "mlp": re.compile(r"\.\w*(?:mlp|feed_forward|experts?|ffn)\w*\."),
}
NORM = re.compile(r"norm|\.ln_")
LAYERS = re.compile(r"(first|last) (\d+)|(\d+)-(\d+)")


@dataclass
class FreezeConfig(ParametrisationConfig):
    layers: str | None = option(
        None, "decoder layers that learn: `first 4`, `last 4`, or `8-15` from 0; all if left out"
    )
    modules: str = option("all", "what of a layer learns", choices=("all", "attention", "mlp"))
    embeddings: bool = option(False, "whether embeddings and output head learn")

    def __post_init__(self) -> None:
        if self.layers is not None and not LAYERS.fullmatch(self.layers):
            raise ValueError(f"layers: {self.layers[:40]!r} is not as `last 4` or `8-15`")


class Freeze(Parametrisation):
    Config = FreezeConfig
    config: FreezeConfig

    def trained(self, model: "PreTrainedModel") -> list[str]:
        outer = set(map(id, embeddings(model)))
        weights = {n: weight for n, weight in model.named_parameters() if weight.requires_grad}
        inner = {name for name, weight in weights.items() if id(weight) not in outer}
        numbers = {int(at[1]) for name in inner if (at := LAYER.search(name))}
        layers = self._layers(1 + max(numbers, default=-1))
        chosen = [
            name
            for name in weights
            if (self._learns(name, layers) if name in inner else self.config.embeddings)
        ]
        if not chosen:
            raise UserError("freeze", "no weight of the model would learn", "choose other modules")
        return chosen

    def _layers(self, count: int) -> range:
        """The layers that learn, of ``count``."""
        if self.config.layers is None:
            return range(count)
        end, size, first, last = LAYERS.fullmatch(self.config.layers).groups()  # type: ignore[union-attr]
        if end:
            wanted = range(int(size)) if end == "first" else range(count - int(size), count)
        else:
            wanted = range(int(first), int(last) + 1)
        if not wanted or wanted[0] < 0 or wanted[-1] >= count:
            raise UserError(
                "layers", f"{self.config.layers[:40]!r} is not within the model's {count} layers"
            )
        return wanted

    def _learns(self, name: str, layers: range) -> bool:
        """Whether a weight that is no embedding learns."""
        modules = self.config.modules
        at = LAYER.search(name)
        if at is None:
            return self.config.layers is None and modules == "all"
        kind = KINDS.get(modules)
        is_of_kind = kind is None or bool(kind.search(name) and not NORM.search(name))
        return int(at[1]) in layers and is_of_kind

    def checkpoint(self, model: "PreTrainedModel") -> dict[str, Any]:
        learns = set(self.trained(model))
        known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        state = model.state_dict().items()
        return {name: value for name, value in state if name in learns or name not in known}

    def restore(self, model: "PreTrainedModel", state: Any) -> None:
        model.load_state_dict(state, strict=False)
