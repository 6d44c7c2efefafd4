"""How a command with worker processes is stopped: by Ctrl-C or SIGTERM, which only the command itself hears."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def stopped_in_order() -> Iterator[None]:
    """Let SIGTERM, which `timeout` and job schedulers send, stop the block as Ctrl-C does."""
    with _handlers({signal.SIGTERM: _interrupt}):
        yield


@contextmanager
def deaf() -> Iterator[None]:
    """Ignore both signals; processes that are started in the block ignore them from their first moment.

    A terminal sends Ctrl-C to the whole group, and a process that is still importing would die of it.
    """
    with _handlers(dict.fromkeys(_STOPS, signal.SIG_IGN)):
        yield


@contextmanager
def _handlers(wanted: dict[signal.Signals, object]) -> Iterator[None]:
    # Only the main thread may choose what a signal does.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
