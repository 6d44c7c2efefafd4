"""Gini sparsity, entropy and max-sensitivity against their definitions written out, and against Captum."""

import math

import pytest
import torch
from torch import nn

from attention_branch.errors import UserError
from attention_branch.metrics.shape import Entropy, GiniSparsity
from attention_branch.metrics.stability import MaxSensitivity, changes


@pytest.fixture
def maps():
    return torch.randn(6, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain_gini(values):
    """Mean absolute difference of all pairs over twice the mean."""
    sizes = [abs(value) for value in values.flatten().tolist()]
    pairs = sum(abs(a - b) for a in sizes for b in sizes)
    return pairs / (2 * len(sizes) * sum(sizes))


def plain_entropy(values):
    sizes = [abs(value) for value in values.flatten().tolist()]
    shares = [size / sum(sizes) for size in sizes]
    return -sum(share * math.log(share) for share in shares if share > 0)


@pytest.mark.parametrize(("kind", "definition"), [(GiniSparsity, plain_gini), (Entropy, plain_entropy)])
def test_shape_agrees_with_its_definition(kind, definition, maps):
    maps[2].clamp_min_(0)
    expected = [definition(values) for values in maps]
    metric = kind()
    assert metric.update(None, None, maps[:4]).tolist() == pytest.approx(expected[:4])
    metric.update(None, None, maps[4:])
    result = metric.compute()
    assert result.values.tolist() == pytest.approx(expected)
    assert result.mean == pytest.approx(sum(expected) / 6)
    assert torch.equal(metric.gather().compute().values, result.values)
    assert metric.gather().compute().protocol == result.protocol
    # Neither sign nor scale matters.
    assert kind().update(None, None, -7 * maps).tolist() == pytest.approx(expected)
    metric.reset()
    assert metric.compute().n == 0


def test_shape_of_maps_known_by_hand():
    point, even, half = torch.zeros(3, 4, 5)
    point[1, 2], even[:], half[:2] = -3, 0.2, 1
    maps = torch.stack([point, even, half])
    assert GiniSparsity().update(None, None, maps).tolist() == pytest.approx([1 - 1 / 20, 0, 0.5], abs=1e-7)
    entropy = Entropy()
    found = entropy.update(None, None, maps).tolist()
    assert found == pytest.approx([0, math.log(20), math.log(10)], abs=1e-6)
    assert entropy.compute().protocol["highest"] == {"20 pixels": math.log(20)}


@pytest.mark.parametrize("kind", [GiniSparsity, Entropy])
def test_a_map_of_zeros_has_no_shape(kind, maps):
    maps[3] = 0
    metric = kind()
    metric.update(None, None, maps)
    result = metric.compute()
    assert result.values.isnan().nonzero().flatten().tolist() == [3]
    assert (result.n, result.counts) == (5, {"all_zero": 1})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.conv(images).tanh().mean((2, 3)))


def gradient(model, images, classes):
    images = images.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(model(images).gather(1, classes[:, None]).sum(), images)
    return found.abs().sum(1)


@pytest.fixture
def net():
    torch.manual_seed(2)
    return Net().double().eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_max_sensitivity_agrees_with_its_definition(net, images):
    target = torch.tensor([0, 1, 2, 0])
    maps = gradient(net, images, target)
    metric = MaxSensitivity(gradient, radius=0.05, samples=6, seed=5)
    values = metric.update(net, images, maps, target)
    for row in range(4):
        drawn = changes(images[row], 6, 0.05, 5)
        assert drawn.shape == (6, 3, 8, 8)
        assert 0.045 < drawn.abs().max() <= 0.05
        largest = 0.0
        for change in drawn:
            again = gradient(net, (images[row] + change)[None], target[row : row + 1])[0]
            squares = [(a - b) ** 2 for a, b in zip(again.flatten(), maps[row].flatten(), strict=True)]
            size = math.sqrt(sum(value.item() ** 2 for value in maps[row].flatten()))
            largest = max(largest, math.sqrt(sum(squares)) / size)
        assert values[row].item() == pytest.approx(largest)
    assert metric.compute().mean == pytest.approx(values.mean().item())
    small = MaxSensitivity(gradient, radius=0.05, samples=6, seed=5, batch_size=4)
    for row in (0, 2):
        small.update(net, images[row : row + 2], maps[row : row + 2], target[row : row + 2])
    assert torch.allclose(small.compute().values, values, atol=1e-12)
    assert torch.equal(small.gather().compute().values, small.compute().values)


def test_max_sensitivity_agrees_with_captum(net, images):
    captum = pytest.importorskip("captum.metrics")
    target = torch.tensor([0, 1, 2, 0])
    ours = MaxSensitivity(gradient).update(net, images, gradient(net, images, target), target)

    def explanation(pictures, target):
        with torch.enable_grad():
            if isinstance(pictures, tuple):  # the images themselves, answered in kind
                return (gradient(net, pictures[0], target),)
            return gradient(net, pictures, target)

    theirs = captum.sensitivity_max(
        explanation,
        images,
        perturb_func=lambda repeated: repeated + torch.cat([changes(image, 10, 0.02, 0) for image in images]),
        target=target,
    )
    assert ours.tolist() == pytest.approx(theirs.tolist())


def test_max_sensitivity_of_steady_and_of_empty_maps(net, images):
    steady = torch.rand(8, 8).expand(4, -1, -1).clone()
    metric = MaxSensitivity(lambda model, pictures, classes: steady[:1].expand(len(pictures), -1, -1), samples=3)
    assert metric.update(net, images, steady).tolist() == [0, 0, 0, 0]
    steady[1] = 0
    assert metric.update(net, images, steady).isnan().tolist() == [False, True, False, False]
    assert metric.compute().counts == {"all_zero": 1}
    assert metric.compute().n == 7
    metric.reset()
    assert metric.compute().counts == {"all_zero": 0}


def test_methods_go_by_name_and_follow_the_class_of_the_clean_image(net, images):
    values = MaxSensitivity("center", samples=2).update(net, images, torch.ones(4, 8, 8))
    assert (values > 0).all()
    asked = []

    def watched(model, pictures, classes):
        asked.append(classes.tolist())
        return pictures[:, 0]

    MaxSensitivity(watched, samples=2).update(net, images, images[:, 0])
    own = net(images).argmax(1).tolist()
    assert asked == [[wanted for wanted in own for _ in range(2)]]


def test_bad_options_are_refused(net, images):
    with pytest.raises(UserError, match="radius is 0"):
        MaxSensitivity(gradient, radius=0)
    with pytest.raises(UserError, match="samples is 0"):
        MaxSensitivity(gradient, samples=0)
    with pytest.raises(UserError, match=r"Unknown method 'grad-kam'.*Did you mean 'grad-cam"):
        MaxSensitivity("grad-kam").update(net, images, images[:, 0])
    with pytest.raises(UserError, match=r"explain returned list for images \(40, 3, 8, 8\)"):
        MaxSensitivity(lambda *_: []).update(net, images, images[:, 0])
    with pytest.raises(UserError, match=r"Maps have shape \(N, h, w\)"):
        GiniSparsity().update(None, None, torch.ones(3, 3))
