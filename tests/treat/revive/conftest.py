"""The zoo, and what tests ask of every member."""

import importlib.util
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location("revive_zoo", Path(__file__).with_name("zoo.py"))
zoo = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(zoo)


def pytest_generate_tests(metafunc):
    if "member" in metafunc.fixturenames:
        metafunc.parametrize("member", zoo.ZOO)


@pytest.fixture
def planted(member):
    """Model in evaluation, batch, and its dead units by site."""
    torch.manual_seed(0)
    model, batch, units = zoo.ZOO[member]()
    return model.eval(), batch, {site: list(numbers) for site, numbers in units.items()}


@pytest.fixture
def bury():
    return zoo.bury


@pytest.fixture
def net():
    return zoo.Net


@pytest.fixture
def state():
    """All numbers of a model and of optimizers, copied."""

    def take(model, *optimizers):
        return {k: v.detach().clone() for k, v in model.state_dict().items()}, [
            {k: v.clone() for k, v in s.items() if torch.is_tensor(v)} for o in optimizers for s in o.state.values()
        ]

    def same(a, b):
        return all(torch.equal(v.nan_to_num(7), b[0][k].nan_to_num(7)) for k, v in a[0].items()) and all(
            torch.equal(v, y[k]) for x, y in zip(a[1], b[1], strict=True) for k, v in x.items()
        )

    take.same = same
    return take


@pytest.fixture
def outputs():
    def of(model, *args):
        with torch.no_grad():
            out = model(*args)
        return out if isinstance(out, tuple) else (out,)

    return of
