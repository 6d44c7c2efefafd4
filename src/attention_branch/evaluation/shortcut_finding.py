"""What a search for a shortcut found: shares with their intervals, a verdict, and the same in plain language."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attention_branch.metrics.statistics import proportion_interval


@dataclass(frozen=True)
class Share:
    """How many of `count` images did something; `interval` is Wilson's, 95 %."""

    hits: int
    count: int

    @property
    def value(self) -> float:
        """The share in [0, 1]; NaN for no image."""
        return self.hits / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95 % interval; None for no image."""
        return proportion_interval(self.hits, self.count)

    @property
    def low(self) -> float:
        """The interval's lower end; 0 for no image."""
        return self.interval[0] if self.interval else 0.0

    @property
    def high(self) -> float:
        """The interval's upper end; 1 for no image."""
        return self.interval[1] if self.interval else 1.0

    @classmethod
    def of(cls, values: Tensor, among: Tensor | None = None) -> "Share":
        """Count the true ones of values (N,), where `among` (N,) is true."""
        chosen = values if among is None else values[among]
        return cls(int(chosen.sum()), len(chosen))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file; None where there is no image."""
        if not self.count:
            return {"share": None, "interval": None, "hits": 0, "n": 0}
        return {"share": self.value, "interval": list(self.interval or ()), "hits": self.hits, "n": self.count}


@dataclass(frozen=True)
class Place:
    """Where patches of one answer lie together: the middle (x, y) as shares of the sides, and how many do."""

    x: float
    y: float
    share: float

    @property
    def words(self) -> str:
        """Say it: 'upper left', 'right', 'middle'."""
        down = ("upper", "", "lower")[min(2, int(3 * self.y))]
        across = ("left", "", "right")[min(2, int(3 * self.x))]
        return " ".join(part for part in (down, across) if part) or "middle"


@dataclass(frozen=True)
class AnswerFinding:
    """The search's result on the images of one answer: `changes` when the patch is painted over, `carried` along."""

    name: str
    images: int
    changes: Share
    carried: Share
    places: tuple[Place, ...]
    found: bool


@dataclass(frozen=True, eq=False)
class ShortcutSearch:
    """What a search found. All shares are over the searched images; the patch is the one the answer hangs on most.

    `verdict`: "shortcut"; "suspicion" (a patch decides, but is worth nothing elsewhere); "surroundings" (no patch
    decides, nor does the object); "none"; "unknown" (a patch decides, and the data does not say where the object is).
    `patches` (N, 4) are x0, y0, x1, y1 in pixels, of those beside the object where objects are known; `answers` (N,)
    the answers, `after` (N,) those with the patch painted over, `effect` (N,) the fall of the answer's probability.

    `changes`: the answer changes when the patch is painted over, `random_changes` when a random one beside the object
    is, `object_changes` when the whole object is. `on_object`: the patch of largest effect anywhere touches the object.
    `carried_place`: laid on another image at its own place, it makes the answer its own; `carried_look`: likewise laid
    on the other image's patch; `carried_random`: likewise a random patch. `map_off_object`: the map's maximum is not on
    the object; `map_on_patch`: it is on the patch; `map_changes`: painting over the patch around it changes the answer;
    `peaks` (N, 4) are these patches.
    """

    verdict: str
    n: int
    left_out: int
    image_size: tuple[int, int]
    patch: int
    patches: Tensor
    answers: Tensor
    after: Tensor
    effect: Tensor
    changes: Share
    random_changes: Share
    object_changes: Share | None
    on_object: Share | None
    carried_place: Share
    carried_look: Share
    carried_random: Share
    by_answer: tuple[AnswerFinding, ...]
    names: tuple[str, ...] | None
    method: str | None
    peaks: Tensor | None
    map_off_object: Share | None
    map_on_patch: Share | None
    map_changes: Share | None
    index: Tensor
    protocol: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"ShortcutSearch({self.verdict!r}, n = {self.n}, patch {self.patch} of {self.image_size} pixels)"

    @property
    def carrier(self) -> str:
        """What of the patch carries the answer along: its "look" wherever it lies, its "place", or "nothing"."""
        if self.carried_look.low > self.carried_random.high:
            return "look"
        return "place" if self.carried_place.low > self.carried_random.high else "nothing"

    def name(self, answer: int) -> str:
        """Return the name of a class, or its number."""
        return self.names[answer] if self.names else str(answer)

    @property
    def fallback(self) -> tuple[str, Share] | None:
        """The answer that most of the changed answers become (interval above one half), and how many; None for none."""
        changed = self.after[self.after != self.answers]
        if not len(changed):
            return None
        answer = int(changed.mode().values)
        share = Share.of(changed == answer)
        return (self.name(answer), share) if share.low > 0.5 else None

    def sentences(self) -> list[str]:
        """Say in plain language what was found and how much hangs on it; the first sentence is the verdict."""
        return _sentences(self)

    def to_dict(self) -> dict[str, Any]:
        """Return verdict, sentences, shares and protocol as plain values for a JSON file."""
        shares = (
            "changes", "random_changes", "object_changes", "on_object", "carried_place", "carried_look",
            "carried_random", "map_off_object", "map_on_patch", "map_changes",
        )  # fmt: skip
        found: dict[str, Any] = {"verdict": self.verdict, "sentences": self.sentences(), "n": self.n}
        found |= {"left_out": self.left_out, "carrier": self.carrier, "map_method": self.method}
        for name in shares:
            share = getattr(self, name)
            found[name] = None if share is None else share.to_dict()
        found["by_answer"] = [
            {
                "answer": item.name,
                "images": item.images,
                "found": item.found,
                "changes": item.changes.to_dict(),
                "carried": item.carried.to_dict(),
                "places": [{"x": place.x, "y": place.y, "share": place.share} for place in item.places],
            }
            for item in self.by_answer
        ]
        return found | {"protocol": dict(self.protocol)}


def _sentences(found: ShortcutSearch) -> list[str]:
    area = 100 * found.patch**2 / (found.image_size[0] * found.image_size[1])
    patch = f"{found.patch}x{found.patch} pixels, {area:.1f} % of the picture"
    beside = "beside the object " if found.on_object is not None else ""
    changes = f"painting over one small patch {beside}({patch}) changes the answer in {_percent(found.changes)} of the"
    changes += f" {found.changes.count} images"
    control = f"a patch at a random place {beside}does so in {_percent(found.random_changes)}"
    guilty = [item.name for item in found.by_answer if item.found]
    if found.verdict == "shortcut":
        # What the network says when it finds no patch is no answer that a patch could decide.
        free = [item.name for item in found.by_answer if not item.found and item.name != (found.fallback or [""])[0]]
        whose = f" for {_listed([repr(name) for name in guilty])}" if guilty and free else ""
        said = [f"The network learned a shortcut{whose}: {changes}; {control}."]
    elif found.verdict == "suspicion":
        said = [f"There may be a shortcut: {changes}; {control}. But such a patch does not carry its answer along."]
    elif found.verdict == "unknown":
        said = [
            f"The answers hang on little: {changes}; {control}. The data does not say where the objects are: if the "
            "patches below do not show them, the network learned a shortcut."
        ]
    elif found.verdict == "surroundings":
        said = [
            "No small patch decides, and neither does the object: the network answers by something larger, or by "
            f"several things that stand in for each other. The most harmful patch changes {_percent(found.changes)} of "
            f"the {found.changes.count} answers."
        ]
    else:
        where = "no small patch beside the object decides" if beside else "no small patch decides"
        said = [f"No shortcut of this kind was found: {where} the answers. Even the most harmful one changes only "
                f"{_percent(found.changes)} of the {found.changes.count}."]  # fmt: skip
    if found.object_changes is not None:
        gone = f"With the whole object painted over, the answer changes in {_percent(found.object_changes)}"
        said.append(gone + (": the network hardly needs the object." if found.object_changes.high < 0.5 else "."))
    decided = found.verdict in ("shortcut", "suspicion", "unknown")
    if decided and found.fallback is not None:
        name, share = found.fallback
        said.append(f"Without its patch the network mostly falls back on one answer, '{name}' ({_percent(share)}).")
    if decided and found.carried_place.count:
        said.append(_carried(found))
    if decided:
        said += _where(found, [item for item in found.by_answer if item.found] or list(found.by_answer))
    return said + _map_sentence(found)


def _carried(found: ShortcutSearch) -> str:
    place, look, chance = found.carried_place, found.carried_look, found.carried_random
    text = f"Cut out and laid on another image at the same place, the patch takes its answer along in {_percent(place)}"
    text += f", laid on the other image's own patch in {_percent(look)}, a random patch in {_percent(chance)}"
    meaning = {
        "look": ": it is the look of the patch that says the class, wherever it lies.",
        "place": ": it is the place of the patch that says the class, not its look.",
        "nothing": ".",
    }
    return text + meaning[found.carrier]


def _where(found: ShortcutSearch, items: list[AnswerFinding]) -> list[str]:
    """Say where the patches of the answers lie, if those of one answer lie together."""
    together = [sum(place.share for place in item.places) for item in items]
    if found.carrier != "place" or not items or sum(together) / len(items) < 0.5:
        return []
    shown = [f"'{item.name}' {' or '.join(dict.fromkeys(place.words for place in item.places))}" for item in items[:10]]
    return [f"The patches of one answer lie together: {', '.join(shown)}."]


def _map_sentence(found: ShortcutSearch) -> list[str]:
    if found.method is None or found.map_on_patch is None or found.map_changes is None:
        return []
    text = f"The map's maximum ('{found.method}') "
    if found.map_off_object is not None:
        text += f"is not on the object in {_percent(found.map_off_object)} of the images"
    if found.verdict in ("none", "surroundings"):
        return [text + "."] if found.map_off_object is not None else []
    text += (
        " and " if found.map_off_object is not None else ""
    ) + f"is on that patch in {_percent(found.map_on_patch)}"
    if found.map_on_patch.high < 0.5:
        text += ": this map alone would not have shown what decides"
    return [text + "."]


def _percent(share: Share) -> str:
    return "none" if math.isnan(share.value) else f"{100 * share.value:.0f} %"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
