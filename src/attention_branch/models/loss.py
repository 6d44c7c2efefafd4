"""The training loss L = L_att + L_per, one cross-entropy a branch and head, evaluated in float32."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_branch.models.output import ABNOutput, Scores

Targets = Tensor | dict[str, Tensor]


class Losses(NamedTuple):
    """Scalar losses: `total` is to be minimised, the other two are its parts."""

    total: Tensor
    attention: Tensor
    perception: Tensor


def abn_loss(
    output: ABNOutput | Scores, targets: Targets, *, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Losses:
    """Return L = L_att + L_per (CVPR 2019, section 3.3); for a plain network L_att is zero.

    Targets are class indices (N,) with -1 for a missing label, or probabilities (N, K), or a dict of either by head. A
    head of one logit takes 0 or 1 and a binary cross-entropy. A head's loss is its mean over the labels present; the
    loss of a branch is the sum over heads (section 3.4). A head without any label in the batch adds nothing. `weights`
    (N,) multiply each image's loss before the mean.
    """
    given: dict[str, Any] = {"label_smoothing": label_smoothing, "weights": weights}
    if isinstance(output, ABNOutput):
        perception = _branch_loss(output.logits, targets, **given)
        if output.attention_logits is None:
            raise ValueError("The loss needs the attention logits: call the model with attention_logits=True.")
        attention = _branch_loss(output.attention_logits, targets, **given)
        return Losses(attention + perception, attention, perception)
    perception = _branch_loss(output, targets, **given)
    return Losses(perception, torch.zeros_like(perception), perception)


def head_losses(
    scores: Scores, targets: Targets, *, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Return one branch's loss per head (scalars); a single task's is called 'label'."""
    if isinstance(scores, Tensor):
        if not isinstance(targets, Tensor):
            raise ValueError("A network of one task takes a tensor of targets, not a dict.")
        return {"label": _head_loss(scores, targets, label_smoothing, weights)}
    if not isinstance(targets, dict) or set(targets) != set(scores):
        given = sorted(targets) if isinstance(targets, dict) else type(targets).__name__
        raise ValueError(f"Targets must be a dict with the heads {sorted(scores)}; got {given}.")
    return {head: _head_loss(scores[head], targets[head], label_smoothing, weights) for head in scores}


def _branch_loss(scores: Scores, targets: Targets, **given: Any) -> Tensor:
    return torch.stack(list(head_losses(scores, targets, **given).values())).sum()


def _head_loss(logits: Tensor, target: Tensor, label_smoothing: float, weights: Tensor | None) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        if target.is_floating_point() and target.ndim == 2:
            if weights is None:
                return F.cross_entropy(logits, target.float(), label_smoothing=label_smoothing)
            each = F.cross_entropy(logits, target.float(), label_smoothing=label_smoothing, reduction="none")
            return (each * weights).mean()
        present = target >= 0
        count = present.sum().clamp_min(1)
        if logits.shape[1] == 1:
            wanted = target.clamp_min(0).float() * (1 - label_smoothing) + 0.5 * label_smoothing
            loss = F.binary_cross_entropy_with_logits(logits[:, 0], wanted, reduction="none")
        else:
            loss = F.cross_entropy(
                logits, target.long(), ignore_index=-1, label_smoothing=label_smoothing, reduction="none"
            )
        weighted = loss * present if weights is None else loss * present * weights
        return weighted.sum() / count
