"""Bounds of single functions and operations: sound by sampling, and as tight as they should be."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import relume
from relume.activations import catalogue
from relume.prove.certify import curves
from relume.prove.certify.bound import Bound
from relume.prove.certify.rounding import gamma, margin

CURVES = {
    "relu": curves.RELU, "relu6": curves.hardtanh(0, 6), "leaky": curves.leaky(0.2), "leaky < 0": curves.leaky(-0.5),
    "elu": curves.elu(), "elu 3": curves.elu(3.0), "elu < 0": curves.elu(-0.5), "selu": curves.elu(1.6733, 1.0507),
    "celu": curves.elu(0.5, 1.0, 2.0), "gelu": curves.gelu(), "gelu tanh": curves.gelu("tanh"), "silu": curves.silu(),
    "quick gelu": curves.silu(1.702), "mish": curves.mish(), "softplus": curves.softplus(2.0),
    "softplus that switches": curves.softplus(1.0, 2.0), "sigmoid": curves.SIGMOID, "tanh": curves.TANH,
    "softsign": curves.SOFTSIGN, "tanhshrink": curves.TANHSHRINK, "logsigmoid": curves.LOGSIGMOID,
    "hardswish": curves.HARDSWISH, "hardsigmoid": curves.HARDSIGMOID, "square": curves.SQUARE,
    "squared relu": curves.SQUARED_RELU, "abs": curves.ABS, "exp": curves.EXP, "threshold": curves.threshold(0.3, 0.7),
    "threshold below": curves.threshold(0.3, -0.7), "softshrink": curves.softshrink(0.5),
    "hardshrink": curves.hardshrink(0.5),
    "drelu": curves.drelu(0.7, 0.1, "rational"), "drelu exponential": curves.drelu(0.7, 0.1, "exponential"),
}  # fmt: skip


def interval(low, high):
    low, high = (torch.tensor([v], dtype=torch.float64) for v in (low, high))
    return Bound(low, high, index=0)


@pytest.mark.parametrize("name", CURVES)
@settings(max_examples=25, deadline=None)
@given(middle=st.floats(-12, 12), radius=st.sampled_from([0.0, 1e-9, 1e-3, 0.5, 3.0, 15.0]))
def test_a_curve_is_bounded_and_lies_between_its_lines(name, middle, radius):
    curve = CURVES[name]
    x = interval(middle - radius, middle + radius)
    points = torch.linspace(0, 1, 3001, dtype=torch.float64) * (x.upper - x.lower) + x.lower
    points = torch.cat([points, torch.tensor([*curve.points, 0.0], dtype=torch.float64).clamp(x.lower, x.upper)])
    points = points.clamp(x.lower, x.upper)
    values = curve.function(points)
    bound = curve.bound(x, torch.float32, lines=True)
    assert bool((values >= bound.lower).all())
    assert bool((values <= bound.upper).all())
    if not curve.jumps:
        lines = bound.backward
        noise = 1e-13 * (1 + values.abs())
        assert bool((lines.low_slope * points + lines.low_at <= values + noise).all())
        assert bool((lines.high_slope * points + lines.high_at >= values - noise).all())
    # As tight as sampling can see, but for the margin.
    if not curve.jumps:
        slope = float((values[1:3001] - values[:3000]).abs().max())
        room = slope + 1e-4 * (1 + float(values.abs().max()))
        assert float(bound.upper - values.max()) <= room
        assert float(values.min() - bound.lower) <= room


@pytest.mark.parametrize("name", ["gelu", "gelu tanh", "silu", "quick gelu", "mish", "tanh", "softsign", "tanhshrink"])
def test_between_its_points_a_curve_does_not_change_between_convex_and_concave(name):
    """By second differences, on a fine grid, away from the points themselves."""
    curve = CURVES[name]
    x = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    second = curve.function(x[:-2]) - 2 * curve.function(x[1:-1]) + curve.function(x[2:])
    ends = [-6.0, *curve.points, 6.0]
    for low, high in pairwise(ends):
        inside = second[(x[1:-1] > low + 0.01) & (x[1:-1] < high - 0.01)]
        inside = inside[inside.abs() > 1e-13]
        assert len(inside) == 0 or bool((inside > 0).all() or (inside < 0).all()), (low, high)


def test_the_lines_of_relu_are_the_triangle():
    lines = curves.RELU.bound(interval(-1.0, 3.0), torch.float32, lines=True).backward
    assert float(lines.high_slope) == 0.75
    assert math.isclose(float(lines.high_at), 0.75, abs_tol=1e-12)
    assert float(lines.low_slope) == 1.0
    assert math.isclose(float(lines.low_at), 0.0, abs_tol=1e-12)
    lines = curves.RELU.bound(interval(-3.0, 1.0), torch.float32, lines=True).backward
    assert float(lines.low_slope) == 0.0
    lines = curves.RELU.bound(interval(-3.0, 0.0), torch.float32, lines=True).backward
    assert float(lines.high_slope) == 0.0
    assert math.isclose(float(lines.high_at), 0.0, abs_tol=1e-12)


def test_gelus_dip_is_found_to_the_last_digits():
    bound = curves.gelu().range(torch.tensor([-3.0]).double(), torch.tensor([0.0]).double())
    assert math.isclose(float(bound[0]), -0.16997120747990369, rel_tol=1e-14)


def test_gamma_is_highams_and_says_nothing_of_too_many_terms():
    assert gamma(10, 2.0**-24) == 10 * 2.0**-24 / (1 - 10 * 2.0**-24)
    assert gamma(2**24, 2.0**-24) == math.inf
    assert bool(torch.isinf(margin(3, torch.tensor([3.5e38]).double(), torch.float32)))


@pytest.mark.parametrize("n", [8, 100, 3000])
def test_the_margin_covers_sums_in_any_order(n):
    """Sums of products in float32, forward, backward and in random orders, against float64."""
    generator = torch.Generator().manual_seed(n)
    w, x = torch.randn(2, n, generator=generator)
    exact = (w.double() * x.double()).sum()
    allowed = margin(n, (w.double() * x.double()).abs().sum().reshape(1), torch.float32)
    for _ in range(20):
        order = torch.randperm(n, generator=generator)
        total = torch.zeros(())
        for part in (w * x)[order]:
            total = total + part
        assert abs(float(total.double() - exact)) <= float(allowed)


def test_ibp_of_one_layer_is_the_exact_range():
    torch.manual_seed(0)
    layer = nn.Linear(5, 7)
    lower, upper = torch.rand(5) - 1, torch.rand(5)
    found = relume.certify(nn.Sequential(layer, nn.ReLU()), lower, upper, witnesses=False)["1"]
    w, b = layer.weight.double(), layer.bias.double()
    high = (w.clamp(min=0) * upper + w.clamp(max=0) * lower).sum(1) + b
    low = (w.clamp(min=0) * lower + w.clamp(max=0) * upper).sum(1) + b
    assert torch.allclose(found.upper, high, atol=1e-5)
    assert torch.allclose(found.lower, low, atol=1e-5)
    assert bool((found.upper >= high).all())


class Cancels(nn.Module):
    """x goes two ways that cancel: relu(a(x) − a(x) − 0.1) never fires."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x):
        y = self.a(x)
        return torch.relu(y - y.flip(-1).flip(-1) - 0.1)


def test_crown_sees_what_cancels_and_ibp_does_not():
    ibp, crown = (
        relume.certify(Cancels(), -torch.ones(3), torch.ones(3), method=m, witnesses=False)[":relu"]
        for m in ("ibp", "crown")
    )
    assert int(ibp.dead.sum()) == 0
    assert int(crown.dead.sum()) == 4
    assert float(crown.width.max()) < 1e-5


def test_crown_of_a_two_layer_relu_net_is_that_of_zhang_et_al():
    """Against the formulas written out for one hidden layer, without margins."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU())
    found = relume.certify(model, -torch.ones(4), torch.ones(4), method="crown", witnesses=False)["3"]
    w1, b1, w2, b2 = (p.detach().double() for p in model.parameters())
    u, low = b1 + w1.abs().sum(1), b1 - w1.abs().sum(1)
    chord = torch.where(low >= 0, 1.0, torch.where(u <= 0, 0.0, u / (u - low)))
    offset = torch.where((low < 0) & (u > 0), -low * u / (u - low), 0.0)
    below = torch.where(low >= 0, 1.0, torch.where(u <= 0, 0.0, (u > -low).double()))
    plus, minus = w2.clamp(min=0), w2.clamp(max=0)
    a = plus * chord + minus * below
    high = a @ b1 + plus @ offset + b2 + (a @ w1).abs().sum(1)
    u2 = b2 + plus @ u.clamp(min=0) + minus @ low.clamp(min=0)
    assert torch.allclose(found.upper, torch.minimum(high, u2), atol=1e-5)


def test_max_pooling_keeps_linear_bounds_where_one_element_wins():
    class Pools(nn.Module):
        def forward(self, x):
            offset = torch.tensor([[0.0, -10.0], [-10.0, -10.0]])
            y = torch.nn.functional.max_pool2d(x + offset, 2)
            return torch.relu(y - x[..., :1, :1] - 0.5)

    found = relume.certify(Pools(), torch.zeros(1, 2, 2), torch.ones(1, 2, 2), method="crown", witnesses=False).sites[0]
    assert bool(found.dead.all())
    assert float(found.width.max()) < 1e-4


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 9), offset=st.sampled_from([0.0, 3.0, 1000.0]))
def test_layer_and_rms_norm_are_bounded_and_never_beyond_what_n_values_allow(seed, n, offset):
    torch.manual_seed(seed)
    low = torch.randn(n) + offset
    high = low + torch.rand(n) * 2
    for norm in (nn.LayerNorm(n, elementwise_affine=False), nn.RMSNorm(n, eps=1e-5)):
        found = relume.certify(nn.Sequential(norm, nn.ReLU()), low, high, witnesses=False)["1"]
        x = low + torch.rand(500, n) * (high - low)
        y = norm(torch.clamp(x, low, high)).double()
        assert bool((y >= found.lower).all())
        assert bool((y <= found.upper).all())
        if not offset:
            assert float(found.upper.max()) <= math.sqrt(n) * 1.01


def test_softmax_is_bounded_by_its_extremes():
    low, high = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([1.0, 0.5, 0.0])

    class Gate(nn.Module):
        def forward(self, x):
            return torch.relu(torch.softmax(x, -1))

    found = relume.certify(Gate(), low, high, witnesses=False).sites[0]
    assert math.isclose(float(found.upper[0]), math.e / (math.e + 1 + math.exp(-1)), rel_tol=1e-4)
    assert math.isclose(float(found.lower[0]), 1 / (1 + math.exp(0.5) + 1), rel_tol=1e-4)


def test_every_activation_of_the_catalogue_that_torch_has_is_certified(zoo):
    """The zoo's network of all activations meets an entry for each that is a module of torch or relume."""
    model, shape = zoo.build("activations")
    met = {s.site.activation for s in relume.certify(model, -1.0, 1.0, shape=shape, witnesses=False).sites}
    others = {
        "identity", "quick_gelu", "relu_squared", "glu", "dual_relu", "dynamic_relu", "drelu_gate", "displaced_relu",
        "drelu_exponential",
    }  # fmt: skip
    assert set(catalogue.FACTORIES) - others <= met


@pytest.mark.parametrize("name", ["displaced_relu", "dual_relu", "dynamic_relu", "drelu_gate"])
def test_relumes_other_activations_are_certified_by_their_operations(name):
    module = {
        "displaced_relu": lambda: relume.nn.DisplacedReLU(),
        "dual_relu": lambda: relume.nn.DualReLU(),
        "dynamic_relu": lambda: relume.nn.DynamicReLU(6),
        "drelu_gate": lambda: relume.nn.DReLUGatedMLP(6, 6),
    }[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), module()).eval()
    found = relume.certify(model, -torch.ones(4), torch.ones(4))
    assert all(bool(torch.isfinite(s.upper).all()) for s in found.sites)
