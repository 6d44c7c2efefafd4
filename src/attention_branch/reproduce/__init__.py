"""The paper's tables, run anew: published numbers, arms and controls, seeds, and what the differences say."""

from attention_branch.reproduce.conduct import reproduce
from attention_branch.reproduce.plan import Protocol
from attention_branch.reproduce.results import read_groups, studies, table_rows

__all__ = ["Protocol", "read_groups", "reproduce", "studies", "table_rows"]
