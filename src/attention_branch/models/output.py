"""What the networks answer."""

from typing import NamedTuple

from torch import Tensor

Scores = Tensor | dict[str, Tensor]


class ABNOutput(NamedTuple):
    """What a network with an attention branch answers; with several heads, both kinds of scores are dicts by head."""

    logits: Scores
    """(N, K): the perception branch's scores, *the* prediction."""
    attention_logits: Scores | None
    """(N, K): the attention branch's own scores; None when not asked for."""
    attention: Tensor
    """(N, T, h, w) in [0, 1]: one map, or one per head. A map tells where, not which class: it is class-agnostic.

    With `map_form="sum-log"` it is 0 or more, without an upper bound."""
