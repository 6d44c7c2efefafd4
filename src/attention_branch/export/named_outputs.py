"""A network with outputs by name: what an exported file answers, in the order in which it answers it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_branch.errors import UserError
from attention_branch.explanations.cam import HeadPass, class_activation_map, classifier, head_pass
from attention_branch.explanations.layers import first_tensor, grid_layers, to_grid
from attention_branch.models.network import AttentionBranchNetwork, Network
from attention_branch.onnx_cut import ATTENTION, FEATURES


@dataclass(frozen=True)
class Output:
    """One output: its name in the file, what it is, and of which head, where there are several."""

    name: str
    kind: str
    head: str | None = None


def by_head(kind: str, network: Network) -> list[Output]:
    """Return the outputs of a kind: one, or one a head in the heads' order, `logits.smiling`."""
    return [Output(f"{kind}.{head}", kind, head) for head in network.heads] if network.heads else [Output(kind, kind)]


class NamedOutputs(nn.Module):
    """A network that returns a tuple of tensors; `outputs` says which. The network itself is left as it is."""

    outputs: list[Output]
    note: str = ""
    """What a user must know of the outputs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Have the hooks in the network that `forward` reads from, while the block runs."""
        yield


class BranchOutputs(NamedOutputs):
    """logits, attention, and what else is asked for of a network with a branch; the features g(x) come last."""

    def __init__(self, network: AttentionBranchNetwork, *, attention_logits: bool, class_evidence: bool) -> None:
        super().__init__(network)
        self.want_logits, self.want_evidence = attention_logits, class_evidence
        self.outputs = [*by_head("logits", network), Output(ATTENTION, "attention")]
        self.outputs += by_head("attention_logits", network) if attention_logits else []
        self.outputs += by_head("class_evidence", network) if class_evidence else []
        # A dict, not an attribute: a tensor on the module would become a part of its state.
        self._kept: dict[str, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep g(x) as the branch reads it, before the map weights it."""

        def keep(_module: nn.Module, _inputs: Any, g: Tensor) -> None:
            self._kept[FEATURES] = g

        network: Any = self.network
        handle = network.backbone.get_submodule(network.place.features).register_forward_hook(keep, prepend=True)
        try:
            yield
        finally:
            handle.remove()
            self._kept.clear()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that `outputs` names, then g(x) where the block of `listening` is open."""
        network: Any = self.network
        evidence: Any = None
        if self.want_evidence:
            answer, evidence = network.with_class_evidence(images)
        else:
            answer = network(images, attention_logits=self.want_logits)
        found = [*_listed(answer.logits), answer.attention]
        if self.want_logits:
            found += _listed(answer.attention_logits)
        if evidence is not None:
            found += _listed(evidence)
        return (*found, *self._kept.values())


class PlainOutputs(NamedOutputs):
    """logits, and `cam` where the scores are a linear layer's of the mean over the positions of a layer."""

    def __init__(self, network: Network, images: Tensor) -> None:
        """Look for the layer on example images (2, 3, H, W), the network in eval mode."""
        super().__init__(network)
        self.outputs = by_head("logits", network)
        self.layer = ""
        self._kept: list[Tensor] = []
        passes = [_linear_head(network, images, head) for head in network.heads or [None]]
        # Heads of one linear layer have one layer of features; others are not read here.
        names = {done.layer.name for done in passes if done is not None}
        if None in passes or len(names) != 1:
            self.note = (
                f"The scores of {network.name} are not one linear layer of the mean over positions of a layer, so it "
                "has no class activation map: the file answers with logits alone."
            )
            return
        (self.layer,) = names
        self.outputs += by_head("cam", network)
        for place, done in enumerate(passes):
            weight, _ = classifier(done)  # type: ignore[arg-type, misc]
            self.register_buffer(f"weight_{place}", weight.clone(), persistent=False)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the features that the classifier pools."""

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy, because the next layer may write into it.
            self._kept.append(first_tensor(output).clone())  # type: ignore[union-attr]

        handle = self.network.get_submodule(self.layer).register_forward_hook(keep) if self.layer else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()
            self._kept.clear()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that `outputs` names."""
        self._kept.clear()
        found = _listed(self.network(images))
        if self.layer:
            grid = to_grid(self._kept.pop(), self.network, images)
            weights = [getattr(self, f"weight_{place}") for place in range(len(found))]
            found += [F.conv2d(grid, weight.to(grid.dtype)[:, :, None, None]) for weight in weights]
        return tuple(found)


def _linear_head(network: Network, images: Tensor, head: str | None) -> HeadPass | None:
    """Return the pass whose layer the head's linear classifier pools, as `explain(method="cam")` finds it."""
    target = None if head is None else {head: None}
    try:
        done = head_pass(network, images, target, "auto", gradient=False)
        if class_activation_map(done) is not None:
            return done
        ran = [name for name, _ in grid_layers(network, images, all_layers=True)]
        if ran and ran[-1] != done.layer.name:
            done = head_pass(network, images, target, ran[-1], gradient=False)
    except UserError:
        return None
    return done if class_activation_map(done) is not None else None


def named_outputs(network: Network, images: Tensor, *, attention_logits: bool, class_evidence: bool) -> NamedOutputs:
    """Return the network (in eval mode) with named outputs; `images` (2, 3, H, W) are examples of its input."""
    if isinstance(network, AttentionBranchNetwork):
        return BranchOutputs(network, attention_logits=attention_logits, class_evidence=class_evidence).eval()
    for asked, option in ((attention_logits, "--attention-logits"), (class_evidence, "--class-evidence")):
        if asked:
            raise UserError(f"{option} is an output of an attention branch, and {network.name} has none; leave it out.")
    with torch.no_grad():
        return PlainOutputs(network, images).eval()


def _listed(scores: Any) -> list[Tensor]:
    return list(scores.values()) if isinstance(scores, Mapping) else [scores]
