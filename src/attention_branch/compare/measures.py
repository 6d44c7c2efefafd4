"""The metrics of `abn compare` by their names on the command line, and what each says to a reader who is new to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attention_branch.metrics.explaining import Explainer
from attention_branch.metrics.faithfulness import Deletion, Insertion, InsertionMinusDeletion
from attention_branch.metrics.localisation import BoxIoU, EnergyPointingGame
from attention_branch.metrics.masking import ADCC, AverageDrop, AverageGain, IncreaseInConfidence
from attention_branch.metrics.metric import Metric, Regions
from attention_branch.metrics.pointing import PointingGame
from attention_branch.metrics.road import Road
from attention_branch.metrics.shape import Entropy, GiniSparsity
from attention_branch.metrics.stability import MaxSensitivity
from attention_branch.metrics.statistics import MetricResult


@dataclass(frozen=True)
class Measure:
    """A metric by its name: a title, what it asks in one line, and whether it is printed in per cent.

    `explains` says that it explains changed images again, so that it must know the method.
    """

    name: str
    title: str
    meaning: str
    kind: type[Metric]
    share: bool = True
    default: bool = True
    explains: bool = False

    @property
    def higher_is_better(self) -> bool | None:
        """Which way is better; None for a description."""
        return self.kind.higher_is_better

    @property
    def needs_regions(self) -> bool:
        """Whether it needs the objects' places."""
        return self.kind.needs_regions

    def text(self, value: float) -> str:
        """Return a value as text: per cent of a share, else three decimals; an en dash where there is none."""
        if value != value:
            return "–"
        return f"{100 * value:.1f} %" if self.share else f"{value:z.3f}".replace("-", "−")

    def signed(self, value: float) -> str:
        """Return a difference as text with its sign; of shares in percentage points."""
        if value != value:
            return "–"
        text = f"{100 * value:+z.1f}" if self.share else f"{value:+z.3f}"
        return text.replace("-", "−")


_ALL = (
    Measure(
        "deletion",
        "Deletion",
        "The pixels the map calls most important are taken away first: mean probability of the class on the way.",
        Deletion,
        share=False,
    ),
    Measure(
        "insertion",
        "Insertion",
        "The pixels the map calls most important are put in first: mean probability of the class on the way.",
        Insertion,
        share=False,
    ),
    Measure(
        "insertion-deletion",
        "Insertion − deletion",
        "The gap between both: near 1 the shown places decide the answer. The random control is what chance gets.",
        InsertionMinusDeletion,
        share=False,
    ),
    Measure(
        "road",
        "ROAD",
        "Pixels are blended into their surroundings: half of what the most important cost more than the least.",
        Road,
        share=False,
    ),
    Measure(
        "average-drop",
        "Average drop",
        "Only what the map shows is kept: the share of the probability that is lost.",
        AverageDrop,
    ),
    Measure(
        "increase-in-confidence",
        "Increase in confidence",
        "Only what the map shows is kept: the share of images whose probability rises.",
        IncreaseInConfidence,
    ),
    Measure(
        "average-gain",
        "Average gain",
        "Only what the map shows is kept: the share of the missing probability that is won.",
        AverageGain,
    ),
    Measure(
        "adcc",
        "ADCC",
        "One number of three: little is lost, little is shown, and the map stays the same on what it shows.",
        ADCC,
        default=False,
        explains=True,
    ),
    Measure(
        "pointing",
        "Pointing game",
        "The share of images in which the map's strongest point lies on the object.",
        PointingGame,
    ),
    Measure(
        "energy-pointing",
        "Energy on the object",
        "The share of the map's weight that lies on the object.",
        EnergyPointingGame,
    ),
    Measure(
        "box-iou",
        "Box from the map",
        "How often a box drawn around the map's main part fits the object's, over overlaps of 30, 50 and 70 %.",
        BoxIoU,
        default=False,
    ),
    Measure("sparsity", "Sparsity (Gini)", "0: the same everywhere; 1: all in one point.", GiniSparsity, share=False),
    Measure("entropy", "Entropy", "How widely the map's weight is spread.", Entropy, share=False),
    Measure(
        "max-sensitivity",
        "Max-sensitivity",
        "How far the map changes at most when the image changes a little.",
        MaxSensitivity,
        share=False,
        default=False,
        explains=True,
    ),
)

MEASURES = {measure.name: measure for measure in _ALL}
"""All metrics by name, in the order of the tables."""

DEFAULT_METRICS = tuple(measure.name for measure in _ALL if measure.default)

_BOTH = "insertion-deletion"


class Measures:
    """The metrics of one method's maps. Deletion, insertion and their difference are measured on the same curves.

    `measure` returns what a batch adds, as plain values and tensors; `add` adds it; `results` brings all together.
    """

    def __init__(self, names: Sequence[str], explainer: Explainer, *, batch_size: int, seed: int) -> None:
        self.names = list(names)
        wanted = list(names)
        if _BOTH in names or {"deletion", "insertion"} <= set(names):
            wanted = [name for name in names if name not in ("deletion", "insertion", _BOTH)] + [_BOTH]
        options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
        self._metrics = {name: _build(name, explainer, options) for name in wanted}
        self._scratch = {name: _build(name, explainer, options) for name in wanted}

    def measure(
        self, model: nn.Module, images: Tensor, maps: Tensor, target: Any, regions: Regions
    ) -> dict[str, dict[str, Any]]:
        """Return what a batch's maps (n, H, W) add to each metric, without adding it."""
        states = {}
        for name, metric in self._scratch.items():
            metric.reset()
            metric.update(model, images, maps, target, regions if metric.needs_regions else None)
            states[name] = metric.state()
        return states

    def add(self, states: dict[str, dict[str, Any]]) -> None:
        """Add what `measure` returned, also after it has been in a file."""
        for name, state in states.items():
            self._metrics[name].merge(state)

    def results(self) -> dict[str, MetricResult]:
        """Return the results by name, in the order the names were given in."""
        found = {name: metric.compute() for name, metric in self._metrics.items()}
        both = self._metrics.get(_BOTH)
        if isinstance(both, InsertionMinusDeletion):
            deletion, insertion = both.parts()
            found |= {"deletion": deletion.compute(), "insertion": insertion.compute()}
        return {name: found[name] for name in self.names}


def _build(name: str, explainer: Explainer, options: dict[str, Any]) -> Metric:
    measure = MEASURES[name]
    kind: Any = measure.kind
    return kind(explainer, **options) if measure.explains else kind(**options)
