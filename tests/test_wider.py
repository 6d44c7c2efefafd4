"""Wider plain networks: as costly as the network with a branch, of the same depth, and saved like any other."""

import json

import pytest
import torch
from torch import nn

import attention_branch as ab
from attention_branch.models.cost import Cost, cost
from attention_branch.models.small import SMALL, create_small
from attention_branch.models.wider import wider_backbone


def meta(name, classes, **options):
    """A plain network without storage: its shapes are all that a count needs."""
    with torch.device("meta"):
        return ab.create_backbone(name, classes, **options)


def vgg_with_branch(classes):
    """Count VGG16-BN with the paper's branch by hand, at 14x14 positions; building 276 M weights takes 8 seconds."""
    plain = cost(meta("vgg16_bn", classes))
    block = 3 * 9 * 512 * 512
    heads = 9 * 512 * classes + 9 * classes
    norms = 2 * (3 * 512 + 512 + classes + 1)
    parameters = plain.parameters + block + 3 * 512 + heads + classes**2 + norms
    return Cost(parameters, plain.multiply_adds + 14 * 14 * (block + heads) + classes**2)


def layers(model):
    return sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        *((name, 100) for name in ("resnet14", "densenet_bc_100_12", "resnext29_8x64d")),
        *((name, 1000) for name in ("seresnet50", "vgg16_bn")),
    ],
)
def test_the_wider_network_costs_what_the_branch_costs(name, classes):
    vgg = name == "vgg16_bn"
    target = vgg_with_branch(classes) if vgg else cost(ab.create_model(name, classes).to("meta"))
    plain = meta(name, classes)
    for unit in ("parameters", "multiply_adds"):
        options = wider_backbone(name, classes, **{unit: getattr(target, unit)})
        control = meta(name, classes, **json.loads(json.dumps(options)))
        assert getattr(cost(control), unit) == pytest.approx(getattr(target, unit), rel=0.02)
        # Only wider: as many layers, none of them grouped in another way.
        assert layers(control) == layers(plain)
        groups = [[m.groups for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (plain, control)]
        assert groups[0] == groups[1]


@pytest.mark.parametrize("name", ["resnet14", "resnet65b", "densenet_bc_100_12", "resnext29_8x64d"])
def test_width_one_is_the_published_network_draw_by_draw(name):
    drawn = []
    for options in ({}, {"width": 1.0}):
        torch.manual_seed(3)
        drawn.append(create_small(name, 10, **options).state_dict())
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])


def test_twice_the_width_is_twice_the_channels_in_every_family():
    def channels(name, width):
        with torch.device("meta"):
            network = create_small(name, 10, width=width)
        return [m.out_channels for key, m in network.named_modules() if isinstance(m, nn.Conv2d) and key != "stem"]

    for name in SMALL:
        assert channels(name, 2) == [2 * count for count in channels(name, 1)]


def test_a_growth_rate_between_integers_holds_on_average():
    """Growth 12 * 1.125 = 13.5: 16 layers add 216, after 27 channels; the transition halves; and so on."""
    network = create_small("densenet_bc_100_12", 10, width=1.125)
    assert network.stem.out_channels == 27
    first = (27 + 216) // 2
    second = (first + 216) // 2
    assert [info["num_chs"] for info in network.feature_info] == [first, second, second + 216]


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet14", {"width": 1.3}), ("resnet18", {"channels": [66, 131, 262, 524]})],
)
def test_a_wider_network_answers_the_same_after_saving(name, options, tmp_path):
    model = ab.create_backbone(name, 3, image_size=64, **options).eval()
    model.save_pretrained(tmp_path / "model")
    loaded = ab.load_model(tmp_path / "model")
    images = torch.randn(2, 3, 64, 64)
    assert loaded.config.backbone_options == options
    assert torch.equal(model(images), loaded(images))


def test_several_heads_and_other_options_come_along():
    heads = {"smiling": 2, "hair": 3}
    options = wider_backbone("resnet14", heads=heads, parameters=400_000, stem_stride=2, image_size=64)
    assert options["stem_stride"] == 2
    control = ab.create_backbone("resnet14", heads=heads, image_size=64, **options)
    assert cost(control).parameters == pytest.approx(400_000, rel=0.02)


def test_a_wide_vgg_can_be_gated():
    model = ab.create_model("vgg11", 3, channels=[8, 8, 16, 16, 24], image_size=64).eval()
    assert model.place.channels == 16
    assert model(torch.randn(1, 3, 64, 64)).attention.shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("convnext_atto", {"parameters": 10**7}, r"'convnext_atto' \(ConvNeXt\) has no width to choose"),
        ("resnet14", {"parameters": 100}, "No width of 'resnet14' comes within 10 % of 100 parameters"),
        ("resnet14", {}, "either parameters or multiply_adds"),
        ("resnet14", {"multiply_adds": -5}, "The target is -5 multiply-adds"),
        ("vgg16_cam", {"parameters": 10**7}, "has no width to choose"),
    ],
)
def test_what_cannot_be_widened_is_said_in_one_sentence(name, target, words):
    with pytest.raises(ab.UserError, match=words):
        wider_backbone(name, 10, **target)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet14", {"width": 0}, "width is 0; .* above 0"),
        ("densenet_bc_100_12", {"width": 0.05}, "would have no channel"),
        ("vgg16", {"channels": [64, 128]}, r"channels is \[64, 128\]; 'vgg16' takes one positive number a block"),
        ("vgg16", {"channels": [64] * 5, "pretrained": True}, "no pretrained weights for 'vgg16' with other channels"),
    ],
)
def test_bad_widths(name, options, words):
    with pytest.raises(ab.UserError, match=words):
        ab.create_backbone(name, 10, **options)
