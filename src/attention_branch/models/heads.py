"""One perception pass for several heads: each head pools the backbone's last features by its own map.

The paper (section 3.4) runs the perception branch once a head, on g gated by that head's map. Here it runs once, on g
as it is, and the maps enter at its end: head t reads f * (1 + M_t), or f * M_t, where f are the features that the
backbone's own head pools and classifies. So a further head costs a pooling and a linear layer.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.gate import GatePlace, grid_size, layout_of, output_until, resize_map
from attention_branch.models.probing import perturbed, relative_change

PERCEPTIONS = ("separate", "shared")


def weighted_features(features: Tensor, factors: Tensor, place: GatePlace, size: tuple[int, int]) -> Tensor:
    """Return features (N, ...) on a grid of `size` times each of k factors an image (N, k, h, w), as (N * k, ...).

    The factors are resized bilinearly to the grid; prefix tokens stay. Row n * k + t is image n with factor t.
    """
    factors = resize_map(factors, size).to(features.dtype)
    # Broadcast, not repeated: for the way back only one copy of the features is kept.
    if place.layout == "NLC":
        weights = factors.flatten(2)
        if place.prefix_tokens:
            weights = torch.cat([weights.new_ones(*weights.shape[:2], place.prefix_tokens), weights], dim=2)
        return (features[:, None] * weights[..., None]).flatten(0, 1)
    weights = factors[..., None] if place.layout == "NHWC" else factors[:, :, None]
    return (features[:, None] * weights).flatten(0, 1)


def prove_shared(backbone: nn.Module, place: GatePlace, name: str, images: Tensor) -> tuple[GatePlace, tuple[int, int]]:
    """Check in float64 that a map on the last features moves the answer; return their place and grid for `images`.

    Raises `UserError` where the backbone's answer is not its head on its last features, and where that head does not
    see the map: a class token alone, or a norm per position before the pooling.
    """
    generator = torch.Generator().manual_seed(0)
    probe = perturbed(backbone, generator)
    images = images.double()
    way_out = "use perception='separate'."
    with torch.no_grad():
        g = output_until(probe, place.features, images)
        features, logits = probe.forward_features(images), probe(images)
        last = _last_place(probe, place, features)
        if last is None or relative_change(probe.forward_head(features), logits) > 1e-9:
            raise UserError(
                f"'{name}' cannot share one perception branch among its heads: its answer is not its head on one "
                f"tensor of features; {way_out}"
            )
        size = grid_size(features, last, images, probe)
        shape = (len(images), 1, *grid_size(g, place, images, probe))
        factor = 1 + torch.rand(shape, generator=generator, dtype=images.dtype)
        effect = relative_change(probe.forward_head(weighted_features(features, factor, last, size)), logits)
    if not effect > 1e-3:
        if last.prefix_tokens:
            way_out = "use perception='separate', or pool its patch tokens with global_pool='avg'."
        raise UserError(
            f"'{name}' cannot share one perception branch among its heads: a random map on its last features moves "
            f"its answer by only {effect:.1e} (more than 1e-3 is needed); {way_out}"
        )
    return last, size


def _last_place(backbone: Any, place: GatePlace, features: Any) -> GatePlace | None:
    """Describe the features that the backbone's head reads; None where they are not one tensor over positions."""
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        return None
    layout, prefix = layout_of(backbone, features)
    channels = features.shape[1 if layout == "NCHW" else -1]
    # A layout that is told wrongly would multiply channels instead of positions, and move the answer as well.
    if channels != backbone.num_features:
        return None
    return replace(
        place, features="", stage=(), tail=(), gates=(), layout=layout, prefix_tokens=prefix, channels=channels,
        reason="the features that the head pools, once for each map",
    )  # fmt: skip
