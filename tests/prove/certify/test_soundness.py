"""What is certified holds: on samples of many architectures, on random networks, and under rounding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import relume

METHODS = ("ibp", "crown")


def samples(shape, n, dtype, low=-1.0, high=1.0):
    """Uniform points, and corners of the box, half each."""
    x = torch.rand(n, *shape, dtype=dtype)
    x[::2] = (x[::2] > 0.5).to(dtype)
    return low + x * (high - low)


def within(counted, site, dtype=torch.float32):
    """Do the counted extremes lie within the bounds? A census keeps them in float32, rounded where the model is not."""
    rounding = 2.0**-22 * torch.maximum(counted.min.abs(), counted.max.abs()) if dtype is torch.float64 else 0.0
    low, high = counted.min + rounding >= site.lower, counted.max - rounding <= site.upper
    return bool(((low & high) | counted.min.isnan()).all())


@pytest.mark.parametrize("method", METHODS)
def test_no_certified_unit_fires_and_no_pre_activation_leaves_its_bounds(zoo, network, method):
    """Together over the zoo: 102,400 inputs; counted by a census, which knows nothing of bounds."""
    model, shape = zoo.build(network)
    certificate = relume.certify(model, -1.0, 1.0, shape=shape, method=method, samples=64)
    x = samples(shape, 3200, certificate.lower.dtype)
    census = relume.census(model, x.split(1600))
    assert [s.name for s in certificate.sites] == [m.name for m in census.sites]
    assert [s.units for s in certificate.sites] == [m.units for m in census.sites]
    for site, counted in zip(certificate.sites, census.sites, strict=True):
        assert not bool((site.dead & ~counted.dead).any()), site.name
        assert within(counted, site, x.dtype), site.name
        assert not bool((site.dead & site.fires).any())
        assert not bool((site.dead & site.linear).any())


def test_the_zoo_has_certified_dead_units_and_crown_finds_no_fewer(zoo):
    found = {}
    for name in ("mlp", "gelu", "batch norm", "views", "writing styles", "double"):
        model, shape = zoo.build(name)
        ibp, crown = (relume.certify(model, -1.0, 1.0, shape=shape, method=m, witnesses=False) for m in METHODS)
        found[name] = (ibp.dead, crown.dead)
        for a, b in zip(ibp.sites, crown.sites, strict=True):
            assert bool((b.lower >= a.lower).all())
            assert bool((b.upper <= a.upper).all())
    assert all(i > 0 and c >= i for i, c in found.values()), found
    assert found["views"][1] > found["views"][0], found


@pytest.mark.parametrize("box", [(0.3, 0.3), (90.0, 110.0), (-1e-6, 1e-6)])
def test_bounds_hold_in_points_and_in_small_large_and_far_boxes(zoo, network, box):
    model, shape = zoo.build(network, seed=1)
    for method in METHODS:
        certificate = relume.certify(model, *box, shape=shape, method=method, witnesses=False)
        counted = relume.census(model, samples(shape, 64, certificate.lower.dtype, *box))
        for site, m in zip(certificate.sites, counted.sites, strict=True):
            assert within(m, site, certificate.lower.dtype), (method, site.name)


ACTIVATIONS = [
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid,
    nn.Softshrink, nn.Hardshrink, relume.nn.DReLU,
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    kinds=st.lists(st.sampled_from(ACTIVATIONS), min_size=4, max_size=4),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    radius=st.sampled_from([0.0, 1e-6, 0.1, 3.0]),
    normed=st.booleans(),
    method=st.sampled_from(METHODS),
)
def test_random_networks_stay_within_their_bounds(seed, widths, kinds, scale, radius, normed, method):
    torch.manual_seed(seed)
    layers = []
    for a, b, kind in zip(widths, widths[1:], kinds, strict=False):
        layers += [nn.Linear(a, b), *([nn.LayerNorm(b)] if normed else []), kind()]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    middle = torch.randn(widths[0])
    low, high = middle - radius, middle + radius
    certificate = relume.certify(model, low, high, method=method, witnesses=False)
    x = torch.clamp(low + samples((widths[0],), 200, torch.float32, 0.0, 1.0) * (high - low), low, high)
    for site, m in zip(certificate.sites, relume.census(model, x, min_inputs=1).sites, strict=True):
        assert within(m, site)
        assert not bool((site.dead & ~m.dead).any())


def test_planted_deaths_are_all_certified_and_only_they():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU6())
    with torch.no_grad():
        model[0].bias[:3] = -100.0
        model[2].weight.abs_()
        model[2].bias.fill_(0.5)
        model[2].bias[1] = 1000.0  # stuck at the top
    for method in METHODS:
        certificate = relume.certify(model, torch.zeros(4), torch.ones(4), method=method)
        assert certificate["1"].dead.tolist()[:3] == [True] * 3
        assert certificate["3"].dead.tolist() == [False, True, False, False, False, False]
        assert certificate["1"].value[:3].tolist() == [0.0] * 3
        assert float(certificate["3"].value[1]) == 6.0
        assert bool(certificate["1"].value[3:].isnan().any())
        # What is neither dead nor linear in this net fires on some corner.
        fired = relume.census(model, samples((4,), 1024, torch.float32, 0.0, 1.0), min_inputs=1)
        assert bool((certificate["1"].fires == ~fired["1"].dead).all())


def test_a_unit_that_rounding_makes_fire_is_not_certified():
    """Exactly, w·x + b = 0 at x = 1; summed from left to right in float32 it is 2."""
    w = torch.tensor([[2.0**24 + 2, 1.0, 2.0, 1.0]])
    total = torch.tensor(0.0)
    for part in w[0]:
        total = total + part
    assert float(total) - (2.0**24 + 6) == 2.0
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU())
    for bias, certain in ((-(2.0**24 + 6), False), (-(2.0**24 + 8), False), (-(2.0**24 + 400), True)):
        with torch.no_grad():
            model[0].weight.copy_(w)
            model[0].bias.fill_(bias)
        for method in METHODS:
            found = relume.certify(model, torch.zeros(4), torch.ones(4), method=method, witnesses=False)
            assert bool(found["1"].dead) is certain, (bias, found["1"].upper)


@pytest.mark.parametrize("gap", [0.0, 1e-8, 1e-7, -1e-7])
def test_a_bound_within_rounding_of_zero_certifies_nothing(gap):
    model = nn.Sequential(nn.Linear(8, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[0].bias.fill_(-0.8 - gap)
    for method in METHODS:
        found = relume.certify(model, torch.zeros(8), torch.ones(8), method=method, witnesses=False)
        assert not bool(found["1"].dead.any())
        assert abs(float(found["1"].upper)) < 1e-5


def test_a_number_is_taken_as_the_model_rounds_it():
    """x + 0.1 − 0.1 in float32, where 0.1 is rounded; and x > 0.1 for the float32 next to it."""

    class Shifted(nn.Module):
        def forward(self, x):
            return torch.relu(torch.where(x > 0.1, x, -1.0) + 0.1 - 0.1)

    tenth = torch.tensor([[0.1]])  # as float32: not above itself
    found = relume.certify(Shifted(), tenth[0], tenth[0], witnesses=False)
    assert float(found.sites[0].lower) <= -1.0
    assert float(found.sites[0].upper) >= -1.0


def test_float64_models_have_margins_of_float64():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    single = relume.certify(model, torch.zeros(3), torch.ones(3), witnesses=False)["1"]
    double = relume.certify(model.double(), torch.zeros(3), torch.ones(3), witnesses=False)["1"]
    extra = single.upper - double.upper
    assert bool((extra > 0).all())
    assert bool((extra < 1e-5).all())


def test_overflow_is_no_bound():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(-3e38)
        model[0].bias.fill_(0.0)
    found = relume.certify(model, torch.tensor([100.0]), torch.tensor([200.0]), witnesses=False)["1"]
    assert math.isinf(float(found.upper))
    assert not bool(found.dead)
