"""Draw docs/pictures/export.png: the map of an exported file of the digits in 32-bit floats and in 8 bits.

python benchmarks/export_picture.py RUN TARGET    # RUN: abn train digits
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import attention_branch as ab
from attention_branch.arrays import softmax
from attention_branch.data import open_data
from attention_branch.explanations.canvas import INK, QUIET, rendered, sheet
from attention_branch.explanations.onnx_methods import explain_onnx
from attention_branch.explanations.overlay import overlay
from attention_branch.onnx_model import OnnxModel

COUNT = 5


def main(run: str, target: str) -> None:
    """Export the run twice and draw both on the same digits."""
    images = open_data("digits").test
    assert images is not None
    pictures = [images.image(index * len(images) // COUNT + 7) for index in range(COUNT)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("32", "int8"):
            path = ab.export(run, Path(folder) / f"{precision}.onnx", precision=precision).path
            model = OnnxModel.load(path)
            batch = np.stack([model.preprocessing.array(picture) for picture in pictures])
            rows.append((f"float{precision}" if precision == "32" else precision, explain_onnx(model, batch)))
    side, left, top = 1.35, 0.75, 0.1
    width, height = left + COUNT * (side + 0.08), top + 2 * (side + 0.3)
    with sheet(width, height) as drawing:
        for row, (name, found) in enumerate(rows):
            bottom = height - top - (row + 1) * side - row * 0.3
            drawing.text(0.1 / width, (bottom + side / 2) / height, name, fontsize=9.5, color=INK, va="center")
            for column, picture in enumerate(pictures):
                x = left + column * (side + 0.08)
                axes = drawing.add_axes((x / width, bottom / height, side / width, side / height))
                axes.imshow(np.asarray(overlay(picture, found.maps[column])), interpolation="bilinear", aspect="auto")
                axes.set_axis_off()
                shares = softmax(found.logits)[column]
                answer = f"answer {shares.argmax()}, {100 * shares.max():.0f} %"
                drawing.text(x / width, (bottom - 0.05) / height, answer, fontsize=7.5, color=QUIET, va="top")
        rendered(drawing, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
