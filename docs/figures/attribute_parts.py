"""Draw lnets-anet.png and panda.png, pictures of facial-attributes.md, on drawn faces.

python benchmarks/localise.py --systems lnets-anet --runs runs/localise
python docs/figures/attribute_parts.py runs/localise/lnets-anet-0

The argument is a saved LNets+ANet; PANDA's points are learned here, in seconds.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import attention_branch as ab
from attention_branch.models.facial.crops import cut

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from drawn_faces import SIDE, drawn_faces  # noqa: E402
from localise import learned_points  # noqa: E402

SHOWN = 6
TRUE, UPPER, FACE = "white", "tab:orange", "tab:cyan"


def outline(axes: Axes, box: Any, colour: str, **style: Any) -> None:
    """Draw a box given in shares of the picture."""
    x0, y0, x1, y1 = (float(value) * SIDE - 0.5 for value in box)
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, **{"linewidth": 1.5, **style}))


def grid(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """Return a figure of small axes without ticks."""
    figure = Figure(figsize=(1.5 * columns, 1.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.set_xticks([])
        one.set_yticks([])
    return figure, axes


def shown(model: Any, batch: torch.Tensor) -> list[np.ndarray]:
    """Return normalised images (N, 3, H, W) as pictures (H, W, 3)."""
    return list(model.preprocessing.denormalize(batch).permute(0, 2, 3, 1).numpy())


def lnets(model: Any, images: torch.Tensor, boxes: np.ndarray) -> Figure:
    """Draw the picture with both boxes, LNet_o's response, and what ANet sees."""
    found = model.localise(images)
    side = model.backbone.anet.side
    faces = cut(images, found.faces[:, None], (side, side))[:, 0]
    figure, axes = grid(3, SHOWN)
    for column, (picture, face) in enumerate(zip(shown(model, images), shown(model, faces), strict=True)):
        axes[0, column].imshow(picture)
        outline(axes[0, column], boxes[column] / SIDE, TRUE, linestyle=":")
        outline(axes[0, column], found.head_shoulders[column], UPPER)
        outline(axes[0, column], found.faces[column], FACE)
        axes[1, column].imshow(
            found.response[column].numpy(), cmap="viridis", extent=(-0.5, SIDE - 0.5, SIDE - 0.5, -0.5)
        )
        outline(axes[1, column], boxes[column] / SIDE, TRUE, linestyle=":")
        axes[2, column].imshow(face)
    for row, label in enumerate(("boxes", "LNet_o's response", "what ANet sees")):
        axes[row, 0].set_ylabel(label, fontsize=8)
    return figure


def panda(model: Any, images: torch.Tensor, points: np.ndarray) -> Figure:
    """Draw the found points beside the true ones and some parts' boxes, then those parts as the networks see them."""
    with torch.no_grad():
        boxes, _ = model.localise(images)
        found = model.backbone.points(images).numpy() * SIDE - 0.5
        side = model.backbone.parts.side
        patches = cut(images, boxes, (side, side))
    names = ("eyes and brows", "nose", "mouth", "hair")
    figure, axes = grid(len(names) + 1, SHOWN)
    colours = dict(zip(names, ("tab:cyan", "tab:orange", "tab:red", "tab:green"), strict=True))
    for column, picture in enumerate(shown(model, images)):
        axes[0, column].imshow(picture)
        axes[0, column].set(xlim=(-0.5, SIDE - 0.5), ylim=(SIDE - 0.5, -0.5))
        axes[0, column].plot(*points[column].T, "o", color=TRUE, markersize=3, markerfacecolor="none")
        axes[0, column].plot(*found[column].T, "+", color="yellow", markersize=5)
        for row, name in enumerate(names, 1):
            part = model.part_names.index(name)
            outline(axes[0, column], boxes[column, part], colours[name], linewidth=1)
            axes[row, column].imshow(shown(model, patches[column, part : part + 1])[0])
    for row, label in enumerate(("points and parts", *names)):
        axes[row, 0].set_ylabel(label, fontsize=8, color=colours.get(label, "black"))
    return figure


def main() -> None:
    """Write both pictures into docs/pictures."""
    data = drawn_faces(0, {"test": SHOWN})
    assert data.test is not None
    source: Any = data.test.source
    model = ab.load_model(sys.argv[1])
    images = torch.stack([model.preprocessing.tensor(data.test.image(number)) for number in range(SHOWN)])
    figures = {"lnets-anet": lnets(model, images, source.boxes)}
    with tempfile.TemporaryDirectory() as folder:
        model, _ = learned_points(0, Path(folder))
    images = torch.stack([model.preprocessing.tensor(data.test.image(number)) for number in range(SHOWN)])
    figures["panda"] = panda(model, images, np.stack([source.points(row) for row in range(SHOWN)]))
    for name, figure in figures.items():
        figure.savefig(ROOT / "docs" / "pictures" / f"{name}.png", dpi=95)


if __name__ == "__main__":
    main()
