"""Whose map is wanted: from what a caller writes as `target` to one class index per image."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attention_branch.arrays import is_array, of_head
from attention_branch.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

# A tensor or an array of indices is `Any` here: this module is used without torch too.
ClassTarget = int | str | np.ndarray | Sequence[int] | Sequence[str] | Callable[[Any], Any] | Any | None
Target = ClassTarget | Mapping[str, Any]


def choose_head(
    model: Any, target: Target, scores: "Tensor | Mapping[str, Tensor] | None" = None
) -> tuple[str | None, ClassTarget]:
    """Split a target into the head whose map is wanted (None for a single task) and the class within it.

    The heads are the model's own, or those of the `scores` it gave. Several heads take `{head: class}`, `{head: None}`
    for the head's prediction, or the head's name alone. Raises `UserError` for an unknown head, for no head or several
    where one is needed, and for a head where there are none.
    """
    heads: Any = getattr(model, "heads", None)
    if not isinstance(heads, Mapping):
        heads = scores if isinstance(scores, Mapping) else None
    if not heads:
        if isinstance(target, Mapping):
            raise UserError("target is {head: class}, but the model has one task; give the class alone.")
        return None, target
    names = list(heads)
    if isinstance(target, Mapping):
        if len(target) != 1:
            raise UserError(f"target names {len(target)} heads; one call explains one: {{'{names[0]}': class}}.")
        ((head, wanted),) = target.items()
    elif isinstance(target, str) and (target in heads or len(names) > 1):
        head, wanted = target, None
    elif len(names) == 1:
        head, wanted = names[0], target
    else:
        raise UserError(
            f"The model has {len(names)} heads with a map each; choose one with target='{names[0]}' "
            f"or target={{'{names[0]}': class}} (heads: {_listed(names)})."
        )
    return known_head(names, head), wanted


def known_head(heads: Sequence[str], head: str) -> str:
    """Return a head that was named; `UserError` for one that is not among the heads, and where there are none."""
    if not heads:
        raise UserError(f"The model has one task and no head '{head}'; leave the head out.")
    if head not in heads:
        raise UserError(f"The model has no head '{head}'.{did_you_mean(str(head), heads)} Heads: {_listed(heads)}.")
    return head


def head_target(model: Any, target: Target) -> tuple[Target, str]:
    """Read what a command line gives: "HEAD=CLASS" names both; without a target the first of several heads is taken.

    Returns the target, and a sentence that says which head was chosen where none was named.
    """
    if not model.heads:
        return target, ""
    if isinstance(target, str) and "=" in target and target not in model.heads:
        head, _, wanted = target.partition("=")
        return {head: wanted}, ""
    if target is None and len(model.heads) > 1:
        first = next(iter(model.heads))
        return first, f"The maps are those of the head '{first}'; choose another with target 'HEAD' or 'HEAD=CLASS'."
    return target, ""


def head_logits(logits: "Tensor | Mapping[str, Tensor]", head: str | None) -> "Tensor":
    """Return the logits (N, K) of one head, or the only ones."""
    return of_head(logits, head)


def head_class_names(model: Any, head: str | None) -> list[str] | None:
    """Return the class names of one head, or of the only task; None where the model has none."""
    names: Any = getattr(model, "class_names", None)
    if isinstance(names, Mapping):
        names = names.get(head) if head is not None else None
    return list(names) if names else None


def predicted(logits: "Tensor") -> "Tensor":
    """Return the predicted class (N,) of logits (N, K); one logit is a sigmoid, classes 0 and 1."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def resolve_target(
    logits: "Tensor", target: ClassTarget, class_names: Sequence[str] | None = None, *, several: bool = False
) -> "Tensor":
    """Return one class index per image (N,) int64, on the logits' device; with `several`, any number for one image.

    `target` is None (the prediction), an index, a class name, one of these per image, or a callable from logits (N, K)
    to indices (N,). Raises `UserError` for a name or an index the model does not have and for a wrong count.
    """
    import torch

    if target is None:
        return predicted(logits)
    return torch.tensor(class_indices(logits, target, class_names, several), dtype=torch.int64, device=logits.device)


def class_indices(
    logits: Any, target: ClassTarget, class_names: Sequence[str] | None = None, several: bool = False
) -> list[int]:
    """Return what `resolve_target` does of any target but None, as plain numbers; logits may be an array."""
    count, classes = len(logits), max(2, logits.shape[1]) if logits.shape[1] == 1 else logits.shape[1]
    if callable(target) and not is_array(target):
        try:
            target = target(logits)
        except (IndexError, TypeError, KeyError, ValueError, RuntimeError) as problem:
            raise UserError(
                f"The target callable failed on the logits {tuple(logits.shape)} ({problem}); it gets them, (N, K), "
                "and returns one class index per image."
            ) from problem
        if isinstance(target, int | str) or target is None or (is_array(target) and _fractional(target)):
            raise UserError(
                "The target callable must return one class index per image, such as logits.argmax(1): what is "
                "explained is a class, not a score."
            )
    if isinstance(target, str):
        target = class_index(target, class_names, classes)
    if isinstance(target, (int, np.integer)) and not isinstance(target, bool):
        target = [int(target)] * count
    if is_array(target):
        target = target.tolist()
        # One index as an array without dimensions.
        target = [target] * count if isinstance(target, int) and not isinstance(target, bool) else target
    if not isinstance(target, Sequence) or isinstance(target, (str, bytes)):
        raise UserError(f"target is {target!r}; give a class index, a class name, one per image, or a callable.")
    wanted = list(target)
    if len(wanted) != count and not (several and count == 1 and wanted):
        raise UserError(f"target has {len(wanted)} entries for {count} images; give one for all or one per image.")
    indices = [class_index(item, class_names, classes) if isinstance(item, str) else item for item in wanted]
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
            raise UserError(f"target holds {index!r}; a class is an index or a name.")
        if not 0 <= index < classes:
            raise UserError(f"Class {index} is out of range: the model has {classes} classes, 0 to {classes - 1}.")
    return [int(index) for index in indices]


def _fractional(target: Any) -> bool:
    if isinstance(target, np.ndarray):
        return target.dtype.kind in "fc"
    return target.is_floating_point() or target.is_complex()


def class_index(name: str, class_names: Sequence[str] | None, classes: int) -> int:
    """Return the index of a class name; digits that are no class's name are read as an index."""
    if class_names is not None and name in class_names:
        return list(class_names).index(name)
    if name.isascii() and name.isdigit() and int(name) < classes:
        return int(name)
    if name.isascii() and name.isdigit():
        raise UserError(f"Class {name} is out of range: the model has {classes} classes, 0 to {classes - 1}.")
    if class_names is None:
        raise UserError(
            f"The model has no class names, so '{name}' cannot be found; give an index, 0 to {classes - 1}."
        )
    raise UserError(
        f"The model has no class '{name}'.{did_you_mean(name, class_names)} Its classes: {_listed(class_names)}."
    )


def _listed(names: Sequence[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
