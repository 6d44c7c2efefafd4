"""Draw what guided augmentation does: crop, drop and cutmix of a run's validation images, one strip below another.

abn train digits:train=14000 --recipe digits --guided crop --out runs/guided
python benchmarks/guided_picture.py runs/guided docs/pictures/guided.png
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image

from attention_branch.data import open_data
from attention_branch.models import load_model
from attention_branch.report.guided_strip import guided_strip
from attention_branch.training.arguments import read_run
from attention_branch.training.guided import CHANGES, Guide

TITLES = {
    "crop": "crop: the attended box fills the image",
    "drop": "drop: the attended box is erased",
    "cutmix": "cutmix: the attended box of the image to the left is pasted; below: what remains of the own label",
}


def main() -> None:
    """Draw the three strips on one sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("picture")
    parser.add_argument("--images", type=int, default=6)
    options = parser.parse_args()
    model, settings = load_model(options.run), read_run(options.run)["settings"]
    images = open_data(settings["data"], seed=settings["seed"]).validation
    assert images is not None
    batch = torch.stack([model.preprocessing.tensor(images[row].image) for row in range(options.images)])
    strips = []
    for change in CHANGES:
        found = Guide(model, change, threshold=settings["guided_threshold"]).changed(batch)
        plain, changed = model.preprocessing.denormalize(batch), model.preprocessing.denormalize(found.images)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "strip.png"
            guided_strip(plain, found.maps, found.boxes, changed, path, share=found.share, title=TITLES[change])
            strips.append(Image.open(path).convert("RGB"))
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    Path(options.picture).parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.NONE).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
