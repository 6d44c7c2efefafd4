"""Does a network answer by the object, or by something small beside it? A search that is not told where to look.

The search asks the network only. It paints over one small patch after another and notes which one the answer hangs on
most; then it puts that patch to the test: painted over, does the answer change? Laid on another image, does it take its
answer along? And does the answer change when the whole object is painted over? Labels are not used.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from attention_branch.errors import UserError
from attention_branch.evaluation.removal import paint_over
from attention_branch.evaluation.shortcut_finding import AnswerFinding, Place, Share, ShortcutSearch
from attention_branch.evaluation.shortcut_inputs import searched_head, usable
from attention_branch.explanations.explanation import explain
from attention_branch.explanations.outputs import (
    evaluating,
    predict,
    probabilities,
    unwrapped,
)
from attention_branch.explanations.targets import head_class_names, head_logits
from attention_branch.metrics.metric import at_once

PATCH = 1 / 8
"""Side of the patch as a share of the image's shorter side: 1.6 % of a square image."""

LEAST_SHARE = 0.25
"""A finding needs a patch beside the object to decide at least this share of the answers (the interval's lower end)."""

NEEDED = 0.5
"""A network needs the object when painting it over changes at least half of the answers (the interval's upper end)."""

MARGIN = 1 / 32
"""A patch is beside the object when it keeps this distance from it, as a share of the shorter side: soft edges."""

OBJECT_SIGMA = 1 / 8
"""Sigma of the paint on a whole object, as a share of the shorter side; a patch is painted with half of its side."""

_LEAST_FALL = 0.01
_PLACES = 2


def find_shortcut(
    model: nn.Module,
    images: Tensor,
    regions: Tensor | np.ndarray | Sequence[Tensor | np.ndarray | None] | None = None,
    *,
    method: str | None = "attention",
    head: str | None = None,
    patch: float = PATCH,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> ShortcutSearch:
    """Search for a small patch beside the object that decides the answers to normalised images (N, 3, H, W).

    `regions` are the objects' masks, (N, H, W) or one (H, W) per image, None where unknown: such images are left out
    when others have one. Without any, patches everywhere are tried and the verdict is at most "unknown". `method` is
    the map to compare with (None: no map), `head` the task of a network with several, `patch` the patch's side as a
    share of the shorter side. Costs about 4 / patch² forward passes an image. Raises `UserError` for fewer than ten
    images, regions of another size, or a patch that is not between 2 pixels and half of the side.
    """
    images, masks, index, left_out = usable(model, images, regions)
    with evaluating(model), torch.no_grad():
        head = searched_head(model, images[:1], head)
        if method is not None:
            # A map that the network does not have is said before the long search.
            explain(model, images[:1], method, head)
        search = _Search(model, images, masks, head, patch, batch_size, seed)
        search.scan(progress)
        return search.result(method, index, left_out)


class _Search:
    """The images, the patches, and what the network said to each image with each patch painted over."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        masks: Tensor | None,
        head: str | None,
        patch: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self.model, self.images, self.batch_size, self.seed = model, images, batch_size, seed
        self.height, self.width = images.shape[-2:]
        shorter = min(self.height, self.width)
        self.side = round(patch * shorter)
        if not 2 <= self.side <= shorter / 2:
            raise UserError(
                f"A patch of {patch:g} of the shorter side has {self.side} pixels of {shorter}; it takes 2 pixels to "
                "half of the side."
            )
        self.head = head
        self.names = head_class_names(unwrapped(model), self.head)
        self.margin = max(1, round(MARGIN * shorter))
        self.masks = masks
        # Where a patch would touch the object: the object grown by the margin.
        self.near = torch.zeros_like(images[:, 0], dtype=torch.bool)
        if masks is not None:
            self.near = F.max_pool2d(masks[:, None].float(), 2 * self.margin + 1, 1, self.margin)[:, 0] > 0
        step = max(1, self.side // 2)
        self.corners = torch.tensor(
            [
                (top, left)
                for top in _starts(self.height, self.side, step)
                for left in _starts(self.width, self.side, step)
            ]
        )
        self.generator = torch.Generator().manual_seed(seed)

    def ask(self, images: Tensor) -> Tensor:
        """Return probabilities (M, K)."""
        parts = images.split(at_once(images, self.batch_size))
        return torch.cat([probabilities(head_logits(predict(self.model, part), self.head)) for part in parts])

    def boxes(self, corners: Tensor) -> Tensor:
        """Return masks (M, H, W) of the patches with these corners (M, 2)."""
        rows = torch.arange(self.height)[None] - corners[:, :1]
        columns = torch.arange(self.width)[None] - corners[:, 1:]
        inside = ((rows >= 0) & (rows < self.side))[:, :, None] & ((columns >= 0) & (columns < self.side))[:, None]
        return inside.to(self.images.device)

    def painted(self, images: Tensor, corners: Tensor) -> Tensor:
        return paint_over(images, self.boxes(corners), self.side / 2)

    def scan(self, progress: Progress | None) -> None:
        """Paint over every patch of every image and choose the one that the answer hangs on most."""
        clean = self.ask(self.images)
        self.answers = clean.argmax(1)
        self.clean = clean.gather(1, self.answers[:, None])[:, 0]
        count, tried = len(self.images), len(self.corners)
        falls = torch.zeros(count, tried, device=self.images.device)
        task = progress.add_task("searching for a shortcut", total=count) if progress else None
        for place in range(count):
            for start in range(0, tried, self.batch_size):
                corners = self.corners[start : start + self.batch_size]
                shown = self.painted(self.images[place].expand(len(corners), -1, -1, -1), corners)
                scores = self.ask(shown)[:, self.answers[place]]
                falls[place, start : start + len(corners)] = self.clean[place] - scores
            if progress and task is not None:
                progress.advance(task)
        self.falls = falls
        masks = self.boxes(self.corners)
        self.touching = torch.stack([(masks & near).flatten(1).any(1) for near in self.near])
        self.anywhere = falls.argmax(1)
        beside = falls.masked_fill(self.touching, -torch.inf)
        # An object that fills the picture leaves no patch beside it.
        self.possible = ~self.touching.all(1)
        self.chosen = self._centred(beside)
        noise = torch.rand(count, tried, generator=self.generator).to(falls.device)
        self.drawn = self.corners[noise.masked_fill(self.touching, -1).argmax(1).cpu()]

    def _centred(self, falls: Tensor) -> Tensor:
        """Return each image's patch (N, 2): the best of the grid, moved to the middle of the falls around it.

        Something smaller than a patch is hit by several of the grid's, most of them off its middle.
        """
        best = self.corners[falls.argmax(1).cpu()]
        close = (self.corners[None] - best[:, None]).abs().amax(2) < self.side
        weights = (falls.cpu().clamp_min(0) * close).double()
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
        moved = (weights @ self.corners.double()).round().long()
        weightless = weights.sum(1) < 0.5
        moved[weightless] = best[weightless]
        touching = (self.boxes(moved) & self.near).flatten(1).any(1).cpu()
        return torch.where(touching[:, None], best, moved)

    def result(self, method: str | None, index: Tensor, left_out: int) -> ShortcutSearch:
        """Put the chosen patches to the test and say what follows."""
        able = self.possible.cpu()
        after = self.ask(self.painted(self.images, self.chosen))
        changed = (after.argmax(1) != self.answers).cpu() & able
        changes = Share.of(changed, able)
        random = self.ask(self.painted(self.images, self.drawn)).argmax(1)
        random_changes = Share.of((random != self.answers).cpu(), able)
        object_changes = on_object = None
        if self.masks is not None:
            sigma = OBJECT_SIGMA * min(self.height, self.width)
            gone = self.ask(paint_over(self.images, self.near, sigma)).argmax(1)
            object_changes = Share.of((gone != self.answers).cpu())
            # Where no patch matters, none of them is the largest.
            matters = (self.falls.amax(1) >= _LEAST_FALL).cpu()
            on_object = Share.of(self.touching.gather(1, self.anywhere[:, None])[:, 0].cpu(), matters)
        place, look, chance, tested = self._carry(able)
        by_answer = self._by_answer(changed, able, place, tested, Share.of(chance, tested))
        peaks, off, hits, moved = self._map(method)
        whole = changes.low >= LEAST_SHARE
        some = any(item.found for item in by_answer)
        carried = max(Share.of(place, tested).low, Share.of(look, tested).low) > Share.of(chance, tested).high
        verdict = "none"
        if whole or some:
            verdict = "shortcut" if carried or some else "suspicion"
            verdict = verdict if self.masks is not None else "unknown"
        if verdict == "none" and object_changes is not None and object_changes.high < NEEDED:
            verdict = "surroundings"
        fall = self.clean - after.gather(1, self.answers[:, None])[:, 0]
        return ShortcutSearch(
            verdict=verdict,
            n=len(self.images),
            left_out=left_out,
            image_size=(self.height, self.width),
            patch=self.side,
            patches=self._edges(self.chosen),
            answers=self.answers.cpu(),
            after=after.argmax(1).cpu(),
            effect=fall.cpu(),
            changes=changes,
            random_changes=random_changes,
            object_changes=object_changes,
            on_object=on_object,
            carried_place=Share.of(place, tested),
            carried_look=Share.of(look, tested),
            carried_random=Share.of(chance, tested),
            by_answer=by_answer,
            names=tuple(self.names) if self.names else None,
            method=method,
            peaks=peaks,
            map_off_object=off,
            map_on_patch=hits,
            map_changes=moved,
            index=index,
            protocol=self._protocol(),
        )

    def _carry(self, able: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Lay each image's patch on an image of another answer: at its place, on the other's patch, and a random one.

        Returns whether the answer becomes that of the patch's image, (N,) bool each, and which images could be tested.
        The other image's own patch is painted over; it is drawn among those whose object neither patch would touch.
        """
        count = len(self.images)
        order = torch.rand(count, count, generator=self.generator)
        others = torch.full((count,), -1)
        for place in range(count):
            fits = (self.answers != self.answers[place]).cpu() & able & able[place]
            for corner in (self.chosen[place], self.drawn[place]):
                top, left = corner.tolist()
                covered = self.near[:, top : top + self.side, left : left + self.side]
                fits &= ~covered.flatten(1).any(1).cpu()
            if fits.any():
                others[place] = order[place].masked_fill(~fits, -1).argmax()
        tested = others >= 0
        others = others.clamp_min(0)
        receivers = self.painted(self.images[others], self.chosen[others])
        same = self.answers.cpu()
        # A receiver that gives the donor's answer anyway would prove nothing.
        tested &= self.ask(receivers).argmax(1).cpu() != same
        answers = [
            self.ask(self._laid(receivers, source, target)).argmax(1).cpu() == same
            for source, target in (
                (self.chosen, self.chosen), (self.chosen, self.chosen[others]), (self.drawn, self.drawn),
            )
        ]  # fmt: skip
        return answers[0], answers[1], answers[2], tested

    def _laid(self, receivers: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return receivers with each image's patch at `source` (N, 2) laid on `target` (N, 2)."""
        laid, side = receivers.clone(), self.side
        for place, ((top, left), (down, across)) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
            cut = self.images[place, :, top : top + side, left : left + side]
            laid[place, :, down : down + side, across : across + side] = cut
        return laid

    def _by_answer(
        self, changed: Tensor, able: Tensor, carried: Tensor, tested: Tensor, chance: Share
    ) -> tuple[AnswerFinding, ...]:
        found = []
        answers = self.answers.cpu()
        for answer in answers.unique().tolist():
            mine = answers == answer
            changes, along = Share.of(changed, mine & able), Share.of(carried, mine & tested)
            found.append(
                AnswerFinding(
                    name=self.names[answer] if self.names else str(answer),
                    images=int(mine.sum()),
                    changes=changes,
                    carried=along,
                    places=self._places(self.chosen[mine & changed], int((mine & able).sum())),
                    found=changes.low >= LEAST_SHARE and along.low > chance.high,
                )
            )
        return tuple(found)

    def _places(self, corners: Tensor, count: int) -> tuple[Place, ...]:
        """Return the places where most of these patches lie: each the densest, without those of the one before."""
        found: list[Place] = []
        while len(corners) and len(found) < _PLACES:
            close = (corners[:, None] - corners[None]).abs().amax(2) <= self.side / 2
            best = close[int(close.sum(1).argmax())]
            middle = corners[best].double().mean(0) + self.side / 2
            found.append(
                Place(float(middle[1]) / self.width, float(middle[0]) / self.height, int(best.sum()) / max(1, count))
            )
            corners = corners[~best]
        return tuple(found)

    def _map(self, method: str | None) -> tuple[Tensor | None, Share | None, Share | None, Share | None]:
        """Say where a method's maxima lie, beside the objects and on the patches, and what the answer owes to them."""
        if method is None:
            return None, None, None, None
        target = self.head if self.head is not None else None
        maps = torch.cat(
            [explain(self.model, part, method, target).maps for part in self.images.split(self.batch_size)]
        )
        top = maps.flatten(1).argmax(1).cpu()
        rows, columns = top // self.width, top % self.width
        corners = torch.stack(
            [
                (rows - self.side // 2).clamp(0, self.height - self.side),
                (columns - self.side // 2).clamp(0, self.width - self.side),
            ],
            1,
        )
        off = None
        if self.masks is not None:
            off = Share.of(~self.near.flatten(1).gather(1, top[:, None].to(self.near.device))[:, 0].cpu())
        # As near to the patch as to an object: within the margin.
        inside = (rows >= self.chosen[:, 0] - self.margin) & (rows < self.chosen[:, 0] + self.side + self.margin)
        inside &= (columns >= self.chosen[:, 1] - self.margin) & (columns < self.chosen[:, 1] + self.side + self.margin)
        moved = self.ask(self.painted(self.images, corners)).argmax(1) != self.answers
        return self._edges(corners), off, Share.of(inside), Share.of(moved.cpu())

    def _edges(self, corners: Tensor) -> Tensor:
        """Return boxes (N, 4), x0, y0, x1, y1, of patches by their corners (top, left)."""
        return torch.cat([corners.flip(1), corners.flip(1) + self.side], 1)

    def _protocol(self) -> dict[str, Any]:
        return {
            "search": "every patch of a grid is painted over; the one whose loss lowers the answer's probability most "
            "is chosen, and moved to the middle of the falls around it",
            "patch": f"{self.side}x{self.side} of {self.height}x{self.width} pixels, step {max(1, self.side // 2)}",
            "patches_per_image": len(self.corners),
            "beside": f"{self.margin} pixels or more from the object" if self.masks is not None else "objects unknown",
            "paint": f"Gaussian-weighted mean of what is left, sigma {self.side / 2:g} pixels; "
            f"whole object {OBJECT_SIGMA:g} of the shorter side",
            "carried": "the patch laid on a random image of another answer whose own patch is painted over",
            "verdict": f"shortcut: 95 % interval of the changed answers above {LEAST_SHARE:g}, overall or for one "
            "answer, and patches carry the answer along more often than random ones (intervals apart); surroundings: "
            f"no patch decides, and painting over the object changes fewer than {NEEDED:g} of the answers",
            "interval": "Wilson, 95 %",
            "seed": self.seed,
        }


def _starts(length: int, side: int, step: int) -> list[int]:
    """Return where patches begin along one side: every step, and one that ends at the edge."""
    return sorted({*range(0, length - side + 1, step), length - side})
