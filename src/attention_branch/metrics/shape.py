"""What a map looks like, whatever the model: how sparse it is and how spread out."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attention_branch.explanations.targets import Target
from attention_branch.metrics.metric import Metric, Regions


class GiniSparsity(Metric):
    """Gini index of the map's absolute values (Chalasani et al., ICML 2020): 0 the same everywhere, near 1 one pixel.

    Model and images may be None. A map of zeros has no index: it is left out and counted under `all_zero`.
    """

    name: ClassVar[str] = "sparsity"
    higher_is_better: ClassVar[bool | None] = None

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts = {"all_zero": 0}

    def protocol(self) -> dict[str, Any]:
        """Return the formula."""
        return {"value": "Gini index of |map| over pixels: 1 - 2 sum_k |m|_(k) / sum|m| * (d - k + 1/2) / d, ascending"}

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        values = maps.double().abs().flatten(1).sort(dim=1).values
        count = values.shape[1]
        weights = (count - torch.arange(1, count + 1, device=maps.device) + 0.5) / count
        total = values.sum(1)
        self._count("all_zero", int((total == 0).sum()))
        return torch.where(total > 0, 1 - 2 * (values * weights).sum(1) / total.clamp_min(1e-300), torch.nan)


class Entropy(Metric):
    """Entropy in nats of the map's absolute values as shares of their sum (complexity, Bhatt et al., IJCAI 2020).

    Between 0, one pixel, and log(H * W), the same everywhere. Model and images may be None. A map of zeros has none: it
    is left out and counted under `all_zero`.
    """

    name: ClassVar[str] = "entropy"
    higher_is_better: ClassVar[bool | None] = None

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts = {"all_zero": 0}
        self._pixels: set[int] = set()

    def protocol(self) -> dict[str, Any]:
        """Return the formula and the highest value there can be."""
        highest = {f"{count} pixels": math.log(count) for count in sorted(self._pixels)}
        return {"value": "-sum p log p, p = |map| / sum |map|, natural logarithm", "highest": highest}

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        values = maps.double().abs().flatten(1)
        self._pixels.add(values.shape[1])
        total = values.sum(1, keepdim=True)
        self._count("all_zero", int((total == 0).sum()))
        shares = values / total.clamp_min(1e-300)
        return torch.where(total[:, 0] > 0, torch.special.entr(shares).sum(1), torch.nan)

    def state(self) -> dict[str, Any]:
        """Return what was collected, the sizes of maps among it."""
        return super().state() | {"pixels": set(self._pixels)}

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one collected after this one: a `state()`."""
        super().merge(state)
        self._pixels |= set(state["pixels"])
