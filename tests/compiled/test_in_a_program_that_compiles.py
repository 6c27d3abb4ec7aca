"""Models that are not compiled, in a program that has compiled something else: counted and trained as in any other."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import relume


@pytest.fixture(autouse=True)
def something_else_is_compiled(nothing_compiled):
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(3))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())


def trained(model, watched, reentrant):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    watch = relume.watch(model, optimizer, every=1, window=3) if watched else None
    for _ in range(3):
        x = torch.randn(64, 6, requires_grad=True)
        checkpoint(model, x, use_reentrant=reentrant).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    if watch is not None:
        watch.close()
    return [p.detach().clone() for p in (*model.parameters(), *model.buffers())], watch


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_whole_model_in_a_checkpoint_trains_bit_for_bit_as_before_and_is_counted_once(reentrant):
    bare, _ = trained(net(), False, reentrant)
    seen, watch = trained(net(), True, reentrant)
    assert all(torch.equal(a, b) for a, b in zip(bare, seen, strict=True))
    assert watch.census()["1"].inputs == 3 * 64


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_model_with_lazy_layers_is_seen_from_its_first_batch():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    with relume.watch(model, every=1, window=2) as watch:
        for _ in range(2):
            model(torch.randn(32, 5)).sum().backward()
    assert watch.census()["1"].inputs == 64


def test_the_census_of_an_eager_model_is_what_it_is_elsewhere():
    model, x = net().eval(), torch.randn(300, 6)
    with relume.watch(copy.deepcopy(model), every=1, window=1) as watch, torch.no_grad():
        watch.model(x)
    alone = relume.census(model, x)
    for name, site in watch.census(phase="eval").items():
        assert torch.equal(site.fired, alone[name].fired)


def test_a_module_and_its_parent_are_watched_at_once_and_each_counts_once():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    with relume.watch(model, every=1) as outer, relume.watch(model[2], every=1) as inner:
        for _ in range(3):
            model(torch.randn(4, 2))
    assert [m.name for m in outer.census().sites] == ["1", "2.1"]
    assert [m.name for m in inner.census().sites] == ["1"]
    assert inner.census()["1"].inputs == outer.census()["2.1"].inputs == 12
