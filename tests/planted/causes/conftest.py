"""`corpus` and `second`: the planted trainings, loaded by path as benchmarks/diagnosis.py does."""

import importlib.util
import sys
from pathlib import Path

import pytest


def _load(name, path, **options):
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_CORPUS = _load("planted_causes", Path(__file__).with_name("corpus.py"))
_FOLDER = Path(__file__).with_name("second")
_SECOND = _load("planted_second", _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)])


def pytest_generate_tests(metafunc):
    for fixture, cases in (("case", _CORPUS.CASES), ("planted", [*_SECOND.CASES, *_SECOND.HELD_BACK])):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, cases, ids=lambda c: c.name.replace(" ", "-"))


@pytest.fixture(scope="session")
def corpus():
    return _CORPUS


@pytest.fixture(scope="session")
def second():
    return _SECOND
