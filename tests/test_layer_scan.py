"""Ranking a network's layers by what their maps are worth."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import attention_branch as ab
from attention_branch import cli
from attention_branch.errors import UserError
from attention_branch.evaluation import scan_layers


class Blind(nn.Module):
    """`sees` keeps the image's places; `scrambles` reverses them, so that its map points at the wrong ones."""

    def __init__(self):
        super().__init__()
        self.sees = nn.Conv2d(3, 2, 1)
        self.scrambles = Flip()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2, 2)

    def forward(self, images):
        return self.fc(self.pool(self.scrambles(self.sees(images).relu())).flatten(1))


class Flip(nn.Module):
    def forward(self, x):
        return x.flip(2, 3)


def test_the_layer_whose_map_is_in_place_comes_first():
    model = Blind().eval()
    with torch.no_grad():
        model.sees.weight.fill_(1)
        model.sees.bias.zero_()
        model.fc.weight.copy_(torch.tensor([[60.0, 60.0], [-60.0, -60.0]]))
        model.fc.bias.copy_(torch.tensor([-4.0, 4.0]))
    images = torch.zeros(4, 3, 16, 16)
    for row, (y, x) in enumerate(((0, 0), (0, 8), (10, 2), (12, 12))):
        images[row, :, y : y + 4, x : x + 4] = 2
    found = scan_layers(model, images, "layer-cam", 0)
    assert [score.layer for score in found] == ["sees", "scrambles"]
    assert [score.size for score in found] == [(16, 16), (16, 16)]
    assert found[0].result.mean > 0.9 > 0.5 > found[1].result.mean
    metric = ab.metrics.InsertionMinusDeletion()
    metric.update(model, images, ab.explain(model, images, "layer-cam", 0, layer="sees").maps, 0)
    assert found[0].result.mean == pytest.approx(metric.compute().mean)
    assert found[0].result.n == 4
    assert [score.layer for score in scan_layers(model, images, "layer-cam", 0, layers=["scrambles"])] == ["scrambles"]
    with pytest.raises(UserError, match="reads no layer"):
        scan_layers(model, images, "attention")
    with pytest.raises(UserError, match=r"No layer yields a map.*'fc'"):
        scan_layers(model, images, layers=["fc"])


def test_scanning_on_the_command_line(tmp_path, capsys):
    model = ab.create_model("resnet14", num_classes=3, branch="lite", image_size=32)
    model.save_pretrained(tmp_path / "model")
    noise = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    for index, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    words = ["explain", str(tmp_path / "model"), str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--scan-layers"]
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--out", str(tmp_path / "out")])
    assert not caught.value.code
    layers = json.loads((tmp_path / "out" / "layers.json").read_text())["layers"]
    assert "backbone.layer3" in [layer["layer"] for layer in layers]
    assert {"mean", "interval", "n", "protocol", "height"} <= set(layers[0])
    assert layers[0]["layer"] in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--out", str(tmp_path / "other"), "--method", "occlusion"])
    assert caught.value.code == 2
    assert "reads no layer" in capsys.readouterr().err
