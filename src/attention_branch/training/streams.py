"""A run's own CUDA stream, so that several runs share a device without waiting for one another; nothing on the CPU.

A side stream is ordered with no other one: what it made may be read elsewhere only after a hand-over, and memory that
is given back while another stream still reads it is written over.
"""

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

STEPS_AHEAD = 16
"""Steps the host may queue before the device has done them: enough to keep it busy, few enough to stop in time."""


class RunStream:
    """The order in which one run's work is done on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._marks: deque[torch.cuda.Event] = deque()

    def entered(self) -> AbstractContextManager[Any]:
        """Queue what follows on this stream; memory it takes belongs to it."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def follow(self) -> None:
        """Let this stream wait, without the host, for what the caller's stream has been given so far."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def hand_over(self, *results: Tensor | None) -> None:
        """Let the caller's stream wait, without the host, for this one, and keep `results` until it has read them."""
        if self.stream is None:
            return
        caller = torch.cuda.current_stream(self.device)
        caller.wait_stream(self.stream)
        for result in results:
            if result is not None:
                result.record_stream(caller)

    def sent(self, values: Tensor) -> Tensor:
        """Return values of the CPU on the device without waiting; values that are there already as they are."""
        if self.stream is None:
            return values.to(self.device)
        if values.device.type != "cpu":
            self.follow()
            values.record_stream(self.stream)
            return values
        with self.entered():
            return values.pin_memory().to(self.device, non_blocking=True)

    def pace(self) -> None:
        """Note that a step was queued; wait for the one `STEPS_AHEAD` before it."""
        if self.stream is None:
            return
        if len(self._marks) < STEPS_AHEAD:
            mark = torch.cuda.Event(blocking=True)
        else:
            mark = self._marks.popleft()
            mark.synchronize()
        mark.record(self.stream)
        self._marks.append(mark)

    def wait(self) -> None:
        """Wait until all that was queued is done."""
        if self.stream is not None:
            self.stream.synchronize()
