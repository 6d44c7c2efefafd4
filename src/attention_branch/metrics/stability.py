"""How far a map moves when its image hardly does. (Yeh et al., NeurIPS 2019, arXiv:1901.09392)"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.targets import Target
from attention_branch.metrics.explaining import Explainer, explained
from attention_branch.metrics.metric import Metric, Regions, Scorer
from attention_branch.metrics.noise import image_generator

RADIUS, SAMPLES = 0.02, 10
"""As in Captum's `sensitivity_max`."""


class MaxSensitivity(Metric):
    """Largest relative change of the map, ||e(x + d) - e(x)|| / ||e(x)||, over small changes d; low is good.

    `samples` changes d are drawn evenly from [-radius, radius] per value of the normalised image, for each image from
    `seed` and the image itself; the class stays that of the clean image, the norm is Euclidean. `explain` makes the
    maps of the changed images: a method's name, or a function (model, images, classes) -> maps (N, H, W). It must be
    the one that made the maps given to `update`, which are e(x), and unscaled. A map of zeros has no relative change:
    it is left out and counted under `all_zero`. Raises `UserError` for a radius of 0 or less and for no samples.
    (Yeh et al., NeurIPS 2019, definition 3, by Monte Carlo sampling.)
    """

    name: ClassVar[str] = "max-sensitivity"
    higher_is_better: ClassVar[bool | None] = False

    def __init__(
        self,
        explain: Explainer,
        *,
        radius: float = RADIUS,
        samples: int = SAMPLES,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if not radius > 0:
            raise UserError(f"radius is {radius}; give how far a value of the normalised image may change, above 0.")
        if samples < 1:
            raise UserError(f"samples is {samples}; give the number of changed images, 1 or more.")
        self.explain = explain
        self.radius = float(radius)
        self.samples = samples
        super().__init__(batch_size=batch_size, seed=seed)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts = {"all_zero": 0}

    def protocol(self) -> dict[str, Any]:
        """Return radius, samples and norm."""
        return {
            "value": "max over changes d of ||e(x + d) - e(x)|| / ||e(x)||, Euclidean norm",
            "changes": f"{self.samples}, each value of the normalised image by up to {self.radius:g}, uniform",
            "changes_seed": self.seed,
            "target": "the class of the clean image",
        }

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        scorer = Scorer(model, images, target, self.batch_size)
        assert images is not None  # or the scorer would have refused
        # As many images at once as their changed copies fill a batch of the model.
        group = max(1, self.batch_size // self.samples)
        parts = zip(images.split(group), maps.split(group), scorer.classes.split(group), strict=True)
        values = torch.cat([maps.new_zeros(0).double(), *(self._changes(scorer, *part) for part in parts)])
        self._count("all_zero", int(values.isnan().sum()))
        return values

    def _changes(self, scorer: Scorer, images: Tensor, maps: Tensor, classes: Tensor) -> Tensor:
        """Return the largest relative change (n,) of the maps, NaN for a map of zeros."""
        changed = [image + changes(image, self.samples, self.radius, self.seed) for image in images]
        again = explained(self.explain, scorer, torch.cat(changed), classes.repeat_interleave(self.samples))
        original = maps.double().flatten(1)
        moved = again.double().view(len(images), self.samples, -1) - original[:, None]
        size = original.norm(dim=1)
        return torch.where(size > 0, moved.norm(dim=2).amax(1) / size, torch.nan)


def changes(image: Tensor, samples: int, radius: float, seed: int) -> Tensor:
    """Return `samples` changes (samples, C, H, W), uniform in [-radius, radius], that belong to an image and a seed."""
    drawn = torch.rand(samples, *image.shape, generator=image_generator(image, seed))
    return ((2 * drawn - 1) * radius).to(image)
