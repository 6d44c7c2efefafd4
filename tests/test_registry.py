"""Names, refusals and the gate's proof."""

import pytest
import timm
import torch
from torch import nn

import attention_branch as ab
from attention_branch.models.gate import GatePlace, locate, prove


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnet5", 3), "Did you mean .*'resnet50'"),
        (("resnet20", 1), "at least 2"),
        (("resnet20",), "either num_classes"),
        (("resnet20", {"smiling": 2}), "not a whole number; several tasks go in heads"),
        (("resnet20", 2.5), "2.5, not a whole number"),
    ],
)
def test_bad_names_and_numbers(arguments, words):
    with pytest.raises(ab.UserError, match=words):
        ab.create_model(*arguments)


@pytest.mark.parametrize("heads", [{}, {"smiling": 0}, {"smiling": "2"}, ["smiling"]])
def test_bad_heads(heads):
    with pytest.raises(ab.UserError, match="heads must name at least one task"):
        ab.create_model("resnet20", heads=heads)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mechanism": "sum"}, "residual, product, none"),
        ({"branch": "big"}, "paper, lite"),
        ({"map_kernel": 5}, "3 .* or 1"),
        ({"pretrained": True}, "no pretrained weights for 'resnet20'"),
        ({"colour": 3}, "does not take these options"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ab.UserError, match=words):
        ab.create_model("resnet20", 3, **options)


@pytest.mark.parametrize(("name", "side", "enough"), [("vit_tiny_patch16_224", 30, 32), ("resnet18", 16, 32)])
def test_a_size_that_leaves_a_map_of_one_position_is_refused(name, side, enough):
    with pytest.raises(ab.UserError, match=f"{side}x{side} are too small for {name}"):
        ab.create_model(name, 3, image_size=side)
    assert ab.create_model(name, 3, image_size=enough).construction.map_size == (2, 2)


@pytest.mark.parametrize("name", ["hrnet_w18_small", "coat_tiny"])
def test_backbones_without_one_tensor_at_the_gate_are_refused_by_name(name):
    with pytest.raises(ab.UserError, match=f"'{name}' cannot be gated.*Works for instance"):
        ab.create_model(name, 3)


def test_a_gate_that_a_norm_erases_is_refused():
    """The paper's place in a ConvNeXt, forced: the entry norm of the stage divides the map out again."""
    backbone = timm.create_model("convnext_atto", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    right = locate(backbone, "convnext_atto", images)
    forced = GatePlace(**{**vars(right), "gates": ()})
    with pytest.raises(ab.UserError, match=r"'convnext_atto' cannot be gated: a random map at 'stages.2'"):
        prove(backbone, forced, "convnext_atto", images)
    assert prove(backbone, right, "convnext_atto", images).effect > 1e-2


def test_class_token_pooling_erases_a_gate_behind_the_last_block():
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    right = locate(backbone, "vit", images)
    forced = GatePlace(**{**vars(right), "gates": ("norm",)})
    with pytest.raises(ab.UserError, match="cannot be gated"):
        prove(backbone, forced, "vit", images)


def test_the_proof_leaves_the_weights_alone():
    backbone = timm.create_model("resnet18", num_classes=3).eval()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    prove(backbone, locate(backbone, "resnet18", images), "resnet18", images)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_vgg_branch_stands_in_for_the_last_block_and_the_fully_connected_layers():
    model = ab.create_model("vgg16_bn", num_classes=3)
    stage = [m for m in model.branch.stage.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in stage] == [(512, 512, (3, 3))] * 3
    assert model.branch.classes.kernel_size == (3, 3)
    assert model.construction.map_size == (14, 14)
    assert not any(isinstance(m, nn.MaxPool2d) for m in model.branch.stage.modules())


def test_from_scratch_the_copied_stage_draws_its_own_weights():
    model = ab.create_model("resnet20", num_classes=3)
    own = model.backbone.layer3[0].convolutions[0].weight
    copied = model.branch.stage.blocks[0][0].convolutions[0].weight
    assert own.shape == copied.shape
    assert not torch.equal(own, copied)
    assert model.branch.stage.blocks[0][0].convolutions[0].stride == (1, 1)


def test_pretrained_weights_are_copied_into_the_branch(tmp_path):
    """A checkpoint in timm's own format on disk takes the place of a download."""
    source = timm.create_model("resnet18", num_classes=7)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 7}
    model = ab.create_model("resnet18", num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay)
    wanted = source.layer4[0].conv1.weight
    assert torch.equal(model.backbone.layer4[0].conv1.weight, wanted)
    assert torch.equal(model.branch.stage.blocks[0][0].conv1.weight, wanted)
    assert model.backbone.fc.weight.shape == (3, 512)


def test_unreachable_pretrained_weights_are_one_sentence(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ab.UserError, match=r"pretrained weights of 'resnet18' could not be loaded"):
        ab.create_model("resnet18", num_classes=3, pretrained=True)


def test_a_copy_at_double_size_and_a_replaced_stage_say_so():
    swin = ab.create_model("swin_tiny_patch4_window7_224", num_classes=3, image_size=64)
    assert "double size" in swin.construction.stage_note
    eva = ab.create_model("eva02_tiny_patch14_224", num_classes=3, image_size=56)
    assert "plain residual blocks" in eva.construction.stage_note


def test_importing_models_and_explanations_leaves_lightning_alone():
    import subprocess
    import sys

    code = "import sys, attention_branch as ab; ab.create_model; ab.explain; print('lightning' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
