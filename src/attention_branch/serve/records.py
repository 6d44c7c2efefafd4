"""What the server writes down of an answer, in the form of a line of `predictions.jsonl`: enough to get it again."""

import base64
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image

from attention_branch.serve.predictor import Answer, ByHead, Facts, probabilities
from attention_branch.serve.uploads import Upload, png_bytes


def now() -> str:
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def answers(facts: Facts, logits: ByHead, second: ByHead | None, top: int) -> dict[str, Any]:
    """Return both branches' answers to one image: of the one task, or under "heads" of several."""
    found = {
        head: _head_answer(facts, head, values, None if second is None else second[head], top)
        for head, values in logits.items()
    }
    return {"heads": found} if facts.multitask else next(iter(found.values()))


def _head_answer(facts: Facts, head: str, logits: np.ndarray, second: np.ndarray | None, top: int) -> dict[str, Any]:
    shares = probabilities(logits)
    best = [_share(facts, head, shares, int(index)) for index in np.argsort(-shares, kind="stable")[:top]]
    branch = None
    if second is not None:
        others = probabilities(second)
        branch = _share(facts, head, others, int(others.argmax()))
    return {
        "prediction": best[0],
        "top": best,
        "probabilities": shares.round(6).tolist(),
        "attention_branch": branch,
        "branches_agree": None if branch is None else branch["index"] == best[0]["index"],
    }


def _share(facts: Facts, head: str, shares: np.ndarray, index: int) -> dict[str, Any]:
    return {"class": facts.classes[head][index], "index": index, "probability": round(float(shares[index]), 6)}


def map_facts(values: np.ndarray, value_range: tuple[float, float] | None, head: str | None) -> dict[str, Any]:
    """Return what a reader must know of a map (h, w): its size, its extremes and its scale."""
    return {
        "head": head,
        "height": values.shape[0],
        "width": values.shape[1],
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "value_range": None if value_range is None else list(value_range),
    }


def map_array(values: np.ndarray) -> list[list[float]]:
    """Return a map as nested lists, rounded to six digits behind the point."""
    return values.astype(np.float64).round(6).tolist()


def map_png(values: np.ndarray, value_range: tuple[float, float] | None) -> bytes:
    """Return a map as an 8-bit grey PNG, over its scale, or over its own extremes where it has none."""
    low, high = value_range if value_range is not None else (float(values.min()), float(values.max()))
    span = high - low
    scaled = np.clip((values - low) / span, 0, 1) if span > 0 else np.zeros_like(values)
    return png_bytes(Image.fromarray(np.rint(scaled * 255).astype(np.uint8)))


def base64_text(content: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(content).decode("ascii")


def prediction(
    facts: Facts, upload: Upload, answer: Answer, *, top: int, maps: str = "none", record: bool = True
) -> dict[str, Any]:
    """Return one image's answer for a program. `maps` is "none", "array" or "png"; T maps come as a list of T."""
    said: dict[str, Any] = {
        "file": upload.name,
        "width": upload.width,
        "height": upload.height,
        **answers(facts, answer.logits, answer.attention_logits, top),
    }
    if maps != "none":
        said["maps"] = [
            map_facts(values, facts.map_range, head)
            | (
                {"values": map_array(values)}
                if maps == "array"
                else {"png": base64_text(map_png(values, facts.map_range))}
            )
            for head, values in maps_by_head(facts, answer)
        ]
    if record:
        said |= trace(facts, upload)
    return said


def maps_by_head(facts: Facts, answer: Answer) -> list[tuple[str | None, np.ndarray]]:
    """Return the attention maps with the head that each is for; None where one map serves all."""
    if answer.attention is None:
        return []
    if len(answer.attention) == 1:
        return [(None, answer.attention[0])]
    return list(zip(facts.classes, answer.attention, strict=True))


def trace(facts: Facts, upload: Upload) -> dict[str, Any]:
    """Return what it takes to get an answer again: hashes, preprocessing, versions, time."""
    return {
        "image_sha256": upload.digest,
        "model": facts.source,
        "model_sha256": facts.weights_sha256,
        "preprocessing": facts.preprocessing.to_dict(),
        "engine": facts.engine,
        "versions": dict(facts.versions),
        "time": now(),
    }


def finite(value: Any) -> Any:
    """Return plain values in which what JSON cannot say (NaN, infinity) is None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
