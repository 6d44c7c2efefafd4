"""The one thread that runs the network: what a person waits for goes first, programs' images go in batches.

While one batch is computed the next gathers, so batches grow with the load and a lone image never waits for others.
Work is refused when more than `waiting` images stand in line and when it stood longer than `patience` seconds: a client
is answered or told to come again, and never hangs.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from attention_branch.serve.predictor import Answer

Result = TypeVar("Result")

INTERACTIVE, PROGRAMS, BACKGROUND = 0, 1, 2


class Busy(Exception):
    """The line is full, or the work stood in it for too long; the client should come again in `retry` seconds."""

    def __init__(self, why: str, retry: int) -> None:
        super().__init__(why)
        self.why, self.retry = why, retry


@dataclass(order=True)
class _Job:
    priority: int
    number: int
    future: Future[Any] = field(compare=False)
    work: Callable[[], Any] | None = field(compare=False)
    image: np.ndarray | None = field(compare=False)
    begun: float = field(compare=False)
    patience: float | None = field(compare=False)


class Compute:
    """A thread with a line of jobs before it; `predict` gathers images into batches of at most `largest`."""

    def __init__(
        self,
        predict: Callable[[np.ndarray], Sequence[Answer]],
        *,
        largest: int = 16,
        waiting: int = 256,
        patience: float = 20.0,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        """Start the thread; `observe(images, seconds)` is told of every batch."""
        self._predict, self.largest, self.waiting, self.patience = predict, largest, waiting, patience
        self._observe = observe
        self._jobs: list[_Job] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        # Seconds an image takes, a running mean: how long the line is in time.
        self._pace = 0.0
        self._thread = threading.Thread(target=self._run, name="abn-compute", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Jobs that stand in line."""
        return len(self._jobs)

    def run(self, work: Callable[[], Result], *, priority: int = INTERACTIVE) -> "Future[Result]":
        """Put a call in line and return its future."""
        return self._put(priority, work, None)

    def predict(self, image: np.ndarray) -> "Future[Answer]":
        """Put one normalised image (3, H, W) in line; its answer is computed in a batch with those that wait too."""
        return self._put(PROGRAMS, None, image)

    def _put(self, priority: int, work: Callable[[], Any] | None, image: np.ndarray | None) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise Busy("The server is stopping.", 5)
            # A person's question waits for other people's only: it goes before all images of programs.
            ahead = sum(job.priority <= priority and not job.future.cancelled() for job in self._jobs)
            if priority != BACKGROUND and ahead >= self.waiting:
                raise Busy(f"{ahead} images are waiting already.", self._retry(ahead))
            if priority == PROGRAMS and ahead * self._pace > self.patience:
                raise Busy(f"The line is {ahead * self._pace:.0f} s long.", self._retry(ahead))
            patience = None if priority == BACKGROUND else self.patience
            job = _Job(priority, next(self._numbers), future, work, image, time.monotonic(), patience)
            heapq.heappush(self._jobs, job)
            self._changed.notify()
        return future

    def _retry(self, ahead: int) -> int:
        return max(1, min(30, round(ahead * self._pace)))

    def close(self) -> None:
        """Finish what is being computed, refuse what stands in line, and end the thread."""
        with self._changed:
            self._closed = True
            left, self._jobs = self._jobs, []
            self._changed.notify_all()
        for job in left:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Busy("The server is stopping.", 5))
        self._thread.join(timeout=30)

    def _take(self) -> list[_Job]:
        """Return the next job, or a batch of images that wait; nothing when the thread is to end."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            self._sweep()
            if not self._jobs:
                return [] if self._closed else [_nothing()]
            batch = [heapq.heappop(self._jobs)]
            if batch[0].image is not None:
                while len(batch) < self.largest and self._jobs and self._jobs[0].image is not None:
                    batch.append(heapq.heappop(self._jobs))
            return batch

    def _sweep(self) -> None:
        """Refuse what stood in line for too long, also where others are served first and its turn would never come."""
        now = time.monotonic()
        late = [job for job in self._jobs if job.patience is not None and now - job.begun > job.patience]
        if not late:
            return
        self._jobs = [job for job in self._jobs if job not in late]
        heapq.heapify(self._jobs)
        for job in late:
            if job.future.set_running_or_notify_cancel():
                why = f"It waited for {now - job.begun:.0f} s."
                job.future.set_exception(Busy(why, self._retry(len(self._jobs))))

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while batch := self._take():
            ready = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if not ready:
                continue
            if ready[0].image is None:
                self._finish(ready[0])
            else:
                self._finish_batch(ready)

    def _finish(self, job: _Job) -> None:
        assert job.work is not None
        try:
            result = job.work()
        except BaseException as problem:
            job.future.set_exception(problem)
        else:
            job.future.set_result(result)

    def _finish_batch(self, jobs: list[_Job]) -> None:
        begun = time.monotonic()
        try:
            answers = list(self._predict(np.stack([job.image for job in jobs if job.image is not None])))
            if len(answers) != len(jobs):
                raise RuntimeError(f"{len(answers)} answers to {len(jobs)} images.")
        except BaseException as problem:
            for job in jobs:
                job.future.set_exception(problem)
            return
        seconds = time.monotonic() - begun
        self._pace += (seconds / len(jobs) - self._pace) * (0.2 if self._pace else 1.0)
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(answer)
        if self._observe is not None:
            self._observe(len(jobs), seconds)


def _nothing() -> _Job:
    """Return a job that is done: the line is empty again, and the thread goes on waiting."""
    future: Future[Any] = Future()
    future.cancel()
    return _Job(BACKGROUND, 0, future, None, None, 0.0, None)
