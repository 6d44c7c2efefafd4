"""Rank correlation and SSIM against scipy, torchmetrics and loops; randomisation on networks whose truth is known."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from attention_branch import create_backbone, create_model
from attention_branch.errors import UserError
from attention_branch.metrics import branch_randomization, cascading_randomization
from attention_branch.metrics.randomizing import randomize
from attention_branch.metrics.similarity import average_ranks, rank_correlation, structural_similarity

# --- similarity ---


def test_ranks_and_their_correlation_are_scipys():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(6, 5, 8, generator=generator)
    second = first + torch.randn(6, 5, 8, generator=generator)
    second[1] = second[1].round()  # ties
    first[2] = first[2].relu()  # a third of the values are 0
    first[3] = 7.0
    second[4] = -(first[4].double() ** 3)
    ranks = average_ranks(second.flatten(1))
    for row in range(6):
        assert ranks[row].tolist() == stats.rankdata(second[row].flatten()).tolist()
    found = rank_correlation(first, second)
    for row in (0, 1, 2, 4, 5):
        expected = stats.spearmanr(first[row].flatten(), second[row].flatten()).statistic
        assert found[row].item() == pytest.approx(expected, abs=1e-12)
    assert found[4].item() == pytest.approx(-1)
    assert found[3].isnan()


def plain_ssim(first, second):
    """SSIM from its formula, window by window."""
    bell = np.array([[math.exp(-((y - 5) ** 2 + (x - 5) ** 2) / (2 * 1.5**2)) for x in range(11)] for y in range(11)])
    bell /= bell.sum()
    first, second = ((values - values.min()) / (values.max() - values.min()) for values in (first, second))
    found = []
    for y in range(first.shape[0] - 10):
        for x in range(first.shape[1] - 10):
            a, b = first[y : y + 11, x : x + 11], second[y : y + 11, x : x + 11]
            mean_a, mean_b = (bell * a).sum(), (bell * b).sum()
            var_a, var_b = (bell * (a - mean_a) ** 2).sum(), (bell * (b - mean_b) ** 2).sum()
            both = (bell * (a - mean_a) * (b - mean_b)).sum()
            up = (2 * mean_a * mean_b + 0.01**2) * (2 * both + 0.03**2)
            found.append(up / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    return np.mean(found)


def test_ssim_agrees_with_its_formula_and_with_torchmetrics():
    generator = torch.Generator().manual_seed(1)
    first = torch.rand(3, 15, 17, generator=generator, dtype=torch.float64) * 4 - 2
    second = first + torch.randn(3, 15, 17, generator=generator, dtype=torch.float64)
    found = structural_similarity(first, second)
    expected = [plain_ssim(a.numpy(), b.numpy()) for a, b in zip(first, second, strict=True)]
    assert found.numpy() == pytest.approx(expected, abs=1e-12)
    scaled = [
        (maps - maps.amin((1, 2), True)) / (maps.amax((1, 2), True) - maps.amin((1, 2), True))
        for maps in (first, second)
    ]
    _, theirs = structural_similarity_index_measure(
        scaled[0][:, None], scaled[1][:, None], data_range=1.0, reduction="none", return_full_image=True
    )
    # Theirs also has windows that reach over the border, into a mirrored map; those inside are ours.
    assert found.numpy() == pytest.approx(theirs[:, 0, 5:-5, 5:-5].mean((1, 2)).numpy(), abs=1e-6)
    assert structural_similarity(first, 3 * first + 5).numpy() == pytest.approx(1.0)
    assert structural_similarity(first, torch.zeros_like(first)).isfinite().all()
    with pytest.raises(UserError, match="11x11"):
        structural_similarity(first[:, :10], second[:, :10])


# --- randomisation ---


class Scaled(nn.Module):
    """A module without reset_parameters."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(1, 3, channels))

    def forward(self, x):
        return x * self.scale[:, None, None]


class Tiny(nn.Module):
    """Some hundred parameters, run in another order than they are written down in."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(Scaled(6), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        with torch.no_grad():
            self.first[1].running_mean.uniform_(0.1, 0.3)

    def forward(self, images):
        return self.head(self.second(self.first(images)).mean((2, 3)))


def first_activation(model, images, classes):
    return model.first[0](images)[:, 0]


def last_activation(model, images, classes):
    features = model.second(model.first(images))
    return (features * model.head.weight[classes][:, :, None, None]).sum(1)


@pytest.fixture
def tiny():
    return Tiny().double().eval(), torch.randn(6, 3, 16, 16, dtype=torch.float64)


def test_stages_run_from_the_head_down_and_add_up(tiny):
    model, images = tiny
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    result = cascading_randomization(model, images, first_activation, seed=2)
    assert [stage.name for stage in result.stages] == ["head", "second.1", "second.0", "first.1", "first.0"]
    # This map is the first convolution's alone: nothing moves it until the last stage.
    for stage in result.stages[:-1]:
        assert (stage.spearman.mean, stage.ssim.mean, stage.largest_change) == (pytest.approx(1), pytest.approx(1), 0)
    last = result["first.0"]
    assert last.spearman.mean < 0.95
    assert last.ssim.mean < 0.95
    assert last.largest_change > 0.1
    assert last.spearman.n == 6
    low, high = last.spearman.interval
    assert low < last.spearman.mean < high
    assert any(stage.same_prediction < 1 for stage in result.stages[:-1])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(torch.get_rng_state(), state)
    json.dumps(result.to_dict(), allow_nan=False)
    assert len(result.protocol["images_sha256"]) == 64
    upwards = cascading_randomization(model, images, first_activation, order="bottom-up")
    assert [stage.name for stage in upwards.stages] == ["first.0", "first.1", "second.0", "second.1", "head"]
    assert len({stage.largest_change for stage in upwards.stages}) == 1  # changed once, by the first stage


def test_the_numbers_are_those_of_the_maps(tiny):
    """The maps after a stage, taken from the randomised networks themselves and compared by scipy."""
    model, images = tiny
    seen = []

    def noted(network, batch, classes):
        seen.append(last_activation(network, batch, classes).detach())
        return seen[-1]

    result = cascading_randomization(model, images, noted, batch_size=6)
    assert len(seen) == 1 + len(result.stages)
    for stage, maps in zip(result.stages, seen[1:], strict=True):
        for row in range(6):
            one, other = maps[row].flatten(), seen[0][row].flatten()
            assert stage.spearman.values[row].item() == pytest.approx(stats.spearmanr(one, other).statistic)
            absolute = stats.spearmanr(one.abs(), other.abs()).statistic
            assert stage.spearman_absolute.values[row].item() == pytest.approx(absolute)
            assert stage.ssim.values[row].item() == pytest.approx(plain_ssim(maps[row].numpy(), seen[0][row].numpy()))
        assert stage.largest_change == pytest.approx(((maps - seen[0]).abs().max() / seen[0].abs().max()).item())


def test_what_new_values_are_drawn(tiny):
    model, images = tiny
    networks = []

    def noted(network, batch, classes):
        networks.append(copy.deepcopy(network.state_dict()))
        return first_activation(network, batch, classes)

    cascading_randomization(model, images, noted, seed=4)
    trained, *steps = networks
    assert [name for name in trained if not torch.equal(trained[name], steps[0][name])] == ["head.weight", "head.bias"]
    last = steps[-1]
    # Set back as the module itself does it, running statistics too.
    assert last["first.1.running_mean"].eq(0).all()
    assert last["first.1.weight"].eq(1).all()
    assert last["first.0.weight"].abs().max() <= 1 / math.sqrt(27)
    # Without reset_parameters: normal, with the tensor's own mean 2 and deviation.
    drawn = [step["second.0.scale"] for step in steps]
    assert torch.equal(drawn[1], trained["second.0.scale"])
    assert not torch.equal(drawn[2], drawn[1])
    many = []
    for seed in range(60):
        networks.clear()
        cascading_randomization(model, images[:2], noted, stages=["second.0"], seed=seed)
        many.append(networks[-1]["second.0.scale"])
    spread = torch.linspace(1, 3, 6).std(correction=0).item()
    assert torch.stack(many).mean().item() == pytest.approx(2, abs=4 * spread / math.sqrt(360))
    assert torch.stack(many).std().item() == pytest.approx(spread, rel=0.15)
    # A module gets the same values in either mode and any order.
    networks.clear()
    cascading_randomization(model, images, noted, cumulative=False, order="bottom-up", seed=4)
    alone = networks[1]
    assert torch.equal(alone["first.0.weight"], last["first.0.weight"])
    assert torch.equal(alone["head.weight"], trained["head.weight"])


def test_the_class_stays_the_trained_networks(tiny):
    model, images = tiny
    asked = []

    def noted(network, batch, classes):
        asked.append(classes.tolist())
        return last_activation(network, batch, classes)

    cascading_randomization(model, images, noted, batch_size=4)
    predicted = model(images).argmax(1).tolist()
    assert asked == [predicted[:4], predicted[4:]] * (len(asked) // 2)
    asked.clear()
    cascading_randomization(model, images, noted, target=[0, 1, 2, 3, 0, 1])
    assert asked[-1] == [0, 1, 2, 3, 0, 1]


def test_maps_that_break_or_go_blank_are_counted(tiny):
    model, images = tiny
    calls = []

    def breaks(network, batch, classes):
        maps = first_activation(network, batch, classes).detach()
        calls.append(1)
        if len(calls) == 2:
            maps[0], maps[1] = math.nan, 0.0
        return maps

    stage = cascading_randomization(model, images, breaks, stages=["head"]).stages[0]
    assert stage.spearman.counts == {"not_finite": 1, "blank": 1, "blank_before": 0}
    assert (stage.spearman.n, stage.spearman.values[1].item()) == (5, 0.0)
    assert stage.spearman.mean == pytest.approx(4 / 5)
    assert math.isnan(stage.largest_change)
    assert stage.to_dict()["largest_change"] is None


def test_stages_by_name_and_their_number(tiny):
    model, images = tiny
    result = cascading_randomization(model, images, first_activation, stages=["first", "head"])
    assert [stage.modules for stage in result.stages] == [("first.0", "first.1"), ("head",)]
    few = cascading_randomization(model, images, first_activation, max_stages=3)
    assert [stage.name for stage in few.stages] == ["head", "second", "first"]
    halves = cascading_randomization(model, images, first_activation, max_stages=4)
    assert [stage.name for stage in halves.stages] in (
        ["head", "second.1", "second.0", "first"],
        ["head", "second", "first.1", "first.0"],
    )
    (whole,) = cascading_randomization(model, images, first_activation, max_stages=1).stages
    assert (whole.name, len(whole.modules)) == ("all", 5)
    with pytest.raises(UserError, match="max_stages"):
        cascading_randomization(model, images, first_activation, max_stages=0)
    with pytest.raises(UserError, match=r"no module 'frist'.*Did you mean 'first'"):
        cascading_randomization(model, images, first_activation, stages=["frist"])
    with pytest.raises(UserError, match="no parameters"):
        cascading_randomization(model, images, first_activation, stages=["first.2"])
    with pytest.raises(UserError, match="order"):
        cascading_randomization(model, images, first_activation, order="down")
    with pytest.raises(UserError, match="returned maps of shape"):
        cascading_randomization(model, images, lambda network, batch, classes: batch[:, 0, :4])
    with pytest.raises(UserError, match="Unknown method"):
        cascading_randomization(model, images, "grad-camm")
    with pytest.raises(UserError, match="no stage 'tail'"):
        few["tail"]
    with pytest.raises(UserError, match="out of range"):
        cascading_randomization(model, images, first_activation, target=9)


def test_nothing_to_randomise_or_to_compare(tiny):
    with pytest.raises(UserError, match="stages is empty"):
        cascading_randomization(tiny, torch.rand(2, 3, 8, 8), "grad-cam", stages=[])
    for images, words in ((None, "normalised float tensor"), (torch.rand(0, 3, 8, 8), "no image")):
        with pytest.raises(UserError, match=words):
            cascading_randomization(tiny, images, "grad-cam")


def test_the_reading(tiny):
    model, images = tiny

    def own_pixels(network, batch, classes):
        return batch[:, 0]

    deaf = cascading_randomization(model, images, own_pixels)
    assert "still have a rank correlation of 1.00" in deaf.sentence()
    assert "they depend on what it has learned" in cascading_randomization(model, images, noise_of_the_head).sentence()
    apart = cascading_randomization(model, images, noise_of_the_head, cumulative=False)
    assert apart.kind == "independent"
    assert "1 of 5 parts: head" in apart.sentence()
    assert "Too few" in cascading_randomization(model, images[:1], own_pixels).sentence()


def noise_of_the_head(model, images, classes):
    """Maps without any likeness as soon as the head is another."""
    seed = int(model.head.weight.detach().abs().sum().item() * 1e6) % 2**31
    return torch.rand(images[:, 0].shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def abn():
    torch.manual_seed(0)
    model = create_model("resnet20", num_classes=3, image_size=32).double().train()
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        # Running statistics of a few passes: without them a fresh network's maps are saturated.
        for _ in range(20):
            model(images)
    return model.eval(), images


def test_the_attention_map_is_no_function_of_the_perception_branch(abn):
    model, images = abn
    result = branch_randomization(model, images)
    assert [stage.name for stage in result.stages] == ["perception branch", "attention branch", "trunk"]
    perception, attention, trunk = result.stages
    names = {name for name, _ in model.named_parameters()}
    parts = [{name for name in names if name.rpartition(".")[0] in stage.modules} for stage in result.stages]
    assert set.union(*parts) == names
    assert sum(map(len, parts)) == len(names)
    assert {name.split(".")[0] for name in parts[1]} == {"branch"}
    assert {".".join(name.split(".")[:2]) for name in parts[0]} == {"backbone.layer3", "backbone.fc"}
    assert perception.largest_change == 0
    assert perception.spearman.mean == pytest.approx(1)
    assert perception.ssim.mean == pytest.approx(1)
    assert attention.largest_change > 0.01
    assert trunk.largest_change > 0.01
    assert "not one value" in result.sentence()
    json.dumps(result.to_dict(), allow_nan=False)
    evidence = branch_randomization(model, images, "attention-class")
    assert evidence["perception branch"].largest_change == 0
    assert evidence["trunk"].spearman.mean < 0.9


def test_a_map_of_the_perception_branch_follows_it(abn):
    model, images = abn

    def scores(network, batch, classes):
        wide = network(batch).logits.gather(1, classes[:, None])[:, :, None]
        return batch[:, 0] * wide + batch[:, 1] * wide**2

    result = branch_randomization(model, images, scores)
    assert result["perception branch"].largest_change > 0
    assert "they depend on the perception branch" in result.sentence()


def test_cascading_through_an_attention_branch_network(abn):
    model, images = abn
    result = cascading_randomization(model, images[:3], max_stages=12)
    names = [stage.name for stage in result.stages]
    assert names[0] == "backbone.fc"
    assert names.index("backbone.layer3") < names.index("branch.stage") < names.index("backbone.layer2")
    changes = {stage.name: stage.largest_change for stage in result.stages}
    untouched = names[: names.index("backbone.layer3") + 1]
    assert all(changes[name] == 0 for name in untouched)
    assert result.stages[-1].spearman.mean < 0.9
    assert {"branch.map_norm", "backbone.fc"} <= {name for stage in result.stages for name in stage.modules}


def test_a_plain_network_has_no_branches():
    plain = create_backbone("resnet20", num_classes=3).eval()
    with pytest.raises(UserError, match="no branches to randomise apart"):
        branch_randomization(plain, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_normed_weights_are_randomised_too(norm):
    network = nn.Sequential(norm(nn.Linear(4, 3)))
    name = "weight_v" if norm is nn.utils.weight_norm else "weight_orig"
    before = getattr(network[0], name).detach().clone()
    randomize(network, ["0"], seed=0)
    assert (getattr(network[0], name) != before).all()


def test_the_seed_alone_decides_the_values():
    drawn = []
    for dtype in (torch.float32, torch.float64):
        network = nn.Sequential(nn.Conv2d(3, 4, 3)).to(dtype)
        randomize(network, ["0"], seed=3)
        drawn.append(network[0].weight.detach())
    assert drawn[1].dtype == torch.float64
    assert torch.equal(drawn[0].double(), drawn[1])


def test_under_inference_mode(tiny):
    model, images = tiny
    expected = cascading_randomization(model, images, "grad-cam", layer="second", max_stages=2)
    with torch.inference_mode():
        found = cascading_randomization(model, images.clone(), "grad-cam", layer="second", max_stages=2)
    assert [stage.spearman.mean for stage in found.stages] == [stage.spearman.mean for stage in expected.stages]
