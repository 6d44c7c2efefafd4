"""What a network costs: parameters, multiply-adds, and where its gate sits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_branch.models.network import AttentionBranchNetwork, Network
from attention_branch.models.registry import ATTRIBUTE_SYSTEMS, create_backbone, create_model, stands_alone


@dataclass(frozen=True)
class Cost:
    """Parameters and the multiply-adds of one image, as counts."""

    parameters: int
    multiply_adds: int


def cost(model: Network, size: tuple[int, int] | None = None) -> Cost:
    """Count a network's parameters and the multiply-adds of one image at its own (or the given) size.

    Multiply-adds are those of convolutions, linear layers and attention, as PyTorch's own counter finds them in one
    forward pass; norms, activations and pooling are left out, as is usual.
    """
    height, width = size or model.preprocessing.size
    device = model.device
    training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, height, width, device=device))
    finally:
        model.train(training)
    # The counter takes a multiply-add for two operations.
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def describe(name: str, num_classes: int = 1000, *, map_kernel: int = 3, **options: Any) -> dict[str, Any]:
    """Return what `abn info NAME` prints: costs of the plain backbone and of both branches, and the gate's place.

    Of a system on which no branch is put, the system's own; one for yes/no attributes has CelebA's 40.
    """
    if stands_alone(name):
        return _describe_alone(name, num_classes, options)
    plain = create_backbone(name, num_classes, **options)
    baseline = cost(plain)
    networks: dict[str, dict[str, float]] = {
        "plain": {"parameters": baseline.parameters, "multiply_adds": baseline.multiply_adds, "ratio": 1.0}
    }
    stages = {}
    model: AttentionBranchNetwork | None = None
    for branch in ("lite", "paper"):
        model = create_model(name, num_classes, branch=branch, map_kernel=map_kernel, **options)
        found = cost(model)
        networks[branch] = {
            "parameters": found.parameters,
            "multiply_adds": found.multiply_adds,
            "ratio": found.multiply_adds / baseline.multiply_adds,
        }
        stages[branch] = model.construction.stage_note
    assert model is not None
    place, made = model.place, model.construction
    return {
        "name": name,
        "num_classes": num_classes,
        "image_size": list(model.preprocessing.size),
        "map_size": list(made.map_size),
        "features": place.features,
        "gates": list(place.gates or (place.features,)),
        "why": place.reason,
        "effect": made.proof.effect,
        "resumable": bool(place.tail),
        "stages": stages,
        "networks": networks,
    }


def _describe_alone(name: str, num_classes: int, options: dict[str, Any]) -> dict[str, Any]:
    attributes = name.partition(":")[0] in ATTRIBUTE_SYSTEMS
    size: dict[str, Any] = {"num_classes": num_classes}
    if attributes:
        size = {"heads": {f"attribute {number}": 2 for number in range(40)}}
    model = create_backbone(name, **size, **options)
    return {
        "name": name,
        **({"attributes": 40} if attributes else {"num_classes": num_classes}),
        "image_size": list(model.preprocessing.size),
        "networks": {"alone": {**vars(cost(model)), "ratio": 1.0}},
    }
