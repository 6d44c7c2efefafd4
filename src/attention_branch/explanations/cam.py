"""The CAM family: from a layer's activations and the score's gradient to a map, and the one pass that yields both.

The pass is an ordinary forward pass in which nothing asks for gradients until the layer is reached; there the graph
begins, so that only the head behind the layer is kept and differentiated, with respect to the activations alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.layers import (
    Layer,
    choose_layer,
    fallback_layers,
    first_tensor,
    runs_whole,
    to_grid,
    with_first_tensor,
)
from attention_branch.explanations.outputs import Scores, class_scores
from attention_branch.explanations.targets import (
    Target,
    choose_head,
    head_class_names,
    head_logits,
    resolve_target,
)


@dataclass(frozen=True)
class HeadPass:
    """What one pass yields: a layer's activations (N, C, h, w), the scores, and the class wanted of each map.

    `classes` is (T,), one per image, or several for a single image.
    """

    layer: Layer
    runs: list[Tensor]
    logits: Scores
    output: Any
    head: str | None
    position: int
    classes: Tensor
    images: Tensor
    model: nn.Module

    @property
    def scores(self) -> Tensor:
        """(N, K): the class scores of the head that is explained."""
        return head_logits(self.logits, self.head)

    @property
    def activations(self) -> Tensor:
        """(N, C, h, w), or (T, C, h, w) for several classes of one image."""
        grid = to_grid(self._of_head(self.runs), self.model, self.images).detach()
        return grid.expand(len(self.classes), -1, -1, -1)

    def gradients(self) -> Tensor:
        """Return the gradient of each class score before the softmax with respect to the activations."""
        logits = self.scores
        # One logit is a sigmoid: what speaks for class 1 speaks against class 0.
        sign = 2 * self.classes - 1 if logits.shape[1] == 1 else torch.ones_like(self.classes)
        column = torch.zeros_like(self.classes) if logits.shape[1] == 1 else self.classes
        if not logits.requires_grad:
            raise UserError(
                f"The class scores do not depend on '{self.layer.name}' by a gradient: choose a layer before the "
                "classifier, or a method that needs none (occlusion, random, center, constant)."
            )
        if len(logits) == len(self.classes):
            score = (logits.gather(1, column[:, None])[:, 0] * sign).sum()
            return self._grid_of(torch.autograd.grad(score, self.runs, allow_unused=True))
        parts = [
            self._grid_of(torch.autograd.grad(logits[0, k] * s, self.runs, retain_graph=True, allow_unused=True))
            for k, s in zip(column.tolist(), sign.tolist(), strict=True)
        ]
        return torch.cat(parts)

    def _grid_of(self, gradients: tuple[Tensor | None, ...]) -> Tensor:
        known = [
            torch.zeros_like(run) if gradient is None else gradient
            for run, gradient in zip(self.runs, gradients, strict=True)
        ]
        grid = to_grid(self._of_head(known), self.model, self.images)
        if all(gradient is None for gradient in gradients) or not grid.any():
            scores = self.scores.detach()
            if scores.shape[1] > 1 and (scores == scores[:, :1]).all():
                raise UserError(
                    "All class scores of these images are equal: the classifier's weights are still all zero, and "
                    "nothing speaks for a class. Train the network or load its weights."
                )
            raise UserError(
                f"The gradient of the class score is zero everywhere on '{self.layer.name}', so it yields no map: "
                "choose an earlier layer (in a transformer with a class token the last block's first norm)."
            )
        return grid

    def _of_head(self, runs: list[Tensor]) -> Tensor:
        """Return the rows of the head that is explained, where the layer ran for each head."""
        count = len(self.images)
        if not runs_whole([len(run) for run in runs], count, self.logits):
            raise UserError(
                f"It runs {len(runs)} times or on parts of the images in one pass, so its outputs are no map of them; "
                "choose the block around it."
            )
        if len(runs) == 1 and len(runs[0]) == count:
            return runs[0]
        together = torch.cat([run.unflatten(0, (count, -1)) for run in runs], dim=1)
        return together[:, self.position]


def head_pass(model: nn.Module, images: Tensor, target: Target, layer: str | nn.Module, *, gradient: bool) -> HeadPass:
    """Run a network once and keep what a map needs of one layer; with `gradient` also the graph of the head behind it.

    Raises `UserError` for a layer that does not exist, does not run or yields no grid, and for an unknown target.
    """
    chosen = choose_layer(model, layer)
    runs: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        features = first_tensor(output)
        if features is None:
            raise UserError(f"The layer '{chosen.name}' passes on a {type(output).__name__}, so it yields no map.")
        if not gradient:
            # A copy, because the next layer may write into it.
            runs.append(features.detach().clone())
            return None
        leaf = features.detach().requires_grad_()
        runs.append(leaf)
        # A copy goes on, because the next layer may work in place, which no leaf allows.
        return with_first_tensor(output, leaf.clone())

    handle = chosen.module.register_forward_hook(hook)
    try:
        with parameters_frozen(model), torch.set_grad_enabled(gradient):
            output = model(images)
    finally:
        handle.remove()
    if not runs:
        if layer == "auto":
            return _from_what_ran(model, images, target, gradient)
        raise UserError(f"The layer '{chosen.name}' does not run on these images, so it yields no map.")
    logits = class_scores(output)
    head, wanted = choose_head(model, target, logits)
    position = list(logits).index(head) if head is not None and not isinstance(logits, Tensor) else 0
    classes = resolve_target(head_logits(logits, head).detach(), wanted, head_class_names(model, head), several=True)
    done = HeadPass(chosen, runs, logits, output, head, position, classes, images, model)
    try:
        done.activations  # noqa: B018 - raises where the layer's output is no grid
    except UserError as problem:
        if layer == "auto":
            return _from_what_ran(model, images, target, gradient)
        raise UserError(f"Layer '{chosen.name}': {problem}") from problem
    return done


def _from_what_ran(model: nn.Module, images: Tensor, target: Target, gradient: bool) -> HeadPass:
    """Take the last layer that yields a grid, where the network's structure misled: a second pass finds it."""
    name = next(fallback_layers(model, images), None)
    if name is None:
        raise UserError(f"No layer of {type(model).__name__} yields a grid of features, so it has no such map.")
    done = head_pass(model, images, target, name, gradient=gradient)
    return replace(done, layer=replace(done.layer, why="last that yields a grid"))


@contextmanager
def parameters_frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient, so that a graph begins only where a leaf is put in; then as they were."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


# --- the maps, (N, C, h, w) activations A and gradients G to (N, h, w) ---


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """ReLU of the channels' sum, each weighted by its mean gradient (Selvaraju et al., ICCV 2017, eq. 1 and 2)."""
    weights = gradients.mean((2, 3))
    return torch.einsum("nc,nchw->nhw", weights, activations).relu()


def grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """ReLU of the channels' sum, weighted by alpha * ReLU(G) (Chattopadhyay et al., WACV 2018, eq. 5, 7 and 19).

    With the score exp(logit) of the paper, alpha = G² / (2 G² + sum(A) G³) = 1 / (2 + sum(A) G); written so, it needs
    no small number in the denominator. The factor exp(logit), one per image, is left out: it scales the map and
    overflows.
    """
    total = activations.sum((2, 3), keepdim=True)
    denominator = 2 + total * gradients
    alpha = torch.where(denominator != 0, 1 / denominator, torch.zeros_like(denominator))
    weights = (alpha * gradients.relu()).sum((2, 3))
    return torch.einsum("nc,nchw->nhw", weights, activations).relu()


def hires_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Sum over channels of G * A, signed (Draelos and Carin 2020, arXiv 2011.08891, eq. 4): no mean, no ReLU."""
    return (activations * gradients).sum(1)


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """ReLU of the sum over channels of ReLU(G) * A (Jiang et al., TIP 2021)."""
    return (activations * gradients.relu()).sum(1).relu()


GRADIENT_CAMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad-cam": grad_cam,
    "grad-cam++": grad_cam_plus_plus,
    "hires-cam": hires_cam,
    "layer-cam": layer_cam,
}


def class_activation_map(done: HeadPass) -> Tensor | None:
    """CAM: sum over channels of the classifier's weights times A, signed, no bias (Zhou et al., CVPR 2016, eq. 2).

    Returns None unless the scores are a linear layer's of the mean over A's positions, which is checked by computing
    them: only then is the map's mean (and the bias) the class score.
    """
    found = classifier(done)
    if found is None:
        return None
    weight, activations = found[0], done.activations
    chosen = weight[done.classes] if weight.shape[0] > 1 else weight * (2 * done.classes - 1)[:, None]
    return torch.einsum("nc,nchw->nhw", chosen.to(activations.dtype), activations)


def classifier(done: HeadPass) -> tuple[Tensor, Tensor | None] | None:
    """Return weight (K, C) and bias of the linear layer whose scores of the mean over A's positions are the answer."""
    pooled = done.activations[: len(done.images)].mean((2, 3))
    for weight, bias in _classifiers(done):
        if weight.shape[1] != pooled.shape[1]:
            continue
        expected = pooled.to(weight.dtype) @ weight.T
        if bias is not None:
            expected = expected + bias
        scores = done.scores.detach().to(expected)
        tolerance = 0.05 if min(torch.finfo(t.dtype).bits for t in (weight, pooled)) < 32 else 1e-3
        # Strictly less: a classifier of zeros explains nothing.
        if (expected - scores).norm() < tolerance * scores.norm():
            return weight, bias
    return None


def _classifiers(done: HeadPass) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield weight and bias of the linear layers that may make the scores of the head that is explained."""
    count = done.scores.shape[1]
    for module in reversed(list(done.model.modules())):
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            weight = module.weight.detach().flatten(1)
            bias = None if module.bias is None else module.bias.detach()
            if len(weight) == count:
                yield weight, bias
            elif not isinstance(done.logits, Tensor) and len(weight) == sum(s.shape[1] for s in done.logits.values()):
                # One linear layer makes the scores of all heads, one after the other.
                start = sum(s.shape[1] for s in list(done.logits.values())[: done.position])
                yield weight[start : start + count], None if bias is None else bias[start : start + count]
