"""The pointing game against its definition written as plain loops, and the collapse alarm against made-up maps."""

import math

import numpy as np
import pytest
import torch

from attention_branch.errors import UserError
from attention_branch.metrics import PointingGame, box_masks, collapse_alarm
from attention_branch.metrics.statistics import bootstrap_interval, proportion_interval


def plain_hit(values, mask, tolerance):
    """The acceptance disc around the first maximum, pixel by pixel."""
    height, width = mask.shape
    best, place = -math.inf, None
    for y in range(height):
        for x in range(width):
            if values[y][x] > best:
                best, place = values[y][x], (y, x)
    for y in range(height):
        for x in range(width):
            squared = (x - place[1]) ** 2 + (y - place[0]) ** 2
            if mask[y][x] and (squared < tolerance**2 or squared == 0):
                return 1.0
    return 0.0


@pytest.mark.parametrize("tolerance", [0, 2, 3.5, 0.2])
def test_agrees_with_the_definition_written_out(tolerance):
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(60, 12, 17, generator=generator)
    masks = torch.zeros(60, 12, 17, dtype=torch.bool)
    for row in range(60):
        y, x = row % 12, (row * 5) % 17
        masks[row, y : y + 3, x : x + 2] = True
    pixels = tolerance if tolerance >= 1 else tolerance * 12
    expected = [plain_hit(one.tolist(), mask.numpy(), pixels) for one, mask in zip(maps, masks, strict=True)]
    assert 0 < sum(expected) < 60
    game = PointingGame(tolerance)
    values = torch.cat([game.update(maps[:25], masks[:25]), game.update(maps[25:], list(masks[25:]))])
    assert values.tolist() == expected
    result = game.compute()
    assert result.n == 60
    assert result.mean == pytest.approx(np.mean(expected))
    assert result.values.tolist() == expected


def test_the_tolerance_is_a_strict_disc():
    maps = torch.zeros(1, 21, 21)
    maps[0, 10, 10] = 1
    for dx, dy, hit in ((4, 0, True), (5, 0, False), (3, 4, False), (3, 3, True), (4, 3, False)):
        mask = torch.zeros(1, 21, 21)
        mask[0, 10 + dy, 10 + dx] = 1
        assert PointingGame(5).update(maps, mask).item() == hit


def test_maps_are_resized_to_the_mask_before_the_maximum_is_taken():
    maps = torch.zeros(1, 2, 2)
    maps[0, 1, 0] = 1  # lower left quarter
    mask = torch.zeros(8, 8)
    mask[7, 0] = 1
    assert PointingGame(0).update(maps, mask[None]).item() == 0  # the first of the plateau's pixels is not the corner
    assert PointingGame(3).update(maps, mask[None]).item() == 1


def test_ties_take_the_first_and_constant_maps_always_miss():
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 0] = 1
    game = PointingGame(0)
    assert game.update(torch.full((1, 4, 4), 0.3), mask).item() == 0  # also where the object holds the first pixel
    assert game.update(torch.full((1, 2, 2), 0.3), torch.ones(1, 4, 4)).item() == 0
    tied = torch.zeros(1, 4, 4)
    tied[0, 0, 3] = tied[0, 0, 0] = 1
    assert game.update(tied, mask).item() == 1
    assert game.update(tied, mask.flip(2)).item() == 0
    assert game.compute().counts == {"skipped": 0, "constant": 2, "tied": 2}


def test_images_without_an_object_are_left_out():
    maps, masks = torch.rand(3, 4, 4), torch.zeros(3, 4, 4)
    masks[1] = 1
    game = PointingGame()
    values = game.update(maps, masks)
    assert values[1] == 1
    assert values[[0, 2]].isnan().all()
    result = game.compute()
    assert (result.n, result.mean, result.counts["skipped"]) == (1, 1.0, 2)
    assert result.interval is None
    assert result.to_dict()["interval"] is None


def test_masks_of_several_sizes():
    values = torch.zeros(2, 4, 4)
    values[:, 1, 2] = 1
    masks = [torch.zeros(8, 8), np.zeros((4, 4))]
    masks[0][2:4, 4:6] = 1
    masks[1][3, 0] = 1
    assert PointingGame(0).update(values, masks).tolist() == [1, 0]


def test_nothing_and_nonsense():
    empty = PointingGame().compute()
    assert empty.n == 0
    assert empty.to_dict()["mean"] is None
    game = PointingGame()
    for maps, masks in (
        (torch.rand(2, 4), torch.ones(2, 4, 4)),
        (torch.rand(2, 4, 4), torch.ones(3, 4, 4)),
        (torch.full((1, 4, 4), math.nan), torch.ones(1, 4, 4)),
        (torch.rand(2, 4, 4), torch.ones(2, 4)),
    ):
        with pytest.raises(UserError):
            game.update(maps, masks)
    for tolerance in (-1, math.nan):
        with pytest.raises(UserError):
            PointingGame(tolerance)
    game.update(torch.rand(1, 4, 4), torch.ones(1, 4, 4))
    game.reset()
    assert game.compute().n == 0


def test_boxes_become_masks_by_pixel_centres():
    masks = box_masks([[1, 0, 3, 2], [0.6, 0.4, 1.5, 1.5], [2, 2, 2, 2]], 3, 4)
    assert masks[0].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert masks[1].sum() == 0  # no pixel's centre lies in it
    assert masks[2].sum() == 0
    with pytest.raises(UserError):
        box_masks([1, 2, 3], 4, 4)


def test_the_interval_is_seeded_and_close_to_the_normal_one():
    values = (np.arange(400) % 4 == 0).astype(float)
    low, high = bootstrap_interval(values, seed=3)
    assert (low, high) == bootstrap_interval(values, seed=3)
    error = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - error, abs=0.01)
    assert high == pytest.approx(0.25 + error, abs=0.01)
    assert bootstrap_interval(values[:1]) is None


def test_wilsons_interval_by_its_formula():
    hits, count, z = 7, 20, 1.959964
    share = hits / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    assert proportion_interval(hits, count) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert proportion_interval(0, 0) is None


def test_the_protocol_travels_with_the_number():
    protocol = PointingGame(15).compute().protocol
    assert protocol["tolerance"] == 15
    assert "pixels" in protocol["tolerance_unit"]
    assert "share" in PointingGame().compute().protocol["tolerance_unit"]


def test_collapse_alarm():
    generator = torch.Generator().manual_seed(0)
    healthy = torch.rand(16, 7, 7, generator=generator)
    assert collapse_alarm(healthy) is None
    assert collapse_alarm(healthy[:1]) is None
    assert "near 0" in collapse_alarm(healthy * 0.01)
    assert "near 1" in collapse_alarm(1 - healthy * 0.01)
    assert "constant" in collapse_alarm(torch.full((4, 7, 7), 0.5))
    assert "constant" in collapse_alarm(0.5 + healthy * 0.01)
    assert "every image" in collapse_alarm(healthy[:1].expand(8, 7, 7))
    assert "NaN" in collapse_alarm(torch.full((2, 3, 3), math.nan))
    # A small bright object on black is what a map is for; one odd image is no alarm.
    sharp = torch.zeros(8, 14, 14)
    for row in range(8):
        sharp[row, row, 3] = 1.0
    assert collapse_alarm(sharp) is None
    assert collapse_alarm(torch.cat([healthy, torch.zeros(1, 7, 7)])) is None
    assert collapse_alarm(torch.zeros(0, 7, 7)) is None
    tasks = torch.stack([healthy, torch.zeros(16, 7, 7)], 1)
    assert "1 of 2" in collapse_alarm(tasks)
    assert collapse_alarm(healthy[:, None]) is None
