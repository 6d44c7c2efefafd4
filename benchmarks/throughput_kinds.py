"""What `throughput.py` measures: the authors' training loop, ours through Lightning, and the fast path."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from PIL import Image
from torch import nn
from torchvision import transforms

from attention_branch.data import DataSet, ImageSet, make_loader
from attention_branch.data.resident import ResidentImages
from attention_branch.data.torchvision_sets import ArraySource
from attention_branch.training import TrainConfig, recipe
from attention_branch.training.building import make_model
from attention_branch.training.fast import FastTrainer
from attention_branch.training.module import Classifier
from attention_branch.training.run import EpochBatches, make_trainer
from official_code import official_network

CLASSES = {"label": tuple(f"class {number}" for number in range(100))}
RECIPES = {"resnet20": "cifar", "resnet164b": "cifar-resnet110", "wrn_28_10": "cifar-wrn"}
BATCH = {"resnet20": 32, "resnet164b": 8, "wrn_28_10": 4}
"""Images in a step on a CPU; on a GPU it is 128."""
STEPS = {"cpu": {"resnet20": 6, "resnet164b": 3}, "cuda": {"resnet20": 96, "resnet164b": 48, "wrn_28_10": 32}}
PICTURES = {"cpu": 4_096, "cuda": 50_000}


class Taken(NamedTuple):
    """Seconds by the clock, and of the processor by this process (without a loader's workers)."""

    seconds: float
    processor: float

    @classmethod
    def now(cls) -> "Taken":
        """Return both at this moment."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, began: "Taken") -> "Taken":
        """Return both since another moment."""
        return Taken(self.seconds - began.seconds, self.processor - began.processor)


class Surroundings:
    """The device, the pictures and the settings that all kinds share."""

    def __init__(self, network: str, device: str, batch: int | None, steps: int | None) -> None:
        self.network, self.device, self.on_gpu = network, device, device.startswith("cuda")
        kind = "cuda" if self.on_gpu else "cpu"
        self.batch = batch or (128 if self.on_gpu else BATCH[network])
        self.steps = steps or STEPS[kind].get(network, 1)
        self.lead = 3 if self.on_gpu else 1
        count = PICTURES[kind] // self.batch * self.batch
        random = np.random.default_rng(0)
        self.pixels = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.targets = random.integers(0, len(CLASSES["label"]), count)

    def config(self, precision: str, **changes: Any) -> TrainConfig:
        """Return the network's recipe for this device, with a rate at which no loss diverges on random labels."""
        shared = {"model": self.network, "lr": 1e-3, "batch_size": self.batch, "precision": precision}
        place = {"accelerator": "gpu" if self.on_gpu else "cpu", "devices": 1}
        return recipe(RECIPES[self.network], **shared | place | changes)

    def model(self, config: TrainConfig) -> Any:
        """Return the network as a run on CIFAR-100 makes it."""
        torch.manual_seed(0)
        return make_model(config, DataSet(spec="random", seed=0, tasks=CLASSES))

    def now(self) -> Taken:
        """Return the time when the device has done all that was asked of it."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return Taken.now()


class Pictures(torch.utils.data.Dataset):
    """PIL pictures and class numbers, changed as the authors' cifar.py changes them."""

    def __init__(self, pixels: np.ndarray, targets: np.ndarray) -> None:
        self.pixels, self.targets = pixels, targets
        self.change = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.change(Image.fromarray(self.pixels[index])), int(self.targets[index])


class Official:
    """The authors' network and the work of a step of their loop."""

    def __init__(self, around: Surroundings, directory: str, workers: int) -> None:
        config = around.config("32")
        torch.manual_seed(0)
        model = official_network(directory, around.network, len(CLASSES["label"])).to(around.device)
        self.model = nn.DataParallel(model, [torch.device(around.device).index or 0]) if around.on_gpu else model
        self.around, self.loss = around, nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay
        )
        self.loader = torch.utils.data.DataLoader(
            Pictures(around.pixels, around.targets), around.batch, shuffle=True, num_workers=workers
        )
        self.lead = around.lead + 2 * workers  # two batches a worker lie ready when a turn begins
        self.batches = self._endless()
        self.figures: list[float] = []

    def _endless(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> None:
        """Take one step."""
        images, targets = next(self.batches)
        images, targets = images.to(self.around.device), targets.to(self.around.device, non_blocking=True)
        branch, scores, _ = self.model(images)
        loss = self.loss(branch, targets) + self.loss(scores, targets)
        best = scores.detach().topk(5, 1).indices.t()
        right = best.eq(targets.view(1, -1).expand_as(best))
        first, five = (right[:count].reshape(-1).float().sum() * (100 / len(targets)) for count in (1, 5))
        self.figures = [loss.item(), first.item(), five.item()]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def turn(self) -> Taken:
        """Return what a turn's timed steps take."""
        for _ in range(self.lead):
            self.step()
        began = self.around.now()
        for _ in range(self.around.steps):
            self.step()
        return self.around.now().since(began)


class Stopwatch(L.Callback):
    """Times all steps of an epoch but the first ones."""

    def __init__(self, around: Surroundings) -> None:
        self.around, self.began, self.taken = around, Taken(0, 0), Taken(0, 0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Start after the last untimed step, stop after the last one."""
        if batch_idx == self.around.lead - 1:
            self.began = self.around.now()
        elif batch_idx == self.around.lead + self.around.steps - 1:
            self.taken = self.around.now().since(self.began)


class Plain:
    """Our network as `abn train` trains it; a turn is an epoch of as many pictures as it has steps."""

    def __init__(self, around: Surroundings, precision: str) -> None:
        self.around, self.config = around, around.config(precision, epochs=1)
        self.network = around.model(self.config).to(memory_format=torch.channels_last)
        rows = np.arange((around.lead + around.steps) * around.batch) % len(around.pixels)
        source = ArraySource(around.pixels, [("train", len(around.pixels))])
        self.images = ImageSet(source, {"label": around.targets}, CLASSES, rows=rows)

    def turn(self) -> Taken:
        """Return what a turn's timed steps take."""
        trainer, _ = make_trainer(self.config, Path())
        loader = make_loader(
            self.images, self.network.preprocessing, self.around.batch, train=True, augment=self.config.augment,
            workers=self.config.workers, normalized=False,
        )  # fmt: skip
        batches = EpochBatches(loader, 1)
        batches.trainer = trainer
        watch = Stopwatch(self.around)
        trainer.callbacks.append(watch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec")
            trainer.fit(Classifier(self.network, self.config, len(batches)), batches)
        return watch.taken


class Fast:
    """The fast path."""

    def __init__(self, around: Surroundings, precision: str, *, compiled: bool = False) -> None:
        self.around = around
        config = around.config(precision, compile=compiled)
        images = ResidentImages(around.pixels, around.targets, around.device)
        self.trainer = FastTrainer(config, around.model(config), images, around.device)

    def take(self, steps: int) -> None:
        """Take steps, into the next epoch where one ends."""
        until = self.trainer.step + steps
        while self.trainer.step < until:
            self.trainer.advance(until - self.trainer.step)

    def turn(self) -> Taken:
        """Return what a turn's timed steps take."""
        self.take(self.around.lead)
        began = self.around.now()
        self.take(self.around.steps)
        return self.around.now().since(began)


def make(kind: str, around: Surroundings, official: str, workers: int) -> Official | Plain | Fast:
    """Return what trains as `kind` says: official, plain or fast, with "bf16" and "compile" behind it."""
    name, *more = kind.split()
    if name == "official":
        return Official(around, official, workers)
    precision = "bf16" if "bf16" in more else "32"
    return Plain(around, precision) if name == "plain" else Fast(around, precision, compiled="compile" in more)
