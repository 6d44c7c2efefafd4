"""Maps, targets and pictures of `explain`, against small networks whose answers are known."""

import json
import threading
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from attention_branch import create_model
from attention_branch.cli import main
from attention_branch.errors import UserError
from attention_branch.explanations import METHODS, explain, upsample
from attention_branch.explanations.overlay import colored, display_size, map_scale, outlined, overlay, ringed
from attention_branch.explanations.targets import class_index, resolve_target
from attention_branch.metrics import cascading_randomization
from attention_branch.models.preprocessing import Preprocessing


class Output(NamedTuple):
    logits: object
    attention_logits: object
    attention: torch.Tensor


class OneTask(nn.Module):
    """M is the first channel on a 4x4 grid, class k has k + 1 times it as evidence, and class 1 is the answer."""

    is_abn = True
    heads = None
    name = "one-task"
    num_classes = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 3.0, 2.0]))
        self.norm = nn.BatchNorm2d(3)
        self.class_names = ["cat", "dog", "7"]
        self.preprocessing = Preprocessing(size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1), resize="squash")
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        self.norm(images)
        grid = F.adaptive_avg_pool2d(images[:, :1], 4)
        logits = grid.mean((2, 3)) * self.weight
        return Output(logits, logits.flip(1), grid.sigmoid())

    def class_evidence(self, images):
        return F.adaptive_avg_pool2d(images[:, :1], 4) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]

    def with_class_evidence(self, images):
        return self(images), self.class_evidence(images)


class TwoTasks(OneTask):
    heads = {"smile": 1, "hair": 3}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.class_names = {"smile": ["no", "yes"], "hair": ["black", "brown", "fair"]}

    def forward(self, images):
        grid = F.adaptive_avg_pool2d(images[:, :2], 4)
        mean = grid.mean((2, 3))
        logits = {"smile": mean[:, :1] - 10, "hair": mean[:, 1:] * self.weight}
        return Output(logits, logits, grid.sigmoid())

    def class_evidence(self, images):
        grid = F.adaptive_avg_pool2d(images[:, :1], 4)
        return {"smile": grid, "hair": grid * torch.tensor([1.0, 2.0, 3.0])[:, None, None]}


class Plain(nn.Module):
    is_abn = False
    heads = None
    name = "plain-net"

    def forward(self, images):
        return images.mean((2, 3))


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.1


def test_attention_is_the_networks_own_map_resized_bilinearly(images):
    model = OneTask()
    result = explain(model, images)
    own = model(images).attention
    assert torch.equal(result.raw, own[:, 0])
    # torchvision's bilinear resize without antialiasing is the independent reading of align_corners=False.
    from torchvision.transforms.v2 import functional as tv

    assert torch.allclose(result.maps, tv.resize(own, [16, 16], antialias=False)[:, 0], atol=1e-6)
    assert result.target is None
    assert "class-agnostic" in result.layer
    assert result.value_range == (0.0, 1.0)
    assert torch.allclose(result.images, images.clamp(0, 1))
    assert not result.maps.requires_grad


def test_class_evidence_follows_every_kind_of_target(images):
    model = OneTask()
    own = model.class_evidence(images)
    for target, classes in (
        (None, [1] * 5),
        (2, [2] * 5),
        ("dog", [1] * 5),
        ("7", [2] * 5),
        ([0, 1, 2, 0, 1], [0, 1, 2, 0, 1]),
        (["cat", "dog", "7", "cat", 1], [0, 1, 2, 0, 1]),
        (torch.tensor([0, 1, 2, 0, 1]), [0, 1, 2, 0, 1]),
        (np.array([2, 2, 2, 2, 0]), [2, 2, 2, 2, 0]),
        (lambda logits: logits.argmin(1), [0] * 5),
    ):
        result = explain(model, images, "attention-class", target)
        assert result.target.tolist() == classes
        assert result.target.dtype == torch.int64
        assert torch.equal(result.raw, own[torch.arange(5), classes])
        assert result.value_range is None


def test_class_names_win_over_digits_that_look_like_an_index():
    assert class_index("7", ["cat", "dog", "7"], 3) == 2
    assert class_index("1", ["cat", "dog", "7"], 3) == 1


@pytest.mark.parametrize("target", [3, -1, "9", [0, 1], [0, 1, 2, 0, 5], "doog", 1.5, True, object(), lambda x: 1])
def test_targets_that_name_no_class_are_refused_by_every_method(images, target):
    for method in ("attention", "attention-class"):
        with pytest.raises(UserError):
            explain(OneTask(), images, method, target)


def test_messages_name_the_nearest():
    with pytest.raises(UserError, match="'dog'"):
        explain(OneTask(), torch.rand(1, 3, 16, 16), target="doog")
    with pytest.raises(UserError, match="'attention'"):
        explain(OneTask(), torch.rand(1, 3, 16, 16), "atention")
    with pytest.raises(UserError, match=r"plain-net.*center, constant"):
        explain(Plain(), torch.rand(1, 3, 16, 16))
    with pytest.raises(UserError, match="0 to 2"):
        explain(OneTask(), torch.rand(1, 3, 16, 16), target=3)


def test_heads_choose_the_map_and_the_sign_of_a_sigmoid_logit(images):
    model = TwoTasks()
    own = model(images)
    assert torch.equal(explain(model, images, target="hair").raw, own.attention[:, 1])
    assert torch.equal(explain(model, images, target={"smile": "yes"}).raw, own.attention[:, 0])
    evidence = model.class_evidence(images)
    assert torch.equal(explain(model, images, "attention-class", {"smile": "yes"}).raw, evidence["smile"][:, 0])
    # The logit is negative, so the prediction is class 0, whose evidence is the negative of class 1's.
    predicted = explain(model, images, "attention-class", "smile")
    assert predicted.target.tolist() == [0] * 5
    assert torch.equal(predicted.raw, -evidence["smile"][:, 0])
    assert predicted.head == "smile"
    hair = explain(model, images, "attention-class", {"hair": "fair"})
    assert torch.equal(hair.raw, evidence["hair"][:, 2])
    for wrong in (None, 1, "hare", {"hare": 0}, {"hair": 9}, {"hair": 0, "smile": 1}, {"smile": 2}):
        with pytest.raises(UserError):
            explain(model, images, target=wrong)
    with pytest.raises(UserError, match="one task"):
        explain(OneTask(), images, target={"hair": 0})


def test_controls(images):
    first, again = explain(Plain(), images, "random", seed=4), explain(OneTask(), images, "random", seed=4)
    assert torch.equal(first.raw, again.raw)
    assert not torch.equal(first.raw, explain(Plain(), images, "random", seed=5).raw)
    assert not torch.equal(first.raw[0], first.raw[1])
    center = explain(Plain(), images, "center").maps[0]
    assert center.argmax().item() in (7 * 16 + 7, 7 * 16 + 8, 8 * 16 + 7, 8 * 16 + 8)
    # One sigma is a quarter of the side: 4 pixels of 16 away from the middle the value has fallen by exp(-1/2).
    assert center[8, 12].item() / center[8, 8].item() == pytest.approx(np.exp(-((4.5**2) - 0.5**2) / (2 * 4**2)))
    assert torch.allclose(center, center.flip(0))
    assert torch.allclose(center, center.T)
    constant = explain(Plain(), images, "constant")
    assert constant.maps.unique().tolist() == [0.5]
    assert constant.target is None
    assert set(METHODS) >= {"attention", "attention-class", "random", "center", "constant"}


def test_the_model_is_left_as_it_was(images):
    model = OneTask().train()
    model.norm.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        explain(model, images, "attention-class", 0)
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.norm.train()
    model.forward = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        explain(model, images)
    assert model.norm.training  # Also after a failure.
    assert torch.equal(model.norm.running_mean, before["norm.running_mean"])


def test_the_warning_about_training_mode_points_at_the_callers_line(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).train()
    for call in (
        lambda: explain(model, images, "grad-cam"),
        lambda: cascading_randomization(model, images, "grad-cam", stages=["0"]),
    ):
        with pytest.warns(UserWarning, match="training mode") as caught:
            call()
        assert {warning.filename for warning in caught} == {__file__}


def test_a_model_may_be_a_function(images):
    model = Plain().eval()

    def answer(pictures):
        return model(pictures.detach()).detach().numpy().tolist()

    def scores(pictures):
        return torch.tensor(answer(pictures))

    expected = explain(model, images, "occlusion")
    found = explain(scores, images, "occlusion")
    torch.testing.assert_close(found.maps, expected.maps)
    assert explain(scores, images, "center").target is None
    for method, words in (
        ("attention", "without an attention branch"),
        ("grad-cam", "layer"),
        ("integrated-gradients", "gradient"),
        ("rollout", "no self-attention"),
    ):
        with pytest.raises(UserError, match=words):
            explain(scores, images, method)
    for nothing in (None, "resnet", nn.Linear):
        with pytest.raises(UserError, match=r"give a torch\.nn\.Module, or a function"):
            explain(nothing, images)
    for wrong in (None, 5, images.numpy(), images[0], images.byte()):
        with pytest.raises(UserError, match="normalised float tensor"):
            explain(model, wrong, "center")


def test_rollout_of_attention_called_with_all_by_position(images):
    class Positional(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)
            self.by_position = True

        def forward(self, x):
            tokens = self.embed(x).flatten(2).transpose(1, 2)
            if self.by_position:
                return self.head(self.attention(tokens, tokens, tokens, None, False, None)[0].mean(1))
            return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))

    model = Positional().eval()
    found = explain(model, images, "rollout").maps
    model.by_position = False
    torch.testing.assert_close(found, explain(model, images, "rollout").maps)


def test_pictures_are_preprocessed_like_the_models_input():
    model = OneTask()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    result = explain(model, [picture, picture.convert("L")])
    assert torch.allclose(result.raw[:1], explain(model, model.preprocessing.tensor(picture)[None]).raw, atol=1e-6)
    assert not torch.allclose(result.raw[0], result.raw[1], atol=1e-3)
    assert len(result) == 2
    for wrong in ([], torch.rand(3, 16, 16), torch.ones(1, 3, 16, 16, dtype=torch.uint8), torch.rand(0, 3, 16, 16)):
        with pytest.raises(UserError):
            explain(model, wrong)


def test_half_precision_maps_come_back_as_float32(images):
    model = OneTask()
    forward = model.forward
    model.forward = lambda x: Output(*(value.bfloat16() for value in forward(x)))
    assert explain(model, images).raw.dtype == torch.float32


def test_resolve_target_without_names():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert resolve_target(logits, None).tolist() == [1, 0]
    assert resolve_target(logits, "1").tolist() == [1, 1]
    assert resolve_target(torch.tensor([[-0.1], [0.1]]), None).tolist() == [0, 1]
    assert resolve_target(torch.tensor([[-0.1], [0.1]]), 1).tolist() == [1, 1]
    with pytest.raises(UserError, match="no class names"):
        resolve_target(logits, "cat")


def test_save_writes_one_png_or_a_folder(tmp_path, images):
    one = explain(OneTask(), images[:1])
    assert one.save(tmp_path / "deep" / "one.png").is_file()
    with Image.open(tmp_path / "deep" / "one.png") as picture:
        assert picture.width > 2.5 * picture.height / 1.5
    with pytest.raises(UserError, match="png"):
        one.save(tmp_path / "one.jpg")
    several = explain(OneTask(), images[:2])
    several.save(tmp_path / "several")
    assert sorted(path.name for path in (tmp_path / "several").iterdir()) == ["0000.png", "0001.png"]
    with pytest.raises(UserError, match="not empty"):
        several.save(tmp_path / "several")
    with pytest.raises(UserError, match="folder"):
        several.save(tmp_path / "two.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "several"]


def test_overlays_of_an_explanation(images):
    result = explain(OneTask(), images)
    assert len(result.overlay()) == 5
    assert result.overlay(0).size == (256, 256)
    with pytest.raises(UserError, match="out of range"):
        result.overlay(5)


def test_overlay_colours_only_where_the_map_is_high():
    picture = Image.fromarray(np.full((64, 64, 3), 120, dtype=np.uint8))
    values = np.zeros((64, 64))
    values[:, 40:] = 1.0
    mixed = np.asarray(overlay(picture, values)).astype(int)
    assert mixed.shape == (256, 256, 3)
    assert (mixed[:, :120] == 120).all()  # A grey picture under a map of zero stays exactly as it is.
    assert (np.abs(mixed[:, 200:] - 120).max(2) > 30).all()
    # A map in the middle of the fixed scale is not blown up, unless asked for.
    narrow = np.where(values > 0, 0.51, 0.43)
    fixed = np.asarray(overlay(picture, narrow)).astype(int)
    assert abs(fixed[10, 10] - fixed[10, 250]).max() < 40
    stretched = np.asarray(overlay(picture, narrow, stretch=True)).astype(int)
    assert (stretched[:, :120] == 120).all()
    assert (stretched[:, 200:] == mixed[:, 200:]).all()


def test_scales_say_when_they_are_stretched():
    fixed = map_scale(np.array([0.43, 0.51]), (0.0, 1.0), False)
    assert (fixed.low, fixed.high, fixed.label) == (0, 1, "scale 0.00–1.00")
    assert map_scale(np.array([0.43, 0.51]), (0.0, 1.0), True).label == "stretched from 0.43–0.51"
    assert map_scale(np.array([-3.0, 7.0]), None, False).label == "stretched from −3.00–7.00"


def test_colored_is_matplotlibs_colormap_and_flat_maps_do_not_divide_by_zero():
    import matplotlib

    expected = np.asarray(matplotlib.colormaps["inferno"](np.array([[0.0, 0.5], [0.25, 1.0]]), bytes=True))[..., :3]
    assert (np.asarray(colored(np.array([[0.0, 0.5], [0.25, 1.0]]), 2, 2)) == expected).all()
    flat = np.asarray(colored(np.full((4, 4), 0.3), 4, 4, stretch=True))
    assert (flat == flat[0, 0]).all()
    for wrong in (np.full((2, 2), np.nan), np.ones(3), np.ones((0, 2))):
        with pytest.raises(UserError):
            colored(wrong, 4, 4)


def test_noise_has_no_line_at_half_of_the_scale():
    grey = Image.new("RGB", (256, 256), (90, 90, 90))
    ramp = np.tile(np.linspace(0, 1, 256), (256, 1))
    noise = np.random.default_rng(0).random((64, 64))

    def white(values):
        return (np.asarray(overlay(grey, values)).min(2) > 150).mean()

    assert 0.004 < white(ramp) < 0.02  # one to three columns of 256
    assert white(noise) == 0


def test_objects_are_outlined_and_places_ringed():
    grey = Image.new("RGB", (32, 32), (90, 90, 90))
    inside = np.zeros((32, 32), bool)
    inside[8:20, 10:24] = True
    drawn = np.asarray(outlined(grey, inside, side=32))[..., 0]
    assert (drawn[8:20, 10:24] == 90).all()  # the object itself stays to be seen
    for edge in (drawn[7, 9:25], drawn[20, 9:25], drawn[7:21, 9], drawn[7:21, 24]):
        assert (edge == 255).all()
    assert (drawn[6, 8:26] == 0).all()
    assert (drawn[:6] == 90).all()
    assert outlined(grey, np.ones((32, 32)), side=64).size == (64, 64)
    ring = np.asarray(ringed(Image.new("RGB", (112, 112), (90, 90, 90)), 0.5, 0.25)).astype(int)[..., 0]
    changed = np.argwhere(ring != 90)
    assert changed.mean(0) == pytest.approx([28, 56], abs=0.6)
    assert ring[28, 56] == 90  # what is ringed stays to be seen


def test_small_pictures_are_enlarged_by_whole_factors():
    assert display_size(32, 32) == (256, 256)
    assert display_size(64, 48) == (256, 192)
    assert display_size(300, 500) == (300, 500)


def test_figures_can_be_drawn_from_several_threads(images):
    result = explain(OneTask(), images[:4])
    alone = [np.asarray(result.figure(index)) for index in range(4)]
    together = SimpleNamespace(pictures=[None] * 4)

    def draw(index):
        together.pictures[index] = np.asarray(result.figure(index))

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((one == other).all() for one, other in zip(alone, together.pictures, strict=True))


@pytest.mark.parametrize("size", [32, 40, 56, 64])
@pytest.mark.parametrize("value", [0.35434, 1 / 3, 0.1])
def test_a_constant_map_stays_constant_at_every_size(size, value):
    maps = upsample(torch.full((2, 16, 16), value), size, size)
    assert (maps == torch.tensor(value)).all()
    noise = torch.rand(2, 7, 5)
    larger = F.interpolate(noise[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(upsample(noise, size, size), larger, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pictures_come_in_the_networks_own_precision(dtype):
    model = create_model("resnet14", num_classes=3, branch="lite").eval().to(dtype)
    assert explain(model, Image.new("RGB", (40, 30))).maps.shape == (1, 32, 32)


def test_a_network_of_others_may_keep_something_else_as_its_preprocessing(images):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.preprocessing = nn.Identity()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, images):
            return self.conv(self.preprocessing(images)).mean((2, 3))

    model = Other().eval()
    assert len(explain(model, images, "grad-cam")) == len(images)
    with pytest.raises(UserError, match="does not say how pictures are prepared"):
        explain(model, Image.new("RGB", (8, 8)), "grad-cam")


@pytest.mark.parametrize("target", [lambda logits: logits[:, 0], lambda logits: logits["logits"]])
def test_a_callable_target_returns_classes(images, target):
    with pytest.raises(UserError, match=r"target callable .* class index per image"):
        explain(OneTask().eval(), images, "attention-class", target)


def test_an_index_may_be_an_array_without_dimensions(images):
    assert set(explain(OneTask().eval(), images, "attention-class", torch.tensor(2)).target.tolist()) == {2}


def test_digits_that_are_a_class_name_are_the_class_on_the_command_line(tmp_path):
    def said(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code

    network = create_model("resnet14", num_classes=3, class_names=["10", "2", "1"], branch="lite")
    network.save_pretrained(tmp_path / "model")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for given, index in (("1", 2), ("10", 0), ("0", 0)):
        out = tmp_path / given
        command = ["explain", str(tmp_path / "model"), str(tmp_path / "a.png"), "--method", "grad-cam"]
        assert said(*command, "--target", given, "--out", str(out)) == 0
        lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        record = next(line["map"] for line in map(json.loads, lines) if "map" in line)
        assert record["target"]["index"] == index
    assert said(*command, "--target", "²", "--out", str(tmp_path / "none")) == 2
    assert said("explain", str(tmp_path / "model"), "--out", str(tmp_path / "none")) == 2
    assert not (tmp_path / "none").exists()
