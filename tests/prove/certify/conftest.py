"""`zoo`: the networks of zoo.py, loaded by path as benchmarks/certify.py does."""

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("certify_zoo", Path(__file__).with_name("zoo.py"))
assert _SPEC is not None
_ZOO = importlib.util.module_from_spec(_SPEC)
assert _SPEC.loader is not None
_SPEC.loader.exec_module(_ZOO)


@pytest.fixture(scope="session")
def zoo():
    return _ZOO


def pytest_generate_tests(metafunc):
    if "network" in metafunc.fixturenames:
        metafunc.parametrize("network", list(_ZOO.ZOO))
