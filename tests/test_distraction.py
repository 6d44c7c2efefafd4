"""How much of a map lies on a distractor: against its definition written as loops, and cases made by hand."""

import math

import numpy as np
import pytest
import torch

from attention_branch.errors import UserError
from attention_branch.metrics import EnergyPointingGame, PointingGame, distraction
from attention_branch.metrics.distraction import DISTRACTOR, ELSEWHERE, OBJECT


def squares(count, side=16):
    """Return an object in the left half and a distractor in the right one, at other places in every picture."""
    objects, distractors = (torch.zeros(count, side, side) for _ in range(2))
    for row in range(count):
        objects[row, row % 12 : row % 12 + 4, 1:4] = 1
        distractors[row, (row * 5) % 11 : (row * 5) % 11 + 5, 10:14] = 1
    return objects, distractors


def plain_place(values, masks, tolerance):
    """Return which of two places is nearer to the first maximum, 2 for neither, pixel by pixel."""
    best = max(value for line in values for value in line)
    y, x = next((y, x) for y, line in enumerate(values) for x, value in enumerate(line) if value == best)
    found = []
    for mask in masks:
        inside = [(row, column) for row in range(len(mask)) for column in range(len(mask[0])) if mask[row][column]]
        found.append(min(math.dist((y, x), place) for place in inside))
    near = [distance < tolerance or distance == 0 for distance in found]
    if near[0] and (found[0] <= found[1] or not near[1]):
        return OBJECT
    return DISTRACTOR if near[1] else ELSEWHERE


@pytest.mark.parametrize("tolerance", [0, 3.5, 0.25])
def test_agrees_with_the_definition_written_out(tolerance):
    maps = torch.randn(80, 16, 16, generator=torch.Generator().manual_seed(0))
    objects, distractors = squares(80)
    found = distraction(maps, objects, distractors, tolerance=tolerance)
    reach = tolerance if tolerance >= 1 else tolerance * 16
    places = [plain_place(one.tolist(), (a.tolist(), b.tolist()), reach)
              for one, a, b in zip(maps, objects, distractors, strict=True)]  # fmt: skip
    assert found.pointed.tolist() == places
    assert len(set(places)) == 3
    for place in (OBJECT, DISTRACTOR, ELSEWHERE):
        assert found.share(place) == pytest.approx(places.count(place) / 80)
        low, high = found.interval(place)
        assert low <= found.share(place) <= high
    right = np.arange(80) % 3 == 0
    assert found.share(DISTRACTOR, ~right) == pytest.approx(np.mean(np.array(places)[~right] == DISTRACTOR))
    for mask, result in ((objects, found.mass_on_object), (distractors, found.mass_on_distractor)):
        shares = [
            (one.clamp_min(0) * where).sum() / one.clamp_min(0).sum() for one, where in zip(maps, mask, strict=True)
        ]
        assert result.values.tolist() == pytest.approx([float(share) for share in shares], rel=1e-5)


def test_a_constant_map_prefers_no_place_and_points_nowhere():
    objects, distractors = squares(20)
    found = distraction(torch.full((20, 4, 4), 0.3), objects, distractors)
    assert found.density == pytest.approx((1, 1))
    assert found.areas == pytest.approx((12 / 256, 20 / 256))
    assert found.share(ELSEWHERE) == 1
    assert found.to_dict()["mass_on_distractor"] == pytest.approx(20 / 256)


def test_a_map_that_is_the_distractor_lies_on_nothing_else():
    objects, distractors = squares(6)
    found = distraction(distractors, objects, distractors)
    assert found.density == pytest.approx((0, 256 / 20))
    values = found.to_dict()
    edge = 1.959964**2 / (6 + 1.959964**2)  # Wilson's interval of none in six
    for name, wanted in (("on_object", (0, edge)), ("on_distractor", (1 - edge, 1)), ("elsewhere", (0, edge))):
        assert values["intervals"][name] == pytest.approx(wanted, abs=1e-5)
    del values["intervals"]
    assert values == {
        "n": 6, "tolerance": 15 / 224, "on_object": 0, "on_distractor": 1, "elsewhere": 0, "mass_on_object": 0,
        "mass_on_distractor": 1, "object_area": pytest.approx(12 / 256), "distractor_area": pytest.approx(20 / 256),
    }  # fmt: skip


def test_the_nearer_place_has_the_maximum_and_the_object_where_both_are_as_near():
    first, second = torch.zeros(1, 1, 11), torch.zeros(1, 1, 11)
    first[0, 0, 0], second[0, 0, 10] = 1, 1
    for peak, place in ((4, OBJECT), (5, OBJECT), (6, DISTRACTOR)):
        one = torch.zeros(1, 1, 11)
        one[0, 0, peak] = 1
        assert distraction(one, first, second, tolerance=9).pointed.tolist() == [place]
        assert distraction(one, first, second, tolerance=0).pointed.tolist() == [ELSEWHERE]


def test_the_measures_are_those_of_the_pointing_games():
    """Where object and distractor are far apart the shares are the two games' own."""
    maps = torch.rand(40, 8, 8, generator=torch.Generator().manual_seed(1))
    objects, distractors = squares(40)
    found = distraction(maps, objects, distractors, tolerance=3)
    measured = [(OBJECT, objects, found.mass_on_object), (DISTRACTOR, distractors, found.mass_on_distractor)]
    for place, masks, mass in measured:
        game, energy = PointingGame(3), EnergyPointingGame()
        game.update(None, None, maps, regions=masks)
        energy.update(None, None, maps, regions=masks)
        assert found.share(place) == game.compute().mean
        assert mass.mean == energy.compute().mean


def test_images_that_lack_a_place_are_left_out():
    objects, distractors = squares(4)
    distractors[1] = 0
    maps = objects + 0.5 * distractors
    found = distraction(maps, [*objects[:3], None], distractors)
    assert found.n == 2
    assert found.pointed.tolist() == [OBJECT, -1, OBJECT, -1]
    assert found.share(OBJECT) == 1
    assert distraction(maps[:1], [None], distractors[:1]).to_dict() == {"n": 0}


@pytest.mark.parametrize(
    ("objects", "tolerance", "says"),
    [
        (torch.ones(2, 4, 4), 0.1, "3 maps and 2 objects"),
        (None, 0.1, "3 maps and no objects"),
        (torch.ones(3, 4), 0.1, r"picture 0 have the shapes \(4,\) and \(4, 4\)"),
        (torch.ones(3, 8, 8), 0.1, r"picture 0 have the shapes \(8, 8\) and \(4, 4\)"),
        (torch.ones(3, 4, 4), -1, "tolerance is -1"),
    ],
)
def test_what_does_not_fit_is_refused(objects, tolerance, says):
    with pytest.raises(UserError, match=says):
        distraction(torch.rand(3, 4, 4), objects, torch.ones(3, 4, 4), tolerance=tolerance)


def test_chosen_images_are_counted():
    found = distraction(torch.rand(3, 4, 4), torch.ones(3, 4, 4), torch.ones(3, 4, 4))
    with pytest.raises(UserError, match=r"shape \(2,\), and there are 3 images"):
        found.share(OBJECT, torch.tensor([True, False]))
