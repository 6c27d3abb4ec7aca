"""Training under faults: `under_fault.py` is both a program of its own and what the tests here share."""

import importlib.util
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("under_fault.py")


@pytest.fixture(scope="session")
def program():
    """Path of `under_fault.py`."""
    return PROGRAM


@pytest.fixture(scope="session")
def under_fault():
    """`under_fault.py` as a module."""
    spec = importlib.util.spec_from_file_location("under_fault", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["under_fault"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bare(under_fault):
    """What the training comes to without relume."""
    return under_fault.train(None)["digest"]
