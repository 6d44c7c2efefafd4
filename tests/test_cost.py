"""Parameters and multiply-adds against the published and hand-counted ones."""

import pytest
import torch

import attention_branch as ab
from attention_branch.models.cost import cost, describe

# Millions of parameters, baseline and ABN with the paper's branch, to the digits that were published.
AT_32 = {
    "resnet20": (0.278, 0.502),
    "resnet32": (0.473, 0.844),
    "resnet164b": (1.727, 3.057),
    "wrn_28_10": (36.54, 64.48),
    "densenet_bc_100_12": (0.800, 1.122),
    "resnext29_8x64d": (34.52, 60.88),
}
AT_224 = {
    "resnet18": (11.69, 21.61),
    "resnet50": (25.56, 43.58),
    "resnet152": (60.19, 78.22),
}


def millions(model):
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "classes", "plain", "abn", "digits"),
    [(name, 100, *counts, 3 if counts[0] < 10 else 2) for name, counts in AT_32.items()]
    + [(name, 1000, *counts, 2) for name, counts in AT_224.items()],
)
def test_parameters_equal_the_reference_counts(name, classes, plain, abn, digits):
    assert round(millions(ab.create_backbone(name, classes)), digits) == plain
    assert round(millions(ab.create_model(name, classes)), digits) == abn


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet20", 20), ("resnet110", 110), ("resnet65b", 65), ("resnet83b", 83), ("resnet164b", 164)],
)
def test_depth_counts_weighted_layers_without_shortcuts(name, layers):
    network = ab.create_backbone(name, 10).backbone
    main = [
        key
        for key, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and "shortcut" not in key
    ]
    assert len(main) == layers


def test_multiply_adds_of_one_convolution_and_of_resnet50():
    # He et al. (1512.03385) and torchvision give 4.09 G multiply-adds for the v1.5 net.
    plain = ab.create_backbone("resnet50", 1000)
    assert cost(plain).multiply_adds == pytest.approx(4.089e9, rel=1e-3)
    model = ab.create_model("resnet50", 1000)
    # The authors' code needs 7.62 G; the mean before the linear layer saves K * K at all but one of 14 * 14 positions.
    assert cost(model).multiply_adds == pytest.approx(7.62e9 - 195 * 1e6, rel=2e-3)


@pytest.mark.parametrize(("name", "classes"), [("resnet50", 1000), ("resnet110", 100)])
def test_lite_costs_at_most_five_percent(name, classes):
    plain = cost(ab.create_backbone(name, classes)).multiply_adds
    lite = cost(ab.create_model(name, classes, branch="lite")).multiply_adds
    assert plain < lite <= 1.05 * plain


def test_describe_says_where_and_why():
    found = describe("convnext_atto", 10)
    assert found["map_size"] == [14, 14]
    assert found["gates"] == ["stages.3.downsample.0"]
    assert "norm" in found["why"]
    assert found["networks"]["lite"]["parameters"] < found["networks"]["paper"]["parameters"]
    assert found["effect"] > 1e-3


def test_a_system_without_a_branch_is_described_alone():
    found = describe("interpretable:resnet14", 10)
    model = ab.create_backbone("interpretable:resnet14", 10)
    assert list(found["networks"]) == ["alone"]
    assert found["networks"]["alone"]["parameters"] == sum(one.numel() for one in model.parameters())
    attributes = describe("moon:resnet14")
    assert attributes["attributes"] == 40
    plain = describe("resnet14", 40)["networks"]["plain"]
    assert attributes["networks"]["alone"] == plain  # one output an attribute, on the same backbone


def test_a_name_without_a_backbone_is_refused():
    for name in ("interpretable", "interpretable:", "interpretable:interpretable:resnet14"):
        with pytest.raises(ab.UserError, match="interpretable:"):
            describe(name)
