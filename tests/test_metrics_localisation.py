"""Energy, boxes and mosaics against their definitions written as plain loops, and against cases made by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from attention_branch.errors import UserError
from attention_branch.explanations import upsample
from attention_branch.metrics import BoxIoU, EnergyPointingGame, GridPointingGame, box_masks, grid_mosaics


def made_up(count=12, height=14, width=18, seed=3):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, height, width, generator=generator, dtype=torch.float64)
    masks = torch.rand(count, height, width, generator=generator) < 0.3
    return maps, masks


def plain_energy(values, mask, minmax):
    inside = total = 0.0
    low = min(min(row) for row in values)
    for row, flags in zip(values, mask, strict=True):
        for value, flag in zip(row, flags, strict=True):
            energy = value - low if minmax else max(value, 0.0)
            total += energy
            inside += energy if flag else 0.0
    return inside / total if total else 0.0


@pytest.mark.parametrize("normalize", [None, "minmax"])
def test_energy_agrees_with_the_definition_written_out(normalize):
    maps, masks = made_up()
    metric = EnergyPointingGame(normalize=normalize, batch_size=5)
    expected = [plain_energy(a.tolist(), b.tolist(), normalize == "minmax") for a, b in zip(maps, masks, strict=True)]
    assert metric.update(None, None, maps, regions=masks).numpy() == pytest.approx(expected, abs=1e-12)
    # The scale of a map is none of its matter; min-max also forgives an offset.
    scaled = EnergyPointingGame(normalize=normalize)
    offset = 7.0 if normalize else 0.0
    found = scaled.update(None, None, maps * 1e200 + offset * 1e200, regions=masks)
    assert found.numpy() == pytest.approx(expected, abs=1e-9)
    result = metric.compute()
    assert result.mean == pytest.approx(np.mean(expected))
    assert result.details["region_share"] == pytest.approx(masks.double().mean().item())


def test_energy_by_hand():
    values = torch.tensor([[[3.0, -5.0], [1.0, 0.0]]])
    mask = torch.tensor([[[True, True], [False, False]]])
    assert EnergyPointingGame().update(None, None, values, regions=mask).item() == pytest.approx(3 / 4)
    assert EnergyPointingGame(normalize="minmax").update(None, None, values, regions=mask).item() == pytest.approx(
        8 / 19
    )
    constant = torch.full((1, 4, 5), 0.5)
    part = box_masks([[0, 0, 2, 3]], 4, 5)
    assert EnergyPointingGame().update(None, None, constant, regions=part).item() == pytest.approx(6 / 20)
    blank = EnergyPointingGame()
    found = blank.update(None, None, torch.cat([-constant, constant * 0, constant]), regions=[part[0], part[0], None])
    assert str(found.tolist()) == "[0.0, 0.0, nan]"
    result = blank.compute()
    assert (result.n, result.mean) == (2, 0.0)
    assert result.counts == {"skipped": 1, "no_energy": 2}
    assert EnergyPointingGame().compute().n == 0


def test_energy_is_measured_at_the_size_of_each_region():
    maps, _ = made_up(count=3, height=4, width=4)
    regions = [torch.zeros(9, 13), np.zeros((6, 5)), torch.zeros(4, 4, dtype=torch.bool)]
    for region in regions:
        region[1:3, 2:4] = 1
    found = EnergyPointingGame().update(None, None, maps, regions=regions)
    for row, region in enumerate(regions):
        wide = upsample(maps[row : row + 1], *region.shape)[0]
        assert found[row].item() == pytest.approx(plain_energy(wide.tolist(), np.asarray(region).tolist(), False))


# --- boxes ---


def plain_box(flags):
    """The tightest box around the largest part that hangs together over sides and corners, by flood fill."""
    left, best = {(y, x) for y, row in enumerate(flags) for x, flag in enumerate(row) if flag}, []
    for start in sorted(left):
        if start not in left:
            continue
        part, open_ends = [], [start]
        left.discard(start)
        while open_ends:
            y, x = open_ends.pop()
            part.append((y, x))
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.discard(near)
                    open_ends.append(near)
        if len(part) > len(best):
            best = part
    if not best:
        return None
    ys, xs = [y for y, _ in best], [x for _, x in best]
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def plain_iou(first, second):
    cells = [{(y, x) for x in range(x0, x1) for y in range(y0, y1)} for x0, y0, x1, y1 in (first, second)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


def plain_overlap(values, mask, threshold):
    low, high = min(map(min, values)), max(map(max, values))
    box = plain_box([[(value - low) / (high - low) >= threshold for value in row] for row in values])
    ys, xs = [y for y, row in enumerate(mask) if any(row)], [x for row in mask for x, flag in enumerate(row) if flag]
    return 0.0 if box is None else plain_iou(box, (min(xs), min(ys), max(xs) + 1, max(ys) + 1))


def blobs(count=16, side=12):
    """Smooth maps whose maximum lies near their box, off by more and more."""
    generator = np.random.default_rng(1)
    maps, boxes = [], []
    for row in range(count):
        y, x = generator.integers(2, side - 2, 2)
        boxes.append([x - 2, y - 2, x + 2, y + 2])
        away = np.hypot(np.arange(side)[:, None] - y + row % 3, np.arange(side)[None] - x + row % 2)
        maps.append(np.exp(-((away / 2) ** 2)) + 0.3 * generator.random((side, side)))
    return torch.tensor(np.stack(maps)), box_masks(boxes, side, side)


def test_boxes_agree_with_the_definition_written_out():
    maps, masks = blobs()
    metric = BoxIoU(thresholds=8)
    metric.update(None, None, maps[:5], regions=masks[:5])
    metric.update(None, None, maps[5:], regions=list(masks[5:]))
    thresholds = [step / 8 for step in range(8)]
    pairs = [(one.tolist(), mask.tolist()) for one, mask in zip(maps, masks, strict=True)]
    overlaps = [[plain_overlap(values, mask, threshold) for threshold in thresholds] for values, mask in pairs]
    result = metric.compute()
    shares, per_image = [], np.zeros(len(maps))
    for level in (0.3, 0.5, 0.7):
        accuracies = [np.mean([row[at] >= level for row in overlaps]) for at in range(8)]
        best = int(np.argmax(accuracies))
        entry = result.details["levels"][str(level)]
        assert (entry["accuracy"], entry["threshold"]) == (pytest.approx(accuracies[best]), thresholds[best])
        assert result.details["curves"]["accuracy"][str(level)] == pytest.approx(accuracies)
        shares.append(accuracies[best])
        per_image += np.array([row[best] >= level for row in overlaps]) / 3
    assert 0 < min(shares) < max(shares)
    assert result.mean == pytest.approx(np.mean(shares))
    assert result.values.numpy() == pytest.approx(per_image)
    assert result.interval[0] < result.mean < result.interval[1]
    assert result.details["overlap"]["mean"] == pytest.approx(np.mean(overlaps, 0).max())
    assert "upper bound" in result.protocol["threshold"]
    fixed = BoxIoU(threshold=0.375)
    assert fixed.update(None, None, maps, regions=masks).numpy() == pytest.approx([row[3] for row in overlaps])
    assert "given" in fixed.compute().protocol["threshold"]


def test_boxes_by_hand():
    maps = torch.zeros(1, 10, 10)
    maps[0, 1:3, 1:3] = 1.0  # two parts, the second with more pixels but lower
    maps[0, 5:9, 5:9] = 0.6
    mask = box_masks([[5, 5, 9, 9]], 10, 10)
    assert BoxIoU(0.5).update(None, None, maps, regions=mask).item() == 1.0
    assert BoxIoU(0.7).update(None, None, maps, regions=mask).item() == 0.0
    assert BoxIoU(0.0).update(None, None, maps, regions=mask).item() == pytest.approx(16 / 100)
    diagonal = torch.eye(4)[None]
    assert BoxIoU(0.5).update(None, None, diagonal, regions=torch.ones(1, 4, 4)).item() == 1.0  # corners join
    assert BoxIoU().update(None, None, maps, regions=mask).item() == 1.0
    odd = BoxIoU()
    found = odd.update(None, None, torch.full((3, 10, 10), 0.2), regions=[mask[0], None, np.zeros((10, 10))])
    assert found[0].item() == pytest.approx(16 / 100)  # no spread: the whole picture, at threshold 0
    result = odd.compute()
    assert result.counts == {"skipped": 2, "constant": 1}
    assert (result.n, result.mean, result.values.isnan().tolist()) == (1, 0.0, [False, True, True])
    assert (BoxIoU().compute().n, BoxIoU().compute().details) == (0, {})
    odd.reset()
    assert odd.compute().n == 0


# --- mosaics ---


class Reads(nn.Module):
    """Names the class written in a picture's first channel, with the logit written in its second."""

    def forward(self, images):
        own = images[:, 0].mean((1, 2)).round().long()
        return nn.functional.one_hot(own, 5) * images[:, 1].mean((1, 2))[:, None]


def numbered(classes, confident=None):
    """Pictures that hold their class, their confidence and their own number."""
    images = torch.zeros(len(classes), 3, 4, 6)
    images[:, 0] = torch.tensor(classes)[:, None, None]
    images[:, 1] = 10.0
    for row in confident or ():
        images[row, 1] = 0.1
    images[:, 2] = torch.arange(len(classes))[:, None, None]
    return images


def test_mosaics_hold_different_classes_and_every_picture_once():
    classes = [0, 1, 2, 3, 4] * 6 + [0] * 8
    images = numbered(classes)
    mosaics = grid_mosaics(images, classes, cells=2, seed=1)
    assert mosaics.images.shape == (8, 3, 8, 12)  # a mosaic takes three that are no 0, and there are 24 of them
    used = mosaics.sources.flatten().tolist()
    assert len(set(used)) == len(used)
    for row in range(len(mosaics)):
        held = [classes[number] for number in mosaics.sources[row]]
        assert len(set(held)) == 4
        for cell, number in enumerate(mosaics.sources[row].tolist()):
            y, x = divmod(cell, 2)
            picture = mosaics.images[row, :, 4 * y : 4 * y + 4, 6 * x : 6 * x + 6]
            assert torch.equal(picture, images[number])
        asked = mosaics.images[row, 0][mosaics.regions[row]]
        assert asked.unique().tolist() == [mosaics.classes[row].item()]
        assert mosaics.regions[row].sum() == 24
    assert len(set(mosaics.regions.flatten(1).int().argmax(1).tolist())) > 1  # not always the same cell
    again = grid_mosaics(images, torch.tensor(classes), cells=2, seed=1)
    assert torch.equal(again.images, mosaics.images)
    assert not torch.equal(grid_mosaics(images, classes, cells=2, seed=2).sources, mosaics.sources)
    assert len(grid_mosaics(images, classes, limit=2)) == 2


def test_mosaics_of_what_the_model_knows():
    classes = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    images = numbered(classes, confident=[7])
    images[8, 0] = 4.0  # the model takes it for a 4
    mosaics = grid_mosaics(images, classes, cells=2, model=Reads(), confidence=0.9)
    assert not {7, 8} & set(mosaics.sources.flatten().tolist())
    assert "0.9" in mosaics.protocol["chosen"]
    every = grid_mosaics(images, classes, cells=2, model=Reads(), every_cell=True)
    assert len(every) == 4 * every.protocol["mosaics"]
    assert sorted(every.classes[:4].tolist()) == sorted(classes[number] for number in every.sources[0])
    assert every.regions[:4].sum(0).eq(1).all()
    with pytest.raises(UserError, match="needs 9 different classes"):
        grid_mosaics(images, classes, cells=3)
    with pytest.raises(UserError, match="names rightly"):
        grid_mosaics(images, classes, model=Reads(), confidence=1.1)


def test_mosaics_of_one_size():
    classes = list(range(9))
    images = torch.rand(9, 3, 12, 12, dtype=torch.float64)
    mosaics = grid_mosaics(images, classes, cells=3, size=(12, 12))
    assert mosaics.images.shape == (1, 3, 12, 12)
    # Made smaller, a picture keeps its mean but for its border.
    cell = mosaics.images[0, :, :4, :4]
    assert cell.mean().item() == pytest.approx(images[mosaics.sources[0, 0]].mean().item(), abs=0.05)
    with pytest.raises(UserError, match="does not divide"):
        grid_mosaics(images, classes, cells=3, size=(13, 12))
    with pytest.raises(UserError, match="cells is 1"):
        grid_mosaics(images, classes, cells=1)
    with pytest.raises(UserError, match="their classes"):
        grid_mosaics(images, classes[:3])


def test_the_grid_pointing_game():
    classes = [0, 1, 2, 3] * 5
    images = numbered(classes)
    mosaics = grid_mosaics(images, classes)
    # The class itself, its opposite, and what knows no class.
    right = mosaics.images[:, 0].eq(mosaics.classes[:, None, None]).double()
    play = {"target": mosaics.classes, "regions": mosaics.regions}
    game = GridPointingGame(mosaics=mosaics.protocol)
    game.update(Reads().eval(), mosaics.images, right - 0.5, **play)
    assert game.compute().mean == 1.0
    assert game.compute().protocol["mosaics"]["cells"].startswith("2x2")
    assert len(game.compute().protocol["images_sha256"]) == 64
    wrong, blind = GridPointingGame(), GridPointingGame()
    wrong.update(None, None, 1 - right, **play)
    blind.update(None, None, torch.ones_like(right), **play)
    assert wrong.compute().mean == 0.0
    assert blind.compute().mean == pytest.approx(1 / 4)
    assert blind.compute().details["region_share"] == pytest.approx(1 / 4)
    half = GridPointingGame().update(
        None, None, right + mosaics.images[:, 0].eq((mosaics.classes[:, None, None] + 1) % 4), **play
    )
    assert half.numpy() == pytest.approx(np.full(len(mosaics), 0.5))


def test_mosaics_of_half_precision_and_of_nonsense():
    images, classes = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    half = grid_mosaics(images.half(), classes.numpy(), size=(8, 8))
    whole = grid_mosaics(images.half().float(), classes.tolist(), size=(8, 8))
    assert half.images.dtype == torch.float16
    torch.testing.assert_close(half.images.float(), whole.images, atol=1e-3, rtol=0)
    for change, words in (
        ({"classes": ["a", "b"] * 4}, "classes is an array of real numbers"),
        ({"cells": 2.0}, "cells is 2.0"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": 1.5}, "limit is 1.5"),
        ({"size": 7}, "size is 7"),
        ({"images": None}, "Images are a normalised float tensor"),
    ):
        with pytest.raises(UserError, match=words):
            grid_mosaics(**({"images": images, "classes": classes} | change))


def test_what_cannot_be_is_refused():
    for wrong in (
        lambda: EnergyPointingGame(normalize="max"),
        lambda: BoxIoU(threshold=1.5),
        lambda: BoxIoU(thresholds=0),
        lambda: BoxIoU(levels=()),
        lambda: BoxIoU(levels=(50,)),
        lambda: BoxIoU(batch_size=0),
    ):
        with pytest.raises(UserError):
            wrong()
    for metric in (EnergyPointingGame(), BoxIoU(), GridPointingGame()):
        with pytest.raises(UserError, match="needs the objects' places"):
            metric.update(None, None, torch.rand(1, 4, 4))
        with pytest.raises(UserError, match="box_masks"):
            metric.update(None, None, torch.rand(2, 4, 4), regions=torch.tensor([[0, 0, 1, 1], [0, 0, 2, 2]]))
        with pytest.raises(UserError, match="NaN"):
            metric.update(None, None, torch.full((1, 4, 4), math.nan), regions=torch.ones(1, 4, 4))
