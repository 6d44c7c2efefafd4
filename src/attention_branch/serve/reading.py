"""An answer in plain words: what was said, how sure, where the network looked, and what that does not mean."""

from typing import Any

import numpy as np

from attention_branch.evaluation.second_look import DIFFUSE, REGION, SURE, effective_area
from attention_branch.evaluation.wording import percent
from attention_branch.metrics.collapse import EDGE, SPREAD
from attention_branch.serve.predictor import Answer, Facts, probabilities

_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


def reading(facts: Facts, answer: Answer, head: str, without: tuple[int, float] | None) -> list[dict[str, str]]:
    """Return sentences with a verdict each: "unsure" for what deserves a second look, else empty.

    `without` is the class and its probability with the map's highest fifth painted over, where that was asked.
    """
    names = facts.classes[head]
    shares = probabilities(answer.logits[head])
    best = int(shares.argmax())
    said = [
        _sentence(
            f"The network says '{names[best]}' and is {percent(shares[best])} sure of it.",
            unsure=shares[best] < SURE,
            more=" No class has more than half: take it as a guess." if shares[best] < SURE else "",
        )
    ]
    if answer.attention_logits is not None:
        others = probabilities(answer.attention_logits[head])
        second = int(others.argmax())
        if second == best:
            said.append(_sentence(f"Its attention branch, asked alone, says the same ({percent(others[second])})."))
        else:
            text = f"Its attention branch, asked alone, says '{names[second]}' ({percent(others[second])}): "
            said.append(_sentence(text + "the two branches disagree, look again.", unsure=True))
    values = answer.map_of(head)
    if values is None:
        text = "It has no attention branch: CAM and Grad-CAM are read off it afterwards and change nothing."
        return [*said, _sentence(text)]
    collapsed = _collapsed(values, facts.map_range == (0.0, 1.0))
    said.append(collapsed or _place(values))
    if without is not None and collapsed is None:
        said.append(_without(names, best, *without))
    said.append(_sentence(_meaning(facts.mechanism)))
    return said


def _sentence(text: str, *, unsure: bool = False, more: str = "") -> dict[str, str]:
    return {"text": text + more, "verdict": "unsure" if unsure else ""}


def _collapsed(values: np.ndarray, bounded: bool) -> dict[str, str] | None:
    low, high = float(values.min()), float(values.max())
    if bounded and (high < EDGE or low > 1 - EDGE):
        return _sentence(f"The map is near {'0' if high < EDGE else '1'} everywhere: it says nothing.", unsure=True)
    least = SPREAD if bounded else SPREAD * max(abs(low), abs(high))
    if float(values.std()) <= least:
        return _sentence("The map is nearly the same everywhere: it prefers no place.", unsure=True)
    return None


def _place(values: np.ndarray) -> dict[str, str]:
    mass = values.astype(np.float64) - values.min()
    mass /= mass.sum()
    ordered = np.sort(mass, axis=None)[::-1]
    half = (int(np.searchsorted(np.cumsum(ordered), 0.5)) + 1) / mass.size
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    place = [
        words[min(2, int(3 * (position + 0.5) / side))]
        for words, position, side in ((_ROWS, row, values.shape[0]), (_COLUMNS, column, values.shape[1]))
    ]
    where = "in the middle" if place == ["middle", "centre"] else f"at the {' '.join(place)}"
    text = f"The map is highest {where} of the picture; half of what it holds above its lowest value lies in "
    text += f"{percent(half)} of it."
    if effective_area(values) > DIFFUSE:
        return _sentence(text + " That is spread widely: it points at no small place.", unsure=True)
    return _sentence(text)


def _without(names: Any, best: int, index: int, share: float) -> dict[str, str]:
    text = f"With the {100 * REGION:.0f} % of the picture where the map is highest painted over, it "
    if index == best:
        return _sentence(text + f"still says '{names[best]}' ({percent(share)}): the rest speaks for that class too.")
    flips = share > SURE
    end = f"says '{names[index]}' ({percent(share)})"
    return _sentence(text + end + (": the answer hangs on that region." if flips else ", unsure."), unsure=flips)


def _meaning(mechanism: str | None) -> str:
    start = "The map tells where the network looked, not which class a place speaks for (see 'evidence'). "
    if mechanism == "residual":
        return start + "It weights features by 1 to 2, so a dark place may have counted as well."
    if mechanism == "product":
        return start + "It multiplies the features, so what lies under a dark place hardly reached the answer."
    return start + "In this network, a control, it is not applied to anything."
