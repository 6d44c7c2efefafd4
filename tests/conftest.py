"""What every test shares: few threads (the suite runs on two cores) and a fixed seed."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _quiet_machine():
    torch.set_num_threads(1)
    torch.manual_seed(0)
