"""What every test shares: few threads (the suite runs on two cores) and a fixed seed."""

import pytest
import torch

LONGEST = (
    "test_reproduce_command", "test_serve_page", "test_training_distributed", "test_families", "test_compare",
    "test_export", "test_onnx_model", "test_wider", "test_interpretable", "test_human_maps", "test_serve_guard",
    "test_registry", "test_readme", "test_recipes", "test_explanations",
)  # fmt: skip
"""Modules that take longest, which begin first: so no process works alone in the end."""


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True)
def _quiet_machine():
    torch.set_num_threads(1)
    torch.manual_seed(0)
