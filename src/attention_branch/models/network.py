"""The Attention Branch Network (Fukui et al., CVPR 2019, arXiv 1812.10025) on any backbone, in one file.

    images -> feature extractor -> g(x) -> attention branch  -> M(x), its own class scores
                                    |                            |
                                    +--- g(x) * (1 + M(x)) <-----+
                                                |
                                       perception branch -> class scores, the prediction

Feature extractor and perception branch are one whole backbone, run once: a hook at its gate reads g, runs the attention
branch and hands g * (1 + M) on. The network is trained end to end with L = L_att + L_per (`loss.py`).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention_branch.errors import UserError
from attention_branch.models.branch import AttentionBranch
from attention_branch.models.gate import (
    Construction,
    GatePlace,
    grid_size,
    output_until,
    resize_map,
    run_sequence,
    weight,
)
from attention_branch.models.heads import weighted_features
from attention_branch.models.loss import Losses, Targets, abn_loss
from attention_branch.models.output import ABNOutput, Scores
from attention_branch.models.saving import ModelConfig, SavedModel

MECHANISMS = ("residual", "product", "none")
MAP_CONTROLS = ("own", "constant", "shuffled")


class Network(SavedModel):
    """What a plain backbone and one with a branch share: saving, heads, preprocessing, the check of the input."""

    is_abn: bool
    mechanism: str | None

    def __init__(self, config: ModelConfig, backbone: nn.Module) -> None:
        super().__init__(config)
        self.backbone: Any = backbone
        self.sizes = list(config.heads.values()) if config.heads else [int(config.num_classes or 0)]

    @property
    def map_range(self) -> tuple[float, float] | None:
        """The values a map can have: (0, 1), or None for maps without a bound (`map_form="sum-log"`)."""
        return (0.0, 1.0) if self.config.map_form == "sigmoid" else None

    def loss(
        self,
        output: ABNOutput | Scores,
        targets: Targets,
        *,
        label_smoothing: float = 0.0,
        weights: Tensor | None = None,
    ) -> Losses:
        """Return what training minimises, of an answer and its targets: `abn_loss` unless a network has its own."""
        return abn_loss(output, targets, label_smoothing=label_smoothing, weights=weights)

    def begin_epoch(self, epoch: int) -> None:
        """Be told that an epoch of training begins, counted from 0; for networks whose loss depends on it."""

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(value.device for values in (self.parameters(), self.buffers()) for value in values)

    def _by_head(self, scores: list[Tensor]) -> Scores:
        return scores[0] if self.heads is None else dict(zip(self.heads, scores, strict=True))

    def _check_images(self, images: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"Images must have the shape (N, 3, H, W); these have {tuple(images.shape)}.")
        self.check_size(*images.shape[-2:])

    def check_size(self, height: int, width: int) -> None:
        """Raise a `UserError` for images of a size in pixels that the network does not take."""
        fixed = self.config.fixed_size
        if fixed and (height, width) != tuple(fixed):
            raise UserError(
                f"{self.name} was built for images of {fixed[0]}x{fixed[1]}, these are {height}x{width}: resize them, "
                f"or build it with image_size=({height}, {width})."
            )
        if min(height, width) < self.config.smallest_side:
            raise UserError(
                f"Images of {height}x{width} are too small for {self.name}: it needs at least "
                f"{self.config.smallest_side} pixels a side. Enlarge them, or use a 32-pixel family (resnet20)."
            )


class PlainNetwork(Network):
    """A backbone without an attention branch: the baseline."""

    is_abn = False
    mechanism = None

    def forward(self, images: Tensor) -> Scores:
        """Return logits (N, K), or a dict of them by head, for normalised images (N, 3, H, W)."""
        self._check_images(images)
        return self._by_head(list(torch.split(self.backbone(images), self.sizes, dim=1)))


class AttentionBranchNetwork(Network):
    """A backbone with an attention branch: `logits, attention_logits, attention = model(images)`.

    With several heads the perception branch runs once a head; `task_chunk` heads go through it at once: more takes more
    memory and is faster only where few do not fill the machine, the answers are the same. Where `last` is given it runs
    once for all heads, on g as it is, and the maps weight the features that `last` describes (`heads.py`).
    """

    is_abn = True
    construction: Construction

    def __init__(
        self,
        config: ModelConfig,
        backbone: nn.Module,
        place: GatePlace,
        branch: AttentionBranch,
        last: GatePlace | None = None,
    ) -> None:
        super().__init__(config, backbone)
        self.place, self.last = place, last
        self.branch = branch
        self.mechanism = config.mechanism
        self.map_control = config.map_control
        self.task_chunk = 8
        self._flows = _Flows()
        self._traced: dict[str, Any] = {}
        # Bound methods, not closures: a deep copy of the network gets hooks that belong to the copy.
        backbone.get_submodule(place.features).register_forward_hook(self._at_features)
        for gate in place.gates:
            backbone.get_submodule(gate).register_forward_hook(self._at_gate)

    def forward(self, images: Tensor, attention: Tensor | None = None, *, attention_logits: bool = True) -> ABNOutput:
        """Return (logits, attention logits, map) for normalised images (N, 3, H, W).

        `attention` is a map to use in the place of the network's own: (N, h, w), (N, 1, h, w) or (N, T, h, w), any
        size. With `attention_logits=False` the branch's own scores are left out, and with a given map too the whole
        branch is.
        """
        self._check_images(images)
        flow = self._flow
        try:
            flow["images"], flow["given"], flow["want_scores"] = images, attention, attention_logits
            logits = self._perceive_all(images, flow)
            scores = self._by_head(flow["scores"]) if attention_logits else None
            return ABNOutput(self._by_head(logits), scores, flow["attention"])
        finally:
            flow.clear()

    def features(self, images: Tensor) -> Tensor:
        """Return g(x) in the backbone's own layout, computing nothing behind it."""
        self._check_images(images)
        return output_until(self.backbone, self.place.features, images)

    def attend(self, images: Tensor) -> tuple[Tensor, Scores]:
        """Return the map (N, T, h, w) and the attention branch's scores without running the perception branch."""
        return self.attend_features(self.features(images), images)

    def attend_features(self, features: Tensor, images: Tensor) -> tuple[Tensor, Scores]:
        """Return what `attend` does, for the g(x) of these images where that is at hand."""
        activations, attention = self.branch(features, grid_size(features, self.place, images, self.backbone))
        return self._controlled(attention), self._by_head(self.branch.scores(activations))

    def class_evidence(self, images: Tensor) -> Scores:
        """Return the attention branch's scores per position (N, K, h, w), by head if there are several.

        Their mean over positions is the attention logits: the branch is itself a class activation map.
        """
        g = self.features(images)
        activations, _ = self.branch(g, grid_size(g, self.place, images, self.backbone))
        return self._by_head(self.branch.evidence(activations))

    def with_class_evidence(self, images: Tensor) -> tuple[ABNOutput, Scores]:
        """Return the answer and the `class_evidence` from one forward pass; neither costs more than the answer."""
        evidence: list[Scores] = []
        self._flow["evidence"] = evidence
        try:
            return self(images), evidence[0]
        finally:
            self._flow.clear()

    @property
    def _flow(self) -> dict[str, Any]:
        """What the hooks of one forward pass share. It is empty between passes, so backbone(images) alone stays plain.

        Every thread has its own, so that a server may call one network from many. A tracer sees a plain dict.
        """
        return self._traced if torch.compiler.is_compiling() else self._flows.own

    @property
    def resumes(self) -> bool:
        """Whether `perceive` works: what lies behind g(x) is a row of modules that was proved to give the answer."""
        return self.last is None and self.construction.proof.tail_reproduced

    def perceive(self, features: Tensor, attention: Tensor) -> Scores:
        """Return the logits for g(x), as `features` gives it, under maps (N, T, h, w) of the map's own size.

        Only what lies behind the gate runs, so trying one map after another on the same images is cheap. In eval mode
        the answer equals `model(images, attention=...)` up to rounding. `UserError` where `resumes` is False.
        """
        if not self.resumes:
            raise UserError(f"{self.name} cannot go on from its features alone; call model(images, attention=...).")
        maps = self._given_map(attention, features.shape[0], (attention.shape[-2], attention.shape[-1]))
        if self.mechanism == "none":
            factor = torch.ones_like(maps)
        else:
            factor = 1 + maps if self.mechanism == "residual" else maps
        chunks = self._task_chunks(factor)
        logits = [self._perceive(features, chunk) for chunk in chunks]
        return self._by_head(self._by_task(logits, {"features": features, "chunks": chunks}))

    # --- the two hooks ---

    def _at_features(self, _module: nn.Module, _inputs: Any, g: Tensor) -> Tensor | None:
        flow = self._flow
        if "images" not in flow:
            return None
        size = grid_size(g, self.place, flow["images"], self.backbone)
        given = flow["given"]
        if given is None or flow["want_scores"]:
            activations, attention = self.branch(g, size)  # (N, K, h, w), (N, T, h, w)
            attention = self._controlled(attention)
            if flow["want_scores"]:
                flow["scores"] = self.branch.scores(activations)
            if "evidence" in flow:
                flow["evidence"].append(self._by_head(self.branch.evidence(activations)))
        if given is not None:
            attention = self._given_map(given, g.shape[0], size)
        flow["attention"] = attention
        if self.mechanism == "none":
            return None
        factor = 1 + attention if self.mechanism == "residual" else attention
        if len(self.sizes) == 1:
            return self._enter(g, factor)
        flow["features"] = g
        flow["chunks"] = chunks = self._task_chunks(factor)
        if self.last is not None:
            return None  # The maps enter at the end, in `_perceive_all`.
        return self._enter(g.repeat_interleave(chunks[0].shape[1], dim=0), chunks[0].flatten(0, 1)[:, None])

    def _at_gate(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        factor = self._flow.get("factor")
        return None if factor is None else weight(output, factor, self.place)

    def _enter(self, g: Tensor, factor: Tensor) -> Tensor:
        """Gate g here, or leave the factor (N, 1, h, w) for the gates that come later."""
        if not self.place.gates:
            return weight(g, factor, self.place)
        self._flow["factor"] = factor
        return g

    def _controlled(self, attention: Tensor) -> Tensor:
        """Put another map in the place of the network's own where it was built as a control."""
        if self.map_control == "constant":
            return torch.full_like(attention, 0.5)  # the sigmoid's centre, where a map starts
        return attention.roll(1, 0) if self.map_control == "shuffled" else attention

    def _given_map(self, given: Tensor, count: int, size: tuple[int, int]) -> Tensor:
        maps = given[:, None] if given.ndim == 3 else given
        if maps.ndim != 4 or maps.shape[0] not in (1, count) or maps.shape[1] not in (1, len(self.sizes)):
            raise UserError(
                f"A given map must have the shape (N, h, w), (N, 1, h, w) or (N, {len(self.sizes)}, h, w) with N = "
                f"{count} or 1; this one has {tuple(given.shape)}."
            )
        return resize_map(maps.expand(count, len(self.sizes), -1, -1), size)

    # --- several heads: one perception branch, run once per head, or once with the maps at its end ---

    def _task_chunks(self, factor: Tensor) -> list[Tensor]:
        """Divide the factors (N, T, h, w) into groups of at most `task_chunk` heads.

        In training each image enters the heads at another place of the round, so that every group, which its batch
        norms see as one batch, holds all heads in equal parts: the statistics are those that evaluation uses.
        """
        tasks = factor.shape[1]
        size = self.task_chunk if self.place.tail or self.last is not None else tasks
        if self.training and size < tasks:
            order = (torch.arange(tasks, device=factor.device) + self._rotation(factor.shape[0], factor.device)) % tasks
            factor = factor.gather(1, order[:, :, None, None].expand_as(factor))
        return list(torch.split(factor, size, dim=1))

    @staticmethod
    def _rotation(count: int, device: torch.device) -> Tensor:
        return torch.arange(count, device=device)[:, None]

    def _perceive_all(self, images: Tensor, flow: dict[str, Any]) -> list[Tensor]:
        """Run the backbone, whose hooks run the branch, and return each head's logits."""
        if self.last is None:
            first = self.backbone(images)
            return self._by_task(self._perceive_rest(first, flow), flow)
        features = self.backbone.forward_features(images)
        if "chunks" not in flow:
            return self._by_task([self.backbone.forward_head(features)], flow)
        size = grid_size(features, self.last, images, self.backbone)
        weighted = (weighted_features(features, chunk, self.last, size) for chunk in flow["chunks"])
        return self._by_task([self.backbone.forward_head(part) for part in weighted], flow)

    def _perceive_rest(self, first: Tensor, flow: dict[str, Any]) -> list[Tensor]:
        """Return the answer of the first group's run and those of running the other groups."""
        parts, g = [first], flow.get("features")
        for chunk in flow.get("chunks", ())[1:]:
            if self.training and torch.is_grad_enabled():
                # Only one group's activations are kept at a time; the others are computed again on the way back.
                parts.append(checkpoint(self._perceive, g, chunk, use_reentrant=False, context_fn=self._recompute))
            else:
                parts.append(self._perceive(g, chunk))
        return parts

    def _by_task(self, parts: list[Tensor], flow: dict[str, Any]) -> list[Tensor]:
        """Return each head's logits (N, K) from the answers (N * k, sum of K) to each group of k heads."""
        if "chunks" not in flow:
            return list(torch.split(parts[0], self.sizes, dim=1))
        count = flow["features"].shape[0]
        logits = torch.cat([part.unflatten(0, (count, -1)) for part in parts], dim=1)  # (N, T, sum of K)
        if self.training and len(parts) > 1:
            tasks, device = logits.shape[1], logits.device
            back = (torch.arange(tasks, device=device) - self._rotation(count, device)) % tasks
            logits = logits.gather(1, back[:, :, None].expand_as(logits))
        columns = torch.split(logits, self.sizes, dim=2)
        return [part[:, task] for task, part in enumerate(columns)]

    def _perceive(self, g: Any, factors: Tensor) -> Tensor:
        """Run the perception branch on g (N, ...) with k factors an image (N, k, h, w); return (N * k, sum of K)."""
        outer = self._flow.pop("factor", None)
        try:
            x = self._enter(g.repeat_interleave(factors.shape[1], dim=0), factors.flatten(0, 1)[:, None])
            return self.backbone.forward_head(run_sequence(self.backbone, self.place.tail, x))
        finally:
            self._flow.pop("factor", None)
            if outer is not None:
                self._flow["factor"] = outer

    def _recompute(self) -> tuple[Any, Any]:
        return _nothing(), _frozen_statistics(self.backbone.modules)


class _Flows(threading.local):
    """A dict for each thread; a copy or a pickle starts empty, because no pass goes on in it."""

    def __init__(self) -> None:
        self.own: dict[str, Any] = {}

    def __deepcopy__(self, _memo: Any) -> "_Flows":
        return _Flows()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Flows, ()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _frozen_statistics(modules: Callable[[], Iterator[nn.Module]]) -> Iterator[None]:
    """Keep batch norms from counting the same batch a second time while activations are computed again."""
    norms = [module for module in modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
