"""Shared by all tests: few threads (the suite runs in parallel), and errors inside relume are raised, not swallowed."""

import sys

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


@pytest.fixture(autouse=True)
def nothing_stays_compiled():
    """relume looks more closely in a process that has compiled something, which no other test should notice."""
    yield
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is not None and compiler.cached_backends:
        torch._dynamo.reset()


@pytest.fixture(autouse=True)
def no_mode_is_left():
    """A torch function mode left behind changes what all later tests see."""
    yield
    left = torch.overrides._get_current_function_mode_stack()
    assert not left, f"left behind: {left}"
