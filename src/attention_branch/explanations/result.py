"""The frozen `Explanation` that `explain` returns: maps, answers, and how to draw them. It needs no torch."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from attention_branch.arrays import of_head, softmax
from attention_branch.errors import UserError
from attention_branch.explanations.figure import figure
from attention_branch.explanations.overlay import overlay, to_picture
from attention_branch.files import atomic_folder

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Explanation:
    """Maps of a batch of N images and all that is needed to read them. Nothing in it is scaled per image.

    `maps` (N, H, W) float at the input's size, bilinear; `raw` (N, h, w) as the method gives it; `target` (N,) int64,
    or None where the map does not depend on a class; `layer` says where the map comes from; `logits` (N, K), or per
    head, and `attention_logits` likewise where there is an attention branch; `images` (N, 3, H, W) in [0, 1];
    `value_range` is the scale the method defines, None for unbounded values; `filters` (N,) int64 is the number of the
    filter each map is of, where it is a single filter's. An ONNX file's has numpy arrays in the place of tensors.
    """

    maps: "Tensor"
    raw: "Tensor"
    target: "Tensor | None"
    method: str
    layer: str
    logits: "Tensor | Mapping[str, Tensor]"
    images: "Tensor"
    value_range: tuple[float, float] | None = (0.0, 1.0)
    head: str | None = None
    class_names: Sequence[str] | None = None
    attention_logits: "Tensor | Mapping[str, Tensor] | None" = None
    filters: "Tensor | None" = None

    def __len__(self) -> int:
        return len(self.maps)

    def __repr__(self) -> str:
        sizes = " from ".join("x".join(map(str, part.shape)) for part in (self.maps, self.raw))
        return f"Explanation({self.method!r}, {sizes}, {self.layer!r})"

    def overlay(self, index: int | None = None, *, stretch: bool = False) -> Image.Image | list[Image.Image]:
        """Return the image with its map on it: one picture for an index, the list of all without.

        The scale is the method's own, [0, 1] for attention. `stretch=True` spans each map from its minimum to its
        maximum instead, as is always done for unbounded values. `UserError` for an index out of range.
        """
        if index is None:
            return [self._overlay(position, stretch) for position in range(len(self))]
        return self._overlay(self._checked(index), stretch)

    def figure(self, index: int = 0, *, stretch: bool = False) -> Image.Image:
        """Return one picture: the image, the map on its scale with a colour bar, and the overlay."""
        return self._draw(self._checked(index), None, stretch)

    def write_figure(self, index: int, path: str | Path, *, stretch: bool = False) -> None:
        """Write the figure of one image as a PNG, whole or not at all."""
        self._draw(self._checked(index), Path(path), stretch)

    def show(self) -> None:
        """Show the figure of each image: inline in a notebook, otherwise in the system's viewer."""
        display = None
        if "IPython" in sys.modules:
            from IPython import display as notebook  # type: ignore[import-not-found, unused-ignore]
            from IPython import get_ipython

            display = notebook.display if get_ipython() is not None else None
        for index in range(len(self)):
            picture = self.figure(index)
            if display is not None:
                display(picture)
            else:
                picture.show()

    def save(self, path: str | Path) -> Path:
        """Write the figure of one image to a PNG, or of several to a folder of PNGs (0000.png, ...), all or nothing.

        Raises `UserError` when the disk refuses, when one image's path does not end in .png, or when several are to go
        into a folder that already holds other things.
        """
        path = Path(path)
        if len(self) == 1:
            if path.suffix.lower() != ".png":
                raise UserError(f"'{path}' does not end in .png; the figure of one image is written as a PNG file.")
            self.write_figure(0, path)
            return path
        if path.suffix.lower() == ".png" or path.is_file():
            raise UserError(f"'{path}' is a file's name, but {len(self)} images need a folder; drop the ending.")
        if path.exists() and any(path.iterdir()):
            raise UserError(f"The folder '{path}' is not empty; choose a new one for the {len(self)} figures.")
        digits = max(4, len(str(len(self) - 1)))
        with atomic_folder(path) as folder:
            for index in range(len(self)):
                self.write_figure(index, folder / f"{index:0{digits}d}.png")
        return path

    def _draw(self, index: int, path: Path | None, stretch: bool) -> Image.Image:
        return figure(
            to_picture(self.images[index]),
            self.maps[index],
            title=self._title(index),
            value_range=self.value_range,
            stretch=stretch,
            path=path,
        )

    def _overlay(self, index: int, stretch: bool) -> Image.Image:
        picture = to_picture(self.images[index])
        return overlay(picture, self.maps[index], value_range=self.value_range, stretch=stretch)

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise UserError(f"Image {index} is out of range: the explanation holds {len(self)}, 0 to {len(self) - 1}.")
        return index % len(self)

    def _title(self, index: int) -> str:
        head = f" of head '{self.head}'" if self.head is not None else ""
        if self.target is None:
            kind = f"{self.method}{head} (class-agnostic)"
        else:
            which = "" if self.filters is None else f" ({int(self.filters[index])})"
            kind = f"{self.method}{which}{head} for '{self._class_name(int(self.target[index]))}'"
        if isinstance(self.logits, Mapping) and self.head is None:
            return kind
        shares = softmax(of_head(self.logits, self.head)[index : index + 1])[0]
        best = int(shares.argmax())
        return f"{kind}; answer '{self._class_name(best)}', {100 * shares[best]:.1f} %"

    def _class_name(self, index: int) -> str:
        return self.class_names[index] if self.class_names else str(index)
