"""MOON, the mixed objective optimisation network: one network for all attributes, each weighted towards a target.

Rudd, Guenther, Boult, "MOON: A Mixed Objective Optimization Network for the Recognition of Facial Attributes", ECCV
2016, arXiv 1603.07027. One network has one output an attribute, whose sign is the answer. Training minimises the sum
over attributes of w (s - y)^2, y in {-1, 1}: a sample of the kind that the training data has more of than the target
distribution asks for counts less, with the weight

    w(+1) = 1 if T+ > S+, else (S- T+) / (S+ T-),    w(-1) = 1 if T- > S-, else (S+ T-) / (S- T+)

where S and T are the shares of yes (+) and no (-) in the training data and in the target. So weighted, the training
data has the target's distribution. The paper's published error on CelebA, 9.06 %, is that of T = S, all weights one
(`target="source"`); T+ = T- = 1/2, its balanced network, is the default.

The paper's network is VGG-16 from random weights, on 178x218 pixels; `moon:NAME` is any other backbone.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.facial.attributes import AttributeNetwork
from attention_branch.models.loss import Losses, Targets
from attention_branch.models.output import ABNOutput, Scores
from attention_branch.models.saving import ModelConfig

BACKBONE = "vgg16"
"""The paper's network."""


def backbone_config(config: ModelConfig) -> ModelConfig:
    """Return the configuration of the plain network under `moon` or `moon:NAME`, without MOON's own options."""
    options = {name: value for name, value in config.backbone_options.items() if name != "target"}
    return dataclasses.replace(
        config, name=config.name.partition(":")[2] or BACKBONE, backbone_options=options, preprocessing=None
    )


class Moon(AttributeNetwork):
    """A backbone with one output a head, trained by the mixed objective; option `target`, 0.5 unless given.

    `target` is the share of yes that the loss shall see, the same for all heads, in (0, 1), or "source": as it is in
    the training data. The training data's own shares are set by `set_source` before training.
    """

    source: Tensor

    def __init__(self, config: ModelConfig, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        self.target: Any = config.backbone_options.get("target", 0.5)
        number = isinstance(self.target, int | float) and 0 < self.target < 1
        if not number and self.target != "source":
            raise UserError(f"target is {self.target!r}; it must be a share between 0 and 1, such as 0.5, or 'source'.")
        # Unknown until training: then every sample weighs the same.
        self.register_buffer("source", torch.full((len(self.sizes),), float("nan")))

    def scores(self, images: Tensor) -> Tensor:
        """Return the outputs (N, T), near -1 for no and 1 for yes."""
        return self.backbone(images)

    def set_source(self, shares: Tensor) -> None:
        """Take the share of yes among the labels of each head of the training data (T,); NaN where there is none."""
        self.source.copy_(shares)

    def sample_weights(self) -> Tensor:
        """Return the weight of a no and of a yes of each head (T, 2): the paper's p(i|-1) and p(i|+1)."""
        source = self.source
        target = source if self.target == "source" else torch.full_like(source, self.target)
        # A head of one kind of label cannot be moved to another distribution.
        fine = (source > 0) & (source < 1)
        source, target = torch.where(fine, source, 0.5), torch.where(fine, target, 0.5)
        yes = (1 - source) * target / (source * (1 - target))
        return torch.stack([(1 / yes).clamp(max=1), yes.clamp(max=1)], dim=1)

    def loss(
        self,
        output: ABNOutput | Scores,
        targets: Targets,
        *,
        label_smoothing: float = 0.0,
        weights: Tensor | None = None,
    ) -> Losses:
        """Return the mixed objective: for each head the mean of w (s - y)^2 over the labels present, then their sum.

        Targets are class numbers with -1 for a missing label. `label_smoothing` brings y nearer to zero; `weights` (N,)
        multiply each image's part.
        """
        assert not isinstance(output, ABNOutput)
        heads = output if isinstance(output, dict) else {"": output}
        truths = targets if isinstance(targets, dict) else {"": targets}
        parts = []
        for (head, logits), own in zip(heads.items(), self.sample_weights(), strict=True):
            score = (logits[:, -1] if logits.shape[1] == 2 else logits[:, 0] / 2).float()
            truth = truths[head]
            present = truth >= 0
            wanted = (2 * truth.clamp_min(0) - 1) * (1 - label_smoothing)
            share = own[truth.clamp_min(0).long()] * present
            if weights is not None:
                share = share * weights
            parts.append((share * (score - wanted).square()).sum() / present.sum().clamp_min(1))
        total = torch.stack(parts).sum()
        return Losses(total, torch.zeros_like(total), total)
