"""The search for a shortcut, held against networks whose reason is known because it was built by hand."""

import dataclasses
import json
from html import escape

import numpy as np
import pytest
import torch
from torch import nn

import attention_branch as ab
from attention_branch import shortcut
from attention_branch.evaluation import find_shortcut
from attention_branch.evaluation.removal import paint_over
from attention_branch.report import write_shortcut_report

SIDE, CLASSES = 32, 4
OBJECT, MARK = 9, 3
PATCH = 6 / SIDE


class Looks(nn.Module):
    """Answers by the mean of each class's pattern inside a window: no training, so its reason is exactly known."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        return self.scale * self.rule(images)


def search(rule, images, regions=None, *, method=None, **options):
    """Search with a patch of 6 pixels, on a network with this rule."""
    return find_shortcut(Looks(rule).double().eval(), images, regions, method=method, **{"patch": PATCH} | options)


def pictures(count, code, size=OBJECT, seed=0):
    """Noise with an object (channel 2, its level says the class) and a mark (channel 0) that says the class as well.

    Returns images (N, 3, S, S), object masks, mark masks and labels; `code` is "place" or "look" of the mark.
    """
    random = np.random.default_rng(seed)
    images = random.uniform(-0.05, 0.05, (count, 3, SIDE, SIDE))
    objects, marks = np.zeros((count, SIDE, SIDE), bool), np.zeros((count, SIDE, SIDE), bool)
    labels = np.arange(count) % CLASSES
    for index, label in enumerate(labels):
        top, left = random.integers(10, SIDE - size - 9, 2)
        objects[index, top : top + size, left : left + size] = True
        images[index, 2][objects[index]] = (label + 1) / CLASSES
        edge = int(random.integers(2)) * (SIDE - MARK)
        y = 1 + 9 * label if code == "place" else int(random.integers(SIDE - MARK))
        marks[index, y : y + MARK, edge : edge + MARK] = True
        images[index, 0][marks[index]] = 1.0 if code == "place" else (label + 1) / CLASSES
    return torch.from_numpy(images), objects, marks, labels


def by_level(channel):
    """The class is the highest level in a channel: a quarter of the range each, the first where there is nothing."""

    def rule(images):
        level = images[:, channel].flatten(1).amax(1, keepdim=True)
        levels = (torch.arange(CLASSES) + 1) / CLASSES
        return -((level - levels) ** 2) * 20

    return rule


def by_height(images):
    """The class is the height at which channel 0 is bright."""
    rows = images[:, 0].amax(2).clamp_min(0)
    bands = torch.stack([rows[:, 1 + 9 * band : 1 + 9 * band + MARK].mean(1) for band in range(CLASSES)], 1)
    return 3 * bands


@pytest.mark.parametrize(
    ("code", "rule", "carrier"), [("look", by_level(0), "look"), ("place", by_height, "place")], ids=["look", "place"]
)
def test_a_network_that_reads_the_mark_is_found_out(code, rule, carrier):
    images, objects, marks, labels = pictures(48, code)
    model = Looks(rule).double().eval()
    assert (model(images).argmax(1).numpy() == labels).all()
    found = search(rule, images, objects, seed=3)
    assert found.verdict == "shortcut"
    assert found.carrier == carrier
    # The patch it names is where the mark is, though nobody told it.
    for (x0, y0, x1, y1), mark, answer in zip(found.patches.tolist(), marks, found.answers.tolist(), strict=True):
        if answer != 0:  # Class 0 is also what the network says when there is no mark.
            assert mark[y0:y1, x0:x1].sum() >= 0.6 * mark.sum()
    assert found.changes.value >= 0.7
    assert found.random_changes.value <= 0.1
    assert found.object_changes.value == 0
    assert found.on_object.value <= 0.3
    assert found.carried_place.value >= 0.9
    assert found.carried_random.value <= 0.2
    assert (found.carried_look.value >= 0.9) == (carrier == "look")
    said = found.sentences()
    assert said[0].startswith("The network learned a shortcut: ")
    assert f"changes the answer in {100 * found.changes.value:.0f} % of the 48 images" in said[0]
    assert any(f"the {carrier} of the patch" in text for text in said)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_network_that_reads_the_object_is_not_accused():
    images, objects, _, labels = pictures(48, "look", size=3)
    model = Looks(by_level(2)).double().eval()
    assert (model(images).argmax(1).numpy() == labels).all()
    found = search(by_level(2), images, objects)
    assert found.verdict == "none"
    assert found.changes.hits == 0
    assert found.random_changes.hits == 0
    # All but the class that is also said where there is no object.
    assert found.object_changes.value == 0.75
    assert found.on_object.value == 1
    assert found.sentences()[0].startswith("No shortcut")
    assert not any(item.found for item in found.by_answer)


def test_a_shortcut_of_one_class_alone_is_found_and_named():
    images, objects, _, labels = pictures(80, "look")

    def rule(pictures):
        scores = by_level(2)(pictures)
        level = pictures[:, 0].flatten(1).amax(1)
        # Whatever the object: the brightest mark alone says the last class, and without it that class is never said.
        last = torch.where(level > 0.9, 100.0, -100.0).double()
        return torch.cat([scores[:, :-1], last[:, None]], 1)

    assert (Looks(rule).double().eval()(images).argmax(1).numpy() == labels).all()
    found = search(rule, images, objects)
    assert found.verdict == "shortcut"
    assert [item.name for item in found.by_answer if item.found] == ["3"]
    assert "for '3'" in found.sentences()[0]


def test_the_answer_that_is_left_is_no_exception_to_the_finding():
    images, objects, _, _ = pictures(48, "look")
    found = search(by_level(0), images, objects)
    assert found.fallback[0] == "0"
    assert " for '" not in found.sentences()[0]
    assert any("falls back on one answer, '0'" in text for text in found.sentences())


def test_a_patch_that_only_breaks_is_a_suspicion():
    images, objects, _, _ = pictures(48, "look")

    def rule(pictures):
        # Any mark lets it see the object; without one it always says the same.
        seen = (pictures[:, 0].flatten(1).amax(1, keepdim=True) > 0.2).double()
        return by_level(2)(pictures) * seen + torch.tensor([0.1, 0, 0, 0]).double()

    found = search(rule, images, objects)
    assert found.verdict == "suspicion"
    assert found.carrier == "nothing"
    assert "may be a shortcut" in found.sentences()[0]


def test_a_network_that_reads_the_background_is_not_cleared():
    images, objects, _, labels = pictures(48, "look")
    beside = torch.from_numpy(~objects)[:, None]
    level = torch.from_numpy(labels / 10)[:, None, None, None]
    images = torch.where(beside & (torch.arange(3) == 1)[:, None, None], level, images)

    def rule(pictures):
        # The green of the whole picture, a tenth a class: no patch moves it far, nor does the object.
        return -200 * (pictures[:, 1].flatten(1).median(1).values[:, None] - torch.arange(CLASSES) / 10) ** 2

    assert (Looks(rule).double().eval()(images).argmax(1).numpy() == labels).all()
    found = search(rule, images, objects)
    assert found.verdict == "surroundings"
    assert found.object_changes.hits == 0
    assert "neither does the object" in found.sentences()[0]


def test_without_regions_it_says_that_it_cannot_tell():
    images, _, _, _ = pictures(24, "look")
    found = search(by_level(0), images)
    assert (found.verdict, found.object_changes, found.on_object) == ("unknown", None, None)
    assert "does not say where the objects are" in found.sentences()[0]
    calm = search(lambda pictures: pictures.mean((2, 3)), images)
    assert calm.verdict == "none"


def test_images_without_a_region_are_left_out_and_counted():
    images, objects, _, _ = pictures(24, "look")
    regions = [None if index in (3, 4) else mask for index, mask in enumerate(objects)]
    regions[5] = np.zeros_like(regions[5])
    found = search(by_level(0), images, regions)
    assert (found.n, found.left_out) == (21, 3)
    assert found.index.tolist() == [index for index in range(24) if index not in (3, 4, 5)]


def test_the_map_is_held_against_the_patch():
    images, objects, _, _ = pictures(24, "look")
    found = search(by_level(0), images, objects, method="center")
    # The object lies near the middle and the mark at the edge, so a map of the middle never shows the mark.
    assert found.map_on_patch.hits == 0
    assert found.map_off_object.value < 0.5
    assert "this map alone would not have shown" in found.sentences()[-1]
    assert (found.peaks.double().mean(1) - SIDE / 2).abs().max() <= 1


class Unused:
    """A progress bar that a search which cannot succeed must not begin."""

    def add_task(self, *_arguments, **_options):
        raise AssertionError("the search began")


unused = Unused()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": torch.zeros(4, 3, SIDE, SIDE)}, "4 images are too few"),
        ({"images": torch.zeros(3, SIDE, SIDE)}, "normalised float tensor"),
        ({"regions": [np.zeros((4, 4), bool), *[np.zeros((SIDE, SIDE), bool)] * 23]}, "give masks at the network's"),
        ({"regions": 5}, "24 images and 5"),
        ({"method": "attention"}, "without an attention branch"),
        ({"head": "kind"}, "one task and no head 'kind'"),
        ({"regions": np.zeros((24, 8, 8), bool)}, "give masks at the network's input size"),
        ({"regions": np.zeros((5, SIDE, SIDE), bool)}, "24 images and 5 regions"),
        ({"regions": [None] * 24}, "0 images are too few"),
        ({"patch": 0.01}, "2 pixels to half"),
        ({"patch": 0.9}, "2 pixels to half"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(change, says):
    images, objects, _, _ = pictures(24, "look")
    arguments = {"images": images, "regions": objects} | change
    if "images" in change:
        arguments["regions"] = None
    with pytest.raises(ab.UserError, match=says):
        search(by_level(0), **arguments, progress=unused)


def test_the_only_head_may_be_named_or_not():
    class OneHead(Looks):
        heads = {"kind": CLASSES}  # noqa: RUF012
        class_names = {"kind": ["a", "b", "c", "d"]}  # noqa: RUF012

        def forward(self, images):
            return {"kind": super().forward(images)}

    images, objects, _, _ = pictures(24, "look")
    for head in ("kind", None):
        network = OneHead(by_level(0)).double().eval()
        found = find_shortcut(network, images, objects, method=None, head=head, patch=PATCH)
        assert found.verdict == "shortcut"
        assert found.names == ("a", "b", "c", "d")
    with pytest.raises(ab.UserError, match=r"no head 'kin'.*Did you mean 'kind'"):
        find_shortcut(network, images, objects, method=None, head="kin", patch=PATCH, progress=unused)


def test_one_of_several_heads_is_named_before_the_search():
    class Heads(nn.Module):
        def forward(self, images):
            return {"a": 20 * by_level(0)(images), "b": images.mean((2, 3))}

    images, objects, _, _ = pictures(24, "look")
    with pytest.raises(ab.UserError, match=r"2 heads; choose one with head='a' \(a, b\)"):
        find_shortcut(Heads().eval(), images, objects, method=None, patch=PATCH, progress=unused)
    with pytest.raises(ab.UserError, match="no head 'c'"):
        find_shortcut(Heads().eval(), images, objects, method=None, head="c", patch=PATCH, progress=unused)
    found = find_shortcut(Heads().eval(), images, objects, method=None, head="a", patch=PATCH)
    assert found.verdict == search(by_level(0), images, objects).verdict == "shortcut"


def test_paint_is_the_gaussian_mean_of_what_is_left():
    random = torch.Generator().manual_seed(0)
    image = torch.rand(1, 2, 9, 11, generator=random, dtype=torch.float64)
    mask = torch.zeros(1, 9, 11, dtype=torch.bool)
    mask[0, 2:6, 3:7] = True
    painted = paint_over(image, mask, 1.5)
    assert (painted[0][:, ~mask[0]] == image[0][:, ~mask[0]]).all()
    for y in range(2, 6):
        for x in range(3, 7):
            total, weight = torch.zeros(2, dtype=torch.float64), 0.0
            for row in range(9):
                for column in range(11):
                    if not mask[0, row, column]:
                        near = np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * 1.5**2))
                        total, weight = total + near * image[0, :, row, column], weight + near
            assert painted[0, :, y, x] == pytest.approx((total / weight).numpy(), abs=1e-5)
    # Nothing of what was removed shines through.
    changed = torch.where(mask[:, None], torch.full_like(image, 100.0), image)
    assert torch.allclose(paint_over(changed, mask, 1.5), painted)


def test_paint_of_a_large_hole_is_the_mean_of_the_rest():
    image = torch.rand(1, 1, 40, 40, dtype=torch.float64)
    mask = torch.ones(1, 40, 40, dtype=torch.bool)
    mask[0, :2] = False
    painted = paint_over(image, mask, 1.0)
    assert painted[0, 0, 30:] == pytest.approx(float(image[0, 0, :2].mean()))
    assert paint_over(image, torch.ones_like(mask), 1.0) == pytest.approx(float(image.mean()))
    assert torch.equal(paint_over(image, torch.zeros_like(mask), 1.0), image)
    for bad in ({"masks": mask[:, :5]}, {"sigma": 0.0}):
        with pytest.raises(ab.UserError):
            paint_over(**({"images": image, "masks": mask, "sigma": 1.0} | bad))


def test_the_page_shows_the_patches(tmp_path):
    images, objects, _, _ = pictures(24, "look")
    found = search(by_level(0), images, objects, method="center")
    maps = ab.explain(Looks(by_level(0)).double().eval(), images, "center")
    text = write_shortcut_report(tmp_path / "r.html", found, maps).read_text()
    assert text.count("<img") >= 24 * 2
    assert "What the answer hangs on" in text
    assert "control: a random patch beside the object is painted over" in text
    assert "http" not in text
    assert f'<p class="lead">{escape(found.sentences()[0])}</p>' in text
    with pytest.raises(ab.UserError, match="24 images, the explanation of 3"):
        write_shortcut_report(tmp_path / "no.html", found, dataclasses.replace(maps, maps=maps.maps[:3]))


@pytest.fixture
def tiny(monkeypatch):
    """The demonstration on a few digits, one epoch and few images to search."""
    real = shortcut.recipe

    def small(name, **changes):
        data = "digits:train=60,validation=20,test=20"
        return dataclasses.replace(real(name, **changes), data=data, epochs=1, batch_size=20, warmup_epochs=0)

    monkeypatch.setattr(shortcut, "recipe", small)
    monkeypatch.setattr(shortcut, "_SEARCHED", 10)


def test_the_demonstration_writes_what_it_promises(tiny, tmp_path):
    summary = shortcut.run_shortcut_demo(tmp_path / "demo", mark="position")
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert set(summary["accuracy"]) == {"class", "random", "none"}
    assert summary["drop"] == pytest.approx(summary["accuracy"]["class"] - summary["accuracy"]["random"])
    assert {"attention", "attention-class", "random", "center"} <= set(summary["methods"])
    assert summary["mark_share"] == pytest.approx(36 / 64**2)
    # The centre of the picture is never at the edge, where this mark lies.
    assert summary["methods"]["center"]["at_mark"]["mean"] == 0
    assert summary["patch_on_mark"]["n"] == 10
    assert summary["search"]["verdict"] in ("none", "shortcut", "suspicion")
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    config = json.loads((tmp_path / "demo" / "config.json").read_text())
    assert config["settings"]["data"].endswith("mark=position")


def test_the_same_seed_finds_the_same():
    images, objects, _, _ = pictures(24, "look")
    first, second = (search(by_level(0), images, objects, seed=5, batch_size=size) for size in (64, 7))
    assert first.to_dict() == second.to_dict()
    assert torch.equal(first.patches, second.patches)
