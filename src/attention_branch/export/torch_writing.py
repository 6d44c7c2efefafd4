"""From a network with named outputs to a torch.export program (.pt2), for those who stay with PyTorch."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.export.agreement import Answers
from attention_branch.export.named_outputs import NamedOutputs, Output

FILE = "attention_branch.json"
"""The entry of the .pt2 file that holds the details (`extra_files` of torch.export.load)."""


class _ByName(nn.Module):
    def __init__(self, named: NamedOutputs) -> None:
        super().__init__()
        self.named = named

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        names = [output.name for output in self.named.outputs]
        return dict(zip(names, self.named(images)[: len(names)], strict=True))


def to_program(named: NamedOutputs, images: Tensor) -> Any:
    """Return the program of a network (eval mode): images of any batch size in, a dict of the outputs by name out."""
    with named.listening(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(
                _ByName(named).eval(), (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}}
            )
        except Exception as problem:  # Tracing runs all of a backbone's code, and meets any exception there is.
            reason = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
            raise UserError(
                f"PyTorch cannot export {named.network.name} ({reason[:200]}); try another backbone."
            ) from problem


def opened(program: Any, outputs: Sequence[Output]) -> Callable[[np.ndarray], Answers]:
    """Return what a program answers."""
    module = program.module()

    def answer(images: np.ndarray) -> Answers:
        with torch.no_grad():
            found = module(torch.from_numpy(images))
        return {output.name: found[output.name].float().cpu().numpy() for output in outputs}

    return answer


def save(program: Any, path: Path, extra: dict[str, str]) -> None:
    """Write a program with further entries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path, extra_files=extra)
