"""Guided augmentation against cases made by hand, scipy's regions, torch's resize, and sums taken place by place."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

import attention_branch as ab
from attention_branch.data.resident import ResidentImages
from attention_branch.errors import UserError
from attention_branch.models import AttentionBranchNetwork
from attention_branch.report.guided_strip import guided_strip
from attention_branch.training import TrainConfig, boxes, mixing, recipe, train
from attention_branch.training import guided as guided_module
from attention_branch.training.fast import FastTrainer
from attention_branch.training.guided import CHANGES, Guide, make_guide, zoomed

SMALL = torch.tensor(
    [
        [0.9, 0.9, 0.2, 0.2, 0.2, 0.2],
        [0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
        [0.2, 0.2, 0.8, 1.0, 0.2, 0.2],
        [0.2, 0.2, 0.2, 0.8, 0.2, 0.2],
        [0.2, 0.2, 0.2, 0.2, 0.7, 0.2],
        [0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
    ]
)
"""Two regions, the larger one around the maximum: rows 2 to 4 and columns 2 to 4, joined at a corner."""


def planted(spots, grid=8, high=0.9, low=0.1):
    """Return maps (N, 1, grid, grid) that are high in boxes of cells (top, left, bottom, right) and low elsewhere."""
    maps = torch.full((len(spots), 1, grid, grid), low)
    for each, spot in zip(maps, spots, strict=True):
        if spot:
            each[:, spot[0] : spot[2], spot[1] : spot[3]] = high
    return maps


class Planted(AttentionBranchNetwork):
    """A network that is nothing but the maps (N, T, h, w) it answers with."""

    def __init__(self, maps):
        torch.nn.Module.__init__(self)
        self.maps, self.map_control = maps, "own"

    def attend(self, images):
        return self.maps[: len(images)], torch.zeros(len(images), 3)


def network(**options):
    return ab.create_model("resnet14", num_classes=3, **options)


class TestBoxes:
    def test_the_region_is_the_one_around_the_maximum(self):
        region = boxes.region_around_maximum(boxes.stretched(SMALL[None]), 0.5)[0]
        assert region.nonzero().tolist() == [[2, 2], [2, 3], [3, 3], [4, 4]]

    def test_regions_and_sizes_are_scipys(self):
        maps = torch.rand(40, 9, 13, generator=torch.Generator().manual_seed(1))
        maps = F.avg_pool2d(maps, 3, stride=1, padding=1)  # smoother, so that regions of all sizes come up
        found = boxes.region_around_maximum(boxes.stretched(maps), 0.6)
        sizes = boxes.attended_sizes(maps, 0.6, (0.0, 1.0))
        limited = boxes.attended_sizes(maps, 0.6, (0.3, 0.5))
        for one, region, size, short in zip(maps.numpy(), found.numpy(), sizes, limited, strict=True):
            above = (one - one.min()) / (one.max() - one.min()) >= 0.6
            numbered, _ = ndimage.label(above, structure=np.ones((3, 3)))
            wanted = numbered == numbered[np.unravel_index(one.argmax(), one.shape)]
            assert np.array_equal(region, wanted)
            rows, columns = ndimage.find_objects(wanted.astype(int))[0]
            extent = [rows.stop - rows.start, columns.stop - columns.start]
            assert size.tolist() == extent
            assert short.tolist() == [min(max(extent[0], 3), 4), min(max(extent[1], 4), 6)]

    def test_a_box_lies_where_it_holds_most(self):
        generator = torch.Generator().manual_seed(2)
        maps = torch.rand(30, 5, 7, generator=generator, dtype=torch.float64)
        sizes = torch.stack([torch.randint(1, 6, (30,)), torch.randint(1, 8, (30,))], dim=1)
        for one, size, box in zip(maps, sizes.tolist(), boxes.attended_boxes(maps, sizes).tolist(), strict=True):
            sums = {
                (top, left): one[top : top + size[0], left : left + size[1]].sum().item()
                for top in range(5 - size[0] + 1)
                for left in range(7 - size[1] + 1)
            }
            top, left = max(sums, key=sums.get)
            assert box == [top, left, top + size[0], left + size[1]]

    def test_of_equal_places_the_first_is_taken(self):
        maps = planted([(0, 0, 2, 2)])[:, 0]
        maps[:, 5:7, 5:7] = maps[:, 0, 0]
        assert boxes.attended_boxes(maps, torch.tensor([[2, 2]])).tolist() == [[0, 0, 2, 2]]

    def test_flat_maps_have_no_box(self):
        flat = torch.full((2, 6, 6), 0.3)
        sizes = boxes.attended_sizes(flat, 0.5, (0.25, 0.5))
        assert sizes.tolist() == [[0, 0], [0, 0]]
        assert boxes.attended_boxes(flat, sizes).tolist() == [[0] * 4] * 2
        assert boxes.random_boxes(sizes, (6, 6)).tolist() == [[0] * 4] * 2

    def test_random_places_are_all_and_equally_likely(self):
        torch.manual_seed(0)
        found = boxes.random_boxes(torch.tensor([[2, 5]]).repeat(6000, 1), (4, 6))
        assert (found[:, 2:] - found[:, :2] == torch.tensor([2, 5])).all()
        places, counts = found[:, :2].unique(dim=0, return_counts=True)
        assert places.tolist() == [[top, left] for top in range(3) for left in range(2)]
        assert (counts - 1000).abs().max() < 5 * (6000 * 1 / 6 * 5 / 6) ** 0.5  # five standard deviations

    def test_boxes_in_pixels(self):
        box = torch.tensor([[1, 0, 3, 2]])
        assert boxes.in_pixels(box, (4, 4), (32, 64)).tolist() == [[8, 0, 24, 32]]
        assert boxes.in_pixels(box, (7, 7), (10, 10)).tolist() == [[1, 0, 4, 3]]
        mask = boxes.inside(box, (4, 4))[0, 0]
        assert mask.int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]

    def test_attention_inside(self):
        box = torch.tensor([[2, 2, 4, 4]])
        # 0.75, 1 and 0.75 of the stretched map's 0.875 * 2 + 0.75 * 2 + 1 + 0.625
        assert boxes.attention_inside(SMALL[None], box).item() == pytest.approx(2.5 / 4.875)
        assert boxes.attention_inside(torch.full((1, 6, 6), 0.4), box).item() == pytest.approx(4 / 36)


class TestZoom:
    def test_it_is_the_cut_out_resized(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 3, 24, 36, generator=generator, dtype=torch.float64)
        given = torch.tensor([[3, 5, 20, 30], [0, 0, 24, 36], [10, 1, 12, 36], [0, 0, 0, 0]])
        found = zoomed(images, given)
        for image, (top, left, bottom, right), one in zip(images, given.tolist(), found, strict=True):
            cut = image[:, top:bottom, left:right] if bottom else image
            wanted = F.interpolate(cut[None], size=(24, 36), mode="bilinear", align_corners=False)[0]
            torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-5)  # float32 coordinates


class TestGuide:
    def images(self, count=4, side=32):
        return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))

    def test_crop_and_drop_change_the_attended_box_of_the_first_images(self):
        images, targets = self.images(6), torch.arange(6)
        model = Planted(planted([(0, 0, 4, 4), (4, 4, 8, 8), (2, 2, 5, 6)]))
        erased = Guide(model, "drop", share=0.5)(images, targets)
        assert erased.targets is targets
        assert erased.neighbours is None
        wanted = images.clone()
        wanted[0, :, :16, :16] = wanted[1, :, 16:, 16:] = wanted[2, :, 8:20, 8:24] = 0
        assert torch.equal(erased.images, wanted)
        zoom = Guide(model, "crop", share=0.5)(images, targets).images
        assert torch.equal(zoom[3:], images[3:])
        cut = F.interpolate(images[1:2, :, 16:, 16:], size=(32, 32), mode="bilinear", align_corners=False)
        torch.testing.assert_close(zoom[1:2], cut)

    def test_cutmix_pastes_the_partners_box_and_mixes_labels_by_attention(self):
        images, targets = self.images(4), torch.tensor([5, 6, 7, 8])
        # Background 0.1 and attention 0.9 stretch to 0 and 1.
        model = Planted(planted([(0, 0, 4, 4), (2, 2, 6, 6)]))
        found = Guide(model, "cutmix", share=0.5)(images, targets)
        wanted = images.clone()
        wanted[0, :, 8:24, 8:24] = images[1, :, 8:24, 8:24]
        wanted[1, :, :16, :16] = images[0, :, :16, :16]
        assert torch.equal(found.images, wanted)
        assert found.neighbours.tolist() == [6, 5, 7, 8]
        # A quarter of either one's attention is covered by the other's box, which brings all of the other's.
        assert found.share.tolist() == pytest.approx([0.75 / 1.75, 0.75 / 1.75, 1, 1])
        assert found.owners().tolist() == [6, 5, 7, 8]

    def test_the_control_keeps_the_sizes_and_mixes_by_area(self):
        images, targets = self.images(40), torch.arange(40)
        spots = [(0, 0, 2 + number % 3, 2 + number % 4) for number in range(40)]
        model = Planted(planted(spots))
        for change in CHANGES:
            attended = Guide(model, change, share=1.0).changed(images)
            control = Guide(model, change, share=1.0, at_random=True).changed(images)
            size = attended.boxes[:, 2:] - attended.boxes[:, :2]
            assert torch.equal(control.boxes[:, 2:] - control.boxes[:, :2], size)
            assert (control.boxes != attended.boxes).any(1).float().mean() > 0.5
            assert control.boxes.min() >= 0
            assert control.boxes.max() <= 32
        mixed = Guide(model, "cutmix", share=1.0, at_random=True)(images, targets)
        torch.testing.assert_close(mixed.share, 1 - size.prod(1) / 32**2)
        pasted = (mixed.images == images.roll(1, 0)).all(1).float().mean((1, 2))
        torch.testing.assert_close(pasted, 1 - mixed.share)

    @pytest.mark.parametrize("change", CHANGES)
    def test_a_flat_map_changes_nothing(self, change):
        images, targets = self.images(4), torch.arange(4)
        for at_random in (False, True):
            model = Planted(planted([None, None, None, None]))
            found = Guide(model, change, share=1.0, at_random=at_random)(images, targets)
            torch.testing.assert_close(found.images, images)
            if found.neighbours is not None:
                assert found.share.tolist() == [1, 1, 1, 1]

    def test_in_cutmix_a_flat_map_pastes_nothing_and_can_be_pasted_over(self):
        images = self.images(2)
        model = Planted(planted([None, (0, 0, 4, 4)]))
        found = Guide(model, "cutmix", share=1.0)(images, torch.arange(2))
        assert torch.equal(found.images[1], images[1])
        assert found.share[1] == 1
        assert not torch.equal(found.images[0], images[0])

    def test_it_counts_whole_images_and_at_least_one(self):
        images = self.images(10)
        model = Planted(planted([(0, 0, 4, 4)] * 10))
        for share, count in [(0.01, 1), (0.25, 2), (0.5, 5), (1.0, 10)]:
            found = Guide(model, "drop", share=share)(images, torch.arange(10)).images
            assert (found != images).flatten(1).any(1).tolist() == [True] * count + [False] * (10 - count)
        one = Guide(model, "cutmix")(images[:1], torch.arange(1))
        assert one.neighbours is None
        assert torch.equal(one.images, images[:1])

    def test_several_heads_are_guided_by_the_mean_map_and_keep_their_labels_together(self):
        images = self.images(2)
        maps = torch.cat([planted([(0, 0, 4, 4), (0, 0, 4, 4)]), planted([(0, 0, 4, 4), (4, 4, 8, 8)])], dim=1)
        targets = {"a": torch.tensor([0, 1]), "b": torch.tensor([-1, 2])}
        found = Guide(Planted(maps), "cutmix", share=1.0)(images, targets)
        assert {head: value.tolist() for head, value in found.neighbours.items()} == {"a": [1, 0], "b": [2, -1]}
        assert torch.equal(Guide(Planted(maps), "crop").changed(images).maps, maps.mean(1))

    def test_the_maps_are_those_of_evaluation_and_leave_no_trace(self):
        model = network().train()
        for _ in range(3):  # statistics that are not the start's
            model(torch.randn(8, 3, 32, 32))
        still = model.backbone.get_submodule(model.place.features).eval()  # frozen by the user
        before = {name: value.clone() for name, value in model.state_dict().items()}
        training = [module.training for module in model.modules()]
        images = self.images(4)
        found = Guide(model, "crop").changed(images)
        assert [module.training for module in model.modules()] == training
        assert not still.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not found.images.requires_grad
        assert not found.maps.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(found.maps, model.eval()(images).attention[:, 0])

    def test_gradients_under_autocast_are_those_without_a_guide(self):
        images, targets = self.images(2, side=16), torch.tensor([0, 2])
        gradients = []
        for guide in (False, True):
            torch.manual_seed(0)
            model = network().train()
            with torch.autocast("cpu", torch.bfloat16):
                if guide:
                    Guide(model, "crop").changed(images)
                loss = model.loss(model(images), targets).total
            loss.backward()
            gradients.append({name: value.grad for name, value in model.named_parameters()})
        for name, wanted in gradients[0].items():
            assert torch.equal(gradients[1][name], wanted), name

    def test_what_cannot_be_guided_is_said(self):
        with pytest.raises(UserError, match="Unknown change 'zoom'; use one of crop, drop, cutmix"):
            Guide(Planted(SMALL[None, None]), "zoom")
        for wrong in ({"share": 3.0}, {"share": 0.0}, {"threshold": 2.0}, {"threshold": float("nan")}):
            with pytest.raises(UserError, match=f"guided_{next(iter(wrong))} is"):
                Guide(Planted(SMALL[None, None]), "crop", **wrong)
        with pytest.raises(UserError, match="has no map of its own"):
            Guide(ab.create_backbone("resnet14", num_classes=2), "crop")
        with pytest.raises(UserError, match="has no map of its own"):
            Guide(network(map_control="constant"), "crop")
        with pytest.raises(UserError, match="1x1 cells is too coarse"):
            Guide(Planted(torch.rand(4, 1, 1, 1)), "drop").changed(self.images())
        with pytest.raises(UserError, match="no average of the weights"):
            make_guide(TrainConfig(data="d", guided="crop", guided_by="ema"), Planted(SMALL[None, None]), None)

    def test_whose_maps(self):
        model, average = Planted(SMALL[None, None]), Planted(SMALL[None, None])
        assert make_guide(TrainConfig(data="d"), model, average) is None
        for by, source in [("running", model), ("random", model), ("ema", average)]:
            config = TrainConfig(data="d", guided="drop", guided_by=by, guided_share=0.3, guided_threshold=0.6)
            made = make_guide(config, model, average)
            assert made.source is source
            assert (made.at_random, made.share, made.threshold) == (by == "random", 0.3, 0.6)


def test_the_strip_shows_box_and_change(tmp_path):
    images = torch.zeros(2, 3, 32, 32)
    maps = torch.linspace(0, 1, 64).view(1, 8, 8).repeat(2, 1, 1)
    found = guided_strip(
        images, maps, torch.tensor([[8, 0, 24, 16], [0, 0, 0, 0]]), torch.ones(2, 3, 32, 32), tmp_path / "s.png",
        share=torch.tensor([0.25, 1.0]), title="what is shown",
    )  # fmt: skip
    pixels = np.asarray(Image.open(found))
    blue = (pixels == np.array([0x16, 0xC7, 0xFF])).all(2)
    rows, columns = np.nonzero(blue)
    assert np.ptp(rows) == 63  # 16 of 32 pixels, enlarged four times, both edges drawn
    assert np.ptp(columns) == 63
    assert columns.max() < pixels.shape[1] // 2  # the second image has no box
    with pytest.raises(UserError, match="one box and one changed picture per image"):
        guided_strip(images, maps[:1], torch.zeros(2, 4), images, tmp_path / "t.png")
    with pytest.raises(UserError, match="2 images and 1 of labels"):
        guided_strip(images, maps, torch.zeros(2, 4), images, tmp_path / "t.png", labels=["one"])


@pytest.mark.parametrize("by", ["running", "random"])
def test_what_a_guide_draws_moves_neither_mixing_nor_dropout(by, monkeypatch):
    """The share that mixup draws, and what is drawn after it, are those of a run that nothing guides."""
    drawn = []
    whole = mixing.mix

    def mix(*given):
        drawn.append((whole(*given).share, torch.rand(()).item()))
        return whole(*given)

    monkeypatch.setattr(guided_module, "mix", mix)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    images = ResidentImages(pixels, np.arange(8) % 3)
    for changes in ({}, {"guided": "drop", "guided_by": by}):
        config = recipe("cifar", data="d", model="resnet14", batch_size=4, mixup=0.5, augment="none", **changes)
        FastTrainer(config, network(), images).advance(2)
    assert drawn[:2] == drawn[2:]


def test_a_network_that_cannot_guide_leaves_no_folder(tmp_path):
    config = recipe(
        "default", data="digits:train=16,validation=10,test=10", model="interpretable:resnet14", image_size=32,
        guided="crop", accelerator="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip
    with pytest.raises(UserError, match="has no map of its own"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_run_draws_its_strips_and_goes_on_as_if_never_stopped(tmp_path):
    values = {
        "data": "digits:train=16,validation=10,test=10", "model": "resnet14", "image_size": 32, "batch_size": 8,
        "maps": 3, "accelerator": "cpu", "schedule": "constant", "warmup_epochs": 0.0, "guided": "cutmix",
        "guided_by": "random", "guided_share": 0.5,
    }  # fmt: skip
    whole = train(recipe("default", **values, epochs=2, out=str(tmp_path / "whole")))
    first = train(recipe("default", **values, epochs=1, out=str(tmp_path / "first")))
    train(dataclasses.replace(recipe("default", **values, epochs=2), resume=str(first)))
    assert sorted(path.name for path in (whole / "guided").iterdir()) == ["epoch-000.png", "epoch-001.png"]
    one, two = (ab.load_model(run / "last").state_dict() for run in (whole, first))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
