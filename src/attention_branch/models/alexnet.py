"""AlexNet's five convolutions with an average and one linear layer behind them, LNet's network."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from attention_branch.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD


class AlexNetFeatures(nn.Module):
    """AlexNet up to its fifth convolution, as torchvision has it, then a global mean and a linear layer.

    LNet's layers for fine-tuning are not given in the paper and are thrown away after it; a mean over the positions is
    *our reading*, which leaves the response where it arises.
    """

    smallest_side = 63
    """Fewest pixels a side that its poolings leave something of."""

    def __init__(self, num_classes: int, pretrained: bool = False, drop_rate: float = 0.0) -> None:
        super().__init__()
        weights = AlexNet_Weights.IMAGENET1K_V1 if pretrained else None
        # Without its pooling: 13x13 positions at 224 pixels.
        self.features: nn.Sequential = alexnet(weights=weights).features[:-1]
        self.num_features, self.num_classes = 256, num_classes
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(self.num_features, num_classes)
        if not pretrained:
            for module in self.features:
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                    assert module.bias is not None
                    nn.init.zeros_(module.bias)
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (3, 224, 224),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "crop_mode": "center",
            "fixed_input_size": False,
        }
        self.default_cfg = self.pretrained_cfg

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the fifth convolution's output (N, 256, h, w) of images (N, 3, H, W), at least 63 pixels a side."""
        return self.features(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, K), or the pooled features (N, 256) when `pre_logits`."""
        pooled = self.head_drop(torch.mean(features, (2, 3)))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, 3, H, W)."""
        return self.forward_head(self.forward_features(images))
