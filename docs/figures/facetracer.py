"""Draw facetracer.png, the picture of facial-attributes.md: FaceTracer on drawn faces.

python docs/figures/facetracer.py
"""

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
from PIL import Image, ImageChops, ImageDraw

import attention_branch as ab
from attention_branch.training import TrainConfig, train

SIZE = (109, 89)
HEADS = ("glasses", "moustache", "dark hair")
COUNT = 700


def drawn(random: np.random.Generator, glasses: bool, moustache: bool, dark: bool) -> Image.Image:
    """Return a drawn face in the proportions of CelebA's aligned pictures, at twice the size and then made smaller."""
    picture = Image.new("RGB", (178, 218), tuple(random.integers(60, 200, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    tone = int(random.integers(-40, 30))
    hair = tuple((np.array([60, 46, 38]) if dark else np.array([150, 118, 76])) + random.integers(-22, 23, 3))
    draw.ellipse((24, 22, 154, 190), fill=tuple(int(c) for c in hair))
    draw.ellipse((38, 52, 138, 200), fill=(215 + tone, 172 + tone, 142 + tone))
    ink = tuple(random.integers(0, 60, 3).tolist())
    frame = tuple(random.integers(30, 150, 3).tolist())
    for x in (69, 108):
        draw.line((x - 12, 98, x + 12, 97), fill=tuple(int(c) for c in hair), width=4)
        draw.ellipse((x - 8, 107, x + 8, 116), fill=(245, 245, 245))
        draw.ellipse((x - 4, 107, x + 4, 116), fill=ink)
        if glasses:
            draw.ellipse((x - 18, 98, x + 18, 126), outline=frame, width=3)
    if glasses:
        draw.line((84, 110, 92, 110), fill=frame, width=3)
    draw.line((90, 114, 84, 138, 94, 138), fill=(165 + tone, 122 + tone, 98 + tone), width=3)
    if moustache:
        draw.polygon(((66, 150), (88, 140), (110, 150), (104, 151), (88, 147), (72, 151)), fill=tuple(map(int, hair)))
    draw.arc((70, 142, 106, 164), 20, 160, fill=(160, 60, 60), width=4)
    moved = picture.rotate(
        float(random.uniform(-10, 10)), Image.Resampling.BILINEAR, fillcolor=picture.getpixel((0, 0))
    )
    shift = tuple(int(value) for value in random.integers(-8, 9, 2))
    moved = ImageChops.offset(moved, *shift)
    small = np.asarray(moved.resize((SIZE[1], SIZE[0]), Image.Resampling.LANCZOS)).astype(float)
    light = random.uniform(0.55, 1.1) * random.uniform(0.85, 1.15, 3)
    return Image.fromarray((small * light + random.normal(0, 16, small.shape)).clip(0, 255).astype(np.uint8))


def main() -> None:
    """Fit the system on drawn faces and write the picture into docs/pictures."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "faces"
        root.mkdir()
        lines = ["file_name,split," + ",".join(HEADS)]
        for number in range(COUNT):
            has = [bool(random.integers(2)) for _ in HEADS]
            drawn(random, *has).save(root / f"{number:03d}.png")
            split = ("train", "train", "train", "validation", "test")[number % 5]
            lines.append(f"{number:03d}.png,{split}," + ",".join("yes" if one else "no" for one in has))
        (root / "metadata.csv").write_text("\n".join(lines) + "\n")
        options = ("regions='face'", "features=4")
        config = TrainConfig(
            data=str(root), model="facetracer", image_size=SIZE, resize="squash", model_options=options,
            out=f"{temporary}/run", workers=0,
        )  # fmt: skip
        model = ab.load_model(train(config))
    face = drawn(np.random.default_rng(11), True, True, True)
    with torch.no_grad():
        answers = model(model.preprocessing.tensor(face)[None])
    figure = Figure(figsize=(11, 4.3), facecolor="white")
    axes = figure.subplots(1, 1 + len(HEADS))
    colors = dict(zip(model.backbone.regions, matplotlib.colormaps["tab20"].colors[::2] * 2, strict=False))
    boxes = dict(zip(model.backbone.regions, model.backbone.boxes(*SIZE).tolist(), strict=True))
    show(axes[0], face, [name for name in boxes if name != "picture"], boxes, colors)
    axes[0].set_title("the regions of a face", fontsize=10)
    for number, name in enumerate(name for name in boxes if name != "picture"):
        place = (0.02 + 0.34 * (number % 3), -0.05 - 0.06 * (number // 3))
        axes[0].text(*place, name, color=colors[name], fontsize=8, va="top", transform=axes[0].transAxes)
    for place, head in enumerate(HEADS, 1):
        reads = model.reads(place - 1)
        show(axes[place], face, [region for region, *_ in reads], boxes, colors)
        axes[place].set_title(f"{head}: {torch.softmax(answers[head], 1)[0, 1]:.0%}", fontsize=10)
        for row, (region, pixels, norm, aggregation) in enumerate(reads):
            text = f"{region}: {pixels}, {aggregation}" + (f", by {norm}" if norm != "none" else "")
            place_of = (0.0, -0.05 - 0.06 * row)
            axes[place].text(
                *place_of, text, color=colors[region], fontsize=7, va="top", transform=axes[place].transAxes
            )
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.25, wspace=0.06)
    path = Path(__file__).parents[1] / "pictures" / "facetracer.png"
    figure.savefig(path, dpi=110)
    Image.open(path).convert("RGB").quantize(255).save(path, optimize=True)


def show(
    axes: Axes, face: Image.Image, names: list[str], boxes: dict[str, list[float]], colors: dict[str, Any]
) -> None:
    """Draw a face with some regions outlined."""
    axes.imshow(face, extent=(0, SIZE[1], SIZE[0], 0), alpha=0.9, interpolation="bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    for number, name in enumerate(dict.fromkeys(names)):
        x0, y0, x1, y1 = boxes[name]
        inset = 0.5 * (number % 3)
        outline = Rectangle((x0 + inset, y0 + inset), x1 - x0 - 2 * inset, y1 - y0 - 2 * inset, fill=False, lw=2)
        outline.set_edgecolor(colors[name])
        axes.add_patch(outline)


if __name__ == "__main__":
    main()
