"""One run on small pictures, by the fast path: trained, evaluated after each epoch, kept, continued, recorded."""

import json
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_branch.data import ImageSet
from attention_branch.data.augment import BATCH_AUGMENTATIONS
from attention_branch.data.resident import ResidentImages, stacked_targets
from attention_branch.data.torchvision_sets import ArraySource
from attention_branch.errors import UserError
from attention_branch.files import atomic_path
from attention_branch.metrics import PointingGame, collapse_alarm
from attention_branch.models import ABNOutput
from attention_branch.models.cost import cost
from attention_branch.reproduce import distraction
from attention_branch.reproduce import record as records
from attention_branch.reproduce.arrays import SPLITS, Arrays
from attention_branch.reproduce.plan import Job
from attention_branch.training.building import make_model, tell_frequencies
from attention_branch.training.fast import EVALUATION_BATCH, FastTrainer

SAVE_EVERY = 60.0
"""Seconds between two checkpoints of a run; what a kill loses."""

FEWEST_STEPS = 8
"""Steps after which an epoch's duration can be told."""


class SmallRun:
    """A run that is advanced bit by bit; `done` says when it is finished."""

    def __init__(self, job: Job, arrays: Arrays, device: str, *, threads: int = 1, at_once: int = 1) -> None:
        self.job, self.device = job, device
        config = job.config
        torch.manual_seed(config.seed)
        model = make_model(config, arrays.described(job.origin.spec))
        if config.image_size is not None and model.preprocessing.size[0] != config.image_size:
            raise UserError(f"{config.model} takes pictures of {model.preprocessing.size[0]} pixels.")
        self.counted = cost(model)
        train = self._train_images(arrays)
        labels = stacked_targets(train) if isinstance(train, ImageSet) else train.targets.cpu().numpy()
        tell_frequencies(model, dict(zip(arrays.tasks, labels.T, strict=True)) if labels.ndim == 2 else labels)
        self.trainer = FastTrainer(config, model, train, device)
        self.splits = {name: ResidentImages(*arrays.split(name), device) for name in SPLITS[1:]}
        # Another image's map must be one of a random class, whatever the order of the split.
        generator = torch.Generator().manual_seed(0)
        self.orders = {name: torch.randperm(len(images), generator=generator) for name, images in self.splits.items()}
        self.pending: list[tuple[int, Tensor, dict[str, Tensor]]] = []
        self.saved_at = time.monotonic()
        self.record = records.begin(job) | records.surroundings(device, threads, at_once)
        # For information: another decoder may give other bytes, which makes a finished run no other one.
        self.record["data"] = {**job.data, "pixels": arrays.pixels, "normalization": arrays.normalization}
        self.regions, self.distractors = arrays.regions(), arrays.distractors()
        self.others = {name: ResidentImages(*arrays.split(f"test-{name}"), device) for name in arrays.others}
        self.record["cost"] = {"parameters": self.counted.parameters, "multiply_adds": self.counted.multiply_adds}
        self.seconds_before = 0.0
        self.began = time.monotonic()
        self._go_on()
        self.start_epoch = self.trainer.epoch

    def _train_images(self, arrays: Arrays) -> ResidentImages | ImageSet:
        pixels, targets = arrays.split("train")
        count = self.job.protocol.train_images
        if count is not None:
            rows = np.sort(np.random.default_rng(0).permutation(len(pixels))[:count])
            pixels, targets = pixels[rows], targets[rows]
        if self.job.config.augment in BATCH_AUGMENTATIONS:
            return ResidentImages(pixels, targets, self.device)
        columns = targets[:, None] if targets.ndim == 1 else targets
        by_head = {head: columns[:, number] for number, head in enumerate(arrays.tasks)}
        source = ArraySource(pixels, [("train", len(pixels))])
        return ImageSet(source, by_head, arrays.tasks, multitask=arrays.multitask)

    @property
    def done(self) -> bool:
        """Whether the last epoch is over and recorded."""
        return self.record["status"] == records.FINISHED

    @property
    def epoch_seconds(self) -> float | None:
        """Seconds an epoch takes here, evaluation included; None before the first has ended."""
        ended = self.trainer.epoch - self.start_epoch
        return (time.monotonic() - self.began) / ended if ended else None

    def expected_epoch_seconds(self, *, certain: bool = True) -> float | None:
        """Return what an epoch's training will take here, by the steps so far; None while they are too few to tell.

        With `certain=False` one step is enough.
        """
        inside = self.trainer.steps_inside
        if inside < (FEWEST_STEPS if certain else 1):
            return None
        return self.trainer.seconds_inside / inside * self.trainer.steps_per_epoch

    def advance(self, steps: int) -> bool:
        """Take some steps; return whether an epoch ended."""
        ended = self.trainer.advance(steps)
        if ended:
            self._after_epoch()
        return ended

    def _after_epoch(self) -> None:
        figures = self.trainer.epoch_figures()
        hits = {}
        for name, images in self.splits.items():
            found = self.trainer.evaluate(images, self.orders[name])
            hits[f"{name}_error"] = (~found.perception).double().mean()
            hits[f"{name}_loss"] = found.loss
            if found.attention is not None:
                hits[f"{name}_attention_error"] = (~found.attention).double().mean()
        self.pending.append((self.trainer.epoch, figures, hits))
        if self.trainer.finished:
            self.flush()
            self._finish()
        elif time.monotonic() - self.saved_at > SAVE_EVERY:
            self.save()

    def flush(self) -> None:
        """Read the figures of the epochs since the last time from the device."""
        for epoch, sums, hits in self.pending:
            line = self.trainer.read_figures(sums) | {name: value.item() for name, value in hits.items()}
            for name, value in line.items():
                self.record["curves"].setdefault(name, []).append(round(value, 6))
            self.record["epochs_done"] = epoch
        self.pending = []

    def save(self) -> None:
        """Keep the run as it stands at the end of an epoch."""
        self.flush()
        if self.trainer.epoch == 0:
            return
        state = {
            "identity": json.dumps(self._identity(), sort_keys=True),
            "trainer": self.trainer.state(),
            "curves": self.record["curves"],
            "seconds": self._seconds(),
        }
        with atomic_path(self.job.checkpoint) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
        records.write_unfinished(self.job.record, self.record)
        self.saved_at = time.monotonic()

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _identity(self) -> dict[str, Any]:
        """Return what a state must share with the run that goes on with it, as a JSON file would give it back."""
        own = {name: self.record[name] for name in ("cell", "settings", "seed")}
        data = {name: self.record["data"][name] for name in ("fingerprint", "pixels", "normalization")}
        return json.loads(json.dumps(own | data))

    def _go_on(self) -> None:
        if not self.job.checkpoint.exists():
            return
        try:
            state = torch.load(self.job.checkpoint, map_location="cpu", weights_only=True)
            # A state of before pixels were looked at is not of other ones for that.
            theirs, ours = {"pixels": self.record["data"]["pixels"], **json.loads(state["identity"])}, self._identity()
            if theirs == ours:
                self.trainer.restore(state["trainer"])
        except Exception as problem:  # a torn file fails in as many ways as there are places to tear it
            raise UserError(
                f"'{self.job.checkpoint}' cannot be continued ({str(problem).splitlines()[0][:120]}); remove it, and "
                "the run begins anew."
            ) from problem
        if theirs != ours:
            raise UserError(self._refusal(theirs, ours))
        self.record["curves"] = state["curves"]
        self.record["epochs_done"] = self.trainer.epoch
        self.seconds_before = state["seconds"]

    def _refusal(self, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
        anew = "remove it, and the run begins anew, or name another folder with --out"
        if theirs | {"pixels": ours["pixels"]} == ours:
            return (
                f"'{self.job.checkpoint}' was begun on other pixels under the same names (pictures that were changed, "
                f"or another version of what decodes them); {anew}."
            )
        precision = theirs["settings"].get("precision")
        if precision != ours["settings"]["precision"]:
            anew = f"give --precision {precision} as there, or {anew}"
        return f"'{self.job.checkpoint}' is of a run with other settings or on other data; {anew}."

    def _finish(self) -> None:
        curves = self.record["curves"]
        last = {name: values[-1] for name, values in curves.items()}
        found = self.trainer.evaluate(self.splits["test"], self.orders["test"])
        right = found.perception.cpu().numpy()
        if right.ndim == 2:
            names = list(self.trainer.heads or [])
            last["test_accuracy_by_head"] = dict(zip(names, right.mean(0).tolist(), strict=True))
        for name, images in self.others.items():
            last[f"test_error_{name}"] = round(self.trainer.evaluate(images).error(), 6)
        self.record |= {
            "last": last,
            "best_on_validation": _at(curves, int(np.argmin(curves["validation_error"]))),
            "best_on_test": _at(curves, int(np.argmin(curves["test_error"]))),
            "test_answers": records.pack(right),
        }
        maps = self._maps()
        if maps is not None:
            flat = maps.flatten(2)
            self.record["map"] = {
                "mean": flat.mean().item(),
                "spread": flat.std(2, correction=0).mean().item(),
                "low": flat.amin(2).mean().item(),
                "high": flat.amax(2).mean().item(),
                "alarm": collapse_alarm(maps, bounded=self.trainer.evaluated.map_range is not None),
                **self._on_objects(maps),
            }
        if self.distractors is not None and self.regions is not None:
            places = (self.regions[:, 0], np.asarray(self.distractors))
            self.record["distraction"] = distraction.measured(
                self.trainer.evaluated, self.splits["test"], *places, right
            )
        steps = self.trainer.step * self.trainer.batch_size
        self.record["cost"] |= {
            "seconds": round(self._seconds(), 1),
            "train_images_per_second": round(steps / self.trainer.seconds, 1) if self.device == "cpu" else None,
        }
        if self.job.keep_model:
            self.trainer.evaluated.save_pretrained(self.job.network)
        self.record["status"] = records.FINISHED
        records.write(self.job.record, self.record)
        self.job.checkpoint.unlink(missing_ok=True)

    def _on_objects(self, maps: Tensor) -> dict[str, Any]:
        """Return how often a map's maximum lies on its object, where objects' places are known: one a map, or a head.

        `on_object` counts every known place alike; `object_area` is their mean share of the picture.
        """
        if self.regions is None or self.regions.shape[1] != maps.shape[1]:
            return {}
        regions = torch.from_numpy(self.regions[self.orders["test"].numpy()])
        known = regions.flatten(2).any(2)
        if not known.any():
            return {}
        shares = []
        for head in range(maps.shape[1]):
            game = PointingGame()
            mine = known[:, head]
            if mine.any():
                game.update(None, None, maps[mine, head], regions=regions[mine, head])
            shares.append(game.compute().mean if mine.any() else None)
        counts = known.sum(0).tolist()
        hits = sum(share * count for share, count in zip(shares, counts, strict=True) if share is not None)
        found: dict[str, Any] = {
            "on_object": hits / sum(counts),
            "objects": sum(counts),
            "object_area": regions[known].float().mean().item(),
        }
        if self.trainer.heads:
            found["on_object_by_head"] = dict(zip(self.trainer.heads, shares, strict=True))
        return found

    @torch.no_grad()
    def _maps(self) -> Tensor | None:
        """Return the test images' maps (N, T, h, w) in the order of `orders`, None without a branch."""
        network = self.trainer.evaluated
        if not network.is_abn:
            return None
        images = self.splits["test"]
        network.eval()
        maps = []
        for index in torch.split(self.orders["test"].to(images.device), EVALUATION_BATCH):
            output = network(network.preprocessing.normalize(images.taken(index)), attention_logits=False)
            assert isinstance(output, ABNOutput)
            maps.append(output.attention.float().cpu())
        network.train()
        return torch.cat(maps)


def _at(curves: dict[str, list[float]], epoch: int) -> dict[str, Any]:
    """Return the evaluation's figures after an epoch (counted from 1)."""
    chosen = {name: values[epoch] for name, values in curves.items() if not name.startswith("train_")}
    return {"epoch": epoch + 1, **chosen}
