"""`corpus`: the planted trainings, loaded by path as benchmarks/diagnosis.py does."""

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("planted_causes", Path(__file__).with_name("corpus.py"))
_CORPUS = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = _CORPUS
_SPEC.loader.exec_module(_CORPUS)


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", _CORPUS.CASES, ids=lambda c: c.name.replace(" ", "-"))


@pytest.fixture(scope="session")
def corpus():
    return _CORPUS
