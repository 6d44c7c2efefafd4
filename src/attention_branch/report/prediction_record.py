"""The line that `predictions.jsonl` holds for one image: the answer, the map, and what it takes to get both again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attention_branch.arrays import as_array, softmax
from attention_branch.explanations.result import Explanation
from attention_branch.explanations.targets import head_class_names


def answer_record(model: Any, explanation: Explanation, row: int, top_k: int) -> dict[str, Any]:
    """Return both branches' answers to one image: for the one task, or under "heads" for several."""
    logits, second = explanation.logits, explanation.attention_logits
    if not isinstance(logits, Mapping):
        names = head_class_names(model, None)
        of_branch = None if second is None or isinstance(second, Mapping) else second[row]
        return _answers(logits[row], of_branch, names, top_k)
    heads = {}
    for head, values in logits.items():
        branch = second[head][row] if isinstance(second, Mapping) else None
        heads[head] = _answers(values[row], branch, head_class_names(model, head), top_k)
    return {"heads": heads}


def _answers(logits: Any, second: Any, names: Sequence[str] | None, top_k: int) -> dict[str, Any]:
    top = ranked(logits, names, top_k)
    branch = ranked(second, names, 1)[0] if second is not None else None
    return {
        "prediction": top[0],
        "top": top,
        "attention_branch": branch,
        "branches_agree": None if branch is None else branch["index"] == top[0]["index"],
    }


def ranked(logits: Any, names: Sequence[str] | None, count: int) -> list[dict[str, Any]]:
    """Return the `count` most probable classes of logits (K,), each with class, index and probability."""
    shares = softmax(as_array(logits)[None])[0]
    best = np.argsort(-shares, kind="stable")[:count].tolist()
    return [
        {"class": names[index] if names else str(index), "index": index, "probability": round(float(shares[index]), 6)}
        for index in best
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
        "min": float(raw.min()),
        "max": float(raw.max()),
        "mean": float(raw.mean()),
        "value_range": None if explanation.value_range is None else list(explanation.value_range),
    }
