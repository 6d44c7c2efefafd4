"""`explain`, the one call for every kind of map, and the frozen `Explanation` it returns."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.figure import figure
from attention_branch.explanations.methods import METHODS, Request
from attention_branch.explanations.outputs import (
    checked_images,
    device_of,
    eager,
    evaluating,
    preprocessing_of,
    unwrapped,
)
from attention_branch.explanations.overlay import overlay, to_picture
from attention_branch.explanations.resizing import upsample
from attention_branch.explanations.targets import Target, head_class_names, head_logits, predicted
from attention_branch.files import atomic_folder


@dataclass(frozen=True, eq=False)
class Explanation:
    """Maps of a batch of N images and all that is needed to read them. Nothing in it is scaled per image.

    `maps` (N, H, W) float at the input's size, bilinear; `raw` (N, h, w) as the method gives it; `target` (N,) int64,
    or None where the map does not depend on a class; `layer` says where the map comes from; `logits` (N, K), or per
    head, and `attention_logits` likewise where there is an attention branch; `images` (N, 3, H, W) in [0, 1];
    `value_range` is the scale the method defines, None for unbounded values; `filters` (N,) int64 is the number of the
    filter each map is of, where it is a single filter's.
    """

    maps: Tensor
    raw: Tensor
    target: Tensor | None
    method: str
    layer: str
    logits: Tensor | Mapping[str, Tensor]
    images: Tensor
    value_range: tuple[float, float] | None = (0.0, 1.0)
    head: str | None = None
    class_names: Sequence[str] | None = None
    attention_logits: Tensor | Mapping[str, Tensor] | None = None
    filters: Tensor | None = None

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
        if not isinstance(self.logits, Tensor) and self.head is None:
            return kind
        logits = head_logits(self.logits, self.head)[index : index + 1].float()
        best = int(predicted(logits))
        both = logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)
        return f"{kind}; answer '{self._class_name(best)}', {100 * both.softmax(1)[0, best].item():.1f} %"

    def _class_name(self, index: int) -> str:
        return self.class_names[index] if self.class_names else str(index)


def explain(
    model: nn.Module | Callable[[Tensor], Any],
    images: Tensor | Image.Image | Sequence[Image.Image],
    method: str = "attention",
    target: Target = None,
    *,
    layer: str | nn.Module = "auto",
    seed: int = 0,
) -> Explanation:
    """Explain a batch of normalised images (N, 3, H, W), or pictures that the model's preprocessing makes so.

    Any classifier will do: one of ours, timm's, torchvision's, a module or a function that returns a tensor, tuple
    or dict. Methods: "attention" (the network's own map M; class-agnostic) and "attention-class" (its branch's evidence
    for a class), for networks with an attention branch; "cam", "grad-cam", "grad-cam++", "hires-cam", "layer-cam" (read
    a `layer`); "filters" (the one filter of a `layer` that adds most to the class's score); "rollout" (vision
    transformers; class-agnostic); "integrated-gradients" and "occlusion" (need captum); the controls "random" (from
    `seed`), "center" (Gaussian, sigma 0.25 of the side) and "constant".
    `target`: None is the prediction; an index, a class name, one of these per image, a callable from logits to indices;
    with several heads a head's name or {head: class}. Several classes of one image give as many maps from one forward
    pass. `layer`: a module's name or the module; "auto" chooses, and `Explanation.layer` says what and why.
    The model is run in eval mode, once, eagerly, and left as it was: no hook, gradient or other state stays.
    Raises `UserError` for an unknown method, class, head or layer, and where the model has no such map.
    """
    compute = METHODS.get(method) if isinstance(method, str) else None
    if compute is None:
        hint = did_you_mean(str(method), METHODS)
        raise UserError(f"Unknown method '{method}'.{hint} Methods: {', '.join(METHODS)}.")
    network = unwrapped(model)
    # A caller's inference mode or no_grad must not reach the graph that some methods need.
    with torch.inference_mode(False), eager(), evaluating(network, warn=True):
        batch = as_batch(network, images)
        result = compute(Request(network, batch, target, layer, seed))
    raw = result.raw.float() if result.raw.dtype in (torch.float16, torch.bfloat16) else result.raw
    if not torch.isfinite(raw).all():
        raise UserError(
            f"'{method}' yields NaN or infinite values for this network: its activations or scores overflow."
        )
    return Explanation(
        maps=upsample(raw, batch.shape[-2], batch.shape[-1]),
        raw=raw,
        target=result.target,
        method=method,
        layer=result.layer,
        logits=_for_each(result.logits, len(raw)),
        images=denormalized(network, batch).expand(len(raw), -1, -1, -1),
        value_range=result.value_range,
        head=result.head,
        class_names=head_class_names(network, result.head),
        attention_logits=_for_each(result.attention_logits, len(raw)),
        filters=result.filters,
    )


def _for_each(scores: Any, count: int) -> Any:
    """Repeat one image's scores (1, K) for each of its maps."""
    if isinstance(scores, Mapping):
        return {name: _for_each(part, count) for name, part in scores.items()}
    return scores.expand(count, -1) if isinstance(scores, Tensor) and len(scores) != count else scores


def as_batch(model: nn.Module, images: Tensor | Image.Image | Sequence[Image.Image]) -> Tensor:
    """Return images as a normalised batch (N, 3, H, W) on the model's device; `UserError` for what is no image."""
    if not isinstance(images, Tensor):
        pictures = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        if not all(isinstance(picture, Image.Image) for picture in pictures) or not pictures:
            raise UserError("images must be a normalised float tensor (N, 3, H, W), or pictures opened with Pillow.")
        preprocessing = preprocessing_of(model)
        if preprocessing is None:
            raise UserError(
                "This network does not say how pictures are prepared for it (only networks of this package do); "
                "give a normalised float tensor (N, 3, H, W)."
            )
        images = torch.stack([preprocessing.tensor(picture.convert("RGB")) for picture in pictures])
        images = images.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype))
    images = checked_images(images)
    if len(images) == 0:
        raise UserError("There is no image to explain; give one or more.")
    device = device_of(model)
    batch = images if device is None else images.to(device)
    # What was made in inference mode cannot be part of a graph.
    return batch.clone() if batch.is_inference() else batch


def denormalized(model: nn.Module, batch: Tensor) -> Tensor:
    """Return a batch as pictures in [0, 1], by the model's preprocessing or stretched where it has none."""
    preprocessing = preprocessing_of(model)
    if preprocessing is not None and batch.shape[1] == 3:
        return preprocessing.denormalize(batch.float())
    low, high = batch.float().amin((1, 2, 3), keepdim=True), batch.float().amax((1, 2, 3), keepdim=True)
    return (batch.float() - low) / (high - low).clamp_min(1e-12)
