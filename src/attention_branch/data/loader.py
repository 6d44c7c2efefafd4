"""From a set of pictures to batches: what an epoch holds depends on (seed, epoch) alone.

Not on the number of workers, nor on what was read before: the order is drawn from (seed, epoch), every sample's
augmentation from (seed, epoch, index), and the epoch travels with the indices, so that long-lived workers cannot lag.
"""

import mmap
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from attention_branch.data.augment import AUGMENTATIONS, BATCH_AUGMENTATIONS, DRAWS, PICTURE_AUGMENTATIONS, uniforms
from attention_branch.data.dataset import ImageSet
from attention_branch.data.maps import PictureMaps
from attention_branch.errors import UserError, did_you_mean
from attention_branch.hardware import usable_cores
from attention_branch.models.preprocessing import Preprocessing

CACHE_BYTES = 1 << 30
"""Pictures at the network's size are kept in memory after their first reading when all of them fit in this."""


class BatchPlan(Sampler[tuple[int, list[int]]]):
    """The batches of one process, as (epoch, sample numbers).

    Of every global batch, process r of w takes positions r, r + w, ...; so the union over the processes is the batch
    that one process alone would take. Training drops the last incomplete batch; evaluation takes every sample once.
    """

    def __init__(
        self, count: int, batch_size: int, *, train: bool, seed: int = 0, num_replicas: int = 1, rank: int = 0
    ) -> None:
        self.count, self.batch_size, self.train, self.seed = count, batch_size, train, seed
        self.num_replicas, self.rank = num_replicas, rank
        self.epoch = self.start = 0

    @property
    def sampler(self) -> "BatchPlan":
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the batch of it to begin at (to go on inside an epoch)."""
        self.epoch, self.start = epoch, start

    def order(self) -> np.ndarray:
        """Return the epoch's sample numbers in order, before they are cut into batches."""
        if not self.train:
            return np.arange(self.count)
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.count)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        order = self.order()
        epoch, stop = self.epoch, self._whole_batches() * self.batch_size if self.train else self.count
        for begin in range(self.start * self.batch_size, stop, self.batch_size):
            mine = order[begin : begin + self.batch_size][self.rank :: self.num_replicas]
            if len(mine):
                yield epoch, mine.tolist()

    def __len__(self) -> int:
        if self.train:
            return self._whole_batches()
        rest = self.count - self._whole_batches() * self.batch_size
        return self._whole_batches() + (rest > self.rank)

    def _whole_batches(self) -> int:
        return self.count // self.batch_size


class AnnotatedPlan(BatchPlan):
    """Training batches of which `share` comes from some `chosen` samples, drawn again as often as that takes.

    An epoch takes each of the other samples at most once. No batch holds more chosen samples than there are; where
    they are more than that share of all, they keep their natural share.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        chosen: np.ndarray,
        share: float,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        self.chosen, self.others = np.asarray(chosen), np.setdiff1d(np.arange(count), chosen)
        natural = len(self.chosen) / count
        wanted = min(max(1, round(max(share, natural) * batch_size)), len(self.chosen), batch_size)
        self.wanted = max(wanted, batch_size - len(self.others))
        rest = batch_size - self.wanted
        whole = len(self.others) // rest if rest else -(-len(self.chosen) // batch_size)
        super().__init__(whole * batch_size, batch_size, train=True, seed=seed, num_replicas=num_replicas, rank=rank)

    def order(self) -> np.ndarray:
        """Return the epoch's sample numbers in order, mixed within each batch."""
        random = np.random.default_rng([self.seed, self.epoch])
        batches = self.count // self.batch_size
        rounds = -(-batches * self.wanted // len(self.chosen))
        drawn = np.concatenate([random.permutation(self.chosen) for _ in range(rounds)])
        others = random.permutation(self.others)[: batches * (self.batch_size - self.wanted)]
        together = np.concatenate(
            [drawn[: batches * self.wanted].reshape(batches, -1), others.reshape(batches, -1)], axis=1
        )
        return random.permuted(together, axis=1).ravel()


class _PictureCache:
    """Pictures at the network's size, kept once read, in memory that forked workers share."""

    def __init__(self, count: int, height: int, width: int) -> None:
        self.shape = (count, height, width, 3)
        self._map()

    def _map(self) -> None:
        # An anonymous map is shared by fork and takes no room until it is written; /dev/shm is often too small.
        self.pixels = np.frombuffer(mmap.mmap(-1, int(np.prod(self.shape))), dtype=np.uint8).reshape(self.shape)
        self.filled = np.frombuffer(mmap.mmap(-1, self.shape[0]), dtype=np.bool_)

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A spawned worker cannot share the map, so it keeps its own.
        self.shape = state["shape"]
        self._map()


class _Batches(Dataset[dict[str, Any]]):
    """Draws whole batches of uint8 pictures; stateless, so that it may be copied into workers at any time."""

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        augment: str,
        seed: int,
        cache_bytes: int,
        maps: PictureMaps | None = None,
    ) -> None:
        self.images, self.preprocessing, self.augment, self.seed, self.maps = images, preprocessing, augment, seed, maps
        targets = images.targets
        self.targets = targets if isinstance(targets, dict) else {"": targets}
        height, width = preprocessing.size
        pixels = images.source.pixels()
        as_it_is = preprocessing.resize == "squash" or preprocessing.crop_pct == 1
        fits = pixels is not None and pixels.shape[1:3] == (height, width) and as_it_is
        self.pixels = pixels if fits and augment in BATCH_AUGMENTATIONS else None
        self.cache = None
        if self.pixels is None and augment in BATCH_AUGMENTATIONS and len(images) * height * width * 3 <= cache_bytes:
            self.cache = _PictureCache(len(images), height, width)

    def __getitem__(self, batch: tuple[int, list[int]]) -> dict[str, Any]:
        epoch, numbers = batch
        indices = np.asarray(numbers, dtype=np.int64)
        draws = None if self.augment == "none" else uniforms(self.seed, epoch, indices, DRAWS)
        try:
            pictures = self._pictures(indices, draws)
        except UserError as problem:
            # Raised in a worker, it would come back wrapped in a traceback; the loader raises it as it is.
            return {"error": str(problem)}
        targets = {head: torch.from_numpy(values[indices]) for head, values in self.targets.items()}
        found = {
            "images": torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))),
            "targets": targets if self.images.multitask else targets[""],
            "index": torch.from_numpy(indices),
        }
        if self.maps is not None:
            found |= self.maps.batch(indices, draws)
        return found

    def _pictures(self, indices: np.ndarray, draws: np.ndarray | None) -> np.ndarray:
        """Return augmented pictures uint8 (N, H, W, 3)."""
        if draws is None:
            return self._plain(indices)
        if self.augment in BATCH_AUGMENTATIONS:
            return BATCH_AUGMENTATIONS[self.augment](self._plain(indices), draws)
        change = PICTURE_AUGMENTATIONS[self.augment]
        pairs = zip(indices, draws, strict=True)
        return np.stack([np.asarray(change(self.images.image(i), self.preprocessing, mine)) for i, mine in pairs])

    def _plain(self, indices: np.ndarray) -> np.ndarray:
        if self.pixels is not None:
            return self.pixels[self.images.rows[indices]]
        pictures = np.empty((len(indices), *self.preprocessing.size, 3), dtype=np.uint8)
        for place, index in enumerate(indices):
            if self.cache is not None and self.cache.filled[index]:
                pictures[place] = self.cache.pixels[index]
                continue
            pictures[place] = np.asarray(self.preprocessing.image(self.images.image(index)))
            if self.cache is not None:
                self.cache.pixels[index] = pictures[place]
                self.cache.filled[index] = True
        return pictures


class ImageLoader(DataLoader):
    """A DataLoader whose batches are dictionaries; call `set_epoch` before each epoch of training."""

    def __init__(self, batches: _Batches, plan: BatchPlan, *, normalized: bool, workers: int) -> None:
        context = "fork" if workers and sys.platform.startswith("linux") else None
        super().__init__(
            batches,
            sampler=plan,
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available() and not normalized,
            persistent_workers=workers > 0,
            multiprocessing_context=context,
        )
        self.plan, self.normalized = plan, normalized
        self.preprocessing = batches.preprocessing

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration draws, and the batch of it to begin at."""
        self.plan.set_epoch(epoch, start)

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if "error" in batch:
                # Without this reference the workers end now; left to the traceback's collection they hang for seconds.
                self._iterator = None
                raise UserError(batch["error"])
            if self.normalized:
                batch["images"] = self.preprocessing.normalize(batch["images"])
            yield batch


def make_loader(
    image_set: ImageSet,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    train: bool,
    augment: str = "none",
    workers: int | None = None,
    seed: int = 0,
    num_replicas: int | None = None,
    rank: int | None = None,
    normalized: bool = True,
    cache_bytes: int = CACHE_BYTES,
    maps: PictureMaps | None = None,
    annotated_share: float = 0.0,
) -> ImageLoader:
    """Return batches {"images": (N, 3, H, W), "targets": int64 (N,) or {head: (N,)}, "index": int64 (N,)}.

    Images are float32 and normalised, or uint8 with `normalized=False` (for a device that normalises them itself).
    `train=True` shuffles by (seed, epoch) and drops the last incomplete batch; a set smaller than one batch makes one.
    `batch_size` counts all processes together; `num_replicas` and `rank` are those of torch.distributed when it runs.
    `workers=None` chooses: none for pictures already in memory or small enough to be kept there. With `maps` a batch
    also holds what `PictureMaps.batch` returns, and in training `annotated_share` of it has maps.
    """
    if augment not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise UserError(
            f"There is no augmentation '{augment}'; use one of {known}.{did_you_mean(augment, AUGMENTATIONS)}"
        )
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    if num_replicas is None:
        num_replicas = torch.distributed.get_world_size() if running else 1
    if rank is None:
        rank = torch.distributed.get_rank() if running else 0
    if batch_size < 1 or batch_size % num_replicas:
        raise UserError(
            f"The batch size {batch_size} counts all processes and must be a multiple of their number, {num_replicas}; "
            f"use {max(1, round(batch_size / num_replicas)) * num_replicas}."
        )
    if train and len(image_set) < num_replicas:
        raise UserError(
            f"{len(image_set)} training pictures are too few for {num_replicas} processes; use fewer of them."
        )
    if train:
        batch_size = min(batch_size, len(image_set) // num_replicas * num_replicas)
    batches = _Batches(image_set, preprocessing, augment, seed, cache_bytes, maps)
    given: dict[str, Any] = {"seed": seed, "num_replicas": num_replicas, "rank": rank}
    plan = (
        AnnotatedPlan(len(image_set), batch_size, chosen=maps.indices, share=annotated_share, **given)
        if train and maps is not None
        else BatchPlan(len(image_set), batch_size, train=train, **given)
    )
    return ImageLoader(batches, plan, normalized=normalized, workers=_workers(batches) if workers is None else workers)


def _workers(batches: _Batches) -> int:
    """Choose a number of workers: none where reading a batch is quicker than handing it over."""
    if batches.pixels is not None or (batches.cache is not None and max(batches.preprocessing.size) <= 64):
        return 0
    return min(8, max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
