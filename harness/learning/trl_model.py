"""The live model in the hands of a trainer of TRL."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from harness.learning.dither import dither_of
from harness.learning.stage import Stage


class Views:
    """The model as the harness has it and as TRL has it.

    TRL writes tokens into the model's configs and turns dropout off, and its weights are float32,
    whatever the harness computes in. An evaluation inside the stage and the weights that are kept
    see none of that. dtype: of the model in the harness.
    """

    def __init__(self, stage: Stage) -> None:
        self.model = stage.model
        self.dtype = stage.model.dtype
        self.dither = dither_of(stage)
        self.before = self._settings()
        self.float32: dict[str, torch.Tensor] = {}  # TRL's weights, while the harness has its own

    def _settings(self) -> dict[str, Any]:
        model = self.model
        dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        return {
            "config": copy.deepcopy(model.config.__dict__),
            "generation": copy.deepcopy(model.generation_config.__dict__),
            "dropout": [(module, module.p) for module in dropouts],
            "training": model.training,
            "device": model.device,
        }

    def _restore(self, settings: Mapping[str, Any]) -> None:
        """Put back what ``_settings`` returned."""
        for target, values in (
            (self.model.config, settings["config"]),
            (self.model.generation_config, settings["generation"]),
        ):
            target.__dict__.clear()
            target.__dict__.update(copy.deepcopy(values))
        for module, p in settings["dropout"]:
            module.p = p
        self.model.train(settings["training"])
        self.model.to(settings["device"])

    def _cast(self, dtype: torch.dtype) -> None:
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """TRL has the model, which is left as the harness has it but for its weights."""
        learns = {name: p.requires_grad for name, p in self.model.named_parameters()}
        masters = {name: p.data.float() for name, p in self.model.named_parameters()}
        self.dither.begin(self.model, masters)
        for name, parameter in self.model.named_parameters():
            parameter.data = masters[name]
        try:
            yield
        finally:
            self._cast(self.dtype)
            self._restore(self.before)
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(learns[name])
                parameter.grad = None

    @contextmanager
    def ours(self) -> Iterator[None]:
        """The model as the harness has it, inside TRL's training."""
        settings = self._settings()
        self.float32 = {name: p.data for name, p in self.model.named_parameters()}
        self._restore(self.before)
        self._cast(self.dtype)
        try:
            yield
        finally:
            for name, parameter in self.model.named_parameters():
                parameter.data = self.float32[name]
            self._restore(settings)

    @contextmanager
    def theirs(self) -> Iterator[None]:
        """TRL's weights again, inside ``ours``."""
        rounded = {name: p.data for name, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.data = self.float32[name]
        try:
            yield
        finally:
            for name, parameter in self.model.named_parameters():
                parameter.data = rounded[name]
