"""Does the map drive the answer? An attention branch network's answers with other maps in the place of its own.

No post-hoc map can be asked this: it is drawn after the answer. An attention branch's map is part of the computation,
so it can be taken out and another put in; what the answers then lose is what the map was good for.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.outputs import checked_images, device_of, evaluating, probabilities, unwrapped
from attention_branch.explanations.targets import head_logits, known_head, predicted
from attention_branch.metrics.drive_result import OWN, REPLACED, MapDriveResult, ReplacedMap
from attention_branch.metrics.metric import image_digest, subset_digest
from attention_branch.metrics.statistics import (
    MetricResult,
    PairedDifference,
    bootstrap_interval,
    paired_difference,
    share_interval,
)
from attention_branch.models.gate import resize_map

_ITSELF = "its own map"
_TESTS = "accuracy and agreement: exact McNemar test; probability: Wilcoxon's signed-rank test (Pratt), two-sided"


class MapDrive:
    """Collects a network's answers with other maps in the place of its own: `update`, `compute`, `reset`, `gather`.

    The maps are those of `REPLACED`: M's own mean at every position; the map of another image, drawn from `seed` among
    all images so far and those of the batch, never the image itself; M's values at positions shuffled from `seed`;
    1 - M (of a map without a bound: its highest plus its lowest value, less M); ones; zeros. In a network with several
    heads the map of one head is replaced and the others keep theirs.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._collected: dict[str, list[Tensor]] = {}
        self._digests: list[str] = []
        self._lenders: list[Tensor] = []
        self._lender_classes: list[int] = []
        self._network: tuple[str, str | None, bool] | None = None
        # One for each use, so that the shuffles do not depend on how images are divided into batches.
        self._shuffles = torch.Generator().manual_seed(self.seed)
        self._draws = torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def update(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor | Mapping[str, Tensor] | None = None,
        head: str | None = None,
    ) -> None:
        """Add normalised images (N, 3, H, W), with labels (N,) int64 where they are known (-1 where not).

        `head` chooses the head of a network with several; `targets` may then be labels by head. Raises `UserError` for
        a network without an attention branch, one in training mode, an unknown head or none where one is needed, labels
        out of range, and updates that mix networks' mechanisms or heads.
        """
        network: Any = unwrapped(model)
        if not getattr(network, "is_abn", False):
            name = getattr(network, "name", type(network).__name__)
            raise UserError(
                f"'{name}' is a plain network without an attention branch: no map takes part in its answer, so none "
                "can be replaced. Build it with create_model to ask this."
            )
        if network.training:
            raise UserError("The model is in training mode, in which no answer repeats; call model.eval() first.")
        position = _position(network, head)
        described = network.mechanism, head, getattr(network, "map_range", (0.0, 1.0)) is not None
        if self._network not in (None, described):
            raise UserError("All updates must be of one network and one head; call reset() before the next.")
        images = checked_images(images)
        if len(images) == 0:
            return
        images = images.to(device_of(network) or images.device)
        output = model(images, attention_logits=False)
        own = output.attention  # (N, T, h, w)
        logits = head_logits(output.logits, head)
        clean = predicted(logits)
        labels = _labels(targets, head, len(images), max(2, logits.shape[1]))
        self._network = described
        place = position if own.shape[1] > 1 else 0
        self._answer(OWN, logits, clean)
        others, lent = self._others(own[:, place], torch.where(labels >= 0, labels, clean.cpu()))
        for name, other in others.items():
            given = own.clone()
            given[:, place] = other.to(own.dtype)
            answer = model(images, attention=given, attention_logits=False)
            self._answer(name, head_logits(answer.logits, head), clean)
        self._keep("labels", labels)
        self._keep("clean", clean)
        self._keep("lent", lent)
        self._digests += [image_digest(image) for image in images.float().cpu()]

    def compute(self) -> MapDriveResult:
        """Return accuracy, agreement and probability with each map, and the paired drops against the network's own."""
        if self._network is None:
            raise UserError("No images yet: call update(model, images, targets) first.")
        mechanism, head, _ = self._network
        found = {name: torch.cat(parts) for name, parts in self._collected.items()}
        known = found["labels"] >= 0
        # 1: lent by an image of the same class, 0: of another class, -1: there was no other image.
        alone = found["lent"] < 0
        digest = subset_digest(self._digests)
        results: dict[str, dict[str, MetricResult]] = {}
        for name in (OWN, *REPLACED):
            left_out = alone if name == "another_image" else torch.zeros_like(alone)
            answered = found[f"{name} class"]
            kinds = {
                "accuracy": (answered == found["labels"]).double().masked_fill(~known | left_out, torch.nan),
                "agreement": (answered == found["clean"]).double().masked_fill(left_out, torch.nan),
                "probability": found[f"{name} probability"].masked_fill(left_out, torch.nan),
            }
            results[name] = {
                kind: self._result(kind, REPLACED.get(name, _ITSELF), values, digest) for kind, values in kinds.items()
            }
        rows = {}
        for name, now in results.items():
            drops = {kind: _drop(results[OWN][kind], result, kind, self.seed) for kind, result in now.items()}
            rows[name] = ReplacedMap(
                name=name,
                accuracy=now["accuracy"] if bool(known.any()) else None,
                agreement=now["agreement"],
                probability=now["probability"],
                accuracy_drop=drops["accuracy"] if bool(known.any()) else None,
                agreement_drop=drops["agreement"],
                probability_drop=drops["probability"],
            )
        return MapDriveResult(
            rows=rows,
            n=len(known),
            mechanism=mechanism,
            head=head,
            same_class=float(found["lent"][~alone].double().mean()),
            counts={"unlabelled": int((~known).sum()), "no_other_image": int(alone.sum())},
            protocol=self._protocol(digest),
        )

    def gather(self) -> "MapDrive":
        """Return one that holds the images of all processes (torch.distributed), in the order of their ranks.

        Without a process group it is a copy of this one. Each process lends maps among its own images.
        """
        mine = {"collected": self._collected, "digests": self._digests, "network": self._network}
        states: list[Any] = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, mine)
        together = copy.copy(self)
        together.reset()
        for state in states:
            for name, parts in state["collected"].items():
                together._collected.setdefault(name, []).extend(parts)
            together._digests += state["digests"]
            together._network = together._network or state["network"]
        return together

    def _others(self, own: Tensor, classes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the maps to put in the place of `own` (N, h, w), and whether the lender's class is the same (N,)."""
        count, height, width = own.shape
        order = torch.rand(count, height * width, generator=self._shuffles).argsort(1).to(own.device)
        others = {
            "mean": own.mean((1, 2), keepdim=True).expand_as(own),
            "shuffled": own.flatten(1).gather(1, order).unflatten(1, (height, width)),
            "inverted": self._inverted(own),
            "ones": torch.ones_like(own),
            "zeros": torch.zeros_like(own),
        }
        before = len(self._lenders)
        self._lenders += own.float().cpu().unbind()
        self._lender_classes += classes.tolist()
        if before + count == 1:
            others["another_image"] = own
            return others, torch.tensor([-1])
        drawn = (torch.rand(count, generator=self._draws) * (before + count - 1)).long()
        # One place fewer than there are images: the image's own is stepped over.
        lenders = (drawn + (drawn >= torch.arange(before, before + count)).long()).tolist()
        maps = [resize_map(self._lenders[number][None, None], (height, width))[0, 0] for number in lenders]
        others["another_image"] = torch.stack(maps).to(own.device)
        same = [self._lender_classes[number] == own_class for number, own_class in zip(lenders, classes, strict=True)]
        return others, torch.tensor(same).long()

    def _inverted(self, own: Tensor) -> Tensor:
        if self._network is None or self._network[2]:
            return 1 - own
        return own.amax((1, 2), keepdim=True) + own.amin((1, 2), keepdim=True) - own

    def _answer(self, name: str, logits: Tensor, clean: Tensor) -> None:
        self._keep(f"{name} class", predicted(logits))
        self._keep(f"{name} probability", probabilities(logits).gather(1, clean[:, None])[:, 0].double())

    def _keep(self, name: str, values: Tensor) -> None:
        self._collected.setdefault(name, []).append(values.cpu())

    def _result(self, kind: str, of: str, values: Tensor, digest: str) -> MetricResult:
        measured = values[~values.isnan()]
        # Agreement with itself is no finding but certain.
        hits = kind == "accuracy" or (kind == "agreement" and of != _ITSELF)
        return MetricResult(
            mean=float(measured.mean()) if len(measured) else math.nan,
            interval=(share_interval if hits else bootstrap_interval)(measured.numpy(), self.seed),
            n=len(measured),
            values=values,
            protocol={"metric": kind, "map": of} | self._protocol(digest),
        )

    def _protocol(self, digest: str) -> dict[str, Any]:
        return {
            "question": "does the map drive the answer?",
            "maps": {
                "mean": "the mean of the image's own map at every position",
                "another_image": "of an image drawn among those up to and with its batch, never the image itself",
                "shuffled": "the own map's values, positions permuted at random, each image by itself",
                "inverted": "1 - the own map"
                if self._network is None or self._network[2]
                else "highest + lowest value of the own map - the own map",
                "ones": "1 everywhere",
                "zeros": "0 everywhere",
            },
            "probability": "of the class that the network predicts with its own map",
            "drop": "own map minus the other, image by image",
            "tests": _TESTS,
            "verdict": "a drop counts where its 95 % interval lies above 0 and p < 0.05",
            "seed": self.seed,
            "interval": f"bootstrap over images, 95 %, percentile, seed {self.seed}; of accuracy and agreement "
            "Wilson's where all are hits or none is",
            "images_sha256": digest,
        }


def map_drive(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], *, head: str | None = None, seed: int = 0
) -> MapDriveResult:
    """Ask of all batches {"images", optional "targets"} whether an ABN's map drives its answers, in eval mode.

    Batches come from `attention_branch.data.make_loader` or are the caller's own; `targets` are the model's own class
    indices (N,), -1 where missing, or such by head. Give images in random order: data sorted by class lends maps of the
    same class at first. Raises `UserError` for no batches, batches of another form, and what `MapDrive.update` refuses.
    """
    drive = MapDrive(seed=seed)
    with evaluating(model):
        for batch in batches:
            if not isinstance(batch, Mapping) or "images" not in batch:
                raise UserError("map_drive takes batches {'images': ..., 'targets': ...}, as make_loader gives them.")
            drive.update(model, batch["images"], batch.get("targets"), head)
    return drive.compute()


def _position(network: Any, head: str | None) -> int:
    heads: Sequence[str] = list(getattr(network, "heads", None) or [])
    if head is not None:
        return heads.index(known_head(heads, head))
    if heads:
        raise UserError(f"The network has {len(heads)} heads with a map each; choose one with head='{heads[0]}'.")
    return 0


def _labels(targets: Tensor | Mapping[str, Tensor] | None, head: str | None, count: int, classes: int) -> Tensor:
    """Return the labels (N,) on the CPU, -1 where an image has none."""
    if isinstance(targets, Mapping):
        if head is None:
            raise UserError("targets are labels by head, but the network has one task; give the labels alone.")
        targets = targets.get(head)
    if targets is None:
        return torch.full((count,), -1)
    labels = torch.as_tensor(targets).detach().cpu().long()
    if labels.shape != (count,):
        raise UserError(f"Labels have shape (N,); these have {tuple(labels.shape)} for {count} images.")
    outside = labels[(labels < -1) | (labels >= classes)]
    if len(outside):
        raise UserError(f"Label {int(outside[0])} is out of range: the model has {classes} classes, from 0 on.")
    return labels


def _drop(own: MetricResult, other: MetricResult, kind: str, seed: int) -> PairedDifference:
    if kind == "probability":
        return paired_difference(own, other, seed)
    # Right or wrong, same or not: only the images that change sides speak, and a sign test of them is exact.
    difference = (own.values - other.values).numpy()
    difference = difference[~np.isnan(difference)]
    higher, lower = int((difference > 0).sum()), int((difference < 0).sum())
    return PairedDifference(
        mean=float(difference.mean()) if len(difference) else math.nan,
        interval=bootstrap_interval(difference, seed),
        n=len(difference),
        p_value=float(stats.binomtest(higher, higher + lower).pvalue) if higher + lower else None,
        higher=higher,
        lower=lower,
        equal=len(difference) - higher - lower,
    )
