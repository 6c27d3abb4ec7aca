"""Passes that go as an earlier one did are checked off, and the census is what following each of them gives."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.sites import expected, forward_pass


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.acts = nn.ModuleList([nn.ReLU(), nn.ReLU(), nn.LeakyReLU(0.1)])
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.c(self.acts[1](self.b(F.relu(self.a(x)))))


class TakesTurnsBetweenModules(Plain):
    """Two modules of one class, called from one place on the same producer."""

    def forward(self, x):
        self.passes += 1
        return self.c(self.acts[self.passes % 2](self.a(x)))


class TakesTurnsBetweenPlaces(Plain):
    """One function, called from two places in the code on the same producer."""

    def forward(self, x):
        self.passes += 1
        x = self.a(x)
        if self.passes % 3:  # noqa: SIM108 - two places
            x = torch.relu(x)
        else:
            x = torch.relu(x)
        return self.c(x)


class ChangesItsSlope(Plain):
    def forward(self, x):
        self.passes += 1
        return self.c(F.leaky_relu(self.a(x), 0.0 if self.passes % 4 == 0 else 0.2))


class VariesInDepth(Plain):
    def forward(self, x):
        self.passes += 1
        x = self.a(x)
        for _ in range(self.passes % 3):
            x = self.b(x).relu()
        return self.c(x.relu())


class SkipsABranch(Plain):
    def forward(self, x):
        self.passes += 1
        h = self.a(x).relu()
        if self.passes % 5 != 3:
            h = h + self.b(h).clamp(min=0)
        return self.c(torch.tanh(h))


class ThresholdIsATensor(Plain):
    """It clamps at zero until its buffer says otherwise: the value decides whether that is a ReLU."""

    def __init__(self):
        super().__init__()
        self.register_buffer("floor", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        if self.passes == 6:
            self.floor.fill_(-1.0)
        return self.c(torch.maximum(self.a(x), self.floor))


class Masks(Plain):
    def forward(self, x):
        self.passes += 1
        x = self.a(x)
        x = x * (x > 0)
        y = self.b(x)
        return self.c(torch.where(y > 0, y, torch.zeros_like(y)))


class SelectsRows(Plain):
    """How many rows go on depends on the data."""

    def forward(self, x):
        self.passes += 1
        h = self.a(x).relu()
        return self.c(self.b(h[x[:, 0] > 0]).relu()).sum() + self.c(h).sum()


class ExchangesItsInputs(Plain):
    def forward(self, x):
        self.passes += 1
        left, right = self.a(x), self.b(self.a(x).relu())
        if self.passes % 2:
            left, right = right, left
        return self.c(F.relu(left) + right.sigmoid())


class Doubled(torch.autograd.Function):
    """torch announces no call of it."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Unannounced(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


class HasAnUnannouncedPart(Plain):
    def __init__(self):
        super().__init__()
        self.doubled = Unannounced()

    def forward(self, x):
        self.passes += 1
        x = self.doubled(self.a(x))
        return self.c(F.relu(x))


MODELS = [
    Plain,
    TakesTurnsBetweenModules,
    TakesTurnsBetweenPlaces,
    ChangesItsSlope,
    VariesInDepth,
    SkipsABranch,
    ThresholdIsATensor,
    Masks,
    SelectsRows,
    ExchangesItsInputs,
    HasAnUnannouncedPart,
]


def counted(make, *, sizes=(5,), meanwhile=lambda model, i: None, passes=24):
    """Census by site name after so many passes, as plain data."""
    torch.manual_seed(0)
    random.seed(0)
    model = make()
    with relume.watch(model, every=1, window=passes, min_inputs=1) as watch:
        for i in range(passes):
            meanwhile(model, i)
            model.train(i % 7 != 6)
            model(torch.randn(sizes[i % len(sizes)], 6))
    return {
        (phase, name): (s.site.to_dict(), s.inputs, s.samples, s.fired.tolist(), str(s.mean), str(s.max))
        for phase in watch.windows[0].counts
        for name, s in watch.census(phase=phase).items()
    }


@pytest.fixture
def followed(monkeypatch):
    """A function like `counted` that follows each call of each pass."""

    def count(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(expected.Expected, "holds", False)
            return counted(*args, **kwargs)

    return count


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("sizes", [(5,), (5, 5, 5, 2)], ids=["one size", "a smaller batch now and then"])
def test_the_census_is_what_following_each_pass_gives(make, sizes, followed):
    assert counted(make, sizes=sizes) == followed(make, sizes=sizes)


def _replace(model, i):
    if i == 6:
        model.acts[1] = nn.LeakyReLU(0.3)
    if i == 12:
        model.b = nn.Linear(8, 8)


def _widen(model, i):
    if i == 6:  # the very same parameters, of another shape
        model.a.weight.data, model.a.bias.data = torch.randn(11, 6), torch.randn(11)
        model.b.weight.data = torch.randn(8, 11)


def _move(model, i):
    if i == 6:
        model.inner = nn.ModuleDict({"act": model.acts[1]})
        model.acts[1] = model.inner["act"]
        model.a, model.first = nn.Sequential(model.a), nn.Identity()


@pytest.mark.parametrize("meanwhile", [_replace, _widen, _move], ids=lambda f: f.__name__.strip("_"))
def test_a_model_that_is_changed_meanwhile_is_seen_as_it_is(meanwhile, followed):
    assert counted(Plain, meanwhile=meanwhile) == followed(Plain, meanwhile=meanwhile)


def test_a_module_class_registered_meanwhile_becomes_a_site():
    class Twice(nn.Module):
        def forward(self, x):
            return torch.relu(x) * 2

    class Net(Plain):
        def __init__(self):
            super().__init__()
            self.twice = Twice()

        def forward(self, x):
            return self.c(self.twice(self.a(x)))

    def register(model, i):
        if i == 6:
            relume.register_activation(Twice, flat=[(-float("inf"), 0.0)])

    seen = counted(Net, meanwhile=register, passes=14)
    assert seen["train", "twice:relu"][1] == 6 * 5
    assert seen["train", "twice"][1] == 6 * 5  # and one each in evaluation


@pytest.mark.parametrize("make", [Plain, HasAnUnannouncedPart])
def test_from_the_second_pass_on_nothing_is_followed(make, monkeypatch):
    followed = []
    monkeypatch.setattr(forward_pass, "given", lambda *call: followed.append(call) or expected.given(*call))
    model = make()
    with relume.watch(model, every=1):
        model(torch.randn(5, 6))
        assert followed
        followed.clear()
        for _ in range(3):
            model(torch.randn(5, 6))
    assert not followed


def test_passes_that_never_go_the_same_way_are_followed_after_a_while():
    model = Plain()
    acts = [F.relu, F.gelu, torch.tanh, torch.sigmoid, F.silu, F.elu, F.mish]
    model.forward = lambda x: model.c(random.choice(acts)(random.choice(acts)(model.a(x))))
    with relume.watch(model, every=1) as watch:
        for _ in range(60):
            model(torch.randn(5, 6))
        kinds = watch._tracker._expected.values()
        assert [k.holds for k in kinds] == [False]
