"""Shared by all tests: few threads (the suite runs in parallel), and errors inside relume are raised, not swallowed."""

import pytest
import torch

from relume.sites import tracker

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def strict():
    tracker.STRICT = True
    yield
    tracker.STRICT = True


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
