"""Maps that say where a network looked, and the controls they have to beat."""

from typing import TYPE_CHECKING

from attention_branch.lazy import lazy_names

if TYPE_CHECKING:
    from attention_branch.explanations.channel_weights import channel_weights
    from attention_branch.explanations.explanation import explain
    from attention_branch.explanations.filters import filter_maps
    from attention_branch.explanations.methods import METHODS
    from attention_branch.explanations.resizing import upsample
    from attention_branch.explanations.result import Explanation

__all__ = ["METHODS", "Explanation", "channel_weights", "explain", "filter_maps", "upsample"]

lazy_names(
    __name__,
    {
        ".channel_weights": ("channel_weights",),
        ".explanation": ("explain",),
        ".filters": ("filter_maps",),
        ".methods": ("METHODS",),
        ".resizing": ("upsample",),
        ".result": ("Explanation",),
    },
)
