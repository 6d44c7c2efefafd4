"""Deletion, insertion, average drop, increase, gain and ADCC against their definitions written as plain loops."""

import math
from contextlib import nullcontext
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.signal import correlate2d
from torch import nn

from attention_branch.errors import UserError
from attention_branch.metrics.faithfulness import Deletion, Insertion, InsertionMinusDeletion, pixel_counts
from attention_branch.metrics.masking import ADCC, AverageDrop, AverageGain, IncreaseInConfidence, adcc
from attention_branch.metrics.statistics import bootstrap_interval, paired_difference
from attention_branch.metrics.substrates import blurred

SIDE = 16


class Net(nn.Module):
    """A small classifier that answers differently to different places; counts the images it sees."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4 * 16, classes)
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        features = nn.functional.adaptive_avg_pool2d(self.conv(images).tanh(), 4)
        return 4 * self.head(features.flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(3)
    return Net().double().eval()


@pytest.fixture
def images():
    return torch.randn(5, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 2


@pytest.fixture
def maps():
    # Rounded, so that many values are equal; the last map has no spread.
    values = (torch.rand(5, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 12).round()
    values[4] = 0.25
    return values


def probability(net, image, wanted):
    scores = net(image[None])[0].tolist()
    return math.exp(scores[wanted]) / sum(math.exp(score) for score in scores)


def answer(net, image):
    scores = net(image[None])[0].tolist()
    return scores.index(max(scores))


def plain_blur(image):
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = gaussian_filter(impulse, 5)
    return torch.tensor(np.stack([correlate2d(channel, kernel, mode="same") for channel in image.numpy()]))


def plain_curve(net, first, last, values, wanted, steps):
    """Change pixel after pixel from first to last, in the map's order; the probability at each step, and the area."""
    height, width = values.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    pixels.sort(key=lambda place: -values[place].item())
    counts = [math.floor(Fraction(step * len(pixels), steps) + Fraction(1, 2)) for step in range(steps + 1)]
    picture, done, curve = first.clone(), 0, []
    for count in counts:
        for y, x in pixels[done:count]:
            picture[:, y, x] = last[:, y, x]
        done = count
        curve.append(probability(net, picture, wanted))
    area = 0.0
    for step in range(steps):
        area += (counts[step + 1] - counts[step]) / len(pixels) * (curve[step] + curve[step + 1]) / 2
    return curve, area


SUBSTRATES = {
    "zero": torch.zeros_like,
    "mean": lambda image: image.mean((1, 2), keepdim=True).expand_as(image),
    "blur": plain_blur,
    "black": lambda image: image.new_tensor([-0.5 / 0.25, -0.4 / 0.2, -0.3 / 0.1])[:, None, None].expand_as(image),
}


@pytest.mark.parametrize("baseline", list(SUBSTRATES))
@pytest.mark.parametrize("steps", [28, 7])
def test_curves_agree_with_the_definition_written_out(net, images, maps, baseline, steps):
    target = [2, 0, 1, 1, 0]
    options = {"baseline": baseline, "steps": None if steps == 28 else steps, "mean": (0.5, 0.4, 0.3)}
    options["std"] = (0.25, 0.2, 0.1)
    for metric in (Deletion(**options, batch_size=9), Insertion(**options, batch_size=9)):
        values = metric.update(net, images, maps, target)
        result = metric.compute()
        for row in range(5):
            ends = [images[row], SUBSTRATES[baseline](images[row])]
            first, last = ends if metric.name == "deletion" else reversed(ends)
            curve, area = plain_curve(net, first, last, maps[row], target[row], steps)
            assert result.details["curves"][row].tolist() == pytest.approx(curve, abs=1e-9)
            assert values[row].item() == pytest.approx(area, abs=1e-9)
        assert result.mean == pytest.approx(values.mean().item())
        assert result.interval == bootstrap_interval(values.numpy(), 0)
        assert result.counts == {"constant": 1, "not_finite": 0}
        assert result.protocol["steps"] == steps
        assert result.details["curve"]["share"] == pytest.approx([step / steps for step in range(steps + 1)])
        assert result.details["curve"]["score"] == pytest.approx(result.details["curves"].mean(0).tolist())


def test_without_a_target_the_models_own_answer_is_followed(net, images, maps):
    own = [answer(net, image) for image in images]
    assert len(set(own)) > 1
    assert torch.equal(Deletion().update(net, images, maps), Deletion().update(net, images, maps, own))


def test_the_steps_of_the_protocols_are_exact():
    assert pixel_counts(224 * 224, 28) == list(range(0, 224 * 224 + 1, 224 * 8))
    assert pixel_counts(224 * 224, 224) == list(range(0, 224 * 224 + 1, 224))
    assert pixel_counts(10, 4) == [0, 3, 5, 8, 10]
    for pixels, steps in ((224 * 224, 50), (1000, 28), (49, 49), (17 * 23, 224)):
        counts = pixel_counts(pixels, steps)
        assert (counts[0], counts[-1], len(counts)) == (0, pixels, steps + 1)
        assert {b - a for a, b in pairwise(counts)} <= {pixels // steps, pixels // steps + 1}
    assert [Deletion(name).steps for name in ("rise", "rise-fine", "fast")] == [28, 224, 50]


def test_the_blur_is_that_of_the_published_code(images):
    expected = torch.stack([plain_blur(image) for image in images])
    assert torch.allclose(blurred(images), expected, atol=1e-12)
    # A surface without structure stays as it is where the kernel does not reach the border.
    flat = blurred(torch.full((1, 3, 40, 40), 0.7))
    assert flat[0, 0, 20, 20].item() == pytest.approx(0.7, abs=1e-6)
    assert flat[0, 0, 0, 0].item() < 0.5


def test_a_hand_made_case():
    """Probability 0.5 without the one pixel that counts, 1 / (1 + exp(-6)) with it."""

    class OnePixel(nn.Module):
        def forward(self, images):
            return torch.stack([images[:, 0, 2, 1], torch.zeros(len(images), dtype=images.dtype)], 1)

    image = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    image[0, 0, 2, 1] = 6
    best, worst = torch.zeros(2, 1, 4, 4)
    best[0, 2, 1], worst[0, 2, 1] = 1, -1
    high, model = 1 / (1 + math.exp(-6)), OnePixel().eval()
    quick, slow = (high / 2 + 0.5 * 15.5) / 16, (high * 15.5 + 0.5 / 2) / 16
    quick += 0.5 / 2 / 16 - 0.5 * 0.5 / 16
    for values, deleted in ((best, quick), (worst, slow)):
        assert Deletion(steps=16).update(model, image, values).item() == pytest.approx(deleted, abs=1e-12)
        inserted = Insertion(steps=16, baseline="zero").update(model, image, values).item()
        assert inserted == pytest.approx(high + 0.5 - deleted, abs=1e-12)


def test_insertion_minus_deletion_is_the_two_measured_once(net, images, maps):
    deletion, insertion, both = Deletion(), Insertion(), InsertionMinusDeletion()
    difference = insertion.update(net, images, maps) - deletion.update(net, images, maps)
    apart = sum(net.batches)
    net.batches.clear()
    assert torch.allclose(both.update(net, images, maps), difference, atol=1e-12)
    assert sum(net.batches) == apart - 5  # the clean images once
    result = both.compute()
    assert result.mean == pytest.approx(difference.mean().item())
    assert result.interval == pytest.approx(bootstrap_interval(difference.numpy(), 0))
    for alone, part in zip((deletion, insertion), both.parts(), strict=True):
        expected, found = alone.compute(), part.compute()
        assert torch.allclose(found.values, expected.values, atol=1e-12)
        assert found.protocol == expected.protocol
        assert found.counts == expected.counts
        assert found.details["curve"]["score"] == pytest.approx(expected.details["curve"]["score"])
        assert result.details[part.name]["curve"] == found.details["curve"]
        assert paired_difference(expected, found).mean == pytest.approx(0, abs=1e-12)
    shared = InsertionMinusDeletion(insertion_baseline="zero", steps=10)
    classes = len({answer(net, image) for image in images})
    net.batches.clear()
    shared.update(net, images, maps)
    assert sum(net.batches) == 5 + classes + 2 * 5 * 9  # clean images, a blank for each class, what lies between
    assert [part.steps for part in shared.parts()] == [10, 10]


def test_batches_are_filled_over_images_and_steps(net, images, maps):
    classes = len({answer(net, image) for image in images})
    net.batches.clear()
    Deletion(steps=6, batch_size=4).update(net, images, maps)
    assert net.batches[:2] == [4, 1]  # the clean images
    assert net.batches[2:-1] == [4] * (len(net.batches) - 3)
    assert sum(net.batches[2:]) == classes + 25  # a blank for each class, and what lies between


@pytest.mark.parametrize(("side", "together"), [(224, 6), (448, 1), (8, 64)])
def test_large_images_go_through_a_cpu_a_few_at_once(net, monkeypatch, side, together):
    # 6 images of 224x224 for each thread, whatever the machine has.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    pictures = torch.rand(3, 3, side, side, dtype=torch.float64)
    net.batches.clear()
    Deletion(steps=28).update(net, pictures, pictures.mean(1))
    assert max(net.batches) == together
    net.batches.clear()
    Deletion(steps=28, batch_size=1).update(net, pictures, pictures.mean(1))
    assert set(net.batches) == {1}


METRICS = {
    "deletion": lambda **options: Deletion(steps=9, **options),
    "insertion": lambda **options: Insertion(steps=9, **options),
    "difference": lambda **options: InsertionMinusDeletion(steps=9, **options),
    "drop": AverageDrop,
    "increase": IncreaseInConfidence,
    "gain": AverageGain,
    "adcc": lambda **options: ADCC(lambda model, pictures, classes: pictures.abs().sum(1), **options),
}


@pytest.mark.parametrize("name", list(METRICS))
def test_neither_batch_size_nor_company_changes_a_value(net, images, maps, name):
    whole = METRICS[name]()
    expected = whole.update(net, images, maps)
    for size in (1, 7):
        assert torch.allclose(METRICS[name](batch_size=size).update(net, images, maps), expected, atol=1e-9)
    single = METRICS[name]()
    for row in range(5):
        single.update(net, images[row : row + 1], maps[row : row + 1])
    one, other = single.compute(), whole.compute()
    assert torch.allclose(one.values, expected, atol=1e-9)
    assert one.mean == pytest.approx(other.mean)
    assert one.interval == pytest.approx(other.interval)
    assert one.protocol == other.protocol
    assert one.counts == other.counts
    gathered = single.gather().compute()
    assert torch.equal(gathered.values, one.values)
    assert gathered.counts == one.counts
    assert len(gathered.details.get("curves", range(5))) == 5
    assert single.compute().n == 5  # untouched
    single.reset()
    empty = single.compute()
    assert (empty.n, empty.interval, len(empty.values)) == (0, None, 0)
    assert math.isnan(empty.mean)
    assert not any(empty.counts.values())


def plain_stretched(values):
    low, high = values.min().item(), values.max().item()
    rows = [[(value - low) / (high - low) if high > low else 0.0 for value in row] for row in values.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("space", ["normalized", "black"])
def test_drop_increase_and_gain_agree_with_their_formulas(net, images, maps, space):
    mean, std = torch.tensor([[0.5, 0.4, 0.3], [0.25, 0.2, 0.1]], dtype=torch.float64)
    net.preprocessing = SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1))
    drops, increases, gains = [], [], []
    for image, values in zip(images, maps, strict=True):
        wanted, scaled = answer(net, image), plain_stretched(values)
        if space == "normalized":
            shown = image * scaled
        else:
            raw = image * std[:, None, None] + mean[:, None, None]
            shown = (raw * scaled - mean[:, None, None]) / std[:, None, None]
        before, behind = probability(net, image, wanted), probability(net, shown, wanted)
        drops.append(max(0.0, before - behind) / before)
        increases.append(float(behind > before))
        gains.append(max(0.0, behind - before) / (1 - before))
    assert 0 < sum(increases) < 5
    for kind, expected in ((AverageDrop, drops), (IncreaseInConfidence, increases), (AverageGain, gains)):
        metric = kind(space=space)
        assert metric.update(net, images, maps).tolist() == pytest.approx(expected, abs=1e-9)
        result = metric.compute()
        assert result.mean == pytest.approx(sum(expected) / 5)
        assert result.counts == {"constant": 1, "no_score": 0}
        assert ("black" in result.protocol["masking"]) == (space == "black")
    same = AverageDrop(space="black", mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1)).update(net, images, maps)
    assert space == "normalized" or same.tolist() == pytest.approx(drops, abs=1e-9)


class Sure(nn.Module):
    """Answers with the first pixel as the difference of two logits."""

    def forward(self, images):
        return torch.stack([images[:, 0, 0, 0], -images[:, 0, 0, 0]], 1)


def test_probabilities_at_the_ends_are_left_out_and_counted():
    images = torch.zeros(3, 3, 4, 4)
    images[:, 0, 0, 0] = torch.tensor([500.0, -500.0, 0.1])
    maps = torch.rand(3, 4, 4) + 0.1
    maps[:, 0, 0] = 0.05  # the pixel that counts is masked out
    drop, gain, increase = AverageDrop(), AverageGain(), IncreaseInConfidence()
    model = Sure().eval()
    for metric in (drop, gain, increase):
        metric.update(model, images, maps, 0)
    assert drop.compute().values.isnan().tolist() == [False, True, False]
    assert drop.compute().counts["no_score"] == 1
    assert drop.compute().values[0].item() == pytest.approx(0.5)
    assert gain.compute().values.isnan().tolist() == [True, False, False]
    assert gain.compute().values[1].item() == pytest.approx(0.5)
    assert increase.compute().values.tolist() == [0, 1, 0]
    assert drop.compute().n == 2


class Fixed:
    """torch-cam's view of maps that are given."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, class_idx=None, scores=None, **_):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


def test_agrees_with_torch_cam_where_both_define_the_same(net, images, maps):
    metrics = pytest.importorskip("torchcam.metrics")
    softmax = torch.nn.Softmax(dim=-1)
    theirs = metrics.DeletionInsertionMetric(Fixed(net, maps), softmax, steps=16)
    theirs.update(images)
    ours = InsertionMinusDeletion(steps=16, insertion_baseline="zero")
    ours.update(net, images, maps)
    deletion, insertion = ours.parts()
    assert deletion.compute().mean == pytest.approx(theirs.summary()["deletion_auc"], abs=1e-9)
    assert insertion.compute().mean == pytest.approx(theirs.summary()["insertion_auc"], abs=1e-9)
    scaled = torch.stack([plain_stretched(values) for values in maps])
    theirs = metrics.ClassificationMetric(Fixed(net, scaled), softmax)
    theirs.update(images)
    for kind, name in ((AverageDrop, "avg_drop"), (IncreaseInConfidence, "conf_increase")):
        metric = kind()
        metric.update(net, images, maps)
        assert metric.compute().mean == pytest.approx(theirs.summary()[name], abs=1e-6)


def brightness(model, images, classes):
    """Explains by the image itself and the class, so that the maps are known."""
    return images.abs().sum(1) + classes[:, None, None]


def plain_correlation(first, second):
    a, b = first.flatten().tolist(), second.flatten().tolist()
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    shared = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return shared / spread if spread else 0.0


def test_adcc_agrees_with_its_formula(net, images):
    target = torch.tensor([2, 0, 1, 1, 0])
    maps = brightness(net, images, target)
    metric = ADCC(brightness, batch_size=2)
    values = metric.update(net, images, maps, target)
    coherencies, complexities, drops = [], [], []
    for image, map_, wanted in zip(images, maps, target.tolist(), strict=True):
        scaled = plain_stretched(map_)
        shown = image * scaled
        again = shown.abs().sum(0) + wanted
        before, behind = probability(net, image, wanted), probability(net, shown, wanted)
        coherencies.append((plain_correlation(map_, again) + 1) / 2)
        complexities.append(sum(scaled.flatten().tolist()) / SIDE**2)
        drops.append(max(0.0, before - behind) / before)
    expected = [
        3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
        for coherency, complexity, drop in zip(coherencies, complexities, drops, strict=True)
    ]
    assert values.tolist() == pytest.approx(expected, abs=1e-9)
    result = metric.compute()
    coherency, complexity, drop = (sum(part) / 5 for part in (coherencies, complexities, drops))
    assert result.mean == pytest.approx(3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop)))
    assert result.mean != pytest.approx(sum(expected) / 5, abs=1e-4)
    assert result.details == pytest.approx(
        {"coherency": coherency, "complexity": complexity, "average_drop": drop}, abs=1e-9
    )
    assert result.interval[0] < result.mean < result.interval[1]
    columns = np.array([coherencies, complexities, drops]).T
    assert result.interval == pytest.approx(bootstrap_interval(columns, 0, adcc))


def test_adcc_of_maps_that_say_nothing(net, images):
    metric = ADCC(lambda model, pictures, classes: torch.ones(len(pictures), SIDE, SIDE))
    metric.update(net, images, torch.ones(5, SIDE, SIDE))
    result = metric.compute()
    assert result.details["coherency"] == 0.5
    assert result.details["complexity"] == 0
    assert result.counts["constant"] == result.counts["constant_again"] == 5
    assert adcc(np.array([0.5]), np.array([1.0]), np.array([0.2])) == 0  # a map that shows all is worth nothing


def test_explainers_may_use_gradients_and_methods_go_by_name(net, images, maps):
    def gradient(model, pictures, classes):
        pictures = pictures.clone().requires_grad_()
        model(pictures).gather(1, classes[:, None]).sum().backward()
        return pictures.grad.abs().sum(1)

    assert ADCC(gradient).update(net, images, maps).isfinite().all()
    named = ADCC("center").update(net, images, maps)
    centre = torch.arange(SIDE).add(0.5).div(SIDE).sub(0.5).div(0.25).square()
    centre = torch.exp(-0.5 * (centre[:, None] + centre[None, :])).expand(5, -1, -1)
    assert torch.allclose(named, ADCC(lambda *_: centre).update(net, images, maps), atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Deletion("rice"), "Unknown protocol 'rice'. Did you mean 'rise'"),
        (lambda: Deletion(steps=0), "steps is 0"),
        (lambda: Insertion(baseline="grey"), "baseline is 'grey'; it must be one of zero, black, mean, blur"),
        (lambda: InsertionMinusDeletion(insertion_baseline="blurr"), "insertion_baseline is 'blurr'.*Did you mean"),
        (lambda: AverageDrop(space="white"), "Unknown space 'white'"),
        (lambda: AverageGain(batch_size=0), "batch_size is 0"),
    ],
)
def test_unknown_options_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_bad_input_is_refused_in_a_sentence(net, images, maps):
    with pytest.raises(UserError, match="300 steps are more than the images have pixels, 256"):
        Deletion(steps=300).update(net, images, maps)
    with pytest.raises(UserError, match="Black is a matter of the normalisation"):
        Deletion(baseline="black").update(net, images, maps)
    with pytest.raises(UserError, match="Black is a matter of the normalisation"):
        AverageDrop(space="black").update(net, images, maps)
    with pytest.raises(UserError, match="2 and 2 entries for 3 channels"):
        Deletion(baseline="black", mean=(0.5, 0.5), std=(1, 1)).update(net, images, maps)
    with pytest.raises(UserError, match="asks the model"):
        Insertion().update(None, None, maps)
    with pytest.raises(UserError, match="Class 3 is out of range"):
        Deletion().update(net, images, maps, 3)
    with pytest.raises(UserError, match=r"explain returned \(5, 2, 2\)"):
        ADCC(lambda *_: torch.zeros(5, 2, 2)).update(net, images, maps)
    with pytest.raises(UserError, match="NaN or infinite values for a changed image"):
        ADCC(lambda *_: torch.full((5, SIDE, SIDE), math.nan)).update(net, images, maps)
    with pytest.raises(UserError, match="Images are a normalised float tensor"):
        Deletion().update(net, images.numpy(), maps)
    with pytest.raises(UserError, match="regions is of type int"):
        Deletion().update(net, images, maps, regions=5)
    with pytest.raises(UserError, match=r"model is 'resnet'; give a torch.nn.Module, or a function"):
        Deletion().update("resnet", images, maps)
    with pytest.raises(UserError, match="training mode"):
        AverageDrop().update(net.train(), images, maps)


def test_a_model_may_be_a_function(net, images, maps):
    """A classifier behind a wall, such as one that answers from another process, is measured like any other."""
    for metric in (Deletion(), AverageDrop()):
        expected = metric.update(net, images, maps)
        metric.reset()
        found = metric.update(lambda pictures: {"logits": net(pictures).detach().clone()}, images, maps)
        torch.testing.assert_close(found, expected)


def test_a_confidence_that_always_rises_is_not_beyond_doubt(net, images, maps):
    metric = IncreaseInConfidence()
    metric.update(lambda pictures: torch.stack([-pictures.abs().sum((1, 2, 3)), pictures.new_zeros(len(pictures))], 1),
                  images, maps, 0)  # fmt: skip
    found = metric.compute()
    assert found.mean == 1
    assert found.interval == pytest.approx((found.n / (found.n + 1.959964**2), 1.0))
    assert "Wilson" in found.protocol["interval"]


def test_numbers_of_numpy_are_numbers(net, images, maps):
    expected = Deletion(steps=5).update(net, images, maps)
    metric = Deletion(steps=np.int64(5))
    assert torch.equal(metric.update(net, images, maps), expected)
    assert type(metric.compute().protocol["steps"]) is int


def test_scores_that_are_no_numbers_are_left_out(images, maps):
    class Broken(nn.Module):
        def forward(self, pictures):
            scores = torch.stack([pictures.mean((1, 2, 3)), pictures[:, 0, 0, 0]], 1)
            return scores.where(pictures[:, :1, 0, 1] < 5, math.nan)

    images[2, 0, 0, 1] = 9
    metric = InsertionMinusDeletion()
    metric.update(Broken().eval(), images, maps, 0)
    result = metric.compute()
    assert result.values.isnan().tolist() == [False, False, True, False, False]
    assert (result.n, result.counts["not_finite"]) == (4, 1)
    assert all(math.isfinite(score) for score in result.details["deletion"]["curve"]["score"])


def test_each_half_counts_its_own_scores_that_are_no_numbers(images, maps):
    """A network that breaks on dark pictures spoils deletion, which ends in black, and not insertion."""

    class Breaks(nn.Module):
        def forward(self, pictures):
            dark = pictures.abs().amax((1, 2, 3)) == 0
            return torch.where(dark[:, None], torch.nan, pictures.mean((2, 3)))

    metric = InsertionMinusDeletion()
    metric.update(Breaks().eval(), images, maps)
    deletion, insertion = (part.compute() for part in metric.parts())
    assert metric.compute().counts["not_finite"] == deletion.counts["not_finite"] == len(images)
    assert insertion.counts["not_finite"] == 0
    assert (deletion.n, insertion.n) == (0, len(images))


def test_maps_of_any_strides_and_byte_order(net, images, maps, tmp_path):
    expected = Deletion(steps=4).update(net, images, maps)
    flipped = maps.numpy()[:, :, ::-1]
    for given in (np.ascontiguousarray(flipped)[:, :, ::-1], maps.numpy().astype(">f8")):
        assert torch.equal(Deletion(steps=4).update(net, images, given), expected)
    (tmp_path / "empty.npy").touch()
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 no archive")
    for wrong in (maps.numpy().astype(object), maps.to(torch.complex64), tmp_path / "empty.npy", tmp_path / "zip.npy"):
        with pytest.raises(UserError):
            Deletion(steps=4).update(net, images, wrong)


def test_a_wrapper_is_in_the_mode_of_what_it_wraps(net, images, maps):
    wrapped = torch.nn.DataParallel(net.eval())
    assert wrapped.training
    assert torch.equal(Deletion(steps=4).update(wrapped, images, maps), Deletion(steps=4).update(net, images, maps))


def test_no_images_have_no_values(net, images, maps):
    for name in METRICS:
        assert len(METRICS[name]().update(net, images[:0], maps[:0])) == 0


def test_random_maps_are_another_images_noise_never_again_the_same(net, images, maps):
    found = []
    for size in (1, 4):
        metric = ADCC("random", batch_size=size)
        metric.update(net, images, maps)
        found.append(metric.compute().details["coherency"])
    assert found[0] == found[1]


def test_results_of_two_protocols_have_no_difference(net, images, maps):
    results = []
    for metric in (Deletion(steps=4), Insertion(steps=4), Deletion(steps=5), Deletion(steps=4, seed=1)):
        metric.update(net, images, maps)
        results.append(metric.compute())
    assert paired_difference(results[0], results[3]).mean == 0
    for other in results[1:3]:
        with pytest.raises(UserError, match="not of one protocol"):
            paired_difference(results[0], other)
    with pytest.raises(UserError, match="takes two results"):
        paired_difference(results[0], Deletion())
