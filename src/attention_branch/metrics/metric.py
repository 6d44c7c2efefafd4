"""What every metric shares: update with a model, images and maps; compute a mean that says how it was measured."""

import copy
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.outputs import checked_images, device_of, predict, probabilities, unwrapped
from attention_branch.explanations.targets import Target, choose_head, head_class_names, head_logits, resolve_target
from attention_branch.metrics.statistics import (
    RESAMPLES,
    SHARE_INTERVAL,
    MetricResult,
    bootstrap_interval,
    share_interval,
)

Regions = Tensor | np.ndarray | Sequence[Tensor | np.ndarray | None]


class Metric(ABC):
    """A number for maps, collected over batches: `update`, `compute`, `reset`; `gather` brings processes together.

    `update(model, images, maps, target=None, regions=None)` takes a model, which may be a function, normalised images
    (N, 3, H, W) and maps (N, H, W) of the same size, from `explain`, another library or a .npy file (its path);
    `target` as in `explain` (None: the model's prediction on the clean image); `regions` are the objects' masks where a
    metric needs them. It returns the value of each image, (N,) float64, NaN for one left out. Raises `UserError` for
    maps of another size or with NaN, a model in training mode, a target the model does not know.
    """

    name: ClassVar[str]
    """What the metric is called in tables."""
    higher_is_better: ClassVar[bool | None]
    """None for a description that has no better or worse."""
    needs_regions: ClassVar[bool] = False
    hits: bool = False
    """Whether each value is a hit, 1, or none, 0, so that the mean is a share."""

    def __init__(self, *, batch_size: int = 64, seed: int = 0) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; give the number of images in one forward pass, 1 or more.")
        self.batch_size = batch_size
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._values: list[Tensor] = []
        self._counts: dict[str, int] = {}
        self._digests: list[str] = []

    def update(
        self,
        model: nn.Module | Callable[[Tensor], Any] | None,
        images: Tensor | None,
        maps: Tensor | np.ndarray | str | Path,
        target: Target = None,
        regions: Regions | None = None,
    ) -> Tensor:
        """Add a batch; return the value of each image (N,) float64, NaN for one that was left out."""
        maps = checked_maps(maps, images)
        if self.needs_regions and regions is None:
            raise UserError(f"'{self.name}' needs the objects' places: give regions, one mask per image.")
        if regions is not None and not isinstance(regions, (Tensor, np.ndarray, Sequence)):
            raise UserError(
                f"regions is of type {type(regions).__name__}; give masks (N, H, W), or a list of one (H, W) per image."
            )
        if regions is not None and len(regions) != len(maps):
            raise UserError(f"There are {len(maps)} maps and {len(regions)} regions; give one region per map.")
        model = model if model is None or isinstance(model, nn.Module) else unwrapped(model)
        if model is not None and unwrapped(model).training:
            raise UserError("The model is in training mode, in which no score repeats; call model.eval() first.")
        if model is not None and images is not None:
            device = device_of(model)
            images = images.detach() if device is None else images.detach().to(device)
            maps = maps.to(images.device)
        with torch.no_grad():
            values = self._measure(model, images, maps, target, regions)
        self._values.append(values.detach().double().cpu())
        if images is not None:
            self._digests += [image_digest(image) for image in images.detach().float().cpu()]
        return values[:, 0] if values.ndim == 2 else values

    def compute(self) -> MetricResult:
        """Return the mean over the images, its bootstrap interval, the value of each image, counts and protocol."""
        values = torch.cat(self._values) if self._values else torch.zeros(0, dtype=torch.float64)
        measured = values[~values.isnan()] if values.ndim == 1 else values[~values.isnan().any(1)]
        per_image = values if values.ndim == 1 else values[:, 0]
        return MetricResult(
            mean=self._mean(measured.numpy()) if len(measured) else math.nan,
            interval=self._interval(measured.numpy()) if len(measured) else None,
            n=len(measured),
            values=per_image,
            protocol=self._full_protocol(),
            counts=dict(self._counts),
            details=self._details(),
        )

    def gather(self) -> "Metric":
        """Return a metric that holds the images of all processes (torch.distributed), in the order of their ranks.

        Without a process group it is a copy of this one.
        """
        together = copy.copy(self)
        state: list[Any] = [self.state()]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            state = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(state, self.state())
        together.reset()
        for part in state:
            together.merge(part)
        return together

    def state(self) -> dict[str, Any]:
        """Return what was collected, as plain values and tensors: for another process, or a file, to be merged."""
        return {
            "values": list(self._values),
            "counts": dict(self._counts),
            "digests": list(self._digests),
            "protocol": self._kind(),
        }

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one collected after this one: a `state()`. `UserError` for one of another protocol."""
        if state["protocol"] != self._kind():
            raise UserError(f"The state is not one of '{self.name}' by the same protocol, so it cannot be merged.")
        self._values += state["values"]
        self._digests += state["digests"]
        for name, count in state["counts"].items():
            self._count(name, count)

    # --- for the metrics themselves ---

    @abstractmethod
    def _measure(
        self,
        model: nn.Module | None,
        images: Tensor | None,
        maps: Tensor,
        target: Target,
        regions: Regions | None,
    ) -> Tensor:
        """Return (N,) values, or (N, k) whose first column is the value per image and the others what `_mean` needs."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return all that two numbers must share to be compared."""

    def _kind(self) -> str:
        """Return what two states must share to be merged: the protocol before there is an image."""
        empty = copy.copy(self)
        empty.reset()
        return json.dumps({"metric": empty.name, **empty.protocol()}, sort_keys=True, default=str)

    def _mean(self, values: np.ndarray) -> float:
        return float(values.mean())

    def _interval(self, values: np.ndarray) -> tuple[float, float] | None:
        return share_interval(values, self.seed) if self.hits else bootstrap_interval(values, self.seed)

    def _details(self) -> dict[str, Any]:
        return {}

    def _count(self, name: str, number: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + int(number)

    def _full_protocol(self) -> dict[str, Any]:
        own = {"metric": self.name, **self.protocol()}
        own["interval"] = f"bootstrap over images, 95 %, {RESAMPLES} resamples, percentile, seed {self.seed}"
        own["interval"] += SHARE_INTERVAL if self.hits else ""
        if self._digests:
            own["images_sha256"] = subset_digest(self._digests)
        return own


PIXELS_PER_THREAD = 6 * 224 * 224
"""Pixels that go through a model together for each thread of a CPU; see `at_once`."""


def at_once(images: Tensor, limit: int) -> int:
    """Return how many of the images (N, 3, H, W) go through a model together: `limit`, on a CPU often fewer.

    There larger batches are slower, because their activations leave the caches and their memory is asked for anew each
    time: of 224x224, 64 at once took ResNet-50 about twice as long as 12 on two threads. Small images still share one.
    """
    if images.device.type != "cpu":
        return limit
    pixels = images.shape[-2] * images.shape[-1]
    return max(1, min(limit, torch.get_num_threads() * PIXELS_PER_THREAD // pixels))


class Scorer:
    """A model's probability of chosen classes, `batch_size` images at most at once, whatever the model returns."""

    def __init__(self, model: nn.Module | None, images: Tensor | None, target: Target, batch_size: int) -> None:
        if model is None or images is None:
            raise UserError("This metric asks the model: give the model and its normalised images (N, 3, H, W).")
        self.model, self.target, self.batch_size = model, target, batch_size
        self.at_once = at_once(images, batch_size)
        """How many images it is quickest to score together."""
        inner = unwrapped(model)
        parts = [predict(model, part) for part in images.split(self.at_once)]
        heads = parts[0] if not isinstance(parts[0], Tensor) else None
        self.head, wanted = choose_head(inner, target, heads)
        logits = torch.cat([head_logits(part, self.head) for part in parts])
        self.classes = resolve_target(logits, wanted, head_class_names(inner, self.head))
        """(N,) int64: the class whose probability is followed."""
        self.clean = probabilities(logits)
        """(N, K): the probabilities on the clean images."""

    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return the probability (M,) of one class (M,) int64 for each of M images."""
        parts = [
            probabilities(head_logits(predict(self.model, part), self.head)) for part in images.split(self.at_once)
        ]
        return torch.cat(parts).gather(1, classes[:, None])[:, 0]

    @property
    def clean_scores(self) -> Tensor:
        """(N,): the probability of each image's class on the clean image."""
        return self.clean.gather(1, self.classes[:, None])[:, 0]


def checked_maps(maps: Tensor | np.ndarray | str | Path, images: Tensor | None) -> Tensor:
    """Return maps as a tensor (N, H, W); `UserError` for another shape, another size than the images', or NaN."""
    if isinstance(maps, (str, Path)):
        try:
            maps = np.load(maps, allow_pickle=False)
        except (OSError, ValueError, EOFError, BadZipFile) as problem:
            raise UserError(f"The maps '{maps}' cannot be read ({problem}); give a .npy file.") from problem
    if not isinstance(maps, (Tensor, np.ndarray)):
        raise UserError(
            f"Maps are a tensor or an array (N, H, W), or a .npy file's path; this is a {type(maps).__name__}."
        )
    values = as_tensor(maps, "A map")
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise UserError(f"Maps have shape (N, h, w); these have {tuple(values.shape)}.")
    values = values if values.is_floating_point() else values.float()
    # Half precision would round neighbouring values together and make ties.
    values = values if values.dtype == torch.float64 else values.float()
    if images is not None:
        images = checked_images(images)
        if len(images) != len(values):
            raise UserError(f"There are {len(images)} images and {len(values)} maps; give one map per image.")
        if images.shape[-2:] != values.shape[-2:]:
            raise UserError(
                f"Maps of {values.shape[-2]}x{values.shape[-1]} for images of {images.shape[-2]}x{images.shape[-1]}: "
                "give maps at the images' size (Explanation.maps; attention_branch.explanations.upsample resizes)."
            )
    if not torch.isfinite(values).all():
        bad = (~torch.isfinite(values).flatten(1).all(1)).nonzero()[0].item()
        raise UserError(f"The maps hold NaN or infinite values (first in map {bad}), so they rank no places.")
    return values


def as_tensor(values: Any, what: str) -> Tensor:
    """Return an array or tensor as a tensor, whatever its strides and byte order; `UserError` for what is no array."""
    if isinstance(values, Tensor):
        if not values.is_complex():
            return values.detach()
    elif isinstance(values, (np.ndarray, list, tuple)):
        try:
            array = np.asarray(values)
        except ValueError:
            array = np.zeros(0, dtype=object)
        if array.dtype.kind in "biu" or (array.dtype.kind == "f" and array.dtype.itemsize <= 8):
            # A copy: torch knows no negative strides (a flipped image) and no foreign byte order.
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True, order="C"))
    raise UserError(
        f"{what} is an array of real numbers; this is a {type(values).__name__}: {' '.join(repr(values).split())[:60]}."
    )


def subset_digest(digests: Sequence[str]) -> str:
    """Return the SHA-256 that stands for images in their order, from the digest of each."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def image_digest(image: Tensor) -> str:
    """Return the SHA-256 of an image's values (C, H, W)."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
