"""The checkpoint a run is continued from: written whole or not at all, read without unpickling objects."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from attention_branch.errors import UserError
from attention_branch.files import atomic_path


def epochs_kept(path: Path) -> int:
    """Return after how many epochs a run goes on from its checkpoint; 0 without one. `UserError` for a damaged file."""
    if not path.exists():
        return 0
    # Mapped: of a file of gigabytes only what is looked at is read.
    progress = _read(path, "cpu", mmap=True)["loops"]["fit_loop"]["epoch_progress"]
    return int(progress["current"]["processed"])


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoint files, atomic and `weights_only`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write whole or not at all; through an open file, so that a full disk shows as the error it is."""
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read tensors and plain values only."""
        return _read(path, map_location)


def _read(path: Any, map_location: Any, *, mmap: bool = False) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise UserError(f"'{path}' is no checkpoint of a run ({reason}); start a new run.") from problem
