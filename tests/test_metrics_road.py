"""Linear imputation against scipy's sparse solver, and ROAD against its definition written as plain loops."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from torch import nn
from torch.nn import functional as F

from attention_branch.errors import UserError
from attention_branch.metrics import imputation
from attention_branch.metrics.imputation import linear_imputation, noisy_linear_imputation
from attention_branch.metrics.road import Road
from attention_branch.metrics.statistics import bootstrap_interval


def plain_imputation(image, removed):
    """Set the system up pixel by pixel and solve it directly."""
    channels, height, width = image.shape
    places = [(y, x) for y in range(height) for x in range(width) if removed[y, x]]
    number = {place: index for index, place in enumerate(places)}
    entries, right = {}, np.zeros((len(places), channels))
    for (y, x), row in number.items():
        total = 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near = (y + dy, x + dx)
                if (dy, dx) == (0, 0) or not (0 <= near[0] < height and 0 <= near[1] < width):
                    continue
                weight = 1 / 12 if dy and dx else 1 / 6
                total += weight
                if near in number:
                    entries[row, number[near]] = -weight
                else:
                    right[row] += weight * image[:, near[0], near[1]].numpy()
        entries[row, row] = total
    result = image.clone()
    if places:
        rows, columns = zip(*entries, strict=True)
        matrix = csc_matrix((list(entries.values()), (rows, columns)), shape=(len(places),) * 2)
        solved = spsolve(matrix, right).reshape(len(places), channels)
        for place, values in zip(places, solved, strict=True):
            result[:, place[0], place[1]] = torch.tensor(values)
    return result


def holes(height, width):
    """Masks of all kinds: random and connected ones of 10 to 90 %, single pixels, stripes, all but one or two."""
    generator = torch.Generator().manual_seed(height * width)
    smooth = F.interpolate(torch.rand(1, 1, 5, 5, generator=generator), size=(height, width), mode="bilinear")[0, 0]
    found = {}
    for kind, values in (("connected", smooth), ("random", torch.rand(height, width, generator=generator))):
        order = values.flatten().argsort(descending=True, stable=True)
        for percent in (10, 50, 90):
            mask = torch.zeros(height * width, dtype=torch.bool)
            mask[order[: height * width * percent // 100]] = True
            found[f"{kind} {percent} %"] = mask.view(height, width)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    found["checkerboard"] = (rows + columns) % 2 == 0
    found["stripes"] = columns % 8 != 0
    found["grid"] = (rows % 9 != 0) | (columns % 7 != 0)
    found["all but the first row"] = rows > 0
    found["all but a corner"] = rows + columns > 0
    found["all but the middle"] = (rows != height // 2) | (columns != width // 2)
    found["all but two"] = (rows + columns > 0) & ((rows != height - 3) | (columns != width // 2))
    found["one in the middle"] = ~found["all but the middle"]
    found["none"] = torch.zeros(height, width, dtype=torch.bool)
    return found


@pytest.mark.parametrize(("height", "width"), [(40, 40), (33, 58), (7, 9), (90, 5)])
def test_agrees_with_the_sparse_solver_on_holes_of_every_kind(height, width):
    generator = torch.Generator().manual_seed(7)
    image = F.avg_pool2d(torch.randn(1, 3, height, width, dtype=torch.float64, generator=generator), 3, 1, 1)[0] * 5
    masks = holes(height, width)
    filled = linear_imputation(image[None], torch.stack(list(masks.values()))[None])[0]
    for result, (name, mask) in zip(filled, masks.items(), strict=True):
        error = (result - plain_imputation(image, mask)).abs().max().item()
        assert error < 1e-4, name
        assert torch.equal(result[:, ~mask], image[:, ~mask]), name


def test_agrees_with_the_sparse_solver_at_full_size():
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 1.2
    mask = holes(224, 224)["connected 50 %"]
    filled = noisy_linear_imputation(image, mask[None], noise=0)[0]
    assert (filled.double() - plain_imputation(image[0].double(), mask)).abs().max() < 1e-4


def test_agrees_with_pytorch_grad_cam():
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    image = torch.randn(1, 3, 40, 31, generator=torch.Generator().manual_seed(2))
    for name in ("connected 90 %", "random 50 %", "all but the first row"):
        mask = holes(40, 31)[name]
        expected = road.NoisyLinearImputer(noise=0)(image[0], (~mask).float())
        assert (noisy_linear_imputation(image, mask[None], noise=0)[0] - expected).abs().max() < 1e-4


def test_hand_made_holes():
    image = torch.arange(25, dtype=torch.float64).reshape(1, 1, 5, 5)
    mask = torch.zeros(1, 5, 5, dtype=torch.bool)
    mask[0, 2, 2] = True
    assert linear_imputation(image, mask[None])[0, 0, 0, 2, 2].item() == pytest.approx(12, abs=1e-5)
    mask[:] = False
    mask[0, 0, 0] = True  # direct neighbours 1 and 5, diagonal 6
    assert linear_imputation(image, mask[None])[0, 0, 0, 0, 0].item() == pytest.approx(
        (2 * 1 + 2 * 5 + 6) / 5, abs=1e-5
    )
    mask[:] = True
    mask[0, 3, 1] = False
    assert linear_imputation(image, mask[None]).sub(16).abs().max() < 1e-4


def test_mixed_precision_around_it_changes_nothing():
    image, mask = torch.randn(1, 3, 24, 24), holes(24, 24)["connected 50 %"]
    expected = linear_imputation(image, mask[None, None])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_imputation(image, mask[None, None]), expected)


def test_values_of_another_size_are_as_exact():
    mask = holes(40, 40)["connected 90 %"]
    image = torch.randn(1, 3, 40, 40, dtype=torch.float64) * 1e4
    filled = linear_imputation(image, mask[None, None])[0, 0]
    assert (filled - plain_imputation(image[0], mask)).abs().max() < 1e-4


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_what_is_solved_together_changes_nothing(monkeypatch, chunk):
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    kinds = ("connected 10 %", "random 90 %", "all but two", "none")
    masks = torch.stack([holes(32, 32)[kind] for kind in kinds]).expand(2, -1, -1, -1)
    monkeypatch.setattr(imputation, "_PROCESSOR_CHUNK", chunk)
    torch.set_num_threads(2)
    together = linear_imputation(images, masks)
    assert torch.get_num_threads() == 2
    for row in range(2):
        for place in range(masks.shape[1]):
            alone = linear_imputation(images[row : row + 1], masks[row : row + 1, place : place + 1])[0, 0]
            assert (alone - together[row, place]).abs().max() < 1e-6


def test_noise_is_the_images_own():
    images = torch.randn(3, 3, 32, 32)
    masks = torch.stack([holes(32, 32)["random 50 %"], holes(32, 32)["connected 50 %"]]).expand(3, -1, -1, -1)
    clean = noisy_linear_imputation(images, masks, noise=0)
    noise = noisy_linear_imputation(images, masks, noise=0.01) - clean
    assert noise.shape == (3, 2, 3, 32, 32)
    hidden = masks[:, :, None].expand_as(noise)
    assert (noise[~hidden] == 0).all()
    assert noise[hidden].std().item() == pytest.approx(0.01, rel=0.05)
    assert abs(noise[hidden].mean().item()) < 0.0005
    both = masks[0].all(0)
    assert torch.allclose(noise[:, 0][..., both], noise[:, 1][..., both], atol=1e-6)  # one field for all holes
    assert not torch.allclose(noise[0, 0][:, masks[0, 0]], noise[1, 0][:, masks[0, 0]], atol=1e-3)
    alone = noisy_linear_imputation(images[2:], masks[2:]) - clean[2:]
    assert torch.allclose(alone, noise[2:], atol=1e-6)
    other = noisy_linear_imputation(images, masks, seed=1) - clean
    assert not torch.allclose(other[hidden], noise[hidden], atol=1e-3)
    assert torch.equal(noisy_linear_imputation(images, masks[:, 0]), noisy_linear_imputation(images, masks)[:, 0])


def test_masks_that_cannot_be_filled_in_are_refused():
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(UserError, match="removes every pixel"):
        noisy_linear_imputation(images, torch.ones(2, 8, 8, dtype=torch.bool))
    with pytest.raises(UserError, match="removed is a bool mask"):
        noisy_linear_imputation(images, torch.zeros(2, 8, 8))
    with pytest.raises(UserError, match="removed is a bool mask"):
        noisy_linear_imputation(images, torch.zeros(1, 8, 8, dtype=torch.bool))
    with pytest.raises(UserError, match="Masks of 8x9 for images of 8x8"):
        noisy_linear_imputation(images, torch.zeros(2, 8, 9, dtype=torch.bool))


SIDE = 12


@pytest.fixture
def net():
    torch.manual_seed(6)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(36, 3))
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) * 3


@pytest.fixture
def maps():
    # Two thirds zeros, as after a ReLU: a threshold at a percentile would remove all of them at once.
    values = torch.rand(4, SIDE, SIDE, generator=torch.Generator().manual_seed(9))
    return (values - 0.66).clamp_min(0)


def plain_road(net, image, values, wanted, percentiles):
    """Return the probabilities by order: remove by sorting, fill in, ask."""
    places = [(y, x) for y in range(SIDE) for x in range(SIDE)]
    curves = {}
    for order, sign in (("morf", -1), ("lerf", 1)):
        ranked = sorted(places, key=lambda place, sign=sign: sign * values[place].item())
        curves[order] = []
        for percentile in percentiles:
            removed = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            for place in ranked[: round(SIDE * SIDE * percentile / 100)]:
                removed[place] = True
            scores = net(plain_imputation(image, removed)[None])[0].tolist()
            curves[order].append(math.exp(scores[wanted]) / sum(math.exp(score) for score in scores))
    return curves


def test_road_agrees_with_its_definition(net, images, maps):
    percentiles, target = (10, 50, 90), [0, 1, 2, 1]
    expected = [plain_road(net, *pair, wanted, percentiles) for *pair, wanted in zip(images, maps, target, strict=True)]
    mean = {order: [sum(curves[order]) / 3 for curves in expected] for order in ("morf", "lerf")}
    mean["combined"] = [(lerf - morf) / 2 for lerf, morf in zip(mean["lerf"], mean["morf"], strict=True)]
    for order, values in mean.items():
        metric = Road(order, percentiles=percentiles, noise=0)
        assert metric.update(net, images, maps, target).tolist() == pytest.approx(values, abs=1e-4)
        result = metric.compute()
        assert result.mean == pytest.approx(sum(values) / 4, abs=1e-4)
        assert result.interval == bootstrap_interval(result.values.numpy(), 0)
        assert metric.higher_is_better == (order != "morf")
        assert result.protocol["metric"] == ("ROAD" if order == "combined" else f"ROAD, {order}")
        assert result.counts == {"constant": 0, "not_finite": 0}
        assert set(result.details) == ({"morf", "lerf"} if order == "combined" else {order})
        for kind, details in result.details.items():
            scores = [curves[kind] for curves in expected]
            assert details["scores"].numpy() == pytest.approx(np.array(scores), abs=1e-4)
            assert details["curve"]["share"] == [0.1, 0.5, 0.9]
            assert details["curve"]["score"] == pytest.approx(np.mean(scores, 0).tolist(), abs=1e-4)


def test_neither_batch_size_nor_company_changes_a_value(net, images, maps):
    whole = Road()
    expected = whole.update(net, images, maps)
    assert torch.allclose(Road(batch_size=5).update(net, images, maps), expected, atol=1e-6)
    single = Road(batch_size=40)
    for row in range(4):
        single.update(net, images[row : row + 1], maps[row : row + 1])
    one, other = single.compute(), whole.compute()
    assert torch.allclose(one.values, expected, atol=1e-6)
    assert one.mean == pytest.approx(other.mean, abs=1e-6)
    assert one.protocol == other.protocol
    gathered = single.gather().compute()
    assert torch.equal(gathered.values, one.values)
    assert torch.equal(gathered.details["lerf"]["scores"], one.details["lerf"]["scores"])
    single.reset()
    assert single.compute().n == 0
    assert single.compute().details["morf"]["curve"]["score"] == []


def test_noise_moves_the_scores_a_little_and_repeats(net, images, maps):
    scores = {seed: Road(noise=0.05, seed=seed).update(net, images, maps) for seed in (0, 1)}
    still = Road(noise=0).update(net, images, maps)
    assert torch.equal(scores[0], Road(noise=0.05).update(net, images, maps))
    assert not torch.equal(scores[0], scores[1])
    assert torch.allclose(scores[0], still, atol=0.05)


def test_maps_that_say_nothing_score_nothing(net, images, maps):
    metric = Road()
    assert (metric.update(net, images, torch.full_like(maps, 0.3)) == 0).all()
    assert metric.compute().counts["constant"] == 4
    assert torch.allclose(metric.update(net, images, maps), -metric.update(net, images, -maps), atol=1e-9)


def test_percentiles_may_be_an_array(net, images, maps):
    metric, expected = Road(percentiles=np.array([20, 50])), Road(percentiles=[20, 50])
    assert torch.equal(metric.update(net, images, maps), expected.update(net, images, maps))
    assert json.dumps(metric.compute().to_dict()) == json.dumps(expected.compute().to_dict())


def test_a_refused_batch_counts_nothing(net, images, maps):
    metric = Road(percentiles=[99.99])
    with pytest.raises(UserError, match="leaves none to fill in from"):
        metric.update(net, images, torch.zeros_like(maps))
    assert metric.compute().counts["constant"] == 0


def test_bad_options_are_refused(net, images, maps):
    with pytest.raises(UserError, match=r"order is 'mrof'.*Did you mean 'morf'"):
        Road("mrof")
    for percentiles in ((), (0, 50), (100,)):
        with pytest.raises(UserError, match=r"percentiles is .*between 0 and 100"):
            Road(percentiles=percentiles)
    with pytest.raises(UserError, match="noise is -1"):
        Road(noise=-1)
    with pytest.raises(UserError, match=r"Removing 99\.9 % of 144 pixels leaves none"):
        Road(percentiles=(99.9,)).update(net, images, maps)
    with pytest.raises(UserError, match="asks the model"):
        Road().update(None, images, maps)
