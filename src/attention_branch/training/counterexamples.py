"""Pictures with a human map shown in other surroundings, under their own label: what the label must not depend on.

A corrected map alone does not take a hint from a network, which may read it from what is left of it. Counterexamples do
(CAIPI: Teso and Kersting, Explanatory Interactive Machine Learning, AIES 2019, section 4): where the human map says "do
not look here" the picture is changed, and the label stays. CAIPI puts random numbers or other pictures there.

Ours: it puts there what lies outside of other annotated pictures' human maps. So the surroundings are real ones, a hint
in them is as frequent as before and says nothing. No second object comes in; its outline may, where another picture's
surroundings fill the place that it leaves.
"""

from typing import NamedTuple

import torch
from torch import Tensor

DONORS = 3
"""Pictures that one picture's new surroundings may come from: where the first has its own object, the second's are
taken, and so on. Where all have theirs, the mean colour stands."""


class Counterexamples(NamedTuple):
    """Images (N, 3, H, W), and which of them were changed, int64 (K,)."""

    images: Tensor
    places: Tensor


def counterexamples(images: Tensor, inside: Tensor, annotated: Tensor, share: float) -> Counterexamples:
    """Put `share` of the normalised images (N, 3, H, W) that have a human map into other surroundings.

    `inside`, bool (N, H, W), is where human maps say "look here"; `annotated`, bool (N,), which images have one.
    Draws from torch's CPU generator. Images whose map marks nothing, and the only one of a batch, stay as they are.
    """
    known = (annotated & inside.flatten(1).any(1)).nonzero()[:, 0]
    count = len(known)
    chosen = known[torch.randperm(count)[: round(share * count)].to(images.device)]
    if count < 2 or len(chosen) == 0:
        return Counterexamples(images, known[:0])
    order = torch.rand(len(chosen), count).to(images.device)
    order[known[None] == chosen[:, None]] = 2  # behind all others: nobody gives to itself
    donors = known[order.argsort(1)[:, : min(DONORS, count - 1)]]
    settled = inside[chosen]
    found = images[chosen] * settled[:, None]
    for donor in donors.T:
        gives = ~settled & ~inside[donor]
        found = torch.where(gives[:, None], images[donor], found)
        settled = settled | gives
    changed = images.clone()
    changed[chosen] = found
    return Counterexamples(changed, chosen)
