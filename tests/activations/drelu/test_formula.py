"""What DReLU is, by its properties: smooth at zero, never flat, scaled by τ, between LeakyReLU and the identity."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relume.activations.drelu import entry
from relume.functional import drelu

FORMS = ["rational", "exponential"]
numbers = st.floats(-1e3, 1e3, allow_nan=False)
taus = st.floats(0.01, 100.0)
alphas = st.floats(0.01, 0.99)
forms = st.sampled_from(FORMS)


def f(x, tau, alpha, form):
    return drelu(torch.tensor(x, dtype=torch.float64), tau, alpha, form=form)


def slope(x, tau, alpha, form):
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(drelu(leaf, tau, alpha, form=form).sum(), leaf)
    return g


def by_hand(x, tau, alpha, form):
    if x >= 0:
        return x
    below = x / (1 + abs(x) / tau) if form == "rational" else tau * math.expm1(x / tau)
    return alpha * x + (1 - alpha) * below


@settings(deadline=None)
@given(x=numbers, tau=taus, alpha=alphas, form=forms)
def test_it_is_what_the_formula_says(x, tau, alpha, form):
    assert f(x, tau, alpha, form).item() == pytest.approx(by_hand(x, tau, alpha, form), rel=1e-12, abs=1e-300)


@settings(deadline=None)
@given(x=st.floats(0, 1e30), tau=taus, alpha=alphas, form=forms)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_above_zero_it_is_exactly_the_identity_with_slope_one(x, tau, alpha, form, dtype):
    leaf = torch.full((40,), x, dtype=dtype, requires_grad=True)
    y = drelu(leaf, tau, alpha, form=form)
    (g,) = torch.autograd.grad(y, leaf, torch.full_like(y, 3.0))
    assert torch.equal(y, leaf)
    assert torch.equal(g, torch.full_like(g, 3.0))


@settings(deadline=None)
@given(x=numbers, tau=taus, alpha=alphas, form=forms)
def test_its_slope_never_falls_below_alpha_nor_rises_above_one(x, tau, alpha, form):
    assert alpha * (1 - 1e-12) <= slope(x, tau, alpha, form).item() <= 1 + 1e-12


@settings(deadline=None)
@given(x=numbers, tau=taus, alpha=alphas, form=forms)
def test_its_slope_is_the_analytic_one(x, tau, alpha, form):
    u = max(0.0, -x) / tau
    fade = 1 / (1 + u) ** 2 if form == "rational" else math.exp(-u)
    assert slope(x, tau, alpha, form).item() == pytest.approx(alpha + (1 - alpha) * fade, rel=1e-9)


@settings(deadline=None)
@given(tau=taus, alpha=alphas, form=forms)
def test_function_and_slope_are_continuous_at_zero(tau, alpha, form):
    h = 1e-9 * tau
    assert f(-h, tau, alpha, form).item() == pytest.approx(-h, rel=1e-8)
    assert slope(-h, tau, alpha, form).item() == pytest.approx(1.0, abs=1e-8)
    assert slope(0.0, tau, alpha, form).item() == slope(h, tau, alpha, form).item() == 1.0


@settings(deadline=None)
@given(a=numbers, b=numbers, tau=taus, alpha=alphas, form=forms)
def test_it_rises_strictly(a, b, tau, alpha, form):
    assume(b - a > 1e-9 * max(1.0, abs(a), abs(b)))
    assert f(a, tau, alpha, form) < f(b, tau, alpha, form)


@settings(deadline=None)
@given(x=numbers, c=st.floats(0.01, 100.0), tau=taus, alpha=alphas, form=forms)
def test_scaling_input_and_tau_scales_the_output(x, c, tau, alpha, form):
    assert f(c * x, c * tau, alpha, form).item() == pytest.approx(
        c * f(x, tau, alpha, form).item(), rel=1e-12, abs=1e-300
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_narrow_transition_is_leaky_relu_and_a_wide_one_the_identity(form):
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    torch.testing.assert_close(drelu(x, 1e-9, 0.2, form=form), F.leaky_relu(x, 0.2), rtol=0, atol=1e-8)
    torch.testing.assert_close(drelu(x, 1e9, 0.2, form=form), x, rtol=0, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_without_slope_and_width_it_is_relu(form):
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    torch.testing.assert_close(drelu(x, 1e-9, 1e-9, form=form), torch.relu(x), rtol=0, atol=1e-8)


def test_the_exponential_form_without_slope_is_celu_and_at_width_one_elu():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    torch.testing.assert_close(drelu(x, 2.0, 1e-12, form="exponential"), F.celu(x, 2.0))
    torch.testing.assert_close(drelu(x, 1.0, 1e-12, form="exponential"), F.elu(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinite_inputs_give_infinite_outputs_and_finite_slopes(form, dtype):
    x = torch.tensor([math.inf, -math.inf, 1e38, -1e38] * 9, dtype=dtype, requires_grad=True)
    y = drelu(x, 0.5, 0.25, form=form)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert y[:2].tolist() == [math.inf, -math.inf]
    torch.testing.assert_close(g[:4], torch.tensor([1.0, 0.25, 1.0, 0.25], dtype=dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_nan(form):
    x = torch.tensor([math.nan, 1.0] * 20)
    assert drelu(x, form=form).isnan().tolist() == [True, False] * 20


def test_the_registry_computes_its_gain_from_the_same_formula():
    z = torch.randn(1_000_000, dtype=torch.float64)
    second = drelu(z).square().mean().item()
    assert entry().gain == pytest.approx(second**-0.5, rel=5e-3)
    assert not entry().flat
