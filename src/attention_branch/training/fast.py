"""The fast path for small images: pictures on the device, one CUDA graph a step, no step that waits for its result.

A run is advanced by a number of steps at a time, so that one process can keep several runs going on one GPU, each on a
stream of its own. On the CPU a run ends with the weights that `abn train` gives for the same settings, bit for bit.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_branch.data.dataset import ImageSet
from attention_branch.data.loader import BatchPlan, ImageLoader, make_loader
from attention_branch.data.resident import ResidentImages
from attention_branch.errors import UserError
from attention_branch.models import ABNOutput, AttentionBranchNetwork, abn_loss
from attention_branch.training.averaging import RunningAverage
from attention_branch.training.building import Trainable
from attention_branch.training.capture import captured_step
from attention_branch.training.config import TrainConfig
from attention_branch.training.guided import guide_batch, make_guide, mix_guided
from attention_branch.training.mixing import Mixed, Targets, mixed_loss
from attention_branch.training.optimization import make_optimizer, rate_factor
from attention_branch.training.streams import RunStream

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

    On a GPU the work is only queued, on a stream of the run's own: read weights through `evaluated`, not from the
    network that was given. A `ResidentImages` for training belongs to one trainer, since it holds its epoch's order.
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
        """Take a network and its training images; `graph` captures steps (None: on CUDA devices, where it can)."""
        self.config, self.device = config, torch.device(device)
        self.graph = self._whether_captured(graph, model)
        self._check(train)
        self._lane = RunStream(self.device)
        self._lane.follow()
        # Weights that belong to another stream could be given back, and written over, while this one reads them.
        with self._lane.entered():
            self._prepare(model, train)

    def _whether_captured(self, wanted: bool | None, model: Trainable) -> bool:
        mixes = self.config.mixup > 0 or self.config.cutmix > 0
        # A mixed batch has a share and partners of its own. With more heads than go through at once activations are
        # computed again, from the random numbers' state, which cannot be read inside of a capture.
        obstacle = "mixes batches" if mixes else ""
        if self.config.guided != "none":
            obstacle = obstacle or "changes images by maps that another pass makes"
        if isinstance(model, AttentionBranchNetwork) and len(model.sizes) > model.task_chunk:
            obstacle = obstacle or f"computes the activations of {len(model.sizes)} heads again"
        if self.device.type != "cuda":
            obstacle = obstacle or f"runs on {self.device}"
        if wanted and obstacle:
            raise UserError(f"This run {obstacle}, so that its steps cannot be a CUDA graph; leave graph out.")
        return not obstacle if wanted is None else wanted

    def _check(self, train: ResidentImages | ImageSet) -> None:
        if self.config.accumulate != 1:
            raise UserError("The fast path takes a batch at once; leave accumulate out.")
        if self.config.annotations is not None:
            raise UserError("The fast path takes no human maps; leave annotations out, or use train().")
        if not isinstance(train, ResidentImages):
            return
        if train.device.type != self.device.type:
            raise UserError(
                f"The run is on {self.device} and its pictures on {train.device}; make them with "
                f"resident(images, preprocessing, '{self.device}')."
            )
        if bool((train.targets < 0).any()):
            raise UserError("The fast path needs every label; fill in or remove images whose label is missing.")

    def _prepare(self, model: Trainable, train: ResidentImages | ImageSet) -> None:
        config = self.config
        self.model = model.to(self.device).to(memory_format=torch.channels_last).train()
        self.preprocessing = model.preprocessing
        # Made once: made anew for each batch, as `normalize` does, they would let the host wait for the device.
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        self.heads = list(model.heads) if model.heads else None
        self.train_images = train
        self.batch_size = min(config.batch_size, len(train))
        self.plan = BatchPlan(len(train), self.batch_size, train=True, seed=config.seed)
        self.steps_per_epoch = len(self.plan)
        self.epoch = self.step = 0
        self.seconds = 0.0
        self._factor = rate_factor(config, self.steps_per_epoch)
        self.optimizer = self._make_optimizer()
        self.average = RunningAverage(self.model, config.ema) if config.ema else None
        self.guide = make_guide(config, self.model, self.average.module if self.average is not None else None)
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
        """The network that is evaluated: the weights' average when there is one. The caller's stream waits for it."""
        self._lane.hand_over()
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
        with self._lane.entered():
            if self._batches is None:
                self._begin_epoch()
            last = self.steps_per_epoch if steps is None else min(self.steps_per_epoch, self.steps_inside + steps)
            while self.steps_inside < last:
                self._one_step()
                self._lane.pace()
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
        with self._lane.entered():
            sums = self._sums.clone()
        self._lane.hand_over(sums)
        return sums

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
        order = self._lane.sent(torch.arange(len(images)) if order is None else order)
        with self._lane.entered():
            answers = self._answers(self.evaluated, images, order)
        self._lane.hand_over(answers.perception, answers.attention, answers.loss)
        return answers

    def _answers(self, network: Trainable, images: ResidentImages, order: Tensor) -> Evaluated:
        training = network.training
        network.eval()
        plan = BatchPlan(len(images), EVALUATION_BATCH, train=False)
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
        """Return a copy of all that continuing at the end of an epoch needs, on the CPU; waits for the device."""
        if self._batches is not None:
            raise RuntimeError("A run is saved at the end of an epoch.")
        self._lane.wait()
        return {
            "model": _on_cpu(self.model.state_dict()),
            "optimizer": _on_cpu(self.optimizer.state_dict()),
            "average": _on_cpu(self.average.module.state_dict()) if self.average else None,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was taken."""
        settings = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        with self._lane.entered():
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.module.load_state_dict(state["average"])
        self._captured = None  # its optimiser's state lies where it lay before
        # The settings are those of this device, whatever the state was saved on.
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
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
                group["capturable"] = self.graph
        return optimizer

    def _begin_epoch(self) -> None:
        self.plan.set_epoch(self.epoch)
        self.steps_inside, self.seconds_inside = 0, 0.0
        self._sums.zero_()
        self.model.begin_epoch(self.epoch)
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
        self._seed(self.steps_inside)  # a graph's dropout reads the seed when it is replayed
        images = self._normalized(pictures)
        with self._autocast():
            guided = guide_batch(self.guide, images, self._by_head(targets))
        if self.guide is not None:
            self._seed(self.steps_inside)  # the control draws places: mixing and dropout must not feel it
        mixed = mix_guided(guided, self.config)
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
                assert self._lane.stream is not None
                self._captured = captured_step(
                    self._learn, mixed, self.model, self.optimizer, self._sums, self._lane.stream
                )
            self._captured(mixed)
        self.step += 1
        self.steps_inside += 1
        if self.average is not None:
            self.average.follow(self.step)

    def _learn(self, mixed: Mixed) -> None:
        """Forward, backward and the optimiser's step for one batch, with its sums."""
        with self._autocast():
            output = self.model(mixed.images)
        losses = mixed_loss(self.model.loss, output, mixed, self.config.label_smoothing)
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
            owner = mixed.owners()
            row = [
                losses.attention.double() * count,
                losses.perception.double() * count,
                _right(branch, owner).sum() if branch is not None else self._sums.new_zeros(()),
                _right(scores, owner).sum(),
                (~torch.isfinite(losses.total)).sum(),
            ]
            self._sums += torch.stack([value.to(self._sums.dtype) for value in row])

    def _normalized(self, pictures: Tensor) -> Tensor:
        """Return bytes normalised as `Preprocessing.normalize` does."""
        return ((pictures.float() / 255 - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

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


def _on_cpu(value: Any) -> Any:
    """Return a copy of nested dicts and lists with their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
