"""The threads that run the network: what a person waits for goes first, programs' images go in batches.

While one batch is computed the next gathers, so batches grow with the load and a lone image never waits for others.
A network that several threads may call at once has a lane for each. Under load every lane computes a batch of its own,
because two batches on a core each take less time than one after the other on both; a small network has one lane, which
saves more by larger batches. People's questions have one lane.
Work is refused when more than `waiting` images stand in line and when it stood longer than `patience` seconds: a client
is answered or told to come again, and never hangs.
"""

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from attention_branch.serve.predictor import Answer

Result = TypeVar("Result")

INTERACTIVE, PROGRAMS, BACKGROUND = 0, 1, 2

_LANE_BATCH = 4
"""Images of a lane's batch: what larger ones save is less than a millisecond, and who comes next waits for them."""
_SLOW = 0.01
"""Seconds an image takes on one lane's share of the cores, from which on lanes are worth it."""


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
    """Threads with a line of jobs before them; `predict` gathers images into batches of at most `largest`."""

    def __init__(
        self,
        predict: Callable[..., Sequence[Answer]],
        *,
        lanes: int = 1,
        largest: int = 16,
        waiting: int = 256,
        patience: float = 20.0,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        """Start the threads; `observe(images, seconds)` is told of every batch.

        With several lanes `predict(images, beside=True)` is called while others compute.
        """
        self._predict, self._lanes, self.waiting, self.patience = predict, lanes, waiting, patience
        self.largest = largest
        self._observe = observe
        self._calls: list[_Job] = []
        self._images: deque[_Job] = deque()
        self._busy = 0
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        # Seconds an image takes, a running mean: how long the line is in time.
        self._pace = 0.0
        self._threads = [
            threading.Thread(target=self._run, args=(lane == 0,), name=f"abn-compute-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Jobs that stand in line."""
        return len(self._calls) + len(self._images)

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
            before = self._calls if image is None else (*self._calls, *self._images)
            ahead = sum(job.priority <= priority and not job.future.cancelled() for job in before)
            if priority != BACKGROUND and ahead >= self.waiting:
                raise Busy(f"{ahead} images are waiting already.", self._retry(ahead))
            if priority == PROGRAMS and ahead * self._pace > self.patience:
                raise Busy(f"The line is {ahead * self._pace:.0f} s long.", self._retry(ahead))
            patience = None if priority == BACKGROUND else self.patience
            job = _Job(priority, next(self._numbers), future, work, image, time.monotonic(), patience)
            if image is None:
                heapq.heappush(self._calls, job)
            else:
                self._images.append(job)
            self._changed.notify_all()  # One alone could be a lane that does not take this kind.
        return future

    def _retry(self, ahead: int) -> int:
        return max(1, min(30, round(ahead * self._pace)))

    def close(self) -> None:
        """Finish what is being computed, refuse what stands in line, and end the threads."""
        with self._changed:
            self._closed = True
            left = [*self._calls, *self._images]
            self._calls.clear()
            self._images.clear()
            self._changed.notify_all()
        for job in left:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Busy("The server is stopping.", 5))
        for thread in self._threads:
            thread.join(timeout=30)

    def _take(self, calls: bool) -> tuple[list[_Job], int] | None:
        """Return the next call, or a batch of images that wait, and how many lanes are busy then; None at the end."""
        with self._changed:
            while True:
                self._sweep()
                batch = self._next(calls)
                if batch:
                    self._busy += 1
                    # Where images are left another lane takes them at once.
                    return batch, min(self._lanes, self._busy + bool(self._images)) if self._apart else 1
                if self._closed:
                    return None
                self._changed.wait()

    def _next(self, calls: bool) -> list[_Job]:
        if calls and self._calls and (self._calls[0].priority < PROGRAMS or not self._images):
            return [heapq.heappop(self._calls)]
        if not calls and not self._apart:
            return []
        size = min(self.largest, _LANE_BATCH) if self._apart else self.largest
        return [self._images.popleft() for _ in range(min(size, len(self._images)))]

    @property
    def _apart(self) -> bool:
        """Whether the lanes compute at once."""
        return self._lanes > 1 and self._pace * self._lanes > _SLOW

    def _sweep(self) -> None:
        """Refuse what stood in line for too long, also where others are served first and its turn would never come."""
        now = time.monotonic()
        late = [
            job for job in (*self._calls, *self._images) if job.patience is not None and now - job.begun > job.patience
        ]
        if not late:
            return
        gone = {job.number for job in late}
        self._calls = [job for job in self._calls if job.number not in gone]
        heapq.heapify(self._calls)
        self._images = deque(job for job in self._images if job.number not in gone)
        for job in late:
            if job.future.set_running_or_notify_cancel():
                why = f"It waited for {now - job.begun:.0f} s."
                job.future.set_exception(Busy(why, self._retry(self.queued)))

    @property
    def alive(self) -> bool:
        """Whether the threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def _run(self, calls: bool) -> None:
        while taken := self._take(calls):
            batch, busy = taken
            ready = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if ready and ready[0].image is None:
                self._finish(ready[0])
            elif ready:
                self._finish_batch(ready, busy)
            with self._changed:
                self._busy -= 1

    def _finish(self, job: _Job) -> None:
        assert job.work is not None
        try:
            result = job.work()
        except BaseException as problem:
            job.future.set_exception(problem)
        else:
            job.future.set_result(result)

    def _finish_batch(self, jobs: list[_Job], busy: int) -> None:
        begun = time.monotonic()
        options = {"beside": True} if busy > 1 else {}
        try:
            answers = list(self._predict(np.stack([job.image for job in jobs if job.image is not None]), **options))
            if len(answers) != len(jobs):
                raise RuntimeError(f"{len(answers)} answers to {len(jobs)} images.")
        except BaseException as problem:
            for job in jobs:
                job.future.set_exception(problem)
            return
        seconds = time.monotonic() - begun
        self._pace += (seconds / len(jobs) / busy - self._pace) * (0.2 if self._pace else 1.0)
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(answer)
        if self._observe is not None:
            self._observe(len(jobs), seconds)
