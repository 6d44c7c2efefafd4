"""Tensors in a safetensors file, written whole or not at all."""

import errno
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from attention_branch.files import atomic_path


def save_tensors(tensors: dict[str, Tensor], target: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name as one safetensors file, whole or not at all; a full disk becomes a `UserError`."""
    with atomic_path(target) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as problem:
            raise OSError(errno.ENOSPC if "space" in str(problem) else errno.EIO, str(problem)) from problem
