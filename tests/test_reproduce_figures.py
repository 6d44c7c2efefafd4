"""The paper's figures from networks trained in miniature."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from attention_branch import load_model
from attention_branch.reproduce.arrays import Arrays, preprocessing_of
from attention_branch.reproduce.cells import Cell
from attention_branch.reproduce.figures import draw_figure, first_of_classes
from attention_branch.reproduce.plan import Protocol, make_jobs
from attention_branch.reproduce.sources import KINDS, Origin, open_origin
from reproduce_runs import HUNDRED, finish, prepare, write_pictures


def panels_at(drawn, top, height=60):
    """Return where a line of panels has its panels, as pairs of columns: what is not the page's white."""
    with Image.open(drawn) as picture:
        strip = np.asarray(picture.convert("RGB"))[top : top + height]
    ink = (strip.min(2) < 240).mean(0) > 0.5
    edges = np.flatnonzero(np.diff(np.concatenate([[False], ink, [False]]).astype(int)))
    return [(int(left), int(right)) for left, right in edges.reshape(-1, 2)]


def shown_at(drawn, top, columns, height):
    """Return a panel's pixels inside its edges."""
    with Image.open(drawn) as picture:
        return np.asarray(picture.convert("RGB"))[top + 3 : top + height - 3, columns[0] + 3 : columns[1] - 3] / 1.0


def points_where_it_says(network, images, said):
    """Check a record's shares of maps whose maximum lies on their head's quarters, or within 15/224 of the side."""
    network.eval()
    pictures = torch.stack([network.preprocessing.tensor(images[number].image) for number in range(len(images))])
    with torch.no_grad():
        maps = F.interpolate(network(pictures).attention, size=(64, 64), mode="bilinear").numpy()
    hits = {head: [] for head in network.heads}
    areas = []
    for number in range(len(images)):
        for head, mask in images[number].masks.items():
            y, x = np.unravel_index(maps[number, list(network.heads).index(head)].argmax(), (64, 64))
            rows, columns = np.nonzero(mask)
            hits[head].append(((rows - y) ** 2 + (columns - x) ** 2).min() < (15 / 224 * 64) ** 2)
            areas.append(mask.mean())
    every = [hit for found in hits.values() for hit in found]
    assert said["objects"] == len(every)
    assert said["on_object"] == pytest.approx(np.mean(every))
    assert said["object_area"] == pytest.approx(np.mean(areas))
    assert said["on_object_by_head"] == {
        head: pytest.approx(np.mean(found)) if found else None for head, found in hits.items()
    }


def test_figure_4_shows_both_networks_answers(tmp_path):
    jobs, arrays, data = prepare(write_pictures(tmp_path / "pictures", train=4, test=2), tmp_path)
    made = jobs(tmp_path, ["plain", "residual"], Protocol(epochs=1, train_images=20), keep=True)
    for job in made:
        finish(job, arrays)
    drawn = draw_figure("figure4", made, data, tmp_path / "figure4.png")
    chosen = first_of_classes(data.test, 8)
    assert chosen == [2 * label for label in range(8)]
    furthest = np.zeros(3)
    # Eight rows of 1.92 inches at 120 dots below a head of 0.55: the picture, and its map by three methods.
    for row, number in enumerate(chosen):
        top = 66 + round(row * 230.4) + 30
        panels = panels_at(drawn, top)
        assert len(panels) == 4
        assert {right - left for left, right in panels} <= {193, 194, 195}
        # Each row's picture is the class's own, of its brightness.
        wanted = np.asarray(data.test[number].image).mean((0, 1))
        assert np.abs(shown_at(drawn, top, panels[0], 130).mean((0, 1)) - wanted).max() < 4
        found = [np.abs(shown_at(drawn, top, one, 130).mean((0, 1)) - wanted).max() for one in panels[1:]]
        furthest = np.maximum(furthest, found)
    # Maps lie on the others, though not in every row: CAM's are nothing where no evidence is positive.
    assert furthest.min() > 8


def test_figure_7_shows_a_map_of_every_head(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", **HUNDRED)
    spec = f"mosaics:{pictures},classes=16,train=40,validation=10,test=10"
    origin = Origin(KINDS["mosaics"], spec, KINDS["mosaics"].title)
    data = open_origin(origin)
    cell = Cell("resnet20", "mosaics", "residual")
    (job,) = make_jobs([cell], origin, data, Protocol(epochs=1), [0], tmp_path / "runs", True)
    arrays = Arrays(tmp_path / "arrays", data).write(data, preprocessing_of(job.config, data))
    record = finish(job, arrays)
    assert len(record["last"]["test_accuracy_by_head"]) == len(load_model(job.network).heads) == 16
    points_where_it_says(load_model(job.network), data.test, record["map"])
    drawn = draw_figure("figure7", [job], data, tmp_path / "figure7.png")
    # Four mosaics at 120 dots an inch, each with two lines of eight maps of 1.35 inches below a title of 0.32.
    with Image.open(drawn) as picture:
        assert picture.format == "PNG"
        width, height = picture.size
    assert (width, height) == (round(120 * (0.2 + 9 * 1.45)), round(120 * (0.62 + 4 * (2 * 1.81 + 0.14))))
    for number in range(4):
        top = round(120 * (0.32 + 0.22 + number * (2 * 1.81 + 0.14)))
        first, second = (panels_at(drawn, top + below, 160) for below in (1, 1 + round(120 * 1.81)))
        assert (len(first), len(second)) == (9, 8)
        assert {right - left for left, right in first + second} <= {161, 162, 163}
        assert second == first[1:]
        # The mosaic's four quarters in the first panel are those of the test picture.
        wanted = np.asarray(data.test[number].image).astype(float)
        found = shown_at(drawn, top, first[0], 162)
        for rows, columns in ((0, 0), (0, 1), (1, 0), (1, 1)):
            quarter = wanted[32 * rows : 32 * rows + 32, 32 * columns : 32 * columns + 32]
            part = found[78 * rows : 78 * rows + 78, 78 * columns : 78 * columns + 78]
            assert abs(part.mean() - quarter.mean()) < 4
        # No map is a blank: with its own extremes stretched it covers some of the picture and leaves some of it.
        assert all(shown_at(drawn, top, one, 162).std() > 5 for one in first)
