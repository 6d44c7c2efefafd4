"""CAM's VGG networks: their layers, their maps in closed form, and pretrained convolutions."""

import pytest
import timm
import torch
from torch import nn

import attention_branch as ab
from attention_branch.cli import models
from attention_branch.models.vgg import CAM_NETWORKS


def trained(name, side=64, **options):
    """A network whose head has seen something: random weights of order one, so that classes differ."""
    model = ab.create_backbone(name, 5, **options).eval()
    nn.init.normal_(model.backbone.fc.weight)
    nn.init.normal_(model.backbone.fc.bias)
    return model, torch.randn(3, 3, side, side)


def test_the_layers_are_those_of_the_paper():
    """13 convolutions of VGG16 without pool5, one of 1024 units, and a linear layer; weights counted by hand."""
    with torch.device("meta"):
        network = ab.create_backbone("vgg16_cam", 1000).backbone
    pairs = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
    pairs += [(256, 512)] + [(512, 512)] * 5
    count = sum(9 * inputs * outputs + outputs for inputs, outputs in pairs)
    count += 9 * 256 * 1024 + 1024 + 1024 * 1000 + 1000
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert sum(isinstance(module, nn.MaxPool2d) for module in network.modules()) == 4
    assert network.forward_features(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 1024, 14, 14)
    with torch.device("meta"):
        bn = ab.create_backbone("vgg16_bn_cam", 1000).backbone
    assert sum(isinstance(module, nn.BatchNorm2d) for module in bn.modules()) == 14


@pytest.mark.parametrize("name", ["vgg16_cam", "vgg16_bn_cam"])
def test_cam_is_the_linear_layers_weights_times_the_last_features(name):
    model, images = trained(name)
    with torch.no_grad():
        features = model.backbone.forward_features(images)
        logits = model(images)
    explanation = ab.explain(model, images, method="cam")
    weights = model.backbone.fc.weight[logits.argmax(1)]
    expected = (weights[:, :, None, None] * features).sum(1)
    assert expected.shape == (3, 4, 4)
    assert torch.allclose(explanation.raw, expected, rtol=1e-4, atol=1e-4)
    enlarged = nn.functional.interpolate(expected[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(explanation.maps, enlarged, rtol=1e-3, atol=1e-3)
    # The map's mean and the bias are the class score (eq. 2 of the paper).
    score = explanation.raw.mean((1, 2)) + model.backbone.fc.bias[logits.argmax(1)]
    assert torch.allclose(score, logits.max(1).values, rtol=1e-3, atol=1e-3)


def test_resnets_are_explained_by_cam_as_they_are():
    model = ab.create_backbone("resnet18", 5).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features, logits = model.backbone.forward_features(images), model(images)
    expected = torch.einsum("nc,nchw->nhw", model.backbone.fc.weight[logits.argmax(1)], features)
    assert torch.allclose(ab.explain(model, images, method="cam").raw, expected, rtol=1e-3, atol=1e-4)


def test_pretrained_convolutions_are_timms_and_the_rest_is_new(tmp_path):
    source = timm.create_model("vgg16_bn", num_classes=7, mlp_ratio=1 / 4096)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 7}
    real = timm.create_model

    def small_head(*names, **options):
        return real(*names, mlp_ratio=1 / 4096, **options)

    with pytest.MonkeyPatch.context() as patch:
        # The file holds a VGG with a small head: 500 MB less to write.
        patch.setattr(timm, "create_model", small_head)
        model = ab.create_backbone("vgg16_bn_cam", 3, pretrained=True, pretrained_cfg_overlay=overlay)
    own = model.backbone.features.state_dict()
    assert own.keys() == source.features[:-1].state_dict().keys()
    assert all(torch.equal(value, source.features.state_dict()[key]) for key, value in own.items())
    assert model.backbone.fc.weight.shape == (3, 1024)
    model.save_pretrained(tmp_path / "model")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(ab.load_model(tmp_path / "model")(images), model.eval()(images))


def test_a_branch_gates_the_new_convolution():
    model = ab.create_model("vgg16_cam", 3)
    assert model.place.features == "features.29"
    assert model.place.tail[-1] == "cam"
    assert model.preprocessing.size == (224, 224)
    assert model.construction.map_size == (14, 14)


def test_they_are_listed_in_a_group_of_their_own(capsys):
    names = ab.list_backbones()
    place = names.index("vgg16_cam")
    assert tuple(names[place : place + 4]) == CAM_NETWORKS
    assert models("vgg16*") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "vgg16_cam (CAM's network)" in lines
    assert "vgg16" in lines


def test_unknown_options_are_refused_in_one_sentence():
    with pytest.raises(ab.UserError, match="'vgg16_cam' does not take these options"):
        ab.create_backbone("vgg16_cam", 3, colour=1)
