"""Filling removed pixels in from their neighbours: noisy linear imputation, solved by a multigrid method.

Every removed pixel is the weighted mean of its up to eight neighbours, kept or removed, so that all of an image's
removed pixels are the solution of one sparse, symmetric and positive definite system (Rong et al., ICML 2022,
arXiv:2202.00449). A direct solver takes up to a second for an image of 224x224. Here the conjugate gradient method,
preconditioned by one multigrid V-cycle, takes five to ten steps whatever the shape of the hole, for many images and
holes at once and on the images' device.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_branch.errors import UserError
from attention_branch.metrics.noise import image_generator

NOISE = 0.01
"""Standard deviation of the noise on removed pixels, in units of the normalised image, as in the authors' code."""

TOLERANCE = 2e-5
"""The estimated error at which the solver stops, in units of the image."""

_COARSEST = 8
"""The side of the grid on which a direct solver takes over."""

_PROCESSOR_CHUNK, _DEVICE_CHUNK = 2**19, 2**23
"""Pixels times channels solved together: what a processor's cache holds, and what keeps a graphics card busy."""


def noisy_linear_imputation(
    images: Tensor, removed: Tensor, *, noise: float = NOISE, seed: int = 0, tolerance: float = TOLERANCE
) -> Tensor:
    """Return images with their removed pixels filled in from the neighbours, plus noise N(0, noise²) on these.

    `images` (N, C, H, W); `removed` bool (N, H, W), or (N, P, H, W) for P different holes in each image, which gives
    (N, P, C, H, W). Direct neighbours weigh 1/6, diagonal ones 1/12; beyond the border there are none and the others'
    weights are scaled up. The noise is one field per image, the same for its P holes, drawn from `seed` and the image
    itself: neither the batch nor the device changes it. Raises `UserError` for masks of another shape and for a mask
    that keeps no pixel. (Rong et al., ICML 2022; borders as in the authors' code.)
    """
    holes = removed if removed.ndim == 4 else removed[:, None]
    if removed.dtype != torch.bool or removed.ndim not in (3, 4) or images.ndim != 4 or len(removed) != len(images):
        raise UserError(
            f"removed is a bool mask (N, H, W) or (N, P, H, W) for images (N, C, H, W); these are {removed.dtype} "
            f"{tuple(removed.shape)} and {tuple(images.shape)}."
        )
    if removed.shape[-2:] != images.shape[-2:]:
        raise UserError(
            f"Masks of {removed.shape[-2]}x{removed.shape[-1]} for images of {images.shape[-2]}x{images.shape[-1]}: "
            "give masks at the images' size."
        )
    if holes.flatten(2).all(2).any():
        raise UserError("A mask removes every pixel of its image, so there is nothing to fill in from; keep one.")
    filled = linear_imputation(images, holes, tolerance)
    if noise > 0:
        fields = [torch.randn(image.shape, generator=image_generator(image, seed)) for image in images]
        if fields:
            field = torch.stack(fields).to(images)[:, None] * noise
            filled = torch.where(holes[:, :, None], filled + field, filled)
    return filled if removed.ndim == 4 else filled[:, 0]


def linear_imputation(images: Tensor, removed: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return (N, P, C, H, W): images (N, C, H, W) with the pixels of P masks (N, P, H, W) filled in, without noise.

    Each mask must keep a pixel. The error is below about `tolerance`, in units of the image.
    """
    count, per_image = removed.shape[:2]
    # Apple's graphics processors have no float64, in which the residual has to be taken.
    place = torch.device("cpu") if images.device.type == "mps" else images.device
    source, holes = images.detach().to(place), removed.to(place).flatten(0, 1)
    filled = source.new_empty(count * per_image, *images.shape[1:])

    def solve(part: Tensor) -> None:
        # The grad mode is each thread's own; a product in half precision would spoil the coarsest solution.
        with torch.no_grad(), torch.autocast(place.type, enabled=False):
            filled[part] = _solve(source[part // per_image], holes[part][:, None], tolerance).to(filled.dtype)

    on_processor = place.type == "cpu"
    size = images[0].numel() if count else 1
    chunk = max(1, (_PROCESSOR_CHUNK if on_processor else _DEVICE_CHUNK) // size)
    # Holes of one size need about as many steps, and a chunk takes as many as its slowest.
    parts = holes.flatten(1).sum(1).argsort(stable=True).split(chunk)
    if on_processor and len(parts) > 1:
        with _one_thread_each() as threads, ThreadPoolExecutor(threads) as workers:
            list(workers.map(solve, parts))
    else:
        for part in parts:
            solve(part)
    return filled.view(count, per_image, *images.shape[1:]).to(images.device)


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Let an operation use one thread, and say how many there may be: chunks go side by side instead.

    The operations are so short that threads within them wait for each other most of the time, above all where another
    program uses the processor too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _solve(images: Tensor, removed: Tensor, tolerance: float) -> Tensor:
    """Solve S systems: images (S, C, H, W), removed (S, 1, H, W); float64.

    The solution and its residual are float64, the corrections float32: the residual that is left after each is the true
    one, so that rounding cannot pass for convergence. A V-cycle turns a residual into an estimate of the error, and
    by that the solver stops: large holes make a small residual of a large error.
    """
    kept = ~removed
    values = images.double() * kept
    start = values.sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True)
    solution = torch.where(removed, start, values)
    exact = _FineGrid(removed.double())
    matrix = _FineGrid(removed.float())
    grids = _grids(matrix)
    done = torch.zeros_like(start, dtype=torch.bool)
    for _ in range(20):
        residual = exact.residual(solution)
        correction, estimate = _conjugate_gradients(matrix, grids, residual.float(), tolerance)
        # A system that has converged is left alone: its result must not depend on the others in the batch.
        solution += correction.double().masked_fill_(done, 0)
        done |= ~(estimate > tolerance)
        if done.all():
            return solution
    raise RuntimeError(f"Linear imputation did not converge: the estimated error is still {estimate.max().item():.1e}.")


def _conjugate_gradients(
    matrix: "_FineGrid", grids: "list[_Grid]", residual: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Return a correction (S, C, H, W) and the estimated error (S, C, 1, 1) that there was before it."""
    correction = torch.zeros_like(residual)
    step = _v_cycle(grids, residual)
    first = estimate = step.abs().amax((2, 3), keepdim=True)
    # The second is what float32 can reach from here.
    goal = torch.maximum(torch.full_like(first, tolerance / 2), first * 1e-5)
    direction, energy = step, _dot(residual, step)
    for _ in range(50):
        active = estimate > goal
        if not active.any():
            break
        image = matrix(direction)
        length = torch.where(active, energy / _dot(direction, image), 0)
        correction.addcmul_(length, direction)
        residual = residual.addcmul(length, image, value=-1)
        step = _v_cycle(grids, residual)
        estimate = step.abs().amax((2, 3), keepdim=True)
        before, energy = energy, _dot(residual, step)
        direction = (torch.where(active, energy / before, 0) * direction).add_(step)
    return correction.add_(step), first


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).flatten(2).sum(2)[..., None, None]


def _v_cycle(grids: "list[_Grid]", residual: Tensor) -> Tensor:
    """Return the error (S, C, h, w) that a residual stands for, nearly: smooth, correct on the coarser grid, smooth."""
    grid = grids[0]
    error = grid.smooth(residual)
    if not isinstance(grid, _DirectGrid):
        error += grid.inside(_refined(_v_cycle(grids[1:], _coarsened(residual - grid(error))), grid.shape))
        error += grid.smooth(residual - grid(error))
    return error


class _FineGrid:
    """The system itself: A u = D u - W u on removed pixels (mask (S, 1, H, W)), W the neighbours' weights, D their sum.

    W is (1 2 1)ᵀ(1 2 1)/12 less its middle, 4/12. A Jacobi step takes two thirds off every error that the next
    coarser grid cannot see.
    """

    def __init__(self, removed: Tensor) -> None:
        self.shape = removed.shape[-2:]
        self.removed = removed
        self.sum = (_smoothed(removed.new_ones(1, 1, *self.shape)) - 4) / 12
        # 1x1 images have no neighbours; there the sum is 0.
        self.inverse = removed / self.sum.clamp_min(1 / 12)
        self.middle = removed * (self.sum + 4 / 12)
        self.around = removed / -12

    def __call__(self, values: Tensor) -> Tensor:
        return torch.addcmul(_smoothed(values).mul_(self.around), self.middle, values)

    def residual(self, image: Tensor) -> Tensor:
        """Return what is missing at each removed pixel of a whole image to the mean of its neighbours."""
        return -self(image)

    def smooth(self, residual: Tensor) -> Tensor:
        return self.inverse * residual

    def inside(self, values: Tensor) -> Tensor:
        return values.mul_(self.removed)


class _CoarseGrid:
    """A system on every second pixel, from the finer one by Galerkin's rule: 9 weights at each point (S, 9, h, w)."""

    def __init__(self, weights: Tensor) -> None:
        self.shape = weights.shape[-2:]
        self.weights = weights
        own = weights[:, 4:5]
        # Jacobi's step, damped by 8/9 in the open, where all eight neighbours are unknown too, and never so long that
        # it could diverge: no eigenvalue exceeds a row's sum of absolute values, 16/9 of this divisor at the most.
        divisor = torch.maximum(own, weights.abs().sum(1, keepdim=True) * (9 / 16))
        self.inverse = torch.where(own > 0, 1 / divisor, 0)

    def __call__(self, values: Tensor) -> Tensor:
        height, width = self.shape
        padded = F.pad(values, (1, 1, 1, 1))
        result = self.weights[:, 4:5] * values
        for place in (0, 1, 2, 3, 5, 6, 7, 8):
            row, column = divmod(place, 3)
            neighbours = padded[..., row : row + height, column : column + width]
            result.addcmul_(self.weights[:, place : place + 1], neighbours)
        return result

    def smooth(self, residual: Tensor) -> Tensor:
        return self.inverse * residual

    def inside(self, values: Tensor) -> Tensor:
        return values


class _DirectGrid:
    """The coarsest system, inverted."""

    def __init__(self, grid: _FineGrid | _CoarseGrid, like: Tensor) -> None:
        self.shape = grid.shape
        points = self.shape[0] * self.shape[1]
        unit = torch.eye(points, dtype=like.dtype, device=like.device).view(1, points, *self.shape)
        matrix = grid(unit.expand(len(like), -1, -1, -1)).flatten(2).double()
        # Points that share one removed pixel have equal rows, and points of none empty ones. A little more on the
        # diagonal makes the matrix regular; it is far below the smallest eigenvalue of what can be told apart.
        own = matrix.diagonal(dim1=1, dim2=2)
        own.copy_(torch.where(own > 0, own * (1 + 1e-6), 1))
        self.inverse = torch.linalg.inv(matrix).to(like.dtype)

    def smooth(self, residual: Tensor) -> Tensor:
        return torch.bmm(residual.flatten(2), self.inverse).view(residual.shape)


_Grid = _FineGrid | _CoarseGrid | _DirectGrid


def _grids(finest: _FineGrid) -> list[_Grid]:
    """Return the grids from the image's size down to the one that is solved directly."""
    grids: list[_FineGrid | _CoarseGrid] = [finest]
    while max(grids[-1].shape) > _COARSEST:
        grids.append(_CoarseGrid(_galerkin(grids[-1], finest.removed)))
    return [*grids[:-1], _DirectGrid(grids[-1], finest.removed)]


def _galerkin(grid: _FineGrid | _CoarseGrid, like: Tensor) -> Tensor:
    """Return the weights (S, 9, h, w) of PᵀAP, P the interpolation from every second point.

    A point has to do with its eight neighbours only, so that nine answers, each to the unit impulses at every third
    point in both directions, hold all its weights apart.
    """
    height, width = ((side + 1) // 2 for side in grid.shape)
    rows = torch.arange(height, device=like.device)[:, None]
    columns = torch.arange(width, device=like.device)
    kind = rows % 3 * 3 + columns % 3
    impulses = (kind == torch.arange(9, device=like.device)[:, None, None]).to(like.dtype)
    fine = _refined(impulses[None], grid.shape).repeat(len(like), 1, 1, 1)
    answers = _coarsened(grid(grid.inside(fine)))
    around = [(rows + down) % 3 * 3 + (columns + right) % 3 for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return answers.gather(1, torch.stack(around).expand(len(like), -1, -1, -1))


def _smoothed(values: Tensor) -> Tensor:
    """Return values (..., h, w) times (1 2 1)ᵀ(1 2 1), nothing beyond the border; the weight of a point itself is 4."""
    padded = F.pad(values, (1, 1, 1, 1))
    across = padded[..., 1:] + padded[..., :-1]
    across = across[..., 1:] + across[..., :-1]
    down = across[..., 1:, :] + across[..., :-1, :]
    return down[..., 1:, :] + down[..., :-1, :]


def _refined(values: Tensor, shape: torch.Size) -> Tensor:
    """Interpolate linearly from every second point to all of a grid of `shape`: P."""
    return _refined_along(_refined_along(values, shape[1], -1), shape[0], -2)


def _coarsened(values: Tensor) -> Tensor:
    """Collect the values of all points at every second: Pᵀ."""
    return _coarsened_along(_coarsened_along(values, -2), -1)


def _refined_along(values: Tensor, size: int, axis: int) -> Tensor:
    points = values.shape[axis]
    shape = list(values.shape)
    shape[axis] = size
    fine = values.new_empty(shape)
    _every_second(fine, 0, size, axis).copy_(values)
    between = values.narrow(axis, 0, points - 1) + values.narrow(axis, 1, points - 1)
    torch.mul(between, 0.5, out=_every_second(fine, 1, size - 1, axis))
    if size % 2 == 0:
        fine.narrow(axis, size - 1, 1).copy_(values.narrow(axis, points - 1, 1))
    return fine


def _coarsened_along(values: Tensor, axis: int) -> Tensor:
    size = values.shape[axis]
    coarse = _every_second(values, 0, size, axis).clone()
    points = coarse.shape[axis]
    between = _every_second(values, 1, size - 1, axis)
    coarse.narrow(axis, 0, points - 1).add_(between, alpha=0.5)
    coarse.narrow(axis, 1, points - 1).add_(between, alpha=0.5)
    if size % 2 == 0:
        coarse.narrow(axis, points - 1, 1).add_(values.narrow(axis, size - 1, 1))
    return coarse


def _every_second(values: Tensor, start: int, stop: int, axis: int) -> Tensor:
    return values[..., start:stop:2] if axis == -1 else values[..., start:stop:2, :]
