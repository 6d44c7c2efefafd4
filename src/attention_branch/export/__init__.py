"""A network leaves Python: one file with its logits, its map, its preprocessing and its class names."""

from typing import TYPE_CHECKING

from attention_branch.lazy import lazy_names

if TYPE_CHECKING:
    from attention_branch.export.exporting import Exported, export

__all__ = ["Exported", "export"]

lazy_names(__name__, {".exporting": ("Exported", "export")})
