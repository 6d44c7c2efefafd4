"""Teaching a trained network human maps: L = L_att + L_per + gamma * ||M' - M||_2 (Mitsuhara et al., arXiv 1905.03540).

M is the network's map, M' a human's. Where an image has none, M' is the map that the network had before, which a frozen
copy of it makes of the same (augmented) image. As in the paper only the attention branch and the perception branch
learn, unless the settings say otherwise: what leads to the features g(x) stays, batch norms' statistics included.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attention_branch.annotations import fingerprint, read_annotations
from attention_branch.data.dataset import DataSet, ImageSet
from attention_branch.data.maps import PictureMaps
from attention_branch.errors import UserError
from attention_branch.models import AttentionBranchNetwork, load_model
from attention_branch.training.arguments import run_record
from attention_branch.training.config import TrainConfig
from attention_branch.training.matching import match_annotations

START = "start"
"""The folder in a run that keeps the network it started from, for its maps and for going on after a stop."""


@dataclass(frozen=True)
class Lesson:
    """What a run on human maps has besides other runs: the network before it, its pictures, the maps."""

    model: AttentionBranchNetwork
    """The network that is trained."""
    start: AttentionBranchNetwork
    """The same network as it was, frozen."""
    train: ImageSet
    """The training pictures, and behind them the annotated ones that are not among them."""
    maps: PictureMaps
    record: dict[str, Any]
    """What config.json keeps of the annotations."""

    def sentence(self) -> str:
        """Say what is learnt from what."""
        share = self.record["counterexamples"]
        others = f" {share:.0%} of those in a batch are shown in other surroundings." if share else ""
        return (
            f"Human maps of {self.record['pictures']} pictures, {self.record['added']} of them added to the training "
            f"pictures; trained: {self.record['trained']}.{others}"
        )


def open_lesson(config: TrainConfig, data: DataSet, folder: Path, previous: dict[str, Any] | None) -> Lesson | None:
    """Open what a run on human maps needs; None for other runs.

    Raises `UserError` for a network without a map of its own, settings that are not the network's, other classes,
    annotations of pictures that validation or test measure by, and, on resuming, annotations that changed.
    """
    if config.annotations is None or config.start is None or data.train is None:
        return None
    annotations = read_annotations(config.annotations)
    digest = fingerprint(annotations)
    if previous and previous.get("annotations", {}).get("fingerprint") != digest:
        raise UserError(
            f"'{config.annotations}' no longer holds the annotations that '{config.resume}' was trained on; restore "
            "them, or start a new run."
        )
    kept = folder / START
    source = str(kept) if config.resume and kept.is_dir() else config.start
    model, start = load_model(source), load_model(source)
    _check_network(config, data, model)
    train, files = match_annotations(annotations, data)
    with torch.no_grad():
        attention, _ = start.attend(torch.zeros(1, 3, *start.preprocessing.size))
    grid = (attention.shape[2], attention.shape[3])
    inside = config.counterexamples > 0
    maps = PictureMaps(files, attention.shape[1], grid, model.preprocessing, config.augment, inside=inside)
    start.requires_grad_(False)
    record = {
        "folder": config.annotations,
        "fingerprint": digest,
        "annotations": len(annotations),
        "pictures": len(files),
        "added": len(train) - len(data.train),
        "map_size": list(grid),
        "counterexamples": config.counterexamples,
        "trained": "the whole network" if config.train_extractor else "attention and perception branch",
    }
    return Lesson(model.train(), start, train, maps, record)


def _check_network(config: TrainConfig, data: DataSet, model: nn.Module) -> None:
    if not isinstance(model, AttentionBranchNetwork):
        raise UserError(
            f"'{config.start}' has no attention branch, and so no map to teach; start from a network that has one."
        )
    own = model.config
    recorded = run_record(config.start or "")
    if recorded.get("settings", {}).get("data") == config.data and recorded["settings"]["seed"] != config.seed:
        raise UserError(
            f"seed is {config.seed}, but '{config.start}' was trained with {recorded['settings']['seed']}, which also "
            "says which pictures are for training and which for test; leave it out."
        )
    for name, value in (
        ("model", own.name), ("mechanism", own.mechanism), ("branch", own.branch), ("map_kernel", own.map_kernel),
        ("map_form", own.map_form), ("map_control", own.map_control), ("perception", own.perception),
    ):  # fmt: skip
        if getattr(config, name) != value:
            raise UserError(
                f"{name} is {getattr(config, name)}, but that of '{config.start}' is {value}, and weights are taken "
                f"over; leave {name} out (in Python: `human_map_settings` reads a network's settings)."
            )
    if model.class_names != data.class_names or model.heads != data.heads:
        raise UserError(
            f"The classes of '{config.data}' are not those that '{config.start}' knows; name the data it was trained "
            "on, or data of the same classes."
        )


def extractor_parts(model: AttentionBranchNetwork) -> tuple[list[str], list[str]]:
    """Return the names of the modules and of the parameters that lead to g(x): what is no branch of the network.

    Modules are those whose run has ended when g is ready; parameters those that g's gradient reaches.
    """
    ended: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: ended.append(name)

    names = {name: module for name, module in model.named_modules() if name.startswith("backbone.")}
    features = f"backbone.{model.place.features}"
    handles = [module.register_forward_hook(note(name)) for name, module in names.items() if name != features]
    parameters = dict(model.named_parameters())
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            g = model.features(torch.zeros(1, 3, *model.preprocessing.size, device=model.device))
            reached = torch.autograd.grad(g.float().sum(), list(parameters.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return [*ended, features], [
        name for name, gradient in zip(parameters, reached, strict=True) if gradient is not None
    ]


class MapDistances(NamedTuple):
    """||M' - M||_2 for each image and head, (N, T), and where M' is a human's map, bool (N, T)."""

    each: Tensor
    annotated: Tensor


class MapTeacher:
    """Says which map each image should have, and how far the network's is from it.

    `start` is the frozen network before the training; `keep` the weight of images without a human map, relative to the
    others'. Counts what it saw; `figures` reads and forgets that.
    """

    def __init__(self, start: AttentionBranchNetwork, *, weight: float, keep: float) -> None:
        self.start, self.weight, self.keep = start.eval(), weight, keep
        self.sums = torch.zeros(6, dtype=torch.float64)

    def to(self, device: torch.device) -> None:
        """Move to where the training is."""
        self.start.to(device)
        self.sums = self.sums.to(device, torch.float32 if device.type == "mps" else torch.float64)

    def loss(self, attention: Tensor, images: Tensor, human_maps: Tensor, annotated: Tensor) -> Tensor:
        """Return gamma * ||M' - M||_2 for maps (N, T, h, w).

        The norm is that over an image's positions, for each head; then the sum over heads, as in the other two losses,
        and the mean over images. It grows with the number of positions: on an h x w grid it is at most sqrt(h * w).
        """
        wanted = human_maps
        held = self.weight > 0 and self.keep > 0
        if held:
            with torch.no_grad():
                before, _ = self.start.attend(images)
            wanted = torch.where(annotated[:, :, None, None], human_maps, before.to(human_maps.dtype))
        found = map_distances(attention, wanted, annotated)
        with torch.no_grad():
            seen, mine = found.each.detach().to(self.sums.dtype), annotated.to(self.sums.dtype)
            self.sums[0] += (seen * mine).sum()
            self.sums[1] += mine.sum()
            if held:
                self.sums[2] += (seen * (1 - mine)).sum()
                self.sums[3] += (1 - mine).sum()
        importance = torch.where(annotated, 1.0, self.keep)
        return self.weight * (found.each * importance).sum(1).mean()

    @torch.no_grad()
    def compare(self, attention: Tensor, images: Tensor) -> None:
        """Count how much maps (N, T, h, w) of images have changed since the start."""
        before, _ = self.start.attend(images)
        self.sums[4] += (attention.float() - before.float()).abs().mean((1, 2, 3)).sum().to(self.sums.dtype)
        self.sums[5] += len(images)

    def figures(self, everywhere: bool) -> dict[str, float]:
        """Return mean distances in training (annotated, kept) and the mean change of the validation maps."""
        sums = self.sums.clone()
        if everywhere:
            dist.all_reduce(sums)
        self.sums.zero_()
        names = ("train_map_annotated", "train_map_kept", "validation_map_change")
        pairs = zip(sums[::2].tolist(), sums[1::2].tolist(), strict=True)
        return {name: total / count for name, (total, count) in zip(names, pairs, strict=True) if count}


def map_distances(attention: Tensor, wanted: Tensor, annotated: Tensor) -> MapDistances:
    """Return the L2 norm over positions of the difference of maps (N, T, h, w), in float32."""
    # `vector_norm` has the gradient 0, and not NaN, where the maps are equal.
    return MapDistances(torch.linalg.vector_norm(wanted.float() - attention.float(), dim=(2, 3)), annotated)
