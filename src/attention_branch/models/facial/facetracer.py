"""FaceTracer: hand-made features of a face's regions, a few chosen for each attribute, and support vector machines.

Kumar, Belhumeur, Nayar, "FaceTracer: A Search Engine for Large Collections of Images with Faces", ECCV 2008. A feature
is a region with a type: what its pixels are turned into (RGB, HSV, intensity, magnitude or orientation of edges), how
that is normalised (not, by the mean, by mean and deviation) and how it is put together (the values, a histogram, mean
and deviation). For each attribute boosting chooses among all of them, and one classifier reads those it chose.

Ours: linear SVMs, where the paper's have an RBF kernel; the regions' places, the sizes of patches and histograms; on
faces, the whole picture as one more region. `training/facetracer.py` chooses and fits.
"""

import math
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.facial.attributes import AttributeNetwork, LinearScores, two_sided
from attention_branch.models.facial.regions import ALIGNED, FACE, face_boxes, grid_boxes, patches
from attention_branch.models.output import Scores
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.models.saving import ModelConfig

PIXELS = {"rgb": 3, "hsv": 3, "intensity": 1, "edge magnitude": 1, "edge orientation": 1}
"""What the pixels of a region are turned into, with its channels."""
NORMALISATIONS = ("none", "mean", "energy")
AGGREGATIONS = ("values", "histogram", "statistics")

CELLS = 16
"""A region becomes a patch of so many cells a side."""
VALUES = 8
"""Values a side that are kept of a patch as they are."""
BINS = 8

_RANGES = {"none": (0.0, 1.0), "mean": (0.0, 2.0), "energy": (-2.0, 2.0)}
"""First and last middle of a histogram's bins by normalisation; what lies beyond counts in the last."""
_DEFAULT_SIZE = (128, 128)
_OPTIONS = {"regions": "face", "grid": 3, "features": 6}


class RegionFeatures(nn.Module):
    """All features of all regions of pictures in [0, 1]; nothing in it is learned but where a face's points are."""

    points: Tensor

    def __init__(self, regions: str, grid: int) -> None:
        super().__init__()
        self.faces, self.grid = regions == "face", grid
        cells = [f"row {row + 1}, column {column + 1}" for row, column in product(range(grid), repeat=2)]
        self.regions = FACE if self.faces else (*cells, "picture")
        self.register_buffer("points", torch.tensor(ALIGNED))
        self.slices: list[slice] = []
        """Where each combination's numbers lie, in the order of `names`."""
        self.names: list[tuple[str, str, str, str]] = []
        """Region, pixels, normalisation and aggregation of each combination."""
        begin = 0
        for region, (pixels, channels), norm in product(self.regions, PIXELS.items(), NORMALISATIONS):
            for aggregation, size in zip(AGGREGATIONS, (VALUES**2, BINS, 2), strict=True):
                self.names.append((region, pixels, norm, aggregation))
                self.slices.append(slice(begin, begin + channels * size))
                begin += channels * size
        self.width = begin

    def boxes(self, height: int, width: int, points: Tensor | None = None) -> Tensor:
        """Return the regions (R, 4) in a picture, or (N, R, 4) for points (N, 5, 2) in its pixels."""
        if not self.faces:
            return grid_boxes(self.grid, height, width).to(self.points.device)
        if points is None:
            points = self.points * self.points.new_tensor([width, height]) - 0.5
        return face_boxes(points + 0.5, height, width)

    def forward(self, pictures: Tensor, points: Tensor | None = None) -> Tensor:
        """Return features (N, D) of pictures (N, 3, H, W) in [0, 1]; `points` (N, 5, 2) are each face's own."""
        height, width = pictures.shape[-2:]
        regions = patches(pictures, self.boxes(height, width, points), CELLS)
        parts = []
        for values in pixel_types(regions):
            for norm in NORMALISATIONS:
                normal = normalised(values, norm)
                parts.append(F.avg_pool2d(normal.flatten(1, 2), CELLS // VALUES).unflatten(1, values.shape[1:3]))
                flat = normal.flatten(3)
                parts += [histogram(flat, *_RANGES[norm]), torch.stack([flat.mean(3), deviation(flat)], dim=3)]
        return torch.cat([part.flatten(2) for part in parts], dim=2).flatten(1)


def pixel_types(regions: Tensor) -> list[Tensor]:
    """Return RGB patches (N, R, 3, P, P) in [0, 1] turned into each kind of `PIXELS`, with values in [0, 1]."""
    intensity = (regions * regions.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(2, keepdim=True)
    padded = F.pad(intensity.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    sobel = intensity.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    slopes = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None]).unflatten(0, intensity.shape[:2])
    across, down = slopes[:, :, :1], slopes[:, :, 1:]
    magnitude = ((across.square() + down.square()).clamp_min(1e-12) / 2).sqrt()
    # Edges have no sign, so that their directions close to a circle; it is cut open between the upright and the level,
    # which are frequent. Where there is hardly an edge, its direction is noise.
    angle = torch.remainder(torch.atan2(down, across) + math.pi / 4, math.pi) / math.pi
    orientation = torch.where(magnitude > 1e-3, angle, 0.0)
    return [regions, hsv(regions), intensity, magnitude, orientation]


def hsv(regions: Tensor) -> Tensor:
    """Return hue, saturation and value (N, R, 3, P, P) in [0, 1] of RGB; a grey pixel has the hue 0."""
    red, green, blue = regions.unbind(2)
    value, least = regions.amax(2), regions.amin(2)
    chroma = value - least
    divisor = chroma.clamp_min(1e-6)
    hue = torch.where(
        value == red,
        torch.remainder((green - blue) / divisor, 6),
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = torch.where(chroma > 1e-6, hue / 6, 0.0)
    return torch.stack([hue, chroma / value.clamp_min(1e-6), value], dim=2)


def normalised(values: Tensor, norm: str) -> Tensor:
    """Return values (N, R, C, P, P) as they are, divided by their mean, or less their mean by their deviation.

    Mean and deviation are those of a channel over the region: the first takes a gain of the light away, the second a
    gain and an offset.
    """
    if norm == "none":
        return values
    mean = values.mean((3, 4), keepdim=True)
    if norm == "mean":
        return values / mean.clamp_min(0.01)
    return (values - mean) / deviation(values.flatten(3))[..., None, None].clamp_min(0.01)


def deviation(values: Tensor) -> Tensor:
    """Return the standard deviation (N, R, C) of values (N, R, C, Q), differentiable also where it is zero."""
    return (values - values.mean(3, keepdim=True)).square().mean(3).clamp_min(1e-12).sqrt()


def histogram(values: Tensor, first: float, last: float) -> Tensor:
    """Return the histograms (N, R, C, 8) of values (N, R, C, Q), each with the sum one.

    A value counts in the two bins whose middles it lies between, the more in the nearer one; so a value that moves a
    little moves the histogram a little. `first` and `last` are the middles of the first bin and the last.
    """
    place = (values.clamp(first, last) - first) * ((BINS - 1) / (last - first))
    bins = torch.arange(BINS, device=values.device, dtype=values.dtype)
    return (1 - (place[..., None] - bins).abs()).clamp_min(0).mean(3)


class FaceTracer(AttributeNetwork):
    """Region features and one linear classifier a head that reads those chosen for it.

    Options: `regions` is "face" (from the points, whose mean over the training pictures is kept) or "grid" (for other
    pictures: a `grid` of 3 by 3 and the whole); `features` is how many combinations a head has at most.
    """

    chosen: Tensor

    def __init__(self, config: ModelConfig) -> None:
        options: dict[str, Any] = _OPTIONS | config.backbone_options
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise UserError(f"'facetracer' has no option '{unknown[0]}'; it takes {', '.join(_OPTIONS)}.")
        if options["regions"] not in ("face", "grid"):
            raise UserError(f"regions is {options['regions']!r}; use 'face' or 'grid'.")
        for name in ("grid", "features"):
            if not isinstance(options[name], int) or not 1 <= options[name] <= 20:
                raise UserError(f"{name} is {options[name]!r}; use a whole number from 1 to 20.")
        super().__init__(config, RegionFeatures(options["regions"], options["grid"]))
        config.smallest_side = 16
        if config.preprocessing is None:
            size = config.image_size or _DEFAULT_SIZE
            config.preprocessing = Preprocessing(size=size, resize="squash", crop_pct=1.0, interpolation="bilinear")
        heads = len(self.sizes)
        self.classifier = LinearScores(self.backbone.width, heads)
        # The combinations each head reads, the best first; -1 where it reads fewer.
        self.register_buffer("chosen", torch.full((heads, options["features"]), -1, dtype=torch.int64))

    def features(self, images: Tensor, points: Tensor | None = None) -> Tensor:
        """Return all features (N, D) of normalised images (N, 3, H, W)."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in self._normalisation())
        return self.backbone((images * std + mean).clamp(0, 1), points)

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return tuple(self.preprocessing.mean), tuple(self.preprocessing.std)

    def scores(self, images: Tensor, points: Tensor | None = None) -> Tensor:
        """Return one score a head (N, T)."""
        return self.classifier(self.features(images, points))

    def forward(self, images: Tensor, points: Tensor | None = None) -> Scores:
        """Return logits by head; `points` (N, 5, 2), in the pixels of the input, move the regions to each face's own.

        Without them the regions lie where the training pictures' faces have them on the average.
        """
        self._check_images(images)
        return self._by_head(two_sided(self.scores(images, points), self.sizes))

    def reads(self, head: int) -> list[tuple[str, str, str, str]]:
        """Return what a head reads, the best first: region, pixels, normalisation and aggregation of each."""
        return [self.backbone.names[int(number)] for number in self.chosen[head] if number >= 0]
