"""Does a map depend on what the network has learned? Parameters are randomised and the maps compared.

Cascading and independent parameter randomisation after Adebayo et al. (NeurIPS 2018, arXiv:1810.03292), and for an
attention branch network each of its three parts apart.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.explanation import explain
from attention_branch.explanations.outputs import checked_images, device_of, evaluating, predict, unwrapped
from attention_branch.explanations.targets import (
    Target,
    choose_head,
    head_class_names,
    head_logits,
    predicted,
    resolve_target,
)
from attention_branch.metrics.metric import at_once, image_digest, subset_digest
from attention_branch.metrics.randomizing import PARTS, ROOT, modules_inside, parts_of, randomize, stages_of
from attention_branch.metrics.similarity import rank_correlation, structural_similarity
from attention_branch.metrics.statistics import MetricResult, bootstrap_interval

MapMaker = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""A method of the caller's own: (model, images (N, 3, H, W), classes (N,)) -> maps (N, H, W)."""

MAX_STAGES = 20

ROUNDING = 1e-6
"""Maps that differ by no more than this share of their largest value are the same."""

SIMILAR = 0.5
"""Maps whose rank correlation with the trained network's is below this, with their interval, count as changed."""


@dataclass(frozen=True, eq=False)
class RandomizedStage:
    """The maps after one more step of randomisation, against the trained network's on the same images and classes.

    `modules` were randomised in this step. `spearman` and `spearman_absolute` (of the maps' absolute values) are rank
    correlations, `ssim` the structural similarity; `same_prediction` is the share of images whose predicted class is
    still the same, `largest_change` the largest difference of two maps at one pixel as a share of the largest value of
    the trained network's maps (NaN where a map is not finite).
    """

    name: str
    modules: tuple[str, ...]
    spearman: MetricResult
    spearman_absolute: MetricResult
    ssim: MetricResult
    same_prediction: float
    largest_change: float

    def to_dict(self) -> dict[str, Any]:
        """Return all as plain values for a JSON file, without the protocol, which `Randomization` holds."""
        kinds = ("spearman", "spearman_absolute", "ssim")
        numbers = {kind: getattr(self, kind).to_dict() for kind in kinds}
        for entry in numbers.values():
            del entry["protocol"]
        change = self.largest_change if np.isfinite(self.largest_change) else None
        return {
            "name": self.name,
            "modules": list(self.modules),
            **numbers,
            "same_prediction": self.same_prediction,
            "largest_change": change,
        }


@dataclass(frozen=True, eq=False)
class Randomization:
    """What became of the maps of one method, stage by stage. `kind`: 'cascading', 'independent' or 'branches'."""

    method: str
    kind: str
    stages: tuple[RandomizedStage, ...]
    n: int
    protocol: dict[str, Any]

    def __repr__(self) -> str:
        found = ", ".join(f"{stage.name}: {stage.spearman.mean:.2f}" for stage in self.stages)
        return f"Randomization({self.method!r}, {self.kind}, n = {self.n}, rank correlations {found})"

    def __getitem__(self, name: str) -> RandomizedStage:
        """Return the stage of this name; `UserError` for one there is not."""
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise UserError(f"There is no stage '{name}'.{did_you_mean(name, names)} Stages: {', '.join(names)}.")
        return self.stages[names.index(name)]

    def to_dict(self) -> dict[str, Any]:
        """Return all as plain values for a JSON file."""
        stages = [stage.to_dict() for stage in self.stages]
        return {
            "method": self.method, "kind": self.kind, "n": self.n, "stages": stages, "reading": self.sentence(),
            "protocol": self.protocol,
        }  # fmt: skip

    def sentence(self) -> str:
        """Say in plain language what the numbers mean for the method."""
        if self.kind == "branches":
            return self._sentence_of_branches()
        if self.kind == "independent":
            changed = [stage.name for stage in self.stages if _changed(stage.spearman)]
            return (
                f"With one part of the network randomised at a time, the maps of '{self.method}' change where that is "
                f"one of {len(changed)} of {len(self.stages)} parts{': ' + ', '.join(changed) if changed else ''}."
            )
        last = self.stages[-1]
        correlation = _number(last.spearman)
        if last.spearman.interval is None:
            return f"Too few maps could be compared to say whether '{self.method}' depends on what was learned."
        if _changed(last.spearman):
            return (
                f"With all of the network randomised, the maps of '{self.method}' have a rank correlation of "
                f"{correlation} with the trained network's: they depend on what it has learned."
            )
        return (
            f"With all of the network randomised, the maps of '{self.method}' still have a rank correlation of "
            f"{correlation} with the trained network's: an untrained network would show much the same, so they say "
            "little about what it has learned."
        )

    def _sentence_of_branches(self) -> str:
        perception, attention, trunk = (self[name] for name in PARTS)
        others = (
            f"Rank correlation with the trained network's maps: {_number(attention.spearman)} with a random attention "
            f"branch, {_number(trunk.spearman)} with a random trunk."
        )
        same = f"{100 * perception.same_prediction:.1f} %"
        if perception.largest_change <= ROUNDING:
            return (
                f"With the perception branch randomised, {same} of the predictions stayed and not one value of the "
                f"maps of '{self.method}' changed: these maps are made without the perception branch. They say where "
                f"features are weighed, not how the answer is made from them. {others}"
            )
        return (
            f"With the perception branch randomised, {same} of the predictions stayed and the maps of "
            f"'{self.method}' have a rank correlation of {_number(perception.spearman)} with the trained network's: "
            f"they depend on the perception branch. {others}"
        )


@torch.inference_mode(False)
def cascading_randomization(
    model: nn.Module,
    images: Tensor,
    method: str | MapMaker = "attention",
    target: Target = None,
    *,
    order: str = "top-down",
    cumulative: bool = True,
    stages: Sequence[str] | None = None,
    max_stages: int = MAX_STAGES,
    layer: str = "auto",
    batch_size: int = 64,
    seed: int = 0,
) -> Randomization:
    """Randomise a copy of the network stage by stage and compare its maps with the trained network's.

    Takes any classifier that `explain` takes, normalised images (N, 3, H, W), and a method of `explain` or a function
    (model, images, classes) -> maps (N, H, W). The class that is explained stays what the trained network predicts
    (`target` as in `explain`). Stages follow the order in which the network runs, from its head down ("top-down") or
    from its input up ("bottom-up"), each on top of those before it, or alone with `cumulative=False`. They are the
    network's modules, the largest divided as long as there are at most `max_stages`; or `stages`, modules by name, each
    with all inside, in the order given.

    A module with `reset_parameters` is set back by it, running statistics included; parameters of others are drawn from
    a normal distribution with their own mean and standard deviation. All is drawn on the CPU from `seed` and the
    module's name: a module gets the same values in every mode and order. Raises `UserError` for an unknown order, stage
    or method, a model that cannot be copied, and what `explain` refuses.
    """
    if max_stages < 1:
        raise UserError(f"max_stages is {max_stages}; give 1 or more.")
    if stages is not None and not stages:
        raise UserError("stages is empty; name the modules to randomise, or leave it out.")
    if order not in ("top-down", "bottom-up"):
        raise UserError(f"order is '{order}'; give 'top-down' (from the head) or 'bottom-up' (from the input).")
    comparison = _Comparison(model, images, method, target, layer, batch_size, seed)
    if stages is None:
        plan = stages_of(comparison.network, comparison.images[:1], max_stages)
        plan = plan if order == "top-down" else plan[::-1]
        described = f"{order}, at most {max_stages} stages"
    else:
        plan = [(name, modules_inside(comparison.network, name)) for name in stages]
        described = "as given"
    found = []
    network = comparison.copied()
    for name, modules in plan:
        network = network if cumulative else comparison.copied()
        randomize(network, modules, seed)
        found.append(comparison.stage(network, name, modules))
    return comparison.result("cascading" if cumulative else "independent", found, described)


@torch.inference_mode(False)
def branch_randomization(
    model: nn.Module,
    images: Tensor,
    method: str | MapMaker = "attention",
    target: Target = None,
    *,
    layer: str = "auto",
    batch_size: int = 64,
    seed: int = 0,
) -> Randomization:
    """Randomise the perception branch, the attention branch and the trunk of an ABN, each alone, and compare its maps.

    The perception branch is all of the backbone that runs after the gate, head included; the trunk all before it. The
    attention map is not a function of the perception branch and must not change with it: `largest_change` of that stage
    is 0 up to rounding, and `sentence()` says so. Arguments and errors are those of `cascading_randomization`; a
    network without an attention branch is refused.
    """
    network = unwrapped(model)
    if not getattr(network, "is_abn", False):
        name = getattr(network, "name", type(network).__name__)
        raise UserError(
            f"'{name}' is a plain network without an attention branch, so it has no branches to randomise apart; "
            "use cascading_randomization."
        )
    comparison = _Comparison(model, images, method, target, layer, batch_size, seed)
    parts = parts_of(comparison.network, comparison.images[:1])
    found = []
    for name in PARTS:
        network = comparison.copied()
        randomize(network, parts[name], seed)
        found.append(comparison.stage(network, name, parts[name]))
    return comparison.result("branches", found, "each part of the network alone")


class _Comparison:
    """The trained network's maps, classes and predictions, and the comparison of another network's with them."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        method: str | MapMaker,
        target: Target,
        layer: str,
        batch_size: int,
        seed: int,
    ) -> None:
        images = checked_images(images)
        if len(images) == 0:
            raise UserError("There is no image to compare the maps of; give one or more.")
        self.network = unwrapped(model)
        self.images = images.to(device_of(self.network) or images.device)
        # What was made in inference mode cannot be part of a graph.
        self.images = self.images.clone() if self.images.is_inference() else self.images
        self.method, self.layer, self.batch_size, self.seed = method, layer, batch_size, seed
        self.name = method if isinstance(method, str) else getattr(method, "__name__", "a function")
        self.images_sha256 = subset_digest([image_digest(image) for image in self.images.float().cpu()])
        scores = self._scores(self.network)
        self.head, wanted = choose_head(self.network, target, None if isinstance(scores, Tensor) else scores)
        logits = head_logits(scores, self.head)
        self.predicted = predicted(logits)
        self.classes = resolve_target(logits, wanted, head_class_names(self.network, self.head))
        self.maps = self._maps(self.network)
        if not torch.isfinite(self.maps).all():
            raise UserError(f"The maps of '{self.name}' hold NaN or infinite values before anything is randomised.")

    def copied(self) -> nn.Module:
        try:
            return copy.deepcopy(self.network).eval()
        except (RuntimeError, TypeError) as problem:
            kind = type(self.network).__name__
            raise UserError(f"The {kind} cannot be copied to be randomised ({problem}).") from problem

    def stage(self, network: nn.Module, name: str, modules: Sequence[str]) -> RandomizedStage:
        maps = self._maps(network, randomized=True)
        logits = head_logits(self._scores(network), self.head)
        finite = torch.isfinite(maps).flatten(1).all(1)
        values = {"spearman": self._correlation(maps, finite, absolute=False)}
        values["spearman_absolute"] = self._correlation(maps, finite, absolute=True)
        similar = self._compared(structural_similarity, maps.where(finite[:, None, None], 0.0), self.maps)
        values["ssim"] = similar.masked_fill(~finite, torch.nan), {}
        own_modules = tuple(module or ROOT for module in modules)
        results = {
            kind: MetricResult(
                mean=float(found[~found.isnan()].mean()),
                interval=bootstrap_interval(found[~found.isnan()].numpy(), self.seed),
                n=int((~found.isnan()).sum()),
                values=found,
                protocol={"metric": kind} | self._protocol(),
                counts={"not_finite": int((~finite).sum())} | counts,
            )
            for kind, (found, counts) in values.items()
        }
        return RandomizedStage(
            name=name,
            modules=own_modules,
            **results,
            same_prediction=float((predicted(logits) == self.predicted).double().mean()),
            largest_change=float((maps - self.maps).abs().max() / self.maps.abs().max().clamp_min(1e-30)),
        )

    def result(self, kind: str, found: list[RandomizedStage], order: str) -> Randomization:
        protocol = {"metric": f"{kind} parameter randomisation", "stages": order} | self._protocol()
        return Randomization(self.name, kind, tuple(found), len(self.images), protocol)

    def _correlation(self, maps: Tensor, finite: Tensor, *, absolute: bool) -> tuple[Tensor, dict[str, int]]:
        first, second = (values.abs() if absolute else values for values in (maps, self.maps))
        found = self._compared(rank_correlation, first, second)
        blank = [values.flatten(1).amax(1) == values.flatten(1).amin(1) for values in (first, second)]
        # A map that has become blank shares no ranks with the trained one's: it has changed, and is not left out.
        found = found.masked_fill(blank[0] & ~blank[1], 0.0).masked_fill(~finite, torch.nan)
        return found, {"blank": int((blank[0] & ~blank[1] & finite).sum()), "blank_before": int(blank[1].sum())}

    def _compared(self, how: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
        """Return (N,) of a comparison, few maps at once: ranks take many times a map's own memory."""
        parts = zip(first.split(self.batch_size), second.split(self.batch_size), strict=True)
        return torch.cat([how(one, other) for one, other in parts])

    def _protocol(self) -> dict[str, Any]:
        return {
            "method": self.name,
            "class": "the trained network's prediction, or the target given",
            "maps": "at the images' size",
            "spearman": "ties share ranks; a map gone blank scores 0, one blank before is left out",
            "ssim": "maps stretched to [0, 1]; Gaussian window 11x11, sigma 1.5; mean over windows inside the map",
            "randomised": "reset_parameters where a module has it, else normal with the tensor's mean and deviation",
            "seed": self.seed,
            "interval": f"bootstrap over images, 95 %, percentile, seed {self.seed}",
            "images_sha256": self.images_sha256,
        }

    def _scores(self, network: nn.Module) -> Any:
        """Return the class scores of all images (N, K), or a dict of them by head."""
        with evaluating(network), torch.no_grad():
            together = self.images.split(at_once(self.images, self.batch_size))
            parts: list[Any] = [predict(network, part) for part in together]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts).cpu()
        return {head: torch.cat([part[head] for part in parts]).cpu() for head in parts[0]}

    def _maps(self, network: nn.Module, *, randomized: bool = False) -> Tensor:
        """Return the method's maps of all images for the same classes, (N, H, W) on the CPU."""
        parts = zip(self.images.split(self.batch_size), self.classes.split(self.batch_size), strict=True)
        return torch.cat([self._explained(network, images, classes, randomized) for images, classes in parts])

    def _explained(self, network: nn.Module, images: Tensor, classes: Tensor, randomized: bool) -> Tensor:
        wanted = (len(images), *images.shape[-2:])
        if not isinstance(self.method, str):
            with evaluating(network):
                maps = torch.as_tensor(self.method(network, images, classes.to(images.device))).detach().cpu()
            if maps.shape != wanted:
                raise UserError(f"'{self.name}' returned maps of shape {tuple(maps.shape)}; they must be {wanted}.")
            return maps
        target: Target = classes if self.head is None else {self.head: classes}
        try:
            return explain(network, images, self.method, target, layer=self.layer, seed=self.seed).maps.cpu()
        except UserError:
            # What was fine before cannot be the caller's fault: with these weights the numbers overflow.
            if not randomized:
                raise
        if len(images) == 1:
            return torch.full(wanted, torch.nan)
        singles = zip(images.split(1), classes.split(1), strict=True)
        return torch.cat([self._explained(network, image, own, randomized) for image, own in singles])


# --- words ---


def _changed(result: MetricResult) -> bool:
    return result.interval is not None and result.interval[1] < SIMILAR


def _number(result: MetricResult) -> str:
    if result.interval is None:
        return f"{result.mean:.2f} (n = {result.n})"
    low, high = result.interval
    return f"{result.mean:.2f} (95 % interval {low:.2f} to {high:.2f}, n = {result.n})"
