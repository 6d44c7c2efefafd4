"""Attribute systems of several networks, trained one after the other, with linear classifiers on their features.

While a stage is under way (`begin`), the network answers with that stage's own outputs and only its modules learn; all
others stand still. In use it answers with the linear classifiers on `features`.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.models.facial.attributes import AttributeNetwork, LinearScores
from attention_branch.models.saving import ModelConfig


class StagedNetwork(AttributeNetwork):
    """A network of stages. Subclasses give `stages`, `stage_modules`, `stage_scores` and `features`."""

    stages: tuple[str, ...] = ()
    """The names of the stages that gradients train, in order."""

    def __init__(self, config: ModelConfig, backbone: nn.Module, features: int) -> None:
        """Take the number of features that the linear classifiers read."""
        super().__init__(config, backbone)
        self.linear = LinearScores(features, len(self.sizes))
        self.stage: str | None = None
        self.begin(None)

    def begin(self, stage: str | None) -> None:
        """Let one stage learn and answer; None: none learns, and the linear classifiers answer."""
        self.stage = stage
        self.requires_grad_(False)
        for module in self.stage_modules(stage) if stage else ():
            module.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Any:
        """Set the mode of the stage under way; what other stages made stays in eval mode."""
        super().train(mode)
        learning = self.stage_modules(self.stage) if self.stage else ()
        for name, child in self.backbone.named_children():
            if not any(child is module for module in learning):
                self.backbone.get_submodule(name).eval()
        return self

    @abstractmethod
    def stage_modules(self, stage: str) -> tuple[nn.Module, ...]:
        """Return the children of the backbone that a stage trains."""

    @abstractmethod
    def stage_scores(self, images: Tensor) -> Tensor:
        """Return the scores (N, T) of the stage under way."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return P vectors an image (N, P, D), whose scores are averaged."""

    def scores(self, images: Tensor) -> Tensor:
        """Return one score a head (N, T)."""
        if self.stage is not None:
            return self.stage_scores(images)
        return self.linear(self.features(images)).mean(1)

    def stage_state(self, stage: str) -> dict[str, Tensor]:
        """Return the tensors of the modules that a stage trains, by their names in the network."""
        kept = {id(module) for module in self.stage_modules(stage)}
        names = [f"backbone.{name}." for name, child in self.backbone.named_children() if id(child) in kept]
        return {key: value for key, value in self.state_dict().items() if key.startswith(tuple(names))}

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors by their names in the network."""
        own = self.state_dict()
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(value)
