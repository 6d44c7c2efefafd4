"""How fast a run on large pictures goes: its kept epochs are reported, and one that the budget cannot hold is ended."""

import multiprocessing
import time
from typing import Any

import lightning as L

from attention_branch.reproduce.plan import Job
from attention_branch.reproduce.small_run import FEWEST_STEPS
from attention_branch.reproduce.worker import Report


class TooShortError(Exception):
    """The budget ends before the run's first epoch here would."""


class Pace(L.Callback):
    """Times the steps of the first epoch since the run began or went on.

    `deadline` is a `time.time()`, None without a budget. Raises `TooShortError` out of the training as soon as the
    steps tell that it comes first.
    """

    def __init__(self, job: Job, reports: Any, deadline: float | None) -> None:
        self.job, self.reports, self.deadline = job, reports, deadline
        self.ended = self.steps = 0
        self.total = 0.0
        self.began = self.first = self.now = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the epochs in the checkpoint, which is written after the other callbacks' end of an epoch."""
        if self.steps:
            self._report(trainer.current_epoch)
            return
        # An evaluated picture costs about a third of a trained one.
        self.total = trainer.num_training_batches + sum(trainer.num_val_batches) / 3
        self.began = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time; end the run where the budget is too short for one epoch, and when nobody is there any more."""
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt  # killed, the command cannot stop this process, and another may go on with the run
        if self.ended:
            return
        self.now = time.monotonic()
        self.steps += 1
        if self.steps == 1:
            self.first = self.now
        whole = self.epoch_seconds()
        if self.deadline is None or whole is None or self.steps < FEWEST_STEPS:
            return
        if time.time() + whole - (self.now - self.began) > self.deadline:
            raise TooShortError

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count."""
        self.ended += 1

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the last epoch; the test set is evaluated after it."""
        self._report(trainer.current_epoch)

    def epoch_seconds(self) -> float | None:
        """Return what an epoch takes here by the steps so far; None before the first, and once an epoch has ended."""
        if self.ended or not self.steps:
            return None
        # The first step waits for the processes that load pictures, and for a GPU's choice of algorithms.
        start = self.first - self.began
        step = (self.now - self.first) / (self.steps - 1) if self.steps > 1 else start
        return start + step * (self.total - 1)

    def _report(self, epoch: int) -> None:
        self.reports.put(Report("epoch", self.job.name, epoch, self.job.config.epochs))
