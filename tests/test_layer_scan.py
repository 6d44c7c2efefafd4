"""Ranking a network's layers by what their maps are worth."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import attention_branch as ab
from attention_branch import cli
from attention_branch.errors import UserError
from attention_branch.evaluation import scan_layers
from attention_branch.evaluation.layer_scan import scan_files


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
    # One class per image in every form that explain takes, also over several batches.
    each = [0, 1, 0, 1]
    expected = scan_layers(model, images, "layer-cam", each, layers=["sees"])[0].result.values
    for target in (tuple(each), np.array(each), torch.tensor(each), lambda logits: torch.tensor(each)):
        again = scan_layers(model, images, "layer-cam", target, layers=["sees"], batch_size=3)[0].result.values
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
    one = scan_layers(model, images, "layer-cam", torch.tensor(0), layers=["sees"])[0].result.values
    assert torch.equal(one, scan_layers(model, images, "layer-cam", 0, layers=["sees"])[0].result.values)
    with pytest.raises(UserError, match="no image to rank"):
        scan_layers(model, images[:0], "layer-cam")
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
    for more, said in (
        (["--method", "occlusion"], "reads no layer"),
        (["--target", "7"], "Class 7 is out of range"),
        (["--layer", "backbone.layer1"], "--layer has no meaning for --scan-layers"),
        (["--top", "3"], "--top has no meaning for --scan-layers"),
        (["--stretch"], "--stretch has no meaning for --scan-layers"),
        (["--out", str(tmp_path / "0.png")], "a file stands where a folder is needed"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main([*words, "--out", str(tmp_path / "other"), *more])
        assert caught.value.code == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert "scanning layers" not in printed.out + printed.err
    assert not (tmp_path / "other").exists()


def test_scanning_for_one_of_several_heads(tmp_path):
    torch.manual_seed(0)
    model = ab.create_model("resnet14", heads={"big": 1, "kind": 3}, branch="lite", image_size=32)
    model.class_names = {"big": ["no", "yes"], "kind": ["ant", "bee", "cow"]}
    model.save_pretrained(tmp_path / "model")
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.png")
    output = io.StringIO()
    console = Console(file=output, width=100)
    first = scan_files(tmp_path / "model", [tmp_path / "0.png"], tmp_path / "a", console=console)
    assert "the head 'big'" in output.getvalue()
    named = scan_files(tmp_path / "model", [tmp_path / "0.png"], tmp_path / "b", target="kind=cow")
    image = model.preprocessing.tensor(Image.fromarray(noise))[None]
    expected = {score.layer: score.result.mean for score in scan_layers(model, image, target={"kind": 2})}
    assert {score.layer: score.result.mean for score in named} == pytest.approx(expected, abs=1e-5)
    assert [score.result.mean for score in first] != pytest.approx([score.result.mean for score in named])
    with pytest.raises(UserError, match=r"no head 'kid'.*Did you mean 'kind'"):
        scan_files(tmp_path / "model", [tmp_path / "0.png"], tmp_path / "c", target="kid=cow")
