"""One pass over the data: both branches' answers, and where the map points if the data knows where the object is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attention_branch.data.dataset import ImageSet
from attention_branch.errors import UserError
from attention_branch.evaluation.classes import SINGLE, match_classes, rename_targets
from attention_branch.evaluation.evaluation import Evaluation, HeadEvaluation, Predictions
from attention_branch.explanations.controls import center_maps, random_maps
from attention_branch.explanations.outputs import evaluating
from attention_branch.explanations.targets import head_class_names
from attention_branch.metrics.collapse import collapse_alarm
from attention_branch.metrics.pointing import TOLERANCE, PointingGame
from attention_branch.progress import progress_bar

_MAPS_KEPT = 1024


def evaluate(
    model: nn.Module,
    data: ImageSet | Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 64,
    workers: int = 0,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    notes: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a network on an image set, or on batches {"images", "targets", optional "index" and "regions"}.

    Classes of an image set are matched to the model's by name; targets of batches are the model's own indices, -1 where
    missing. `regions` are lists of masks (H, W), dicts of them by head, or None, at the network's input size; where
    they exist the map's pointing game is played beside a centred Gaussian and a random map (from `seed`) on the same
    images. With regions by head, which may touch, each head's map is held against its own without a tolerance
    ("attention: HEAD", and all of them as "attention"), and the controls against all. Runs on the model's device in
    eval mode and leaves the model as it was. Raises `UserError` for no images, labels out of range, unknown classes.
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    names, places, batches = _prepare(model, data, batch_size, workers, pinned=device.type == "cuda")
    collected = _Collected(tolerance, seed)
    with evaluating(model), torch.inference_mode():
        for batch in _shown(batches, progress):
            images = batch["images"].to(device, non_blocking=True)
            collected.add(model(images), batch, images.shape[-2:])
    if collected.n == 0:
        raise UserError("There is no image to evaluate on; choose a split that holds some.")
    heads = {}
    for head, parts in collected.probabilities.items():
        probabilities = np.concatenate(parts)
        if head not in collected.targets:
            continue
        targets = np.concatenate(collected.targets[head])
        if head in places:
            targets = rename_targets(targets, places[head])
        if targets.max() >= probabilities.shape[1] or targets.min() < -1:
            wrong = int(targets.max() if targets.max() >= probabilities.shape[1] else targets.min())
            raise UserError(
                f"Label {wrong} is out of range: the model has {probabilities.shape[1]} classes, from 0 on."
            )
        second = collected.attention_probabilities.get(head)
        predictions = Predictions(
            probabilities=probabilities,
            attention_probabilities=np.concatenate(second) if second else None,
            targets=targets,
            index=np.concatenate(collected.index),
        )
        own = names.get(head) or head_class_names(model, head if head != SINGLE else None)
        heads[head] = HeadEvaluation.of(predictions, own or [str(number) for number in range(probabilities.shape[1])])
    maps = torch.cat(collected.maps)[:_MAPS_KEPT] if collected.maps else None
    bounded = getattr(model, "map_range", (0.0, 1.0)) is not None
    return Evaluation(
        n=collected.n,
        heads=heads,
        pointing=collected.pointing(),
        maps=_map_statistics(maps) if maps is not None else {},
        alarm=collapse_alarm(maps, bounded=bounded) if maps is not None else None,
        notes=tuple(notes),
        record=dict(record or {}),
    )


class _Collected:
    """Answers and pointing games of all batches so far."""

    def __init__(self, tolerance: float, seed: int) -> None:
        self.n = 0
        self.probabilities: dict[str, list[np.ndarray]] = {}
        self.attention_probabilities: dict[str, list[np.ndarray]] = {}
        self.targets: dict[str, list[np.ndarray]] = {}
        self.index: list[np.ndarray] = []
        self.maps: list[Tensor] = []
        self._games: dict[str, PointingGame] = {}
        self._regions_by_head = False
        self._tolerance, self._seed = tolerance, seed
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, output: Any, batch: Mapping[str, Any], size: tuple[int, int] | torch.Size) -> None:
        logits = _by_head(getattr(output, "logits", output))
        for head, values in logits.items():
            self.probabilities.setdefault(head, []).append(_probabilities(values))
        attention: Tensor | None = getattr(output, "attention", None)
        if attention is not None:
            for head, values in _by_head(output.attention_logits).items():
                self.attention_probabilities.setdefault(head, []).append(_probabilities(values))
            if sum(len(part) for part in self.maps) < _MAPS_KEPT:
                self.maps.append(attention.float().cpu())
        for head, values in _by_head(batch["targets"]).items():
            self.targets.setdefault(head, []).append(values.cpu().numpy().astype(np.int64))
        count = len(batch["images"])
        index = batch.get("index")
        self.index.append(np.arange(self.n, self.n + count) if index is None else index.cpu().numpy())
        self.n += count
        regions = batch.get("regions")
        if regions is not None and attention is not None:
            self._point(attention, regions, list(logits), size)

    def _point(
        self, attention: Tensor, regions: Sequence[Any], heads: list[str], size: tuple[int, int] | torch.Size
    ) -> None:
        noise = random_maps(len(regions), size[0], size[1], self._generator)
        by_head = any(isinstance(region, Mapping) for region in regions)
        self._regions_by_head |= by_head
        # Where regions touch, a tolerance would count the neighbour's side, and the middle would hit all of them.
        tolerance = 0.0 if by_head else self._tolerance
        for task in range(attention.shape[1]):
            own = [region.get(heads[task]) if isinstance(region, Mapping) else region for region in regions]
            known = [position for position, region in enumerate(own) if region is not None]
            if not known:
                continue
            one = attention.shape[1] == 1
            maps = {"attention": attention[:, task]} if one or by_head else {}
            maps |= {} if one else {f"attention: {heads[task]}": attention[:, task]}
            if by_head or task == 0:
                maps |= {"center": center_maps(len(regions), size[0], size[1]), "random": noise}
            masks = torch.stack([torch.as_tensor(own[position]) for position in known])
            for name, values in maps.items():
                game = self._games.setdefault(name, PointingGame(tolerance, seed=self._seed))
                game.update(None, None, values[known].float().cpu(), regions=masks)

    def pointing(self) -> dict[str, Any]:
        # The maps first, the controls last.
        names = sorted(self._games, key=lambda name: name in ("center", "random"))
        results = {name: self._games[name].compute() for name in names}
        for name, result in results.items():
            result.protocol["picture"] = "what the network sees, after resizing and cropping"
            if self._regions_by_head and ":" not in name:
                result.protocol["heads"] = (
                    "all heads' regions; several of one image are not independent, so the interval is too narrow"
                )
        return {name: result for name, result in results.items() if result.n}


class _Items(Dataset):
    """An image set as the network takes it, with the object's region in the same geometry; decoded once."""

    def __init__(self, images: ImageSet, preprocessing: Any) -> None:
        self._images, self._preprocessing = images, preprocessing

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int, Any]:
        sample = self._images[index]
        by_head = sample.masks is not None
        region = sample.head_regions(self._preprocessing) if by_head else sample.region(self._preprocessing)
        return self._preprocessing.tensor(sample.image), sample.target, index, region


def _collate(items: list[tuple[Tensor, Any, int, Any]]) -> dict[str, Any]:
    images, targets, index, regions = zip(*items, strict=True)
    if isinstance(targets[0], Mapping):
        stacked: Any = {head: torch.tensor([target[head] for target in targets]) for head in targets[0]}
    else:
        stacked = torch.tensor(targets)
    masks = [_as_tensors(region) for region in regions]
    return {
        "images": torch.stack(images),
        "targets": stacked,
        "index": torch.tensor(index),
        "regions": masks if any(mask is not None for mask in masks) else None,
    }


def _as_tensors(region: Any) -> Any:
    if isinstance(region, Mapping):
        return {head: _as_tensors(own) for head, own in region.items()}
    return None if region is None else torch.from_numpy(np.ascontiguousarray(region))


def _prepare(
    model: nn.Module, data: ImageSet | Iterable[Mapping[str, Any]], batch_size: int, workers: int, *, pinned: bool
) -> tuple[dict[str, list[str]], dict[str, np.ndarray], Iterable[Mapping[str, Any]]]:
    if not isinstance(data, ImageSet):
        return {}, {}, data
    matched = match_classes(model, data.tasks, data.multitask)
    single = not data.multitask
    names = {SINGLE if single else head: own for head, (_, own) in matched.items()}
    places = {SINGLE if single else head: place for head, (place, _) in matched.items()}
    items = _Items(data, model.preprocessing)
    loader: DataLoader = DataLoader(
        items, batch_size=batch_size, num_workers=workers, collate_fn=_collate, pin_memory=pinned
    )
    return names, places, loader


def _by_head(values: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {SINGLE: values} if isinstance(values, Tensor) else values


def _probabilities(logits: Tensor) -> np.ndarray:
    """Return float64 probabilities (N, K); one logit becomes the two classes of its sigmoid."""
    wide = logits.double()
    if wide.shape[1] == 1:
        wide = torch.cat([torch.zeros_like(wide), wide], 1)
    return wide.softmax(1).cpu().numpy()


def _map_statistics(maps: Tensor) -> dict[str, float]:
    flat = maps.flatten(2)
    return {
        "images": len(maps),
        "mean": flat.mean().item(),
        "mean_of_minima": flat.amin(2).mean().item(),
        "mean_of_maxima": flat.amax(2).mean().item(),
        "mean_spread_over_positions": flat.std(2, correction=0).mean().item(),
    }


def _shown(batches: Iterable[Mapping[str, Any]], progress: bool) -> Iterable[Mapping[str, Any]]:
    if not progress:
        yield from batches
        return
    length: Callable[[], int] | None = getattr(batches, "__len__", None)
    with progress_bar() as bar:
        yield from bar.track(batches, total=length() if length else None, description="evaluating")
