"""Draw network.svg, the figure of how-it-works.md.

python docs/figures/network.py
"""

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, QUIET = "#1c2430", "#5d6876"
BACKBONE, BRANCH, PLAIN = "#dfe9f5", "#fbe3cf", "#ffffff"


def main() -> None:
    """Write network.svg beside this file."""
    matplotlib.rcParams |= {"svg.hashsalt": "network", "font.family": "DejaVu Sans"}
    figure = Figure(figsize=(11.2, 4.5), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 112)
    axes.set_ylim(0, 45)
    axes.set_axis_off()

    def box(x: float, y: float, width: float, height: float, title: str, text: str, color: str) -> None:
        axes.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=1", fc=color, ec=INK, lw=1)
        )
        lines = text.count("\n") + 1 if text else 0
        axes.text(
            x + width / 2, y + height / 2 + 1.15 * lines, title, ha="center", va="center", fontsize=9.5, color=INK
        )
        if text:
            axes.text(x + width / 2, y + height / 2 - 1.1, text, ha="center", va="center", fontsize=7.8, color=QUIET)

    def arrow(*points: tuple[float, float]) -> None:
        for begin, end in pairwise(points[:-1]):
            axes.plot((begin[0], end[0]), (begin[1], end[1]), color=INK, lw=1.2, solid_capstyle="round")
        axes.add_patch(
            FancyArrowPatch(
                points[-2], points[-1], arrowstyle="-|>", mutation_scale=11, color=INK, lw=1.2, shrinkA=0, shrinkB=0
            )
        )

    def label(x: float, y: float, text: str, **how: str) -> None:
        axes.text(x, y, text, fontsize=8.6, **{"ha": "center", "va": "center", "color": INK} | how)

    axes.add_patch(
        FancyBboxPatch(
            (32, 20.5), 61.5, 21.5, boxstyle="round,pad=0,rounding_size=1.2", fc="#fdf6ee", ec=BRANCH, lw=1.5
        )
    )
    label(33.5, 40.1, "attention branch", ha="left")
    box(34, 28, 15, 9, "stage", "the last stage again,\nwithout its strides", BRANCH)
    box(54, 28, 14.5, 9, "activations A", "BN, 1x1 conv to K,\nBN, ReLU", BRANCH)
    box(74, 32.6, 18, 7, "class scores", "mean, linear K to K", BRANCH)
    box(74, 22.6, 18, 7, "map M", "3x3 conv to 1, BN, sigmoid", BRANCH)
    arrow((49, 32.5), (54, 32.5))
    arrow((68.5, 34), (71, 34), (71, 36.1), (74, 36.1))
    arrow((68.5, 31), (71, 31), (71, 26.1), (74, 26.1))
    arrow((92, 36.1), (98, 36.1))
    label(98.7, 36.1, "attention logits\n(N, K)", ha="left")
    arrow((92, 26.1), (98, 26.1))
    label(98.7, 26.1, "attention (N, 1, h, w)\nin [0, 1]", ha="left")

    label(5.5, 11, "images\n(N, 3, H, W)")
    arrow((10.5, 11), (13, 11))
    box(13, 6.5, 13.5, 9, "feature extractor", "the backbone up to\nits last stage", BACKBONE)
    arrow((26.5, 11), (52, 11))
    label(36, 12.6, "features g(x)")
    arrow((29, 11), (29, 32.5), (34, 32.5))
    box(52, 6.5, 15, 9, "gate", "residual: g (1 + M)\nproduct: g M", PLAIN)
    arrow((83, 22.6), (83, 18.2), (59.5, 18.2), (59.5, 15.5))
    arrow((67, 11), (73, 11))
    box(73, 6.5, 19, 9, "perception branch", "the backbone's last stage\nand classifier", BACKBONE)
    arrow((92, 11), (98, 11))
    label(98.7, 11, "logits (N, K)\nthe prediction", ha="left")
    label(56, 2, "trained end to end with  L = cross-entropy(attention logits) + cross-entropy(logits)", color=QUIET)
    path = Path(__file__).with_name("network.svg")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
