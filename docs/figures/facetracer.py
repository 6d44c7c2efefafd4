"""Draw facetracer.png, the picture of facial-attributes.md: FaceTracer on drawn faces.

python docs/figures/facetracer.py
"""

import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

import attention_branch as ab
from attention_branch.training import TrainConfig, train

SIZE = (109, 89)
HEADS = ("glasses", "moustache", "dark hair")
COUNT = 400


def drawn(random: np.random.Generator, glasses: bool, moustache: bool, dark: bool) -> Image.Image:
    """Return a drawn face in the proportions of CelebA's aligned pictures, at twice the size and then made smaller."""
    picture = Image.new("RGB", (178, 218), tuple(random.integers(60, 200, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    tone = int(random.integers(-40, 30))
    hair = tuple((np.array([50, 36, 28]) if dark else np.array([205, 170, 95])) + random.integers(-20, 21, 3))
    draw.ellipse((24, 22, 154, 190), fill=tuple(int(c) for c in hair))
    draw.ellipse((38, 52, 138, 200), fill=(215 + tone, 172 + tone, 142 + tone))
    ink = tuple(random.integers(0, 60, 3).tolist())
    for x in (69, 108):
        draw.line((x - 12, 98, x + 12, 97), fill=tuple(int(c) for c in hair), width=4)
        draw.ellipse((x - 8, 107, x + 8, 116), fill=(245, 245, 245))
        draw.ellipse((x - 4, 107, x + 4, 116), fill=ink)
        if glasses:
            draw.ellipse((x - 18, 98, x + 18, 126), outline=ink, width=4)
    if glasses:
        draw.line((84, 110, 92, 110), fill=ink, width=4)
    draw.line((90, 114, 84, 138, 94, 138), fill=(165 + tone, 122 + tone, 98 + tone), width=3)
    if moustache:
        draw.polygon(((66, 150), (88, 140), (110, 150), (104, 151), (88, 147), (72, 151)), fill=tuple(map(int, hair)))
    draw.arc((70, 142, 106, 164), 20, 160, fill=(160, 60, 60), width=4)
    small = np.asarray(picture.resize((SIZE[1], SIZE[0]), Image.Resampling.LANCZOS)).astype(int)
    return Image.fromarray((small + random.integers(-8, 9, small.shape)).clip(0, 255).astype(np.uint8))


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
    face = drawn(np.random.default_rng(7), True, True, True)
    images = model.preprocessing.tensor(face)[None]
    figure = Figure(figsize=(11, 3.9), facecolor="white")
    axes = figure.subplots(1, 1 + len(HEADS))
    axes[0].imshow(face, extent=(0, SIZE[1], SIZE[0], 0))
    axes[0].set_title("the regions", fontsize=10)
    colors = matplotlib.colormaps["tab10"]
    boxes = model.backbone.boxes(*SIZE).tolist()
    for number, (name, (x0, y0, x1, y1)) in enumerate(zip(model.backbone.regions, boxes, strict=True)):
        if name != "picture":
            axes[0].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colors(number % 10), lw=1.2))
            axes[0].text(x0 + 1, y0 + 1, name, color=colors(number % 10), fontsize=6, va="top")
    for place, head in enumerate(HEADS, 1):
        explanation = ab.explain(model, images, method="occlusion", target={head: 1})
        answer = torch.softmax(model(images)[head], 1)[0, 1].item()
        values = explanation.maps[0]
        axes[place].imshow(face, extent=(0, SIZE[1], SIZE[0], 0))
        axes[place].imshow(values, extent=(0, SIZE[1], SIZE[0], 0), cmap="inferno", alpha=0.55)
        reads = "\n".join(" ".join(what) for what in model.reads(list(model.heads).index(head))[:2])
        axes[place].set_title(f"{head}: yes {answer:.0%}", fontsize=10)
        axes[place].set_xlabel(f"reads first\n{reads}", fontsize=7)
    for one in axes:
        one.set_xticks([])
        one.set_yticks([])
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[1] / "pictures" / "facetracer.png", dpi=100)


if __name__ == "__main__":
    main()
