"""How right a network is, how well it knows that, where its map points, and what it may be led astray by."""

from typing import TYPE_CHECKING

from attention_branch.lazy import lazy_names

if TYPE_CHECKING:
    from attention_branch.evaluation.evaluate import evaluate
    from attention_branch.evaluation.evaluation import Evaluation, HeadEvaluation, Predictions
    from attention_branch.evaluation.layer_scan import LayerScore, scan_layers
    from attention_branch.evaluation.odds import Odds, attribute_odds
    from attention_branch.evaluation.run import evaluate_run
    from attention_branch.evaluation.second_look import SecondLook, second_look
    from attention_branch.evaluation.shortcut_finding import ShortcutSearch
    from attention_branch.evaluation.shortcuts import find_shortcut

__all__ = [
    "Evaluation",
    "HeadEvaluation",
    "LayerScore",
    "Odds",
    "Predictions",
    "SecondLook",
    "ShortcutSearch",
    "attribute_odds",
    "evaluate",
    "evaluate_run",
    "find_shortcut",
    "scan_layers",
    "second_look",
]

lazy_names(
    __name__,
    {
        ".evaluate": ("evaluate",),
        ".evaluation": ("Evaluation", "HeadEvaluation", "Predictions"),
        ".layer_scan": ("LayerScore", "scan_layers"),
        ".odds": ("Odds", "attribute_odds"),
        ".run": ("evaluate_run",),
        ".second_look": ("SecondLook", "second_look"),
        ".shortcut_finding": ("ShortcutSearch",),
        ".shortcuts": ("find_shortcut",),
    },
)
