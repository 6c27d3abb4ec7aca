"""`corpus`, `second` and `third`: the planted trainings, loaded by path as benchmarks/diagnosis.py does."""

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


def _load_folder(name):
    folder = Path(__file__).with_name(name)
    return _load(f"planted_{name}", folder / "__init__.py", submodule_search_locations=[str(folder)])


_CORPUS = _load("planted_causes", Path(__file__).with_name("corpus.py"))
_SECOND = _load_folder("second")
_THIRD = _load_folder("third")


def pytest_generate_tests(metafunc):
    for fixture, cases in (
        ("case", _CORPUS.CASES),
        ("planted", [*_SECOND.CASES[::2], *_SECOND.HELD_BACK]),  # every other one: all take two minutes of a core
        ("controlled", [*_THIRD.CASES, *_THIRD.HELD_BACK]),
    ):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, cases, ids=lambda c: c.name.replace(" ", "-"))


@pytest.fixture(scope="session")
def corpus():
    return _CORPUS


@pytest.fixture(scope="session")
def second():
    return _SECOND
