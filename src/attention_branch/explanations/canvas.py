"""A white sheet to draw panels and words on, and the picture that is made of it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from attention_branch.files import atomic_path

INK, QUIET = "#1c2430", "#5d6876"
"""Colours of words: those to read, and those beside them."""

_DPI = 120


@contextmanager
def sheet(width: float, height: float, font_size: float = 8.5) -> Iterator[Figure]:
    """Give an empty white figure of so many inches; inside, every word is in the package's font.

    It is drawn without a window system and touches none of matplotlib's global state.
    """
    drawing = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(drawing)
    family = "DejaVu Sans"
    with matplotlib.rc_context({"font.family": "sans-serif", "font.sans-serif": [family], "font.size": font_size}):
        yield drawing


def rendered(drawing: Figure, path: str | Path | None = None) -> Image.Image:
    """Return the figure as an RGB picture; with `path` also write it as a PNG, whole or not at all."""
    written = io.BytesIO()
    drawing.savefig(written, format="png", dpi=_DPI)
    if path is not None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(written.getvalue())
    written.seek(0)
    with Image.open(written) as drawn:
        return drawn.convert("RGB")


def shortened(text: str, letters: int) -> str:
    """Return a text that fits into so many letters, with an ellipsis where it is cut."""
    return text if len(text) <= letters else text[: letters - 1] + "…"
