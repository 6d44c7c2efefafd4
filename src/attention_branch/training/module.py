"""The Lightning module: one network, its loss, its tallies. What to do with them is the journal's business."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from attention_branch.errors import UserError
from attention_branch.models import ABNOutput, AttentionBranchNetwork, abn_loss
from attention_branch.training.annotated import MapTeacher, extractor_parts
from attention_branch.training.building import Trainable
from attention_branch.training.config import TrainConfig
from attention_branch.training.counterexamples import counterexamples
from attention_branch.training.guided import guide_batch, make_guide, mix_guided
from attention_branch.training.mixing import gather, mixed_loss
from attention_branch.training.normalization import average_buffers
from attention_branch.training.optimization import make_optimizer, rate_factor
from attention_branch.training.tally import Tally

CHECK_EVERY = 50
"""Steps between two looks at whether the loss is still finite; each look waits for the device."""

SEEN_MAPS = 512
"""Validation maps a process keeps to tell whether they have collapsed."""


class Classifier(L.LightningModule):
    """Trains a network with or without attention branch by L = L_att + L_per.

    `gather` takes the loss over all processes' answers at once: with missing labels the processes' means are over
    different counts, and their mean would not be the global batch's.
    """

    def __init__(
        self,
        model: Trainable,
        config: TrainConfig,
        steps_per_epoch: int,
        *,
        gather: bool = False,
        teacher: MapTeacher | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config, self.steps_per_epoch, self.gather = model, config, steps_per_epoch, gather
        # The teacher is no module: its frozen network belongs neither to the optimiser nor to a checkpoint.
        self.teacher = teacher
        self.frozen = self._freeze() if teacher is not None and not config.train_extractor else []
        self.average = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
        self.guide = make_guide(config, model, self.average.module if self.average is not None else None)
        if config.compile:
            model.compile()
        self.train_tally, self.validation_tally = Tally(), Tally()
        self.maps: list[Tensor] = []
        # Of an epoch's first batch: some images, what their human maps mark, and what they were changed into.
        self.surroundings: list[Tensor] = []
        self.bad_step: Tensor | None = None
        self.stepped = -1

    def _freeze(self) -> list[str]:
        assert isinstance(self.model, AttentionBranchNetwork)
        modules, parameters = extractor_parts(self.model)
        for name in parameters:
            self.model.get_parameter(name).requires_grad_(False)
        return modules

    @property
    def evaluated(self) -> Trainable:
        """The network that is evaluated and saved: the weights' average when there is one."""
        return self.average.module if self.average is not None else self.model

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, stepped once an optimiser step."""
        optimizer = make_optimizer(self.model, self.config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(self.config, self.steps_per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Normalise on the device: bytes are a quarter of the transfer."""
        images = self.model.preprocessing.normalize(batch["images"])
        return batch | {"images": images.contiguous(memory_format=torch.channels_last)}

    def on_fit_start(self) -> None:
        """Bring the teacher's network to the device."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Start the epoch's random state and tallies anew; what is frozen answers as in evaluation."""
        for name in self.frozen:
            self.model.get_submodule(name).eval()
        self.train_tally.reset(self.device)
        self.bad_step = torch.full((), float("inf"), device=self.device)
        self.stepped = self.global_step
        self.model.begin_epoch(self.current_epoch)
        seed = (self.config.seed * 1_000_003 + self.current_epoch) * 1009 + self.global_rank
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return L of one piece of a batch, mixed and smoothed as the settings say."""
        # Each step is seeded by its number: what it draws depends neither on the steps before nor on a resume. Mixing
        # draws the same on all processes, a guide and dropout do not; what a guide draws moves neither of the others.
        several = self.trainer.world_size > 1
        self._seed(batch_idx, *((self.global_rank, 1) if several else ()))
        if "inside" in batch:
            self._change_surroundings(batch, batch_idx)
        guided = guide_batch(self.guide, batch["images"], batch["targets"])
        if several or self.guide is not None:
            self._seed(batch_idx)
        mixed = mix_guided(guided, self.config)
        if several:
            self._seed(batch_idx, self.global_rank)
        output = self.model(mixed.images)
        if self.gather:
            losses = mixed_loss(self.model.loss, *gather(output, mixed), self.config.label_smoothing)
        else:
            losses = mixed_loss(self.model.loss, output, mixed, self.config.label_smoothing)
        with torch.no_grad():
            self.train_tally.add(output, mixed.owners(), losses)
            assert self.bad_step is not None
            step = torch.where(torch.isfinite(losses.total), float("inf"), float(batch_idx))
            torch.minimum(self.bad_step, step, out=self.bad_step)
        if self.teacher is None:
            return losses.total
        assert isinstance(output, ABNOutput)
        return losses.total + self.teacher.loss(
            output.attention, batch["images"], batch["human_maps"], batch["annotated"]
        )

    def _change_surroundings(self, batch: dict[str, Any], number: int) -> None:
        # In the batch itself: the teacher's frozen network is to see what the network sees.
        plain, inside = batch["images"], batch["inside"]
        # A map that is for one head of several does not say what the others' labels depend on.
        changed = counterexamples(plain, inside, batch["annotated"].all(1), self.config.counterexamples)
        batch["images"] = changed.images
        if number == 0:
            some = changed.places[: self.config.maps]
            self.surroundings = [each[some].cpu() for each in (plain, inside, changed.images)]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average the weights after an optimiser step; look now and then whether the loss is finite."""
        if self.average is not None and self.global_step != self.stepped:
            self.stepped = self.global_step
            self.average.update(self.model, step=self.global_step)
        if (batch_idx + 1) % CHECK_EVERY == 0:
            self.check_finite()

    def on_validation_epoch_start(self) -> None:
        """Refuse to evaluate after a loss that was not finite, then start the validation's tally."""
        self.check_finite()
        if self.trainer.world_size > 1 and not self.config.sync_batchnorm:
            average_buffers(self)
        self.validation_tally.reset(self.device)
        self.maps = []

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Count what the evaluated network answers."""
        output = self.evaluated(batch["images"])
        self.validation_tally.add(output, batch["targets"], abn_loss(output, batch["targets"]))
        if isinstance(output, ABNOutput) and sum(map(len, self.maps)) < SEEN_MAPS:
            self.maps.append(output.attention.float().cpu())
        if self.teacher is not None and isinstance(output, ABNOutput):
            self.teacher.compare(output.attention, batch["images"])

    def check_finite(self) -> None:
        """Stop all processes together with a `UserError` when a loss of this epoch was not finite."""
        if self.bad_step is None:
            return
        if self.trainer.world_size > 1:
            dist.all_reduce(self.bad_step, op=dist.ReduceOp.MIN)
        first = self.bad_step.item()
        if first != float("inf"):
            step = self.current_epoch * self.steps_per_epoch + int(first) // self.config.accumulate
            rate = self.config.lr * rate_factor(self.config, self.steps_per_epoch)(step)
            raise UserError(
                f"The loss is not finite at step {step} (epoch {self.current_epoch}, learning rate {rate:.3g}); lower "
                "the learning rate, add warmup_epochs or set gradient_clip. What was saved before stays."
            )

    def _seed(self, *numbers: int) -> None:
        state = np.random.SeedSequence((self.config.seed, self.current_epoch, *numbers))
        torch.manual_seed(int(state.generate_state(1, np.uint64)[0] >> np.uint64(1)))
