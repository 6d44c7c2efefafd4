"""What the tests of exported files share: networks whose maps vary, and noise to ask them about."""

import numpy as np
import torch


def trained_looking(model):
    """Draw the statistics of batch norms, so that maps differ between places and images as a trained network's do."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    branch = getattr(model, "branch", None)
    if branch is not None:
        # The map's start is upright and its norm knows no images: bring it to the middle of the sigmoid.
        branch.map_norm.running_mean.fill_(4)
        branch.map_norm.running_var.fill_(9)
    return model.eval()


def noise(count, side, seed=0):
    """Normalised images (count, 3, side, side) that show nothing."""
    return np.random.default_rng(seed).standard_normal((count, 3, side, side), dtype=np.float32)
