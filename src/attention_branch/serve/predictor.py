"""What the server asks of a network, whatever runs it: numbers go in and come out as numpy arrays, no torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from attention_branch.arrays import softmax
from attention_branch.errors import UserError, did_you_mean
from attention_branch.models.preprocessing import Preprocessing

SINGLE = "label"
"""The head of a network with one task."""

ByHead = Mapping[str, np.ndarray]

_SHOWN = 80
"""Letters of a stranger's word that are compared and said again; more would cost time and say nothing."""


@dataclass(frozen=True)
class Facts:
    """What a network is: everything that a record must hold, and what the page may offer.

    `classes` holds the class names by head, of a single task under `SINGLE`. `question` says why no map of one's own
    can be given; None where it can. `methods` are the ways to explain that work for this network.
    """

    name: str
    source: str
    weights_sha256: str
    mechanism: str | None
    classes: Mapping[str, Sequence[str]]
    multitask: bool
    preprocessing: Preprocessing
    map_range: tuple[float, float] | None
    map_size: tuple[int, int] | None
    methods: Sequence[str]
    question: str | None
    engine: str
    versions: Mapping[str, str] = field(default_factory=dict)

    def head(self, name: str | None) -> str:
        """Return a head that was named, or the first; `UserError` for one that the network does not have."""
        if name is None or (name == SINGLE and not self.multitask):
            return next(iter(self.classes))
        if name not in self.classes:
            shown = name[:_SHOWN]
            raise UserError(f"There is no head '{shown}'.{did_you_mean(shown, self.classes)} See /v1/model for them.")
        return name

    def class_index(self, head: str, wanted: str | int | None) -> int | None:
        """Return the number of a class given by name or number; `UserError` for one that the head does not have."""
        names = list(self.classes[head])
        if wanted is None or wanted == "":
            return None
        if isinstance(wanted, str) and wanted in names:
            return names.index(wanted)
        text = str(wanted)
        if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(names):
            return int(text)
        shown = text[:_SHOWN]
        raise UserError(f"There is no class '{shown}'.{did_you_mean(shown, names)} See /v1/model for them.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.name,
            "source": self.source,
            "weights_sha256": self.weights_sha256,
            "mechanism": self.mechanism,
            "classes": {head: list(names) for head, names in self.classes.items()},
            "multitask": self.multitask,
            "preprocessing": self.preprocessing.to_dict(),
            "map_range": None if self.map_range is None else list(self.map_range),
            "map_size": None if self.map_size is None else list(self.map_size),
            "methods": list(self.methods),
            "question": self.question,
            "engine": self.engine,
            "versions": dict(self.versions),
        }


def named_classes(heads: Mapping[str, int] | None, count: int | None, names: Any) -> dict[str, list[str]]:
    """Return the class names by head, of a single task under `SINGLE`; numbers where there are none.

    A head of one logit has two classes.
    """
    sizes = dict(heads) if heads is not None else {SINGLE: int(count or 0)}
    listed = names if isinstance(names, Mapping) else {SINGLE: names}
    numbered = {head: [str(index) for index in range(max(2, size))] for head, size in sizes.items()}
    return {head: list(listed.get(head) or numbers) for head, numbers in numbered.items()}


@dataclass(frozen=True)
class Answer:
    """The answer to one image, by head: logits (K,), the attention branch's (K,) or None, and maps (T, h, w) or None.

    T is 1, or one a head in the order of the heads.
    """

    logits: ByHead
    attention_logits: ByHead | None
    attention: np.ndarray | None

    def map_of(self, head: str) -> np.ndarray | None:
        """Return the map (h, w) of a head."""
        if self.attention is None:
            return None
        position = list(self.logits).index(head) if len(self.attention) > 1 else 0
        return self.attention[position]


@dataclass(frozen=True)
class ClassMap:
    """One explanation of one image: values (h, w), the scale they have (None: no bounds), where they were read."""

    values: np.ndarray
    value_range: tuple[float, float] | None
    layer: str
    class_agnostic: bool


class Opened(Protocol):
    """One image whose features are kept, so that questions about it are cheap."""

    answer: Answer

    def ask(self, maps: np.ndarray) -> ByHead:
        """Return the logits (K,) by head under given maps (T, h, w)."""
        ...

    def explain(self, method: str, head: str, index: int | None) -> ClassMap:
        """Return the map of a method for a class (None: the predicted one); `UserError` where there is none."""
        ...

    def without_highest(self, head: str) -> tuple[int, float] | None:
        """Return class and probability with the map's highest region painted over; None where that cannot be asked."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory that the kept arrays take."""
        ...


class Predictor(Protocol):
    """A network that answers. Its methods are called from one thread at a time, but for `predict` with lanes.

    `lanes` calls of `predict` may run at once; each is told by `beside` that others do, and leaves processors to them.
    """

    facts: Facts
    lanes: int

    def predict(self, images: np.ndarray, *, beside: bool = False) -> list[Answer]:
        """Answer normalised images (N, 3, H, W) float32."""
        ...

    def open(self, image: np.ndarray) -> Opened:
        """Answer one normalised image (3, H, W) and keep its features."""
        ...


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of one answer's logits (K,) in float64; one logit is a sigmoid and gives two classes."""
    shares: np.ndarray = softmax(logits[None])[0]
    return shares
