"""What any classifier answers, brought to one form: class scores from a tensor, a tuple, a dict or a named output."""

import contextlib
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing

Scores = Tensor | Mapping[str, Tensor]
_NAMES = ("logits", "out", "output", "scores", "class_logits", "pred", "prediction", "predictions")


class BlackBox(nn.Module):
    """A function from images (N, 3, H, W) to what a classifier answers, as a module without parameters or layers."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.eval()

    def forward(self, images: Tensor) -> Any:
        """Return the function's answer."""
        return self.answer(images)


def unwrapped(model: nn.Module | Callable[[Tensor], Any]) -> nn.Module:
    """Return the network inside torch.compile, DataParallel and DistributedDataParallel; others as they are.

    A function becomes a `BlackBox`. Raises `UserError` for what is neither a module nor a function.
    """
    if not isinstance(model, nn.Module):
        if isinstance(model, type) or not callable(model):
            raise UserError(
                f"model is {model!r:.80}; give a torch.nn.Module, or a function from images (N, 3, H, W) to class "
                "scores (N, K)."
            )
        return BlackBox(model)
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def class_scores(output: Any) -> Scores:
    """Return the class scores (N, K) in what a classifier answered, or a dict of them by head.

    Taken are, in this order: a tensor; the field or entry `logits` (`out`, `output`, `scores`, ...); of a dict with
    several other entries all that are (N, K), as heads; of a tuple or list the first tensor (N, K). Raises `UserError`
    where there is none.
    """
    if isinstance(output, Tensor):
        if output.ndim != 2:
            raise UserError(f"The model answers {tuple(output.shape)}; class scores have the shape (N, K).")
        return output
    named = output if isinstance(output, Mapping) else None
    for name in _NAMES:
        found = named.get(name) if named is not None else getattr(output, name, None)
        if isinstance(found, Tensor) and found.ndim == 2:
            return found
        if isinstance(found, Mapping):
            # Heads by name, whatever they are called: one named "pred" is a head like the others.
            heads = _heads(found)
            if heads:
                return heads if len(heads) > 1 else next(iter(heads.values()))
    if named is not None:
        heads = _heads(named)
        if heads:
            return heads if len(heads) > 1 else next(iter(heads.values()))
    if isinstance(output, Sequence) and not isinstance(output, (str, bytes)):
        for value in output:
            if isinstance(value, Tensor) and value.ndim == 2:
                return value
    kind = type(output).__name__
    raise UserError(
        f"The model answers a {kind} in which no class scores (N, K) can be found; let it return a tensor, "
        "or a dict or object with 'logits'."
    )


def _heads(named: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in named.items() if isinstance(value, Tensor) and value.ndim == 2}


def answer(model: nn.Module, images: Tensor) -> Any:
    """Return what a model answers, without a second branch's scores where it has one and they can be left out."""
    return model(images, attention_logits=False) if getattr(model, "is_abn", False) else model(images)


def predict(model: nn.Module, images: Tensor) -> Scores:
    """Return the class scores (N, K) that a model gives to normalised images (N, 3, H, W), or a dict by head."""
    return class_scores(answer(model, images))


def probabilities(logits: Tensor) -> Tensor:
    """Return the softmax (N, K) of logits, at least float32; one logit becomes the two classes of its sigmoid."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if wide.shape[1] == 1:
        wide = torch.cat([torch.zeros_like(wide), wide], 1)
    return wide.softmax(1)


@contextmanager
def evaluating(model: nn.Module, *, warn: bool = False) -> Iterator[None]:
    """Put every module into eval mode, and each back into its own mode afterwards (a frozen BatchNorm stays frozen)."""
    model = model if isinstance(model, nn.Module) else unwrapped(model)
    training = [module for module in model.modules() if module.training]
    if warn and model.training:
        warnings.warn(
            "The model is in training mode; it is explained in eval mode and left as it was. Call model.eval() first.",
            UserWarning,
            stacklevel=_callers_level(),
        )
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _callers_level() -> int:
    """Return the stack level, for a warning, of the first frame that is neither this package's nor a library's."""
    own = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), contextlib.__file__)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(own):
        frame, level = frame.f_back, level + 1
    return level


def checked_images(images: Any) -> Tensor:
    """Return images without their graph; `UserError` unless they are floats (N, C, H, W)."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        shape, kind = getattr(images, "shape", None), type(images).__name__
        given = f"a {kind}" if shape is None else f"a {kind} {tuple(shape)} of {getattr(images, 'dtype', None)}"
        raise UserError(f"Images are a normalised float tensor (N, 3, H, W); this is {given}.")
    return images.detach()


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules uncompiled: a compiled graph sees no hook that is set after it was made."""
    # Where the compiler was never loaded nothing is compiled, and loading it takes seconds.
    with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
        yield


def preprocessing_of(model: nn.Module | None) -> Preprocessing | None:
    """Return how pictures are prepared for a network, where it says so in our form."""
    found = getattr(unwrapped(model), "preprocessing", None) if model is not None else None
    return found if isinstance(found, Preprocessing) else None


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device of a model's first parameter or buffer; None where it has neither."""
    model = unwrapped(model)
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return None if first is None else first.device
