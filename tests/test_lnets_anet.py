"""LNets+ANet: crops and windows against other computations, its layers, its stages, and a whole run."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import attention_branch as ab
from attention_branch.errors import UserError
from attention_branch.files import read_json_lines
from attention_branch.models.facial.anet import ANet, LocalConv2d, region_side
from attention_branch.models.facial.crops import cut, enlarged, share_inside, within
from attention_branch.models.facial.lnets_anet import CONTEXT
from attention_branch.models.facial.localiser import THRESHOLD, best_window, windows
from attention_branch.training import TrainConfig, parse_train_arguments, train
from attention_branch.training.journal import read_metrics
from test_moon import write_marks

HEADS = {"glasses": 2, "smiling": 1}
SMALL = {"lnet": "resnet14", "lnet_options": {"stem_stride": 2}, "features": 16, "image_size": 64}


def network(**changes):
    return ab.create_backbone("lnets-anet", heads=HEADS, **SMALL | changes).eval()


def test_cutting_is_aligned_roi_align():
    images = torch.rand(2, 3, 40, 60)
    boxes = torch.tensor(
        [[[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0]], [[0.25, 0.5, 0.5, 0.75], [0.3, 0.1, 0.35, 0.8]]]
    )
    pixels = boxes * torch.tensor([60.0, 40, 60, 40])
    theirs = torchvision.ops.roi_align(images, list(pixels), (7, 9), sampling_ratio=2, aligned=True)
    # At the very edge it repeats the last pixel, and here what lies outside is zero.
    ours = cut(images, boxes, (7, 9)).flatten(0, 1)
    assert torch.allclose(ours[:, :, 1:-1, 1:-1], theirs[:, :, 1:-1, 1:-1], atol=1e-5)
    assert torch.allclose(ours[[0, 2, 3]], theirs[[0, 2, 3]], atol=1e-5)
    outside = cut(torch.ones(1, 3, 8, 8), torch.tensor([[[1.5, 0.0, 2.5, 1.0]]]), (4, 4))
    assert not outside.any()


def test_boxes_of_boxes():
    outer, inner = torch.tensor([[0.2, 0.4, 0.6, 0.8]]), torch.tensor([[0.5, 0.0, 1.0, 0.25]])
    assert torch.allclose(within(outer, inner), torch.tensor([[0.4, 0.4, 0.6, 0.5]]))
    assert torch.allclose(enlarged(inner, 2.0), torch.tensor([[0.0, 0.0, 1.0, 0.5]]))
    assert torch.allclose(enlarged(outer, 10.0), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    boxes = torch.tensor([[0.2, 0.2, 0.4, 0.4], [-0.1, 0.0, 0.1, 1.0], [2.0, 0.0, 3.0, 1.0]])
    assert torch.allclose(share_inside(boxes), torch.tensor([1.0, 0.5, 0.0]))


@pytest.mark.parametrize("size", [(6, 6), (5, 9), (3, 3)])
def test_the_window_is_the_best_of_all(size):
    """Against sums in float64 over every window, counted one by one."""
    height, width = size
    maps = torch.rand(20, height, width, generator=torch.Generator().manual_seed(1)) ** 3
    found = best_window(maps) * torch.tensor([width, height, width, height])
    least = max(1, min(size) // 4)
    for one, box in zip(maps.double().numpy(), found.round().long().tolist(), strict=True):
        excess = one - (one.mean() + THRESHOLD * (one.max() - one.mean()))
        scores = {
            (x0, y0, x1, y1): excess[y0:y1, x0:x1].sum()
            for x0 in range(width) for x1 in range(x0 + least, width + 1)
            for y0 in range(height) for y1 in range(y0 + least, height + 1)
            if max(x1 - x0, y1 - y0) <= 2 * min(x1 - x0, y1 - y0) or (x1 - x0, y1 - y0) == (width, height)
        }  # fmt: skip
        assert len(scores) == len(windows(*size))
        assert scores[tuple(box)] == pytest.approx(max(scores.values()), abs=1e-5)


def test_a_flat_map_is_the_whole_picture_and_a_fine_one_is_averaged():
    assert best_window(torch.full((2, 7, 5), 0.3)).tolist() == [[0, 0, 1, 1]] * 2
    fine = torch.zeros(1, 64, 64)
    fine[0, 8:24, 32:56] = 1
    assert torch.allclose(best_window(fine), torch.tensor([[32, 8, 56, 24]]) / 64)


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_local_filters_are_those_of_their_cell(cells):
    layer = LocalConv2d(4, 5, cells).double()
    x = torch.randn(2, 4, 12, 6, dtype=torch.double)
    made = layer(x)
    weights = layer.weight.unflatten(0, (cells, cells, 5))
    for row in range(12):
        for column in range(6):
            weight = weights[row * cells // 12, column * cells // 6]
            whole = F.conv2d(x, weight, padding=1)
            assert torch.allclose(made[:, :, row, column], whole[:, :, row, column])


def test_anet_answers_with_the_mean_over_five_patches_and_learns_from_one():
    anet = ANet(3, 56, features=8).eval()
    regions = torch.randn(4, 3, 56, 56)
    corners = [regions[:, :, y : y + 48, x : x + 48] for y, x in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4))]
    with torch.no_grad():
        each = [anet.fc(anet.features(patch)) for patch in corners]
        assert torch.allclose(anet(regions), torch.stack(each).mean(0), atol=1e-5)
        anet.train()
        for module in anet.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        anet.head_drop.p = 0.0
        shown = anet(regions)
    distance = torch.stack([(shown - one).abs().amax(1) for one in each])  # (5, N)
    assert (distance.amin(0) < 1e-4).all()
    assert region_side(64) == 56
    assert region_side(178) == 168


class Brightness(nn.Module):
    """A trunk whose last features are the picture, 8 by 8 pixels at a time."""

    def forward_features(self, images):
        return F.avg_pool2d(images, 8)


def test_both_networks_close_in_on_what_they_respond_to():
    model = network()
    model.backbone.lnet_o.trunk = model.backbone.lnet_s.trunk = Brightness()
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, 8:24, 40:56] = 1
    images[1, :, 32:64, 8:40] = 1
    found = model.localise(images)
    true = torch.tensor([[40, 8, 56, 24], [8, 32, 40, 64]]) / 64
    for boxes in (found.faces, found.head_shoulders):
        assert share_of(true, boxes).min() == pytest.approx(1)
        assert share_of(boxes, true).min() > 0.4
    assert torch.allclose(found.head_shoulders, enlarged(true, CONTEXT))
    assert found.response.shape == found.face_response.shape == (2, 8, 8)


def share_of(boxes, others):
    """The share of each box that lies in the other."""
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    return (high - low).clamp_min(0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)


def test_the_answer_is_the_mean_of_the_svms_scores():
    model = network()
    weight, bias = torch.randn(2, 16), torch.randn(2)
    model.linear.set(weight, bias)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        features, answer = model.features(images), model(images)
        regions = cut(images, model.localise(images).faces[:, None], (56, 56))[:, 0]
        assert torch.equal(features, model.backbone.anet.region_features(regions))
    margins = torch.einsum("npd,td->npt", features, weight).mean(1) + bias
    assert torch.allclose(answer["glasses"], torch.stack([-margins[:, 0], margins[:, 0]], 1), atol=1e-5)
    assert torch.allclose(answer["smiling"], 2 * margins[:, 1:], atol=1e-5)


def test_a_stage_moves_its_own_networks_only():
    model = network()
    for stage in model.stages:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.begin(stage)
        model.train()
        output = model(torch.randn(4, 3, 64, 64))
        model.loss(output, {head: torch.tensor([0, 1, 1, -1]) for head in HEADS}).total.backward()
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.optim.SGD(learning, lr=0.1).step()
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        prefix = f"backbone.{stage.replace('-', '_')}."
        assert moved == {name for name in before if name.startswith(prefix)}
        assert set(model.stage_state(stage)) == moved
        model.zero_grad(set_to_none=True)
    model.begin(None)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_map_of_a_crop_is_no_map_of_the_picture():
    model = network()
    images = torch.randn(1, 3, 64, 64)
    with pytest.raises(UserError):
        ab.explain(model, images, method="grad-cam", layer="anet.layers", target={"glasses": 1})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": {"hair": 3}}, "'hair' has 3"),
        ({"face": 60}, "face is 60; .* multiple of 56"),
        ({"lnet": "vit_tiny_patch16_224", "lnet_options": {}, "image_size": 224}, "'vit_tiny_.*' cannot localise"),
        ({"lnet": "resnet15"}, "Unknown backbone 'resnet15'"),
        ({"colour": 1}, "'lnets-anet' does not take these options"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        ab.create_backbone("lnets-anet", **{"heads": HEADS} | SMALL | changes)


def test_alexnet_needs_pictures_of_63_pixels():
    model = ab.create_backbone("lnets-anet", heads=HEADS).eval()
    with pytest.raises(UserError, match="at least 63 pixels a side"):
        model(torch.zeros(1, 3, 62, 80))
    assert model(torch.zeros(1, 3, 63, 80))["glasses"].shape == (1, 2)


def settings(data, out) -> TrainConfig:
    options = ("lnet=resnet14", "lnet_options={'stem_stride': 2}", "features=16")
    return TrainConfig(
        data=str(data), model="lnets-anet", image_size=32, model_options=options, out=str(out), epochs=2, batch_size=8,
        warmup_epochs=0.0, accelerator="cpu", workers=0, maps=0,
    )  # fmt: skip


def test_a_run_stopped_within_its_last_stage_goes_on_to_the_same_weights(tmp_path, monkeypatch, capsys):
    from attention_branch.training import attribute_stages

    data = write_marks(tmp_path / "marks", 30)
    run = train(settings(data, tmp_path / "whole"))
    lines = {stage: read_metrics_of(run, stage) for stage in ("lnet-o", "lnet-s", "anet")}
    assert all(len(found) == 2 and "validation_accuracy" in found[0] for found in lines.values())
    assert not (run / "stages").exists()
    model = ab.load_model(run)
    assert model.linear.weight.any()
    (line,) = read_metrics(run)
    assert 0 <= line["validation_accuracy"] <= 1

    trained, began = attribute_stages._trained, []

    def noted(stage, *rest):
        began.append(stage)
        return trained(stage, *rest)

    def stopped(self, trainer, *_):
        if began == ["lnet-o", "lnet-s", "anet"] and trainer.current_epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(attribute_stages, "_trained", noted)
    monkeypatch.setattr(attribute_stages._Watch, "on_train_batch_end", stopped)
    with pytest.raises(SystemExit):
        train(settings(data, tmp_path / "again"))
    assert f"abn train --resume {tmp_path / 'again'}" in capsys.readouterr().out
    assert len(read_json_lines(tmp_path / "again" / "stages" / "anet" / "metrics.jsonl")) == 1
    train(parse_train_arguments(["--resume", str(tmp_path / "again")]))
    assert began == ["lnet-o", "lnet-s", "anet", "anet"]
    whole, resumed = (ab.load_model(folder).state_dict() for folder in (run, tmp_path / "again"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert np.isfinite(whole["linear.weight"].numpy()).all()
    assert len(read_metrics_of(tmp_path / "again", "anet")) == 2


def read_metrics_of(run, stage):
    return read_json_lines(run / f"{stage}.jsonl")
