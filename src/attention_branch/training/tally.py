"""Sums over an epoch that stay on the device: reading them is what would make every step wait."""

import torch
import torch.distributed as dist
from torch import Tensor

from attention_branch.models import ABNOutput, Losses

Scores = Tensor | dict[str, Tensor]
NAMES = ("attention_loss", "perception_loss", "attention_correct", "correct", "labels", "images")


class Tally:
    """Losses and hits of both branches. Accuracy is the share of right answers among the labels present, all heads."""

    def __init__(self) -> None:
        self.sums = torch.zeros(len(NAMES))
        self.has_branch = False

    def reset(self, device: torch.device) -> None:
        """Start from zero on `device`."""
        # float32 counts exactly to 16.7 million only; MPS has nothing longer.
        self.sums = torch.zeros(
            len(NAMES), device=device, dtype=torch.float32 if device.type == "mps" else torch.float64
        )
        self.has_branch = False

    @torch.no_grad()
    def add(self, output: ABNOutput | Scores, targets: Scores, losses: Losses) -> None:
        """Add a batch. Its losses, means over the batch, are weighted with its number of images."""
        self.has_branch = isinstance(output, ABNOutput)
        logits = output.logits if isinstance(output, ABNOutput) else output
        branch = output.attention_logits if isinstance(output, ABNOutput) else None
        columns = list(targets.values()) if isinstance(targets, dict) else [targets]
        count = len(columns[0])
        hits = _hits(logits, targets)
        row = [
            losses.attention * count,
            losses.perception * count,
            _hits(branch, targets) if branch is not None else torch.zeros_like(hits),
            hits,
            torch.stack([(target >= 0).sum() for target in columns]).sum(),
            torch.full_like(hits, count),
        ]
        self.sums += torch.stack([value.detach().to(self.sums.dtype) for value in row])

    def read(self, everywhere: bool) -> dict[str, float]:
        """Return losses and accuracies as numbers, over all processes when `everywhere`; waits for the device."""
        sums = self.sums.clone()
        if everywhere:
            dist.all_reduce(sums)
        total = dict(zip(NAMES, sums.tolist(), strict=True))
        images, labels = max(total["images"], 1), max(total["labels"], 1)
        values = {
            "loss": (total["attention_loss"] + total["perception_loss"]) / images,
            "perception_loss": total["perception_loss"] / images,
            "accuracy": total["correct"] / labels,
        }
        if self.has_branch:
            values["attention_loss"] = total["attention_loss"] / images
            values["attention_accuracy"] = total["attention_correct"] / labels
        return values


def _hits(scores: Scores, targets: Scores) -> Tensor:
    """Count the right answers; a missing label is -1, which no answer is."""
    if isinstance(scores, Tensor) and isinstance(targets, Tensor):
        answer = (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
        return (answer == targets).sum()
    assert isinstance(scores, dict)
    assert isinstance(targets, dict)
    return torch.stack([_hits(scores[head], targets[head]) for head in scores]).sum()
