"""What single filters respond to: the map, the figure, and the two measures of interpretable CNNs by hand."""

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import attention_branch as ab
from attention_branch.cli import main
from attention_branch.explanations import filter_maps
from attention_branch.files import read_json_lines
from attention_branch.report import filter_figure


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = ab.create_backbone("interpretable:resnet14", num_classes=3, width=0.5, class_names=["a", "b", "c"])
    model.loss(model(torch.randn(6, 3, 32, 32)), torch.tensor([0, 1, 2, 0, 1, 2]))
    return model.eval()


def test_the_filter_shown_adds_most_to_the_class(network):
    """Behind global average pooling a filter adds its mean activation times its weight for the class."""
    images = torch.randn(4, 3, 32, 32)
    found = ab.explain(network, images, "filters", target=1)
    with torch.no_grad():
        activations = network.backbone.forward_features(images)
    added = activations.mean((2, 3)) * network.backbone.fc.weight[1]
    assert torch.equal(found.filters, added.argmax(1))
    assert torch.allclose(found.raw, activations[torch.arange(4), found.filters])
    assert "interpretable.filters" in found.layer
    assert found.target.tolist() == [1] * 4


def test_filters_of_any_network_and_several_classes():
    model = timm.create_model("resnet10t", num_classes=4).eval()
    found = ab.explain(model, torch.randn(1, 3, 64, 64), "filters", target=[0, 3])
    assert found.raw.shape == (2, 2, 2)
    assert found.layer.startswith("layer4, 2x2")
    earlier = ab.explain(model, torch.randn(2, 3, 64, 64), "filters", layer="layer2")
    assert earlier.raw.shape == (2, 8, 8)


def test_filter_maps_are_the_masked_activations_in_any_batches(network):
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        wanted = network.backbone.forward_features(images)
    assert torch.allclose(filter_maps(network, images, batch_size=2), wanted, atol=1e-5)
    assert torch.allclose(filter_maps(network, iter([images[:3], images[3:]])), wanted, atol=1e-5)
    assert not any(module._forward_hooks for module in network.modules())
    # A masked map holds nothing at two cells' distance or more: a quarter of the side.
    flat = wanted.flatten(2).argmax(2)
    rows, columns = flat // 8, flat % 8
    far = (torch.arange(8)[:, None] - rows[..., None, None]).abs() + (
        torch.arange(8) - columns[..., None, None]
    ).abs() >= 2
    assert wanted[far].abs().max() == 0


def test_a_layer_without_one_map_an_image_is_refused(network):
    with pytest.raises(ab.UserError, match=r"no grid|no map"):
        filter_maps(network, torch.randn(2, 3, 32, 32), "fc")
    with pytest.raises(ab.UserError, match="no layer"):
        filter_maps(network, torch.randn(2, 3, 32, 32), "layer9")


class OneFilterAPixel(nn.Module):
    """A network whose filters are known: filter 0 is the red channel, filter 1 the green one, each pooled by 4."""

    def __init__(self):
        super().__init__()
        self.filters, self.fc = nn.AvgPool2d(4), nn.Linear(3, 2)

    def forward(self, images):
        return self.fc(self.filters(images).mean((2, 3)))


def test_the_figure_shows_the_strongest_images_first_and_the_region_bright(tmp_path):
    images = torch.zeros(6, 3, 32, 32)
    for number in range(6):
        images[number, 0, 8:16, 16:24] = 0.2 * (number + 1)  # red, stronger in later images
        images[number, 1, 4 * number : 4 * number + 4] = 1.0  # a green bar that tells them apart
    figure = filter_figure(OneFilterAPixel(), images, [0], layer="filters", columns=3, path=tmp_path / "filters.png")
    pixels = np.asarray(figure)
    assert (tmp_path / "filters.png").stat().st_size > 1000
    red = (pixels[..., 0] > 120) & (pixels[..., 1] < 20) & (pixels[..., 2] < 20)
    across = np.flatnonzero(red.any(0))
    # The three panels are in one row, their red squares in the same place of each.
    panels = np.split(across, np.flatnonzero(np.diff(across) > 20) + 1)
    assert len(panels) == 3
    # Their bars stand the higher the later the image, and are darkened: they lie outside the filter's region.
    green = (pixels[..., 1] > 60) & (pixels[..., 0] < 20) & (pixels[..., 2] < 20)
    tops = [np.flatnonzero(green[:, panel.min() - 20 : panel.max() + 1].any(1)).mean() for panel in panels]
    assert tops == sorted(tops, reverse=True)
    assert pixels[..., 1][green].max() < 0.6 * 255
    for wrong in ([3], ["a"], torch.tensor([0, 3])):
        with pytest.raises(ab.UserError, match="There is no filter"):
            filter_figure(OneFilterAPixel(), images, wrong, layer="filters")


def test_what_is_no_batch_of_images_is_refused(network):
    for wrong in ([], torch.zeros(0, 3, 32, 32)):
        with pytest.raises(ab.UserError, match="There is no image"):
            filter_maps(network, wrong)
    with pytest.raises(ab.UserError, match="batch_size is 0"):
        filter_maps(network, torch.zeros(1, 3, 32, 32), batch_size=0)
    picture = Image.new("RGB", (40, 32), "red")
    assert torch.equal(filter_maps(network, picture), filter_maps(network, [picture]))


def test_the_figure_names_a_filter_s_category(network):
    figure = filter_figure(network, torch.randn(8, 3, 32, 32), rows=2, columns=4, title="what they see")
    assert figure.width > figure.height > 100


def test_a_network_that_saw_no_class_has_no_categories():
    model = ab.create_backbone("interpretable:resnet14", num_classes=3, filter_weight=0.0, width=0.5)
    model.train()
    model.loss(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0]))
    assert (model.filter_categories == -1).all()


def test_abn_explain_draws_filters(network, tmp_path, capsys):
    network.save_pretrained(tmp_path / "model")
    Image.linear_gradient("L").convert("RGB").resize((40, 32)).save(tmp_path / "photo.jpg")
    with pytest.raises(SystemExit) as ended:
        main(
            ["explain", str(tmp_path / "model"), str(tmp_path / "photo.jpg"), "--out", str(tmp_path / "out"),
             "--method", "filters", "--target", "b", "--device", "cpu"]
        )  # fmt: skip
    assert ended.value.code == 0
    (line,) = read_json_lines(tmp_path / "out" / "predictions.jsonl")
    assert line["map"]["method"] == "filters"
    assert 0 <= line["map"]["filter"] < 32
    assert line["map"]["target"]["class"] == "b"


# --- location instability and part interpretability ---


def peaks_at(cells, values=None, filters=1, side=4):
    """Return maps (N, filters, side, side) with one cell each above zero."""
    maps = torch.zeros(len(cells), filters, side, side)
    for number, (row, column) in enumerate(cells):
        maps[number, :, row, column] = 1.0 if values is None else values[number]
    return maps


def test_a_filter_at_one_distance_from_its_part_is_steady():
    maps = peaks_at([(0, 0), (1, 1), (2, 2), (3, 0)])
    centres = torch.tensor([[5.0, 5.0], [15.0, 15.0], [25.0, 25.0], [5.0, 35.0]]) + torch.tensor([3.0, 4.0])
    found = ab.metrics.location_instability(maps, centres, (40, 40))
    assert found.mean == pytest.approx(0.0, abs=1e-9)
    assert found.n == 1


def test_location_instability_by_hand():
    maps = peaks_at([(0, 0), (0, 1), (0, 3)])
    centres = torch.tensor([[[5.0, 5.0], [5.0, 5.0]]] * 3)
    centres[2, 1] = torch.nan  # the second part is not in the last picture
    found = ab.metrics.location_instability(maps, centres, (40, 40))
    # Distances 0, 10, 30 to the first part, 0, 10 to the second, over a diagonal of 40 sqrt(2).
    wanted = (np.std([0, 10, 30], ddof=1) + np.std([0, 10], ddof=1)) / 2 / (40 * math.sqrt(2))
    assert found.mean == pytest.approx(wanted)
    assert found.values.tolist() == pytest.approx([wanted])


def test_only_the_top_images_of_the_filter_s_class_count():
    cells = [(0, 0), (0, 0), (0, 3), (3, 3), (3, 0)]
    maps = peaks_at(cells, values=[5.0, 4.0, 1.0, 2.0, 3.0])
    centres = torch.full((5, 2), 5.0)
    steady = ab.metrics.location_instability(maps, centres, (40, 40), top=2)
    assert steady.mean == pytest.approx(0.0, abs=1e-9)
    labels = [0, 1, 1, 2, 2]  # class 0 has the highest mean peak, but one image only: no spread
    alone = ab.metrics.location_instability(maps, centres, (40, 40), labels=labels)
    assert math.isnan(alone.mean)
    assert alone.counts == {"unmeasured": 1}
    of_class = ab.metrics.location_instability(maps[1:], centres[1:], (40, 40), labels=labels[1:])
    assert of_class.details["classes"].tolist() == [1]  # means 2.5 and 2.5: the first
    assert of_class.mean == pytest.approx(np.std([0, 30], ddof=1) / (40 * math.sqrt(2)))


def test_a_filter_without_response_has_no_place():
    maps = torch.cat([peaks_at([(0, 0), (1, 1)]), torch.zeros(2, 1, 4, 4)], dim=1)
    found = ab.metrics.location_instability(maps, torch.zeros(2, 2), (40, 40))
    assert found.n == 1
    assert found.values.isnan().tolist() == [False, True]


def test_part_interpretability_by_hand():
    """Two filters, each active in one cell an image of 4x4; parts are that cell, the right half, and a part unseen."""
    cells = [(0, 0), (1, 2), (2, 3), (3, 1)]
    maps = torch.cat([peaks_at(cells), peaks_at([(0, 3)] * 4)], dim=1)
    masks = torch.zeros(4, 3, 4, 4)
    for number, (row, column) in enumerate(cells):
        masks[number, 0, row, column] = 1
        masks[number, 1, :, 2:] = 1
    found = ab.metrics.part_interpretability(maps, masks, share=4 / 64)
    # Filter 0 is on its part in all images; filter 1 covers an eighth of the right half, below the overlap.
    assert found.values.tolist() == [1.0, 0.0]
    assert found.details["part"].tolist()[0] == 0
    loose = ab.metrics.part_interpretability(maps, masks, share=4 / 64, overlap=0.1)
    assert loose.values.tolist() == [1.0, 1.0]
    assert loose.details["part"].tolist() == [0, 1]


def test_the_threshold_is_the_value_that_a_share_of_positions_exceeds():
    maps = torch.arange(400.0).view(4, 1, 10, 10)
    found = ab.metrics.part_interpretability(maps, torch.ones(4, 10, 10), share=0.05)
    assert found.details["threshold"].item() == 379
    assert (maps > 379).double().mean() == 0.05


def test_centres_of_boxes_and_masks():
    masks = torch.zeros(2, 2, 6, 8)
    masks[0, 0, 1:3, 2:5] = 1
    masks[0, 1, 5, 7] = 1
    masks[1, 0, 0, :] = 1
    boxes = torch.tensor([[[2.0, 1, 5, 3], [7, 5, 8, 6]], [[0, 0, 8, 1], [math.nan] * 4]])
    wanted = [[[3.5, 2.0], [7.5, 5.5]], [[4.0, 0.5], [math.nan, math.nan]]]
    for regions in (masks, boxes):
        np.testing.assert_allclose(ab.metrics.part_centres(regions).numpy(), np.array(wanted))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda maps: ab.metrics.location_instability(maps[0], torch.zeros(3, 2), (4, 4)), "shape"),
        (lambda maps: ab.metrics.location_instability(maps, torch.zeros(2, 2), (4, 4)), "one row a map"),
        (lambda maps: ab.metrics.location_instability(maps, torch.zeros(3, 2), (4, 4), top=1), "top is 1"),
        (lambda maps: ab.metrics.location_instability(maps, torch.zeros(3, 2), (4, 4), labels=[0]), "one class per"),
        (lambda maps: ab.metrics.location_instability(maps / 0, torch.zeros(3, 2), (4, 4)), "NaN or infinite"),
        (lambda maps: ab.metrics.part_interpretability(maps, torch.zeros(3, 4, 4)), "No image has a part"),
        (lambda maps: ab.metrics.part_interpretability(maps, torch.ones(2, 4, 4)), "one row a map"),
        (lambda maps: ab.metrics.part_interpretability(maps, torch.ones(3, 4, 4), share=0), "share is 0"),
        (lambda maps: ab.metrics.part_centres(torch.zeros(3, 5)), "boxes"),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises(ab.UserError, match=words):
        call(peaks_at([(0, 0)] * 3))
