"""The explanations that an exported file carries, without torch: its map, its evidence for a class, CAM, controls."""

from typing import Any, NamedTuple

import numpy as np

from attention_branch.arrays import of_head, softmax
from attention_branch.errors import UserError
from attention_branch.explanations.controls import CONTROLS, control_arrays
from attention_branch.explanations.resizing import resized
from attention_branch.explanations.result import Explanation
from attention_branch.explanations.targets import Target, choose_head, class_indices, head_class_names
from attention_branch.onnx_model import OnnxModel


class _Maps(NamedTuple):
    raw: np.ndarray  # (N, h, w)
    target: np.ndarray | None  # (N,); None where the map does not depend on a class
    layer: str
    value_range: tuple[float, float] | None


def explain_onnx(
    model: OnnxModel, images: np.ndarray, method: str = "attention", target: Target = None, *, seed: int = 0
) -> Explanation:
    """Explain normalised images (N, 3, H, W) by what an exported file carries; an `Explanation` of numpy arrays.

    Methods: "attention"; "attention-class" where the file has class_evidence; "cam" where it has cam; the controls.
    `target` as in `explain`. Raises `UserError` for others, and for a class or head that the file does not have.
    """
    check_method(model, method)
    outputs = model.run(images)
    logits = _scores(model, outputs, "logits")
    head, wanted = choose_head(model, target, logits)
    scores = of_head(logits, head)
    # A class is checked though a map may not depend on it: a misspelt name must not pass unseen.
    shares = softmax(scores)
    names = head_class_names(model, head)
    classes = shares.argmax(1) if wanted is None else np.array(class_indices(scores, wanted, names))
    found = _of_file(model, outputs, method, head, classes, seed)
    if not np.isfinite(found.raw).all():
        raise UserError(f"'{method}' yields NaN or infinite values for these images: the file's activations overflow.")
    prepared = model.preprocessing
    mean, std = (np.array(part, dtype=np.float32)[:, None, None] for part in (prepared.mean, prepared.std))
    return Explanation(
        maps=resized(found.raw, *images.shape[-2:]),  # type: ignore[arg-type]
        raw=found.raw,  # type: ignore[arg-type]
        target=found.target,  # type: ignore[arg-type]
        method=method,
        layer=found.layer,
        logits=logits,
        images=np.clip(images * std + mean, 0, 1),
        value_range=found.value_range,
        head=head,
        class_names=names,
        attention_logits=_scores(model, outputs, "attention_logits"),
    )


def check_method(model: OnnxModel, method: str) -> None:
    """Raise a `UserError` for a method whose output a file does not carry."""
    kind = _CARRIED.get(method)
    if method in CONTROLS or (kind is not None and model.named(kind)):
        return
    carried = [name for name, needed in _CARRIED.items() if model.named(needed)]
    known = ", ".join([*carried, *CONTROLS])
    if method == "attention-class" and model.is_abn:
        raise UserError(
            "This file has no evidence by class for 'attention-class'; export the network again with --class-evidence, "
            f"or use one of: {known}."
        )
    raise UserError(
        f"'{method}' cannot be computed from an exported file ({model.name}), which carries: {known}. Explain the run "
        "itself for others."
    )


_CARRIED = {"attention": "attention", "attention-class": "class_evidence", "cam": "cam"}
"""The methods that read an output, and which one."""


def _of_file(
    model: OnnxModel, outputs: dict[str, np.ndarray], method: str, head: str | None, classes: np.ndarray, seed: int
) -> _Maps:
    count = len(classes)
    if method in CONTROLS:
        maps, layer = control_arrays(method, count, *model.preprocessing.size, seed)
        return _Maps(maps, None, layer, (0.0, 1.0))
    if method == "attention":
        attention = outputs["attention"]
        position = list(model.heads).index(head) if model.heads and head is not None and attention.shape[1] > 1 else 0
        whose = f"of head '{head}'" if head is not None else "M"
        layer = f"attention branch, map {whose} (class-agnostic)"
        return _Maps(attention[:, position], None, layer, model.map_range)
    values = outputs[model.named(_CARRIED[method])[head]]
    rows = np.arange(count)
    if values.shape[1] == 1:
        # One sigmoid logit: what speaks for class 1 speaks against class 0.
        raw = values[:, 0] * (2 * classes - 1).astype(values.dtype)[:, None, None]
    else:
        raw = values[rows, classes]
    of = f" of head '{head}'" if head is not None else ""
    layer = f"attention branch, class evidence{of}" if method == "attention-class" else f"the classifier's features{of}"
    return _Maps(raw, classes, layer, None)


def _scores(model: OnnxModel, outputs: dict[str, np.ndarray], kind: str) -> Any:
    """Return the scores of a kind, by head where there are several; None where the file has none."""
    names = model.named(kind)
    if not names:
        return None
    return outputs[names[None]] if None in names else {head: outputs[name] for head, name in names.items()}
