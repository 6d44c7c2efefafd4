"""The stages of a system that is not trained in one go: each result is kept, so that a stopped run repeats only one."""

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from torch import Tensor

from attention_branch.errors import UserError
from attention_branch.files import atomic_path, write_text
from attention_branch.models.tensor_files import save_tensors

Item = TypeVar("Item")

_SECONDS = "seconds"


class Stages:
    """Results of stages by name, in the folder `stages/` of a run, and the progress of what is under way."""

    def __init__(self, run: Path, device: str | torch.device = "cpu", workers: int | None = None) -> None:
        """Take the run folder, where to compute, and how many processes load pictures (None: as `make_loader` says)."""
        self.folder, self.workers = run / "stages", workers
        self.device = torch.device(device)
        kept = self.folder / _SECONDS
        self._before = float(kept.read_text(encoding="utf-8")) if kept.exists() else 0.0
        self._began = time.perf_counter()

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return a stage's tensors, on the CPU: those that are kept, else what `make` returns, which is then kept."""
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            try:
                return safetensors.torch.load_file(path)
            except SafetensorError as problem:
                raise UserError(
                    f"'{path}' is damaged ({problem}); remove it, and the stage is done again."
                ) from problem
        made = {key: value.detach().cpu().contiguous().clone() for key, value in make().items()}
        save_tensors(made, path)
        self._keep_seconds()
        return made

    def array(self, name: str, make: Callable[[], Iterable[np.ndarray]], count: int) -> np.ndarray:
        """Return an array of `count` rows mapped from its file: the kept one, else the blocks of rows `make` yields."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            with atomic_path(path) as temporary:
                whole: np.memmap | None = None
                begin = 0
                for block in make():
                    if whole is None:
                        shape = (count, *block.shape[1:])
                        whole = np.lib.format.open_memmap(temporary, mode="w+", dtype=block.dtype, shape=shape)
                        if hasattr(os, "posix_fallocate"):  # on a full disk a mapped file would end the process
                            with temporary.open("rb+") as file:
                                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
                    whole[begin : begin + len(block)] = block
                    begin += len(block)
                assert whole is not None
                assert begin == count
                whole.flush()
            self._keep_seconds()
        try:
            return np.load(path, mmap_mode="r")
        except ValueError as problem:
            raise UserError(f"'{path}' is damaged ({problem}); remove it, and the stage is done again.") from problem

    def say(self, text: str) -> None:
        """Print what is being done."""
        print(text, flush=True)

    def through(self, items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
        """Yield items, with a bar on a terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(title, total=total)
            for item in items:
                self.check_parent()
                yield item
                bar.advance(task)

    def check_parent(self) -> None:
        """Stop where the command that began this process is gone: nothing could stop it, and another may go on."""
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt

    def seconds(self) -> float:
        """Return the seconds of this start and, up to their last stage that was kept, of those before it."""
        return self._before + time.perf_counter() - self._began

    def _keep_seconds(self) -> None:
        write_text(self.folder / _SECONDS, f"{self.seconds():.3f}")

    def clear(self) -> None:
        """Remove what was kept, once the run is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)
