"""Methods beside each other on the same images: measured, resumed where broken off, and shown on one page."""

from attention_branch.compare.comparison import Answers, Comparison
from attention_branch.compare.console import print_comparison
from attention_branch.compare.measures import DEFAULT_METRICS, MEASURES
from attention_branch.compare.run import DEFAULT_LIMIT, DEFAULT_METHODS, compare_run

__all__ = [
    "DEFAULT_LIMIT",
    "DEFAULT_METHODS",
    "DEFAULT_METRICS",
    "MEASURES",
    "Answers",
    "Comparison",
    "compare_run",
    "print_comparison",
]
