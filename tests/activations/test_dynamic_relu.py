"""Dynamic ReLU against the paper's formula written out with loops, and what a watch sees in it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import relume
from relume.functional import dynamic_relu
from relume.nn import DynamicReLU


def by_loops(module: DynamicReLU, x: Tensor, slope_range: float = 1.0, intercept_range: float = 0.5) -> Tensor:
    """Chen et al. 2020, section 3, an output at a time; x is [N, C, H, W]."""
    out = torch.empty_like(x)
    k_pieces, (n, c, h, w) = module.pieces, x.shape
    first, _, last, _ = module.coefficients
    for i in range(n):
        pooled = torch.stack([x[i, j].mean() for j in range(c)])
        residual = 2 * torch.sigmoid(last(torch.relu(first(pooled)))) - 1
        pi = torch.ones(h, w, dtype=x.dtype)
        if module.kind == "C":
            z = torch.stack([torch.stack([module.attention(x[i, :, a, b])[0] for b in range(w)]) for a in range(h)])
            e = torch.exp(z / module.temperature)
            pi = torch.clamp(h * w / 3 * e / e.sum(), max=1)
        for j in range(c):
            pieces = []
            for k in range(k_pieces):
                sets = 1 if module.kind == "A" else c
                at = 0 if module.kind == "A" else j
                slope = (1.0 if k == 0 else 0.0) + slope_range * residual[k * sets + at]
                intercept = intercept_range * residual[(k_pieces + k) * sets + at]
                pieces.append(pi * (slope * x[i, j] + intercept))
            out[i, j] = torch.stack(pieces).amax(0)
    return out


@pytest.mark.parametrize("kind", ["A", "B", "C"])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_it_is_the_papers_formula(kind, pieces: int) -> None:
    module = DynamicReLU(6, kind, pieces=pieces, reduction=2, dtype=torch.float64)
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64) * 2
    torch.testing.assert_close(module(x), by_loops(module, x))


def test_the_ranges_scale_the_residuals() -> None:
    module = DynamicReLU(4, "B", slope_range=0.3, intercept_range=2.0, reduction=1, dtype=torch.float64)
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_loops(module, x, 0.3, 2.0))


@given(st.integers(1, 4), st.lists(st.floats(-5, 5), min_size=1, max_size=8))
@settings(deadline=None, max_examples=30)
def test_the_function_is_the_largest_of_its_pieces(pieces: int, values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    a, b = torch.randn(2, pieces, 1, dtype=torch.float64)
    expected = [max(float(a[k]) * v + float(b[k]) for k in range(pieces)) for v in values]
    assert dynamic_relu(x, a, b).tolist() == pytest.approx(expected)


def test_the_channel_axis_may_be_the_last_and_positions_any_number() -> None:
    module = DynamicReLU(6, "C", reduction=2, dtype=torch.float64)
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    last = DynamicReLU(6, "C", reduction=2, axis=-1, dtype=torch.float64)
    last.load_state_dict(module.state_dict())
    torch.testing.assert_close(last(x.movedim(1, -1)).movedim(-1, 1), module(x))
    torch.testing.assert_close(module(x.flatten(2)).view_as(x), module(x))
    assert DynamicReLU(6, "B")(torch.randn(2, 6)).shape == (2, 6)


@pytest.mark.parametrize("kind", ["A", "B"])
def test_it_can_start_as_relu_exactly_and_learn_from_there(kind) -> None:
    module = DynamicReLU(6, kind, as_relu=True)
    x = torch.randn(4, 6, 3, 3)
    assert torch.equal(module(x), x.relu())
    module(x).square().sum().backward()
    assert module.coefficients[2].weight.grad.abs().sum() + module.coefficients[2].bias.grad.abs().sum() > 0


def test_attention_never_exceeds_one_and_spreads_a_third_of_the_positions() -> None:
    module = DynamicReLU(4, "C", temperature=0.01)
    pi = module._attention(torch.randn(5, 4, 6, 6), 1)
    assert pi.shape == (5, 1, 6, 6)
    assert float(pi.detach().max()) == 1.0
    even = DynamicReLU(4, "C", temperature=1e9)._attention(torch.randn(5, 4, 6, 6), 1)
    torch.testing.assert_close(even, torch.full((5, 1, 6, 6), 1 / 3))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DynamicReLU(4, "D"), "kind must be"),
        (lambda: DynamicReLU(4, pieces=0), "at least 1"),
        (lambda: DynamicReLU(4, temperature=0.0), "temperature must be above 0"),
        (lambda: DynamicReLU(4)(torch.randn(2, 3, 5)), r"expects 4 channels on axis 1, got \(2, 3, 5\)"),
        (lambda: DynamicReLU(4, "C")(torch.randn(2, 4)), "attends to positions"),
    ],
)
def test_what_it_cannot_do_it_says(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_a_watch_sees_a_site_without_flat_zone_and_the_dead_units_of_the_hyper_network() -> None:
    module = DynamicReLU(8, "C", reduction=2)
    with torch.no_grad():
        module.coefficients[0].bias.copy_(torch.tensor([-100.0, -100.0, -100.0, 100.0]))
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        conv.bias[:2] = -20.0  # for ReLU these would be dead, and saturated
    census = relume.census(nn.Sequential(conv, module), torch.randn(300, 3, 6, 6))
    site = census["1:dynamic_relu"]
    assert (site.units, int(site.dead.sum()), site.site.can_die, site.site.producer) == (8, 0, False, "0")
    assert not site.saturated.any()
    assert census["1.coefficients.1"].dead.tolist() == [True] * 3 + [False]


def test_its_gain_is_that_of_relu_which_it_is_at_rest() -> None:
    assert relume.activations.activation("DyReLU").gain == pytest.approx(math.sqrt(2))
