"""Gains: numerical integrals against closed forms, against quad, against torch, and by running wide layers."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor, nn

import relume
from relume.activations import Activation, activation, all_activations, registry
from relume.activations.gains import normal_mean
from relume.activations.registry import TwoInputs

SQRT_2PI = math.sqrt(2 * math.pi)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test registers is unknown to the next."""
    monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))


ONE_INPUT = [a for a in all_activations() if not isinstance(a, TwoInputs)]


def cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def pdf(x: float) -> float:
    return math.exp(-x * x / 2) / SQRT_2PI


def below(t: float) -> float:
    """E e^(tz) over z < 0."""
    return math.exp(t * t / 2) * cdf(-t)


# Mean, E f², E f'², worked out by hand.
CLOSED = {
    "identity": (0.0, 1.0, 1.0),
    "relu": (1 / SQRT_2PI, 0.5, 0.5),
    "relu_squared": (0.5, 1.5, 2.0),
    "leaky_relu(0.3)": (0.7 / SQRT_2PI, (1 + 0.09) / 2, (1 + 0.09) / 2),
    "elu": (1 / SQRT_2PI + below(1) - 0.5, 0.5 + below(2) - 2 * below(1) + 0.5, 0.5 + below(2)),
    "hardtanh": (0.0, 1 - 2 * pdf(1) - 2 * cdf(-1) + 2 * cdf(-1), 1 - 2 * cdf(-1)),
    "displaced_relu(1)": (pdf(1) - cdf(-1), cdf(1) - pdf(1) + cdf(-1), cdf(1)),
    "gelu": (1 / (2 * math.sqrt(math.pi)), 1 / 3 + 1 / (2 * math.sqrt(3) * math.pi), None),
    "selu": (0.0, 1.0, None),  # what its constants were chosen for
    "dual_relu": (0.0, 1 - 1 / math.pi, 0.5),
    "drelu_gate": (1 / (2 * math.pi), 0.25, 0.25),
}


@pytest.mark.parametrize("name", CLOSED)
def test_moments_are_those_worked_out_by_hand(name: str) -> None:
    entry = activation(name)
    mean, second, slope = CLOSED[name]
    assert entry.mean == pytest.approx(mean, abs=1e-9)
    assert entry.variance == pytest.approx(second - mean**2, abs=1e-9)
    assert entry.gain == pytest.approx(1 / math.sqrt(second), rel=1e-9)
    if slope is not None:
        assert entry.backward_gain == pytest.approx(1 / math.sqrt(slope), rel=1e-9)


@pytest.mark.parametrize("entry", ONE_INPUT, ids=lambda a: a.name)
def test_every_gain_agrees_with_scipys_adaptive_quadrature(entry: Activation) -> None:
    def integral(g) -> float:
        edges = sorted({-14.0, 14.0, *(k for k in entry.kinks if abs(k) < 14)})
        return sum(
            quad(lambda x: g(torch.tensor([x], dtype=torch.float64)) * pdf(x), a, b, epsabs=1e-13, limit=200)[0]
            for a, b in itertools.pairwise(edges)
        )

    second = integral(lambda x: float(entry.function(x)[0]) ** 2)
    assert entry.gain == pytest.approx(1 / math.sqrt(second), rel=1e-9)
    if entry.name in ("tanh", "drelu", "softsign", "hardswish", "displaced_relu"):  # autograd a point at a time is slow
        slope = integral(lambda x: float(entry.derivative(x)[0]) ** 2)
        assert entry.backward_gain == pytest.approx(1 / math.sqrt(slope), rel=1e-9)


def test_torchs_gain_is_reproduced_where_torch_is_exact() -> None:
    of_torch = nn.init.calculate_gain
    assert activation("relu").gain == pytest.approx(of_torch("relu"), rel=1e-12)
    assert activation("linear").gain == pytest.approx(of_torch("linear"), rel=1e-12)
    for slope in (0.01, 0.2, 1.0, 3.0):
        assert activation("leaky_relu", negative_slope=slope).gain == pytest.approx(of_torch("leaky_relu", slope))


def test_torchs_gain_differs_where_it_is_a_convention() -> None:
    """5/3, 3/4 and 1 are not 1 / sqrt(E f²): if torch changes them, docs/activations.md has to say so."""
    for name, convention, true in (("tanh", 5 / 3, 1.5925374), ("selu", 3 / 4, 1.0), ("sigmoid", 1.0, 1.8462285)):
        assert nn.init.calculate_gain(name) == convention
        assert activation(name).gain == pytest.approx(true, abs=1e-7)


@given(st.floats(-3, 3), st.floats(-2, 2), st.floats(-2, 2))
@example(1.00001, 0.0, 1.0)  # between a panel's end and its first node
@example(6.1e-5, 0.0, 1.0)  # there, and near zero on both sides
@example(1e-10, 1.0, 0.0)  # a jump hard at an end
@example(1.0, 5e-324, 0.0)  # so small that halves never agree
@example(-0.5, 0.0, 2.2e-311)
@settings(deadline=None)
def test_a_kink_and_a_jump_that_nobody_announced_are_found(at: float, low: float, high: float) -> None:
    (found,) = normal_mean(lambda x: torch.where(x < at, low, high * x)[None])
    assert found == pytest.approx(low * cdf(at) + high * pdf(at), abs=1e-10)


def test_a_function_that_is_rough_everywhere_ends_in_a_number() -> None:
    noise = torch.Generator().manual_seed(0)
    (found,) = normal_mean(lambda x: torch.rand((1, len(x)), generator=noise, dtype=torch.float64))
    assert found == pytest.approx(0.5, abs=0.05)


@given(st.floats(0.01, 100))
@settings(deadline=None, max_examples=20)
def test_a_small_or_large_function_has_its_gain_to_the_same_relative_precision(scale: float) -> None:
    @relume.register_activation(name=f"scaled {scale}")
    def scaled(x: Tensor) -> Tensor:
        return scale * torch.relu(x - 0.25)

    reference = normal_mean(lambda x: torch.relu(x - 0.25)[None] ** 2, [0.25])[0]
    entry = next(a for a in all_activations() if a.name == f"scaled {scale}")
    assert entry.gain == pytest.approx(1 / (scale * math.sqrt(reference)), rel=1e-10)


def test_a_function_that_is_zero_has_no_gain_and_a_flat_one_no_backward_gain() -> None:
    zero = Activation("zero", "0", lambda x: x * 0.0)
    step = Activation("step", "x > 0", lambda x: (x > 0).double() + x * 0)
    assert (zero.gain, zero.backward_gain, step.backward_gain) == (math.inf, math.inf, math.inf)
    assert step.gain == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "drelu", "selu", "displaced_relu"])
def test_with_its_gain_a_wide_network_keeps_the_scale_of_its_pre_activations(name: str) -> None:
    entry = activation(name)
    generator = torch.Generator().manual_seed(1)
    width = 1024
    z = torch.randn(512, width, generator=generator, dtype=torch.float64)
    for _ in range(4):
        weights = torch.randn(width, width, generator=generator, dtype=torch.float64) * entry.gain / math.sqrt(width)
        z = entry.function(z) @ weights
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.12)


def test_both_inputs_of_a_gate_count_in_its_moments() -> None:
    """Against a million draws."""
    a, b = torch.randn(2, 1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in ("glu", "dual_relu", "drelu_gate"):
        entry = activation(name)
        out = entry.both(a, b)
        assert entry.gain == pytest.approx(float(out.square().mean()) ** -0.5, rel=0.01)
        assert entry.mean == pytest.approx(float(out.mean()), abs=0.005)


def test_a_gain_can_be_asked_for_inside_a_watched_forward_and_under_inference_mode() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            fresh = Activation("fresh", "max(0, x)", lambda t: torch.relu(t))
            return torch.relu(self.up(x)) * fresh.gain

    census = relume.census(Net(), torch.randn(300, 4))
    assert list(census) == [":relu"]
    with torch.inference_mode():
        assert Activation("fresh", "x", torch.tanh).backward_gain == pytest.approx(activation("tanh").backward_gain)
