"""Which single predictions deserve a second look: four criteria, each with the numbers that it was decided by.

- `branches_disagree`: the attention branch's own answer is another one.
- `map_collapsed`: the map says nothing: constant over positions, or near 0 or 1 everywhere.
- `map_diffuse`: what the map holds above its floor is spread over most of the picture, so it prefers no place.
- `answer_flips`: with the region where the map is highest painted over, the network is sure of another answer. Flips
  to an answer that it is unsure of are recorded and not flagged: a network that has lost its object has to say
  something. Where pictures hold one object, nearly every answer flips so, and those that do are the more reliable ones.

The last three are about a map, so a control, which knows nothing of the image, is not judged by them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from attention_branch.arrays import as_array, of_head, softmax
from attention_branch.evaluation.removal import paint_over
from attention_branch.evaluation.wording import percent
from attention_branch.explanations.controls import CONTROLS
from attention_branch.explanations.result import Explanation
from attention_branch.explanations.targets import head_class_names
from attention_branch.metrics.collapse import EDGE, SPREAD
from attention_branch.onnx_model import OnnxModel

REGION = 0.2
"""The removed region: this share of the pixels, those where the map is highest; a fifth covers most single objects."""

SURE = 0.5
"""A network is sure of an answer that it holds more probable than all others together."""

DIFFUSE = 2 / 3
"""A map is diffuse when its effective area is more than this share of the picture; uniform noise has 0.82."""

SIGMA = 1 / 8
"""Sigma of the paint, as a share of the shorter side: the width of the region it has to close."""

FLAGS = {
    "branches_disagree": "branches disagree",
    "map_collapsed": "map collapsed",
    "map_diffuse": "map diffuse",
    "answer_flips": "flips without the map's highest fifth",
}
"""The flags, and what they are called on a page."""


@dataclass(frozen=True)
class Flag:
    """One reason to look again: its name, one of FLAGS, and a sentence with the numbers."""

    flag: str
    why: str

    def to_dict(self) -> dict[str, str]:
        """Return plain values for a JSON file."""
        return asdict(self)


@dataclass(frozen=True)
class WithoutRegion:
    """The answer with the map's highest region painted over: its class, its probability, and the first answer's."""

    index: int
    name: str
    probability: float
    before: float
    changed: bool


@dataclass(frozen=True)
class SecondLook:
    """What is said of one image: its flags, and the answer without the map's highest region where that was asked."""

    flags: tuple[Flag, ...]
    without_region: WithoutRegion | None

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of an image's record."""
        without = None
        if self.without_region is not None:
            found = self.without_region
            without = {
                "removed": REGION,
                "class": found.name,
                "index": found.index,
                "probability": round(found.probability, 6),
                "probability_of_prediction": round(found.before, 6),
                "changed": found.changed,
            }
        return {"second_look": [flag.to_dict() for flag in self.flags], "without_region": without}


def criteria() -> dict[str, float]:
    """Return every threshold by name, for a record."""
    return {"region": REGION, "sure": SURE, "diffuse": DIFFUSE, "spread": SPREAD, "edge": EDGE, "sigma": SIGMA}


def second_look(model: Any, images: Any, explanation: Explanation) -> list[SecondLook]:
    """Judge each prediction of a batch of normalised images (N, 3, H, W) by its explanation; one forward pass more.

    `model` is a network and `images` a tensor, or an `OnnxModel` and an array. With several heads the map's head is
    judged by its map, and every head by whether the branches agree. A map for another class than the predicted one is
    not painted over: it does not say what the prediction rests on.
    """
    flags = [_disagreements(model, explanation, row) for row in range(len(explanation))]
    without: dict[int, WithoutRegion] = {}
    if explanation.method not in CONTROLS:
        scores = softmax(of_head(explanation.logits, explanation.head))
        answers = scores.argmax(1)
        for row, found in enumerate(flags):
            found += _map_flags(explanation, row)
        asked = [
            row
            for row, found in enumerate(flags)
            # A map that points nowhere has no region to remove.
            if all(flag.flag != "map_collapsed" for flag in found)
            and (explanation.target is None or int(explanation.target[row]) == int(answers[row]))
        ]
        for row, left in zip(asked, _scores_without(model, images, explanation, asked), strict=True):
            before, after = int(answers[row]), int(left.argmax())
            without[row] = answer = WithoutRegion(
                index=after,
                name=_name(explanation, after),
                probability=float(left[after]),
                before=float(left[before]),
                changed=after != before,
            )
            if answer.changed and answer.probability >= SURE:
                flags[row].append(_flip(_name(explanation, before), float(scores[row, before]), answer))
    return [SecondLook(tuple(found), without.get(row)) for row, found in enumerate(flags)]


def effective_area(values: Any) -> float:
    """Return the share of a map's positions (h, w) that would hold its mass evenly: exp(entropy) / positions.

    The mass is what the map has above its lowest value, so that a floor which weighs every place alike does not count.
    1 for a map without any.
    """
    mass = as_array(values).ravel()
    mass = mass - mass.min()
    if mass.sum() == 0:
        return 1.0
    share = mass[mass > 0] / mass.sum()
    return float(np.exp(-(share * np.log(share)).sum()) / len(mass))


def _disagreements(model: Any, explanation: Explanation, row: int) -> list[Flag]:
    second = explanation.attention_logits
    if second is None:
        return []
    heads = list(explanation.logits) if isinstance(explanation.logits, Mapping) else [None]
    found = []
    for head in heads:
        names = head_class_names(_inner(model), head)
        both = [softmax(of_head(part, head)[row : row + 1])[0] for part in (explanation.logits, second)]
        (mine, sure), (other, other_sure) = ((int(part.argmax()), float(part.max())) for part in both)
        if mine != other:
            said = [f"'{names[index] if names else index}'" for index in (mine, other)]
            start = f"Head '{head}': the" if head is not None else "The"
            why = f"{start} prediction is {said[0]} ({percent(sure)}), the attention branch's own answer {said[1]} "
            found.append(Flag("branches_disagree", why + f"({percent(other_sure)})."))
    return found


def _map_flags(explanation: Explanation, row: int) -> list[Flag]:
    values = as_array(explanation.raw[row])
    low, high, spread = float(values.min()), float(values.max()), float(values.std())
    bounded = explanation.value_range == (0.0, 1.0)
    if bounded and (high < EDGE or low > 1 - EDGE):
        end, value = ("0", high) if high < EDGE else ("1", low)
        most = "largest" if end == "0" else "smallest"
        why = f"The map is near {end} everywhere: its {most} value is {value:.3f}."
        return [Flag("map_collapsed", why)]
    if low == high:
        return [Flag("map_collapsed", f"The map has the same value everywhere, {low:.3g}.")]
    # A map without bounds has a scale of its own.
    least = SPREAD if bounded else SPREAD * max(abs(low), abs(high))
    if spread < least:
        why = f"The map is constant: its values spread by {spread:.2g} around {float(values.mean()):.2g} (standard "
        return [Flag("map_collapsed", why + f"deviation; below {least:.2g} it prefers no place).")]
    area = effective_area(values)
    if area > DIFFUSE:
        why = f"The map prefers no place: above its lowest value it is spread as evenly as over {percent(area)} of the "
        return [Flag("map_diffuse", why + f"picture (more than {percent(DIFFUSE)} counts as diffuse).")]
    return []


def _scores_without(model: Any, images: Any, explanation: Explanation, rows: list[int]) -> np.ndarray:
    """Return the probabilities (len(rows), K) of the images with their attended regions painted over."""
    if not rows:
        return np.zeros((0, 1))
    maps = np.stack([as_array(explanation.maps[row]) for row in rows])
    count = round(REGION * maps[0].size)
    highest = np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable")[:, :count]
    masks = np.zeros((len(maps), maps[0].size), dtype=bool)
    np.put_along_axis(masks, highest, True, axis=1)
    painted = paint_over(images[rows], masks.reshape(maps.shape), SIGMA * min(maps.shape[1:]))
    if isinstance(model, OnnxModel):
        return softmax(model.run(painted)[model.named("logits")[explanation.head]])
    import torch

    from attention_branch.explanations.outputs import evaluating, predict

    with evaluating(model), torch.no_grad():
        return softmax(of_head(predict(model, painted), explanation.head))


def _inner(model: Any) -> Any:
    """Return the network inside its wrappers; an ONNX file has none."""
    if isinstance(model, OnnxModel):
        return model
    from attention_branch.explanations.outputs import unwrapped

    return unwrapped(model)


def _flip(name: str, sure: float, found: WithoutRegion) -> Flag:
    why = f"With the {100 * REGION:.0f} % of the picture where the map is highest painted over, the answer flips from "
    why += f"'{name}' ({percent(sure)}) to '{found.name}' ({percent(found.probability)}): that region alone speaks for "
    return Flag("answer_flips", why + f"'{name}', the rest for '{found.name}'.")


def _name(explanation: Explanation, index: int) -> str:
    return explanation.class_names[index] if explanation.class_names else str(index)
