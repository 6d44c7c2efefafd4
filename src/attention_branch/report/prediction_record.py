"""The line that `predictions.jsonl` holds for one image: the answer, the map, and what it takes to get both again."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.explanations.explanation import Explanation
from attention_branch.explanations.targets import head_class_names


def answer_record(model: nn.Module, explanation: Explanation, row: int, top_k: int) -> dict[str, Any]:
    """Return both branches' answers to one image: for the one task, or under "heads" for several."""
    logits, second = explanation.logits, explanation.attention_logits
    if isinstance(logits, Tensor):
        names = head_class_names(model, None)
        return _answers(logits[row], second[row] if isinstance(second, Tensor) else None, names, top_k)
    heads = {}
    for head, values in logits.items():
        branch = second[head][row] if isinstance(second, Mapping) else None
        heads[head] = _answers(values[row], branch, head_class_names(model, head), top_k)
    return {"heads": heads}


def _answers(logits: Tensor, second: Tensor | None, names: Sequence[str] | None, top_k: int) -> dict[str, Any]:
    top = ranked(logits, names, top_k)
    branch = ranked(second, names, 1)[0] if second is not None else None
    return {
        "prediction": top[0],
        "top": top,
        "attention_branch": branch,
        "branches_agree": None if branch is None else branch["index"] == top[0]["index"],
    }


def ranked(logits: Tensor, names: Sequence[str] | None, count: int) -> list[dict[str, Any]]:
    """Return the `count` most probable classes of logits (K,), each with class, index and probability."""
    wide = logits.detach().double().cpu()
    if len(wide) == 1:
        wide = torch.cat([torch.zeros_like(wide), wide])
    best = wide.softmax(0).topk(min(count, len(wide)))
    return [
        {"class": names[index] if names else str(index), "index": index, "probability": round(probability, 6)}
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def map_record(explanation: Explanation, row: int, file: str) -> dict[str, Any]:
    """Return what a reader must know about one map: where it lies, whose it is, its size and its extremes."""
    raw = explanation.raw[row]
    target = None
    if explanation.target is not None:
        index = int(explanation.target[row])
        target = {"class": explanation.class_names[index] if explanation.class_names else str(index), "index": index}
    return {
        "file": file,
        "method": explanation.method,
        "target": target,
        "class_agnostic": target is None,
        "head": explanation.head,
        "layer": explanation.layer,
        **({} if explanation.filters is None else {"filter": int(explanation.filters[row])}),
        "height": raw.shape[0],
        "width": raw.shape[1],
        "min": raw.min().item(),
        "max": raw.max().item(),
        "mean": raw.mean().item(),
        "value_range": None if explanation.value_range is None else list(explanation.value_range),
    }
