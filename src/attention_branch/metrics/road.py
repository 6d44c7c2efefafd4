"""ROAD: the class's probability as pixels are blended into their surroundings, by the map's order and against it.

Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022, arXiv:2202.00449.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.targets import Target
from attention_branch.metrics.faithfulness import ranks
from attention_branch.metrics.imputation import NOISE, noisy_linear_imputation
from attention_branch.metrics.masking import constant
from attention_branch.metrics.metric import Metric, Regions, Scorer
from attention_branch.metrics.substrates import SCORE

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)

ORDERS = {
    "morf": "probability with the most relevant pixels removed first, mean over the percentiles",
    "lerf": "probability with the least relevant pixels removed first, mean over the percentiles",
    "combined": "(least relevant first - most relevant first) / 2, mean over the percentiles",
}


class Road(Metric):
    """Remove and debias: probability with 10 to 90 % of the pixels filled in from their neighbours.

    A blend of the surroundings gives less away about the shape of what was removed than a flat colour. `order` is
    "morf" (most relevant first; low is good), "lerf" (least relevant first; high is good) or "combined", half their
    difference (high is good). `percentiles` are shares of the pixels in per cent; exactly so many go, also of maps with
    many equal values, which go in row order both ways: a map without spread scores 0 on "combined" and is counted under
    `constant`. `noise` is the standard deviation of what is added to filled-in pixels, one field per image, drawn from
    `seed` and the image. `details` holds the mean `curve` of each order and the `scores` (N, P). Raises `UserError` for
    another order, percentiles that are not between 0 and 100, and images too small to keep a pixel.
    (Rong et al., ICML 2022; "combined" as in pytorch-grad-cam.)
    """

    name: ClassVar[str] = "ROAD"
    higher_is_better: ClassVar[bool | None] = True

    def __init__(
        self,
        order: str = "combined",
        *,
        percentiles: Sequence[float] = PERCENTILES,
        noise: float = NOISE,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if order not in ORDERS:
            known = ", ".join(ORDERS)
            raise UserError(f"order is '{order}'; it must be one of {known}.{did_you_mean(str(order), ORDERS)}")
        try:
            shares = [float(percentile) for percentile in percentiles]
        except (TypeError, ValueError):
            shares = []
        if not shares or not all(0 < share < 100 for share in shares):
            raise UserError(f"percentiles is {percentiles}; give shares of the pixels in per cent, between 0 and 100.")
        if not noise >= 0:
            raise UserError(f"noise is {noise}; give a standard deviation, 0 for none.")
        self.order = order
        self.percentiles = tuple(int(share) if share.is_integer() else share for share in shares)
        self.noise = float(noise)
        self._orders = ("lerf", "morf") if order == "combined" else (order,)
        if order != "combined":
            self.name = f"ROAD, {order}"  # type: ignore[misc]
            self.higher_is_better = order == "lerf"  # type: ignore[misc]
        super().__init__(batch_size=batch_size, seed=seed)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts = {"constant": 0, "not_finite": 0}
        self._scores: dict[str, list[Tensor]] = {order: [] for order in self._orders}

    def protocol(self) -> dict[str, Any]:
        """Return order, percentiles, imputation and score."""
        return {
            "value": ORDERS[self.order],
            "percentiles": list(self.percentiles),
            "removed": "exactly height x width x percentile / 100 pixels, rounded; equal values in row order",
            "imputation": "noisy linear: each removed pixel the mean of its neighbours, 1/6 direct, 1/12 diagonal",
            "noise": f"standard deviation {self.noise:g} in normalised space, one field per image, seed {self.seed}",
            "score": SCORE,
        }

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        scorer = Scorer(model, images, target, self.batch_size)
        assert images is not None  # or the scorer would have refused
        # As many images at once as their holes fill a batch of the model.
        group = max(1, self.batch_size // (len(self._orders) * len(self.percentiles)))
        parts = zip(images.split(group), maps.split(group), scorer.classes.split(group), strict=True)
        scores = torch.cat([self._group_scores(scorer, *part) for part in parts])
        mean = scores.mean(2)
        for place, order in enumerate(self._orders):
            self._scores[order].append(scores[:, place])
        self._count("constant", int(constant(maps).sum()))
        self._count("not_finite", int(mean.isnan().any(1).sum()))
        return (mean[:, 0] - mean[:, 1]) / 2 if self.order == "combined" else mean[:, 0]

    def _group_scores(self, scorer: Scorer, images: Tensor, maps: Tensor, classes: Tensor) -> Tensor:
        """Return the probabilities (n, orders, percentiles), float64 on the CPU."""
        pixels = maps.shape[-2] * maps.shape[-1]
        counts = [round(pixels * percentile / 100) for percentile in self.percentiles]
        if max(counts) >= pixels:
            raise UserError(
                f"Removing {max(self.percentiles):g} % of {pixels} pixels leaves none to fill in from; "
                "give lower percentiles."
            )
        limits = torch.tensor(counts, device=maps.device)[:, None, None]
        removed = [ranks(-maps if order == "lerf" else maps)[:, None] < limits for order in self._orders]
        filled = noisy_linear_imputation(images, torch.cat(removed, 1), noise=self.noise, seed=self.seed)
        answers = scorer(filled.flatten(0, 1), classes.repeat_interleave(filled.shape[1]))
        return answers.view(len(images), len(self._orders), len(counts)).double().cpu()

    def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = {}
        for order, parts in self._scores.items():
            scores = torch.cat(parts) if parts else torch.zeros(0, len(self.percentiles), dtype=torch.float64)
            whole = scores[~scores.isnan().any(1)]
            curve = {
                "share": [percentile / 100 for percentile in self.percentiles],
                "score": whole.mean(0).tolist() if len(whole) else [],
            }
            details[order] = {"curve": curve, "scores": scores}
        return details

    def state(self) -> dict[str, Any]:
        """Return what was collected, the scores among it."""
        return {**super().state(), "scores": {order: list(parts) for order, parts in self._scores.items()}}

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one collected after this one: a `state()`."""
        super().merge(state)
        for order, parts in state["scores"].items():
            self._scores[order] += parts
