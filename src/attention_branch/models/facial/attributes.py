"""What systems for yes/no attributes share: one score a head whose sign is the answer, and linear classifiers.

A system is a `PlainNetwork`: it is saved, loaded, evaluated and explained as any other. It has a `backbone`, whatever
makes its features, and `scores`. What is learned outside of gradients lies in parameters that want no gradient, so
that it counts as the network's size and is saved with it; `training/fitted.py` fills it in.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.network import PlainNetwork
from attention_branch.models.output import Scores
from attention_branch.models.saving import ModelConfig


class AttributeNetwork(PlainNetwork, ABC):
    """A network of yes/no heads. Subclasses give `scores`; a score above zero is a yes."""

    def __init__(self, config: ModelConfig, backbone: nn.Module) -> None:
        """Take heads of one logit or two classes; `UserError` for others."""
        super().__init__(config, backbone)
        heads = config.heads or {"": int(config.num_classes or 0)}
        for head, size in heads.items():
            if size > 2:
                what = f"'{head}' has {size}" if head else f"there are {size}"
                raise UserError(
                    f"'{config.name}' answers yes or no to each of its heads, and {what} classes; give heads of two "
                    "classes or of one logit, or use another network."
                )

    @abstractmethod
    def scores(self, images: Tensor) -> Tensor:
        """Return one score a head (N, T) for normalised images (N, 3, H, W)."""

    def forward(self, images: Tensor) -> Scores:
        """Return logits (N, 2) or (N, 1), by head where there are several, for normalised images (N, 3, H, W)."""
        self._check_images(images)
        return self._by_head(two_sided(self.scores(images), self.sizes))


def two_sided(scores: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return the logits of each head of scores (N, T): (-s, s) for two classes, 2s for one logit.

    The probability of yes is then sigmoid(2s), which is (1 + s) / 2 to first order: what a score fitted to -1 and 1
    says.
    """
    columns = scores.unbind(1)
    pairs = zip(columns, sizes, strict=True)
    return [torch.stack([-s, s], dim=1) if size == 2 else 2 * s[:, None] for s, size in pairs]


class LinearScores(nn.Module):
    """Linear classifiers w x + b, one a head; zero until they are set, so that they answer no."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, features), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(heads), requires_grad=False)

    def set(self, weight: Tensor, bias: Tensor) -> None:
        """Take weights (T, D) and biases (T,)."""
        self.weight.data.copy_(weight)
        self.bias.data.copy_(bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (N, T) of features (N, D)."""
        return nn.functional.linear(features, self.weight, self.bias)
