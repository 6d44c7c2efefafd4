"""The fast path for small images: pictures on the device, one CUDA graph a step, no step that waits for its result.

A run is advanced by a number of steps at a time, so that one process can keep several runs going on one GPU, each on a
stream of its own. On the CPU a run ends with the weights that `abn train` gives for the same settings, bit for bit.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from attention_branch.data.dataset import ImageSet
from attention_branch.data.loader import BatchPlan, ImageLoader, make_loader
from attention_branch.data.resident import ResidentImages
from attention_branch.errors import UserError
from attention_branch.models import ABNOutput, AttentionBranchNetwork, PlainNetwork, abn_loss
from attention_branch.training.config import TrainConfig
from attention_branch.training.mixing import Mixed, Targets, mix, mixed_loss
from attention_branch.training.optimization import make_optimizer, rate_factor

Trainable = AttentionBranchNetwork | PlainNetwork

WARM_UP_STEPS = 3
"""Steps run before a graph is captured, so that libraries have chosen their kernels; they are undone."""

EVALUATION_BATCH = 500


@dataclass
class Evaluated:
    """Which images a network got right: bool (N,), or (N, T) by head, for both branches; still on the device."""

    perception: Tensor
    attention: Tensor | None
    loss: Tensor

    def error(self, branch: str = "perception") -> float:
        """Return the share of wrong answers; waits for the device."""
        right = getattr(self, branch)
        return 1 - right.double().mean().item()


class FastTrainer:
    """One run of `config` on pictures that stay on the device.

    `advance(n)` takes up to n steps of the current epoch and returns whether the epoch ended; after it, `epoch` counts
    one more. `evaluate` answers for a split. `state()` and `restore()` continue a run at the end of an epoch.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Trainable,
        train: ResidentImages | ImageSet,
        device: str | torch.device = "cpu",
        *,
        graph: bool | None = None,
    ) -> None:
        """Take a network and its training images; `graph` captures steps (None: on CUDA devices)."""
        if config.accumulate != 1:
            raise UserError("The fast path takes a batch at once; leave accumulate out.")
        if isinstance(train, ResidentImages) and bool((train.targets < 0).any()):
            raise UserError("The fast path needs every label; fill in or remove images whose label is missing.")
        self.config, self.device = config, torch.device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).train()
        self.preprocessing = model.preprocessing
        self.heads = list(model.heads) if model.heads else None
        self.train_images = train
        self.batch_size = min(config.batch_size, len(train))
        self.plan = BatchPlan(len(train), self.batch_size, train=True, seed=config.seed)
        self.steps_per_epoch = len(self.plan)
        self.epoch = self.step = 0
        self.seconds = 0.0
        mixes = config.mixup > 0 or config.cutmix > 0
        # A mixed batch has a share and partners of its own, so its steps are not replayed from a graph.
        self.graph = (self.device.type == "cuda" and not mixes) if graph is None else graph
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._factor = rate_factor(config, self.steps_per_epoch)
        self.optimizer = self._make_optimizer()
        self.average = ModelEmaV3(self.model, decay=config.ema, use_warmup=True) if config.ema else None
        if config.compile:
            self.model.compile()
        # Sums over an epoch: attention loss, perception loss, right answers of both branches, and of the steps whose
        # loss was not finite. float64 counts exactly.
        self._sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self._captured: Callable[[Mixed], None] | None = None
        self.steps_inside = 0
        self.seconds_inside = 0.0
        self._loader: ImageLoader | None = None

    @property
    def evaluated(self) -> Trainable:
        """The network that is evaluated: the weights' average when there is one."""
        return self.average.module if self.average is not None else self.model

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.config.epochs

    @property
    def at_epoch_end(self) -> bool:
        """Whether no epoch is under way, so that `state()` can be taken."""
        return self._batches is None

    def advance(self, steps: int | None = None) -> bool:
        """Take up to `steps` steps (None: the rest of the epoch); return whether the epoch ended."""
        began = time.perf_counter()
        with self._on_stream():
            if self._batches is None:
                self._begin_epoch()
            last = self.steps_per_epoch if steps is None else min(self.steps_per_epoch, self.steps_inside + steps)
            while self.steps_inside < last:
                self._one_step()
            ended = self.steps_inside == self.steps_per_epoch
            if ended:
                self._batches = None
                self.epoch += 1
        taken = time.perf_counter() - began
        self.seconds += taken
        self.seconds_inside += taken
        return ended

    def epoch_figures(self) -> Tensor:
        """Return the sums of the epoch so far (see `read_figures`), without waiting for the device."""
        return self._sums.clone()

    def read_figures(self, sums: Tensor) -> dict[str, float]:
        """Return an epoch's mean losses and errors as numbers; waits for the device.

        Raises `UserError` when a loss was not finite.
        """
        attention, perception, attention_right, right, bad = sums.tolist()
        if bad or not math.isfinite(attention + perception):
            raise UserError(
                f"The loss was not finite in epoch {self.epoch} of {self.config.model}; lower the learning rate "
                f"({self.config.lr:g}), add warmup_epochs or set gradient_clip."
            )
        images = self.steps_per_epoch * self.batch_size
        answers = images * (len(self.heads) if self.heads else 1)
        figures = {"train_loss": (attention + perception) / images, "train_error": 1 - right / answers}
        if self.model.is_abn:
            figures |= {
                "train_attention_loss": attention / images,
                "train_attention_error": 1 - attention_right / answers,
            }
        return figures

    @torch.no_grad()
    def evaluate(self, images: ResidentImages, order: Tensor | None = None) -> Evaluated:
        """Return which images the evaluated network gets right, in the order of the split.

        `order` is the order in which they are shown, which changes only what a network with shuffled maps answers.
        """
        network = self.evaluated
        training = network.training
        network.eval()
        order = torch.arange(len(images)) if order is None else order
        order = order.to(self.device)
        plan = BatchPlan(len(images), EVALUATION_BATCH, train=False)
        with self._on_stream():
            right, branch, loss = [], [], torch.zeros((), dtype=torch.float64, device=self.device)
            for begin in range(0, len(images), plan.batch_size):
                index = order[begin : begin + plan.batch_size]
                pictures, targets = images.taken(index), self._by_head(images.targets[index])
                with self._autocast():
                    output = network(self._normalized(pictures))
                scores = output.logits if isinstance(output, ABNOutput) else output
                right.append(_right(scores, targets))
                loss += abn_loss(scores, targets).perception.double() * len(index)
                if isinstance(output, ABNOutput):
                    branch.append(_right(output.attention_logits, targets))
            back = torch.argsort(order)
            network.train(training)
            return Evaluated(
                torch.cat(right)[back], torch.cat(branch)[back] if branch else None, loss / max(1, len(images))
            )

    def state(self) -> dict[str, Any]:
        """Return all that continuing at the end of an epoch needs, as tensors and plain values on the CPU."""
        if self._batches is not None:
            raise RuntimeError("A run is saved at the end of an epoch.")
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was taken."""
        settings = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # The settings are those of this device, whatever the state was saved on.
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]

    # --- one step ---

    def _make_optimizer(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.model, self.config)
        if self.device.type != "cuda":
            return optimizer
        # A captured step reads the learning rate from the device, which the fused kernels allow.
        rate = torch.zeros((), device=self.device)
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False, lr=rate)
            if "capturable" in group:
                group["capturable"] = True
        return optimizer

    def _begin_epoch(self) -> None:
        self.plan.set_epoch(self.epoch)
        self.steps_inside, self.seconds_inside = 0, 0.0
        self._sums.zero_()
        seed = (self.config.seed * 1_000_003 + self.epoch) * 1009
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if isinstance(self.train_images, ResidentImages):
            self.train_images.begin_epoch(self.plan, self.config.augment)
            self._batches = map(self.train_images.batch, range(self.steps_per_epoch))
        else:
            self._batches = self._loaded(self.train_images)

    def _loaded(self, images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of an augmentation that works on single pictures, made by the plain loader."""
        if self._loader is None:
            self._loader = make_loader(
                images, self.preprocessing, self.batch_size, train=True, augment=self.config.augment,
                seed=self.config.seed, workers=self.config.workers, normalized=False,
            )  # fmt: skip
        self._loader.set_epoch(self.epoch)
        for batch in self._loader:
            targets = batch["targets"]
            if isinstance(targets, dict):
                targets = torch.stack(list(targets.values()), dim=1)
            yield batch["images"].to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def _one_step(self) -> None:
        assert self._batches is not None
        pictures, targets = next(self._batches)
        if not self.graph:  # a captured step has its own state of the generator, which dropout reads
            self._seed(self.steps_inside)
        images = self._normalized(pictures)
        mixed = mix(images, self._by_head(targets), self.config.mixup, self.config.cutmix)
        rate = self.config.lr * self._factor(self.step)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if not self.graph:
            self._learn(mixed)
        else:
            if self._captured is None:
                self._captured = self._capture(mixed)
            self._captured(mixed)
        self.step += 1
        self.steps_inside += 1
        if self.average is not None:
            self.average.update(self.model, step=self.step)

    def _learn(self, mixed: Mixed) -> None:
        """Forward, backward and the optimiser's step for one batch, with its sums."""
        with self._autocast():
            output = self.model(mixed.images)
        losses = mixed_loss(output, mixed, self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        if self.config.gradient_clip is not None:
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
        self.optimizer.step()
        with torch.no_grad():
            count = len(mixed.images)
            scores = output.logits if isinstance(output, ABNOutput) else output
            branch = output.attention_logits if isinstance(output, ABNOutput) else None
            owner = mixed.targets if mixed.neighbours is None or float(mixed.share) >= 0.5 else mixed.neighbours
            row = [
                losses.attention.double() * count,
                losses.perception.double() * count,
                _right(branch, owner).sum() if branch is not None else self._sums.new_zeros(()),
                _right(scores, owner).sum(),
                (~torch.isfinite(losses.total)).sum(),
            ]
            self._sums += torch.stack([value.to(self._sums.dtype) for value in row])

    def _capture(self, example: Mixed) -> Callable[[Mixed], None]:
        """Capture a step as a CUDA graph; return the function that copies a batch in and replays it."""
        still = Mixed(example.images.clone(), _cloned(example.targets), None, 1.0)
        kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        started = any(self.optimizer.state.values())
        kept_state = _copied_state(self.optimizer) if started else None
        for _ in range(WARM_UP_STEPS):
            self._learn(still)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.current_stream().synchronize()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self._learn(still)
        # What the warm-up changed is put back in place: the graph knows the tensors by their addresses.
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(kept[name])
            _restore_state(self.optimizer, kept_state)
            self._sums.zero_()

        def replay(mixed: Mixed) -> None:
            still.images.copy_(mixed.images)
            _copy_targets(still.targets, mixed.targets)
            graph.replay()

        return replay

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _normalized(self, pictures: Tensor) -> Tensor:
        return self.preprocessing.normalize(pictures).contiguous(memory_format=torch.channels_last)

    def _by_head(self, targets: Tensor) -> Targets:
        if self.heads is None:
            return targets
        return {head: targets[:, column] for column, head in enumerate(self.heads)}

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _seed(self, *numbers: int) -> None:
        # As `Classifier` does, so that both paths draw alike.
        state = np.random.SeedSequence((self.config.seed, self.epoch, *numbers))
        torch.manual_seed(int(state.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _right(scores: Any, targets: Targets) -> Tensor:
    """Return whether each answer is right, bool (N,), or (N, T) for several heads."""
    if isinstance(scores, dict):
        assert isinstance(targets, dict)
        return torch.stack([_right(scores[head], targets[head]) for head in scores], dim=1)
    answer = (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
    return answer == targets


def _cloned(targets: Targets) -> Targets:
    if isinstance(targets, dict):
        return {head: value.clone() for head, value in targets.items()}
    return targets.clone()


def _copy_targets(still: Targets, targets: Targets) -> None:
    if isinstance(still, dict):
        assert isinstance(targets, dict)
        for head, value in targets.items():
            still[head].copy_(value)
    else:
        assert isinstance(targets, Tensor)
        still.copy_(targets)


def _copied_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    return [
        {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
        for state in optimizer.state.values()
    ]


def _restore_state(optimizer: torch.optim.Optimizer, kept: list[dict[str, Tensor]] | None) -> None:
    """Put the optimiser's tensors back in place; with nothing kept, to zero, where momenta and counts begin."""
    for number, state in enumerate(optimizer.state.values()):
        for name, value in state.items():
            if isinstance(value, Tensor):
                value.copy_(kept[number][name]) if kept is not None else value.zero_()
