"""Which predictions are flagged: each criterion on maps and networks whose answer is known beforehand."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attention_branch.evaluation.second_look import DIFFUSE, FLAGS, REGION, criteria, effective_area, second_look
from attention_branch.explanations.explanation import Explanation
from attention_branch.models.registry import create_model
from attention_branch.report import explain_files

SIDE = 16


class Brightest(nn.Module):
    """Answers with the channel that is brightest anywhere: red, green or blue. Counts its forward passes."""

    class_names = ("red", "green", "blue")

    def __init__(self, scale=10.0):
        super().__init__()
        self.scale, self.passes = scale, 0
        self.eval()

    def forward(self, images):
        self.passes += 1
        return self.scale * images.amax((2, 3))


def picture(*spots):
    """A black picture with bright spots: (channel, top, left, size, level)."""
    image = torch.zeros(3, SIDE, SIDE, dtype=torch.float64)
    for channel, top, left, size, level in spots:
        image[channel, top : top + size, left : left + size] = level
    return image


def explained(model, images, maps, *, method="attention", second=None, target=None, value_range=(0.0, 1.0)):
    """An explanation as `explain` would give it, with these maps and these scores of an attention branch."""
    model.passes = 0
    with torch.no_grad():
        logits = model(images)
    model.passes = 0
    return Explanation(
        maps=maps,
        raw=maps,
        target=target,
        method=method,
        layer="",
        logits=logits,
        images=images,
        value_range=value_range,
        class_names=model.class_names,
        attention_logits=second,
    )


def spot_map(top, left, size):
    values = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    values[top : top + size, left : left + size] = 0.9
    return values


def names(look):
    return [flag.flag for flag in look.flags]


def test_an_answer_that_flips_to_a_sure_one_is_flagged():
    model = Brightest()
    images = torch.stack(
        [
            picture((0, 2, 2, 4, 1.0), (2, 10, 10, 4, 0.9)),  # red on the map, blue elsewhere
            picture((0, 2, 2, 4, 1.0)),  # red on the map, nothing elsewhere
            picture((0, 2, 2, 4, 1.0), (0, 10, 10, 4, 0.9)),  # red on the map and elsewhere
        ]
    )
    maps = torch.stack([spot_map(2, 2, 4)] * 3)
    looks = second_look(model, images, explained(model, images, maps))
    assert [names(look) for look in looks] == [["answer_flips"], [], []]
    assert model.passes == 1
    first = looks[0].without_region
    # Painted over, the spot is gone: the scores are those of the picture without it.
    left = (10 * torch.tensor([0.0, 0.0, 0.9])).softmax(0)
    assert (first.name, first.index, first.changed) == ("blue", 2, True)
    assert first.probability == pytest.approx(left[2].item(), abs=1e-3)
    assert first.before == pytest.approx(left[0].item(), abs=1e-3)
    assert looks[1].without_region.probability == pytest.approx(1 / 3, abs=1e-3)
    assert not looks[2].without_region.changed
    why = looks[0].flags[0].why
    sure = (10 * torch.tensor([1.0, 0.0, 0.9])).softmax(0)[0].item()
    for words in ("20 %", f"'red' ({100 * sure:.1f} %)", f"'blue' ({100 * first.probability:.1f} %)"):
        assert words in why


def test_a_flip_to_an_unsure_answer_is_no_flag():
    model = Brightest(scale=1.0)
    images = picture((0, 2, 2, 4, 1.0), (2, 10, 10, 4, 0.1))[None]
    (look,) = second_look(model, images, explained(model, images, spot_map(2, 2, 4)[None]))
    assert look.without_region.changed
    assert look.without_region.probability < 0.5
    assert look.flags == ()


def test_the_region_is_the_highest_fifth():
    model = Brightest()
    rank = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(0)).double().view(SIDE, SIDE)
    seen = []
    model.forward = lambda images: (seen.append(images.clone()), images.amax((2, 3)))[1]
    images = torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)
    logits = images.amax((2, 3))
    explanation = Explanation(rank[None] / rank.max(), rank[None] / rank.max(), None, "attention", "", logits, images)
    second_look(model, images, explanation)
    changed = (seen[0] != images).any(1)[0]
    assert torch.equal(changed, rank >= SIDE * SIDE - round(REGION * SIDE * SIDE))


def test_branches_that_disagree():
    model = Brightest()
    images = torch.stack([picture((0, 2, 2, 4, 1.0))] * 2)
    second = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    maps = torch.stack([spot_map(2, 2, 4)] * 2)
    first, other = second_look(model, images, explained(model, images, maps, second=second))
    assert names(first) == ["branches_disagree"]
    assert names(other) == []
    share = 100 * math.exp(2) / (math.exp(2) + 2)
    assert f"'green' ({share:.1f} %)" in first.flags[0].why
    assert "'red'" in first.flags[0].why


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.full((SIDE, SIDE), 0.4), "same value everywhere, 0.4"),
        (0.5 + 0.001 * spot_map(0, 0, 8), "is constant"),
        (0.01 * spot_map(0, 0, 8), "near 0 everywhere: its largest value is 0.009"),
        (1 - 0.01 * spot_map(0, 0, 8), "near 1 everywhere: its smallest value is 0.991"),
    ],
)
def test_collapsed_maps(values, words):
    model = Brightest()
    images = picture((0, 2, 2, 4, 1.0))[None]
    (look,) = second_look(model, images, explained(model, images, values[None].double()))
    assert names(look) == ["map_collapsed"]
    assert words in look.flags[0].why
    # It points nowhere, so there is no region to remove.
    assert look.without_region is None
    assert model.passes == 0


def test_a_map_without_bounds_is_judged_on_its_own_scale():
    model = Brightest()
    images = picture((0, 2, 2, 4, 1.0))[None]
    for factor in (1e-6, 1e6):
        maps = factor * spot_map(2, 2, 4)[None]
        (look,) = second_look(model, images, explained(model, images, maps, value_range=None, method="grad-cam"))
        assert look.flags == ()
    blank = torch.zeros(1, SIDE, SIDE)
    (look,) = second_look(model, images, explained(model, images, blank, value_range=None, method="grad-cam"))
    assert names(look) == ["map_collapsed"]


def test_diffuse_maps():
    model = Brightest()
    images = picture((0, 2, 2, 4, 1.0))[None]
    wide = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    wide.view(-1)[: int(0.7 * SIDE * SIDE)] = 0.6
    (look,) = second_look(model, images, explained(model, images, wide[None] + 0.2))
    assert names(look) == ["map_diffuse"]
    share = int(0.7 * SIDE * SIDE) / SIDE**2
    assert f"{100 * share:.1f} %" in look.flags[0].why
    wide.view(-1)[int(0.6 * SIDE * SIDE) :] = 0
    assert second_look(model, images, explained(model, images, wide[None] + 0.2))[0].flags == ()


def test_effective_area_in_closed_form():
    flat = torch.zeros(10, 10, dtype=torch.float64)
    flat[:3] = 7.0
    assert effective_area(flat) == pytest.approx(0.3)
    assert effective_area(flat - 5) == pytest.approx(0.3)
    assert effective_area(torch.ones(4, 4)) == 1
    # Uniform on [0, 1]: entropy log n + log E[u] - E[u log u] / E[u] = log n - log 2 + 1/2.
    ramp = torch.linspace(0, 1, 10_000, dtype=torch.float64).view(100, 100)
    assert effective_area(ramp) == pytest.approx(math.exp(0.5 - math.log(2)), abs=1e-3)
    assert effective_area(torch.rand(64, 64, generator=torch.Generator().manual_seed(0))) > DIFFUSE


def test_controls_and_maps_for_other_classes_are_not_judged():
    model = Brightest()
    images = picture((0, 2, 2, 4, 1.0), (2, 10, 10, 4, 0.9))[None]
    blank = torch.full((1, SIDE, SIDE), 0.5)
    for control in ("random", "center", "constant"):
        (look,) = second_look(model, images, explained(model, images, blank, method=control))
        assert look.flags == ()
        assert look.without_region is None
    region = spot_map(2, 2, 4)[None]
    other = explained(model, images, region, method="grad-cam", value_range=None, target=torch.tensor([2]))
    assert second_look(model, images, other)[0].without_region is None
    own = explained(model, images, region, method="grad-cam", value_range=None, target=torch.tensor([0]))
    assert names(second_look(model, images, own)[0]) == ["answer_flips"]


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    network = create_model("resnet20", num_classes=3, class_names=["ant", "bee", "cow"])
    network.preprocessing = type(network.preprocessing)(size=(SIDE, SIDE), resize="squash", crop_pct=1)
    network.save_pretrained(tmp_path / "run" / "model")
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for index in range(5):
        pixels = random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("method", ["attention", "attention-class"])
def test_every_line_of_the_record_says_why_and_by_which_criteria(run, method):
    result = explain_files(run / "run", run / "pictures", run / "out", method=method, batch_size=2, progress=False)
    entries = [json.loads(line) for line in (run / "out" / "predictions.jsonl").read_text().splitlines()]
    counted = dict.fromkeys(FLAGS, 0)
    for entry in entries:
        assert entry["second_look_criteria"] == criteria()
        for flag in entry["second_look"]:
            counted[flag["flag"]] += 1
            assert flag["why"].endswith(".")
        said = {flag["flag"] for flag in entry["second_look"]}
        assert ("branches_disagree" in said) == (entry["branches_agree"] is False)
        without = entry["without_region"]
        if without is None:
            assert "map_collapsed" in said
            assert method == "attention"
        else:
            assert without["changed"] == (without["index"] != entry["prediction"]["index"])
            assert ("answer_flips" in said) == (without["changed"] and without["probability"] >= 0.5)
    assert {name: count for name, count in counted.items() if count} == dict(result.flags)
    assert result.flagged == sum(bool(entry["second_look"]) for entry in entries)
    assert f"Worth a second look: {result.flagged} of 5 predictions" in "\n".join(result.lines())
    page = (run / "out" / "report.html").read_text()
    assert ("<h2>Worth a second look</h2>" in page) == (result.flagged > 0)
    assert page.count('class="card"') == 5


def test_a_flagged_prediction_stands_in_the_gallery_with_its_reason(run, monkeypatch):
    import attention_branch.report.explained as explained_module
    from attention_branch.evaluation.second_look import Flag, SecondLook

    def flags_the_second(model, images, explanation):
        odd = SecondLook((Flag("map_diffuse", "It is spread over 91 %."),), None)
        return [odd if row == 1 else SecondLook((), None) for row in range(len(explanation))]

    monkeypatch.setattr(explained_module, "second_look", flags_the_second)
    result = explain_files(run / "run", run / "pictures", run / "out", progress=False)
    assert (result.flagged, dict(result.flags)) == (1, {"map_diffuse": 1})
    assert "1 of 5 predictions (map diffuse: 1)" in "\n".join(result.lines())
    page = (run / "out" / "report.html").read_text()
    gallery = page[page.index("<h2>Worth a second look</h2>") : page.index("<h2>Other images</h2>")]
    assert gallery.count('class="card"') == 1
    assert "It is spread over 91 %." in gallery
    assert "1.png" in gallery


def test_controls_carry_no_flags_about_the_map(run):
    result = explain_files(run / "run", run / "pictures", run / "out", method="constant", progress=False)
    assert set(result.flags) <= {"branches_disagree"}
