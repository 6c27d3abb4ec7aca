"""Models to compile, a training that is recorded bit for bit, and what a watch counted in it."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

import relume


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch):
    """Each test begins and ends in a process that has compiled nothing."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])  # pytest listens to it, which takes long
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.drop = nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2)

    def forward(self, x):
        return x + self.drop(self.act(self.fc(x)))


class Net(nn.Module):
    """Functional and module activations, batch norm, dropout, a unit that is dead by its bias."""

    def __init__(self):
        super().__init__()
        self.inp, self.norm, self.out = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.activation = F.relu
        with torch.no_grad():
            self.blocks[0].fc.bias[2] = -50.0

    def forward(self, x):
        x = self.activation(self.norm(self.inp(x)))
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def chain():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def bits(model, losses):
    return losses, [p.clone() for p in model.state_dict().values()], torch.get_rng_state()


def same(a, b):
    (losses, state, chance), (losses_, state_, chance_) = a, b
    return losses == losses_ and all(map(torch.equal, state, state_)) and torch.equal(chance, chance_)


def train(model, call, optimizer, steps=5, evaluate=True):
    """A short training whose last batch is smaller, then evaluation with and without gradients."""
    torch.manual_seed(7)
    losses = []
    for i in range(steps):
        loss = call(torch.randn(9 if i == steps - 1 else 16, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if evaluate:
        model.eval()
        with torch.no_grad():
            losses.append(call(torch.randn(8, 4)).sum().item())
        losses.append(call(torch.randn(8, 4)).sum().item())
        model.train()
    return bits(model, losses)


def counted(watch):
    """All that a watch counted and found, in both phases."""
    found = {}
    for phase in ("train", "eval"):
        if any(phase in w.counts for w in watch.windows) or not watch.closed:
            census = watch.census("all", phase=phase)
            for name in census:
                site, c = census[name].site, census[name]
                found[phase, name] = (
                    c.inputs,
                    c.samples,
                    c.fired.tolist(),
                    site.producers,
                    site.between,
                    site.consumers,
                )
    return found


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01)


def compiles():
    """How many graphs were compiled, how many operations they hold, and where they broke."""
    return counters["stats"]["unique_graphs"], counters["stats"]["calls_captured"], dict(counters["graph_break"])


@pytest.fixture
def lab():
    torch.manual_seed(0)
    fresh = {"Net": Net(), "chain": chain()}

    def make(name="Net"):
        return copy.deepcopy(fresh[name])

    def eager(name="Net", prepare=lambda model: model, **settings):
        """What a watch counts in the training of the eager model."""
        model = make(name)
        prepare(model)
        with relume.watch(model, optimizer := adam(model), every=2, **settings) as watch:
            train(model, model, optimizer)
        return counted(watch)

    return SimpleNamespace(
        make=make, eager=eager, train=train, counted=counted, same=same, adam=adam, compiles=compiles, bits=bits
    )
