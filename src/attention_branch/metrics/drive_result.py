"""What an attention branch network's answers lose with other maps in the place of its own, in numbers and in words."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from attention_branch.errors import UserError, did_you_mean
from attention_branch.metrics.statistics import FEWEST, MetricResult, PairedDifference

OWN = "own"
REPLACED = {
    "mean": "its map's mean",
    "another_image": "another image's map",
    "shuffled": "its map shuffled",
    "inverted": "its map inverted",
    "ones": "a map of ones",
    "zeros": "a map of zeros",
}
"""The maps that are put in the place of the network's own, in words."""

WRONG = ("another_image", "shuffled", "inverted")
"""Maps that look elsewhere. `mean` looks nowhere; ones and zeros also change how strongly the features are weighed."""


SLIGHT = 0.05
"""A drop below this is called little in words; the verdict does not ask for a size."""


@dataclass(frozen=True, eq=False)
class ReplacedMap:
    """The answers with one kind of map, and what they lose against the network's own map, image by image.

    `accuracy` is that against the labels (None where no image has one), `agreement` the share of images that get the
    same class as with the network's own map, `probability` the mean probability of that class. The drops are own map
    minus this one: above 0 where the own map is the better one.
    """

    name: str
    accuracy: MetricResult | None
    agreement: MetricResult
    probability: MetricResult
    accuracy_drop: PairedDifference | None
    agreement_drop: PairedDifference
    probability_drop: PairedDifference

    @property
    def drop(self) -> PairedDifference:
        """The drop in accuracy where there are labels, else in agreement."""
        return self.agreement_drop if self.accuracy_drop is None else self.accuracy_drop

    def to_dict(self) -> dict[str, Any]:
        """Return all as plain values for a JSON file, without the protocol, which `MapDriveResult` holds."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            values[field.name] = None if value is None else value.to_dict()
            if isinstance(value, MetricResult):
                del values[field.name]["protocol"]
        return values


@dataclass(frozen=True, eq=False)
class MapDriveResult:
    """Whether a network's map drives its answers over n images: `rows` by name, 'own' first, then those of `REPLACED`.

    `verdict` and `sentence()` read the rows; `same_class` is the share of images whose other image, the one that lent
    its map, is of the same class, where another image's map may well be a right one.
    """

    rows: dict[str, ReplacedMap]
    n: int
    mechanism: str
    head: str | None
    same_class: float
    counts: dict[str, int]
    protocol: dict[str, Any]

    def __repr__(self) -> str:
        return f"MapDriveResult({self.verdict!r}, n = {self.n}, mechanism {self.mechanism!r})"

    def __getitem__(self, name: str) -> ReplacedMap:
        """Return the row of this name; `UserError` for one there is not."""
        if name not in self.rows:
            raise UserError(f"There is no map '{name}'.{did_you_mean(name, self.rows)} Maps: {', '.join(self.rows)}.")
        return self.rows[name]

    def accuracy(self, name: str) -> MetricResult:
        """Return the accuracy with one kind of map; `UserError` where no image has a label."""
        found = self[name].accuracy
        if found is None:
            raise UserError("No image has a label, so there is no accuracy; read the rows' agreement instead.")
        return found

    @property
    def labelled(self) -> bool:
        """Whether the reading is of accuracy; without labels it is of agreement with the network's own answer."""
        return self.rows[OWN].accuracy is not None

    @property
    def verdict(self) -> str:
        """What the drops say: one counts where it is `clear`, its 95 % interval above 0 and p < 0.05.

        'drives': without the places in its map (`mean`) the answers get worse. 'only when wrong': they do not, but with
        a map that looks elsewhere they do. 'does not drive': neither is shown. 'not applied': the mechanism is "none".
        'unknown': fewer than six images.
        """
        if self.mechanism == "none":
            return "not applied"
        if self.rows["mean"].drop.n < FEWEST:
            return "unknown"
        if _worse(self.rows["mean"].drop):
            return "drives"
        return "only when wrong" if any(_worse(self.rows[name].drop) for name in WRONG) else "does not drive"

    def sentence(self) -> str:
        """Say in plain language whether the map drives the answer, how far, and by which criterion."""
        what = "accuracy" if self.labelled else "agreement with its own answer"
        if self.verdict == "not applied":
            return (
                "The network does not apply its map (mechanism 'none'), so no map put in its place can change an "
                "answer: the map does not drive the answer."
            )
        if self.verdict == "unknown":
            return f"{self.rows[OWN].drop.n} images are too few to say whether the map drives the answer."
        mean = self.rows["mean"].drop
        # Another image's map is the fairest wrong one, for it is a map that this network makes.
        worst = max(WRONG, key=lambda name: (_worse(self.rows[name].drop), -WRONG.index(name)))
        wrong = f"with {REPLACED[worst]} the {what} {_change(self.rows[worst].drop)}"
        blank = (
            f"with {REPLACED['mean']} everywhere, which keeps its strength and drops its places, "
            f"the {what} {_change(mean)}"
        )
        note = "" if self.labelled else " Without labels this tells whether answers change, not whether they get worse."
        if self.same_class > 0.5:
            note += (
                f" Note that the other image was of the same class for {100 * self.same_class:.0f} % of the images; "
                "give images in random order for a harder test."
            )
        if self.verdict == "drives":
            head = f"The map drives the answer: {blank}; {wrong}."
            if self.labelled and mean.mean < SLIGHT <= self.rows[worst].drop.mean:
                head = f"A wrong map spoils the answer, and the right one adds a little to it: {wrong}; {blank}."
        elif self.verdict == "only when wrong":
            better = mean.clear and mean.mean < 0
            head = f"A wrong map spoils the answer: {wrong}. " + (
                f"But the network would answer better without looking anywhere: {blank}."
                if better
                else f"That its own map improves the answer is not shown: {blank}."
            )
        else:
            changed = any(row.drop.higher + row.drop.lower for row in self.rows.values())
            # Where no answer changes with any map there is nothing to prove.
            head = "That the map drives the answer is not shown" if changed else "The map does not drive the answer"
            head = f"{head}: {blank}; {wrong}."
        return f"{head} (n = {mean.n}; a drop counts where its 95 % interval lies above 0 and p < 0.05.){note}"

    def to_dict(self) -> dict[str, Any]:
        """Return all as plain values for a JSON file."""
        return {
            "n": self.n,
            "mechanism": self.mechanism,
            "head": self.head,
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "rows": {name: row.to_dict() for name, row in self.rows.items()},
            "same_class": None if math.isnan(self.same_class) else self.same_class,
            "counts": self.counts,
            "protocol": self.protocol,
        }


def _worse(drop: PairedDifference) -> bool:
    return drop.clear and drop.mean > 0


def _change(drop: PairedDifference) -> str:
    """Say how many points a share loses or gains, with its interval."""
    if drop.higher + drop.lower == 0:
        return "stays as it is"
    low, high = (100 * edge for edge in drop.interval or (math.nan, math.nan))
    if drop.mean >= 0:
        text = f"falls by {100 * drop.mean:z.1f} points ({low:z.1f} to {high:z.1f})"
    else:
        text = f"rises by {-100 * drop.mean:z.1f} points ({-high:z.1f} to {-low:z.1f})"
    return text.replace("-", "−")
