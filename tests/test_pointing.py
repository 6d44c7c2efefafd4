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


def play(game, maps, regions, target=None, **more):
    return game.update(None, None, maps, target, regions, **more)


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
    values = torch.cat([play(game, maps[:25], masks[:25]), play(game, maps[25:], list(masks[25:]))])
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
        assert play(PointingGame(5), maps, mask).item() == hit


def test_maps_are_resized_to_the_mask_before_the_maximum_is_taken():
    maps = torch.zeros(1, 2, 2)
    maps[0, 1, 0] = 1  # lower left quarter
    mask = torch.zeros(8, 8)
    mask[7, 0] = 1
    assert play(PointingGame(0), maps, mask[None]).item() == 0  # the first of the plateau's pixels is not the corner
    assert play(PointingGame(3), maps, mask[None]).item() == 1


def test_ties_take_the_first_and_constant_maps_always_miss():
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 0] = 1
    game = PointingGame(0)
    assert play(game, torch.full((1, 4, 4), 0.3), mask).item() == 0  # also where the object holds the first pixel
    assert play(game, torch.full((1, 2, 2), 0.3), torch.ones(1, 4, 4)).item() == 0
    tied = torch.zeros(1, 4, 4)
    tied[0, 0, 3] = tied[0, 0, 0] = 1
    assert play(game, tied, mask).item() == 1
    assert play(game, tied, mask.flip(2)).item() == 0
    assert game.compute().counts == {"skipped": 0, "constant": 2, "tied": 2}


def test_images_without_an_object_are_left_out():
    maps, masks = torch.rand(3, 4, 4), torch.zeros(3, 4, 4)
    masks[1] = 1
    game = PointingGame()
    values = play(game, maps, masks)
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
    assert play(PointingGame(0), values, masks).tolist() == [1, 0]


def test_none_is_skipped_and_keeps_its_place():
    maps = torch.zeros(4, 6, 6)
    maps[:, 2, 2] = 1
    hit, miss = torch.zeros(6, 6), np.zeros((12, 9))
    hit[2, 2] = miss[11, 8] = 1
    game = PointingGame(0)
    assert str(play(game, maps, [None, hit, np.zeros((6, 6)), miss]).tolist()) == "[nan, 1.0, nan, 0.0]"
    result = game.compute()
    assert (result.n, result.mean, result.counts["skipped"]) == (2, 0.5, 2)
    assert result.values.isnan().tolist() == [True, False, True, False]
    assert play(PointingGame(0), maps[:2], [None, None]).isnan().all()


def corner_hits(hits):
    """Maps that hit (1) or miss (0) the corner, and the corner's mask."""
    maps, masks = torch.zeros(len(hits), 8, 8), torch.zeros(len(hits), 8, 8)
    masks[:, 0, 0] = 1
    for row, hit in enumerate(hits):
        maps[row, 0 if hit else 7, 0 if hit else 7] = 1
    return maps, masks


def test_mean_over_classes():
    hits, classes = [1, 1, 1, 0, 0, 1, 0, 0], [2, 2, 2, 2, 5, 5, 7, 2]
    maps, masks = corner_hits(hits)
    masks[7] = 0  # skipped: it counts for no class
    game = PointingGame(0, average="class")
    play(game, maps[:3], masks[:3], torch.tensor(classes[:3]))
    play(game, maps[3:], masks[3:], {"kind": classes[3:]})
    result = game.compute()
    assert result.mean == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert {own: entry["mean"] for own, entry in result.details["classes"].items()} == {2: 0.75, 5: 0.5, 7: 0.0}
    assert result.details["classes"][2]["n"] == 4
    assert result.values[:7].tolist() == hits[:7]
    assert "classes" in result.protocol["average"]
    # The interval is that of the resampled means over classes, with the classes that a resample holds.
    generator = np.random.default_rng(5)
    means = []
    for _ in range(4000):
        drawn = generator.integers(0, 7, 7)
        by_class = {}
        for row in drawn:
            by_class.setdefault(classes[row], []).append(hits[row])
        means.append(np.mean([np.mean(own) for own in by_class.values()]))
    assert result.interval == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.04)
    for target in (None, 3, [1, 2], [-1] * 8):
        with pytest.raises(UserError):
            play(PointingGame(average="class"), maps, masks, target)
    with pytest.raises(UserError, match="average"):
        PointingGame(average="classes")


def test_the_difficult_subset():
    hits = [1, 0, 1, 0]
    maps, masks = corner_hits(hits)
    masks[0, :4, :4] = 1  # exactly a quarter of the picture is not small
    small = PointingGame(0, subset="small")
    assert str(play(small, maps, masks).tolist()) == "[nan, 0.0, 1.0, 0.0]"
    result = small.compute()
    assert (result.n, result.counts["outside_subset"], result.counts["skipped"]) == (3, 1, 0)
    difficult = PointingGame(0, subset="difficult")
    assert str(play(difficult, maps, masks, others=[True, False, True, True]).tolist()) == "[nan, nan, 1.0, 0.0]"
    assert difficult.compute().mean == 0.5
    assert "another class" in difficult.compute().protocol["subset"]
    whole = PointingGame(0)
    play(whole, maps, masks)
    assert whole.compute().details["small"] == {"mean": pytest.approx(1 / 3), "interval": (0.0, 1.0), "n": 3}
    with pytest.raises(UserError, match="others"):
        play(difficult, maps, masks)
    with pytest.raises(UserError, match="others"):
        play(difficult, maps, masks, others=[True])
    with pytest.raises(UserError, match="subset"):
        PointingGame(subset="hard")


def test_tolerance_in_the_pixels_of_the_original_picture():
    """A map of 8 pixels on a picture of 80: the maximum lies at 35, the object 14 pixels away, then 16."""
    maps = torch.zeros(1, 8, 8, dtype=torch.float64)
    maps[0, 3, 3] = 1
    picture = torch.zeros(80, 80)
    picture[34, 34 + 14] = 1
    peak = torch.nn.functional.interpolate(maps[None], size=(80, 80), mode="bilinear")[0, 0]
    assert divmod(int(peak.flatten().argmax()), 80) == (34, 34)
    assert play(PointingGame(15), maps, [picture]).item() == 1
    assert play(PointingGame(15), maps, [picture.roll(2, 1)]).item() == 0


def test_without_regions_it_asks_for_them():
    with pytest.raises(UserError, match="needs the objects' places"):
        PointingGame().update(None, None, torch.rand(1, 4, 4))


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
            play(game, maps, masks)
    for tolerance in (-1, math.nan):
        with pytest.raises(UserError):
            PointingGame(tolerance)
    by_class, hard = PointingGame(average="class"), PointingGame(subset="difficult")
    for target in ([None, None], [[1], [2]], [1.5, 2.0], [True, False], None):
        with pytest.raises(UserError, match="class"):
            by_class.update(None, None, torch.rand(2, 4, 4), target, torch.ones(2, 4, 4))
    for others in ([None, True], ["yes", "no"], [[True], [False]]):
        with pytest.raises(UserError, match="others"):
            hard.update(None, None, torch.rand(2, 4, 4), None, torch.ones(2, 4, 4), others=others)
    play(game, torch.rand(1, 4, 4), torch.ones(1, 4, 4))
    game.reset()
    assert game.compute().n == 0


def test_boxes_become_masks_by_pixel_centres():
    masks = box_masks([[1, 0, 3, 2], [0.6, 0.4, 1.5, 1.5], [2, 2, 2, 2]], 3, 4)
    assert masks[0].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert masks[1].sum() == 0  # no pixel's centre lies in it
    assert masks[2].sum() == 0
    assert box_masks([], 3, 4).shape == (0, 3, 4)
    with pytest.raises(UserError, match="boxes is an array of real numbers"):
        box_masks([[1, 0, 3, 2], [1, 2]], 3, 4)
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


def test_a_share_of_hits_alone_has_wilsons_interval():
    """The bootstrap of ten hits knows nothing else; Wilson's 95 % interval of 10 of 10 begins at 10 / (10 + 1.96²)."""
    game = PointingGame(0)
    play(game, torch.eye(4).repeat(10, 1, 1), torch.ones(10, 4, 4))
    found = game.compute()
    assert found.mean == 1.0
    assert found.interval == pytest.approx((10 / (10 + 1.959964**2), 1.0))
    assert "Wilson" in found.protocol["interval"]
    assert "Wilson" not in PointingGame(average="class").compute().protocol["interval"]
    small = PointingGame(0)
    play(small, torch.eye(10).repeat(5, 1, 1), torch.eye(10).tril().triu()[None].repeat(5, 1, 1))
    assert small.compute().details["small"]["interval"] == pytest.approx((5 / (5 + 1.959964**2), 1.0))
    play(game, torch.eye(4)[None], torch.zeros(1, 4, 4).index_fill(2, torch.tensor([3]), 1) * (1 - torch.eye(4)))
    assert game.compute().interval == bootstrap_interval(np.r_[np.ones(10), 0])


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
