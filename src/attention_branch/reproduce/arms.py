"""The arms of every cell: the network with attention, and what tells whether attention or its cost is what helps."""

from dataclasses import dataclass, field
from typing import Any

from attention_branch.models import create_backbone, create_model
from attention_branch.models.cost import Cost, cost
from attention_branch.models.wider import wider_backbone


@dataclass(frozen=True)
class Arm:
    """One way to build the network of a cell, as settings of a training run."""

    name: str
    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    several_heads: bool = False
    """Whether it exists for networks of several heads only."""
    family: str = ""
    """How the name of a network begins that has it; every network's does with nothing."""
    equal: str | None = None
    """'parameters' or 'multiply_adds': which of the network with the paper's branch a wider plain network equals."""


_PLAIN = {"baseline": True}
_CONTROL = {"mechanism": "residual", "branch": "paper"}

ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", "plain backbone", _PLAIN),
        Arm("none", "deep supervision only: branch trained, map not applied", {"mechanism": "none", "branch": "paper"}),
        Arm("product", "g(x)*M(x)", {"mechanism": "product", "branch": "paper"}),
        Arm("residual", "g(x)*(1+M(x)), the paper's network", {"mechanism": "residual", "branch": "paper"}),
        Arm(
            "sum-log",
            "g(x)*(1+M(x)), M the sum of log(1 + A) as in the authors' SENet code",
            _CONTROL | {"map_form": "sum-log"},
            family="seresnet",
        ),
        Arm("lite", "g(x)*(1+M(x)) with the lite branch", {"mechanism": "residual", "branch": "lite"}),
        Arm("shared", "one perception pass for all heads", _CONTROL | {"perception": "shared"}, several_heads=True),
        Arm("constant", "the map is 0.5 everywhere", _CONTROL | {"map_control": "constant"}),
        Arm("shuffled", "another image's map", _CONTROL | {"map_control": "shuffled"}),
        Arm("wider-parameters", "wider plain backbone, same parameters", _PLAIN, equal="parameters"),
        Arm("wider-multiply-adds", "wider plain backbone, same multiply-adds", _PLAIN, equal="multiply_adds"),
    )
}


def backbone_options(
    arm: Arm, network: str, size: dict[str, Any], image_size: int | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the backbone's options in an arm; `size` is num_classes or heads.

    A wider network is as large as the paper's network of the same backbone: g(1+M) with a copied last stage.
    """
    if arm.equal is None:
        return options
    target = network_cost(ARMS["residual"], network, size, image_size, options)
    wanted = {arm.equal: getattr(target, arm.equal)}
    return wider_backbone(network, image_size=image_size, **size, **wanted, **options)


def network_cost(arm: Arm, network: str, size: dict[str, Any], image_size: int | None, options: dict[str, Any]) -> Cost:
    """Return what an arm's network costs at the size of its pictures; `options` are the backbone's in this arm."""
    made = size | {"image_size": image_size, **options}
    if arm.settings.get("baseline"):
        model: Any = create_backbone(network, **made)
    else:
        asked = ("mechanism", "branch", "perception", "map_form")
        kinds = {key: arm.settings[key] for key in asked if key in arm.settings}
        model = create_model(network, **made, **kinds)
    return cost(model, None if image_size is None else (image_size, image_size))
