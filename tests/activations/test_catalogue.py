"""Each entry against torch's own function and torch's own gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from relume.activations import Activation, Zone
from relume.activations import catalogue as of

INF = math.inf
GRID = torch.linspace(-12, 12, 4801, dtype=torch.float64)

# Entry, torch's function, flat zone.
STANDARD = {
    "sigmoid": (of.sigmoid(), nn.Sigmoid(), ()),
    "tanh": (of.tanh(), nn.Tanh(), ()),
    "relu": (of.relu(), nn.ReLU(), ((-INF, 0),)),
    "relu6": (of.hardtanh(0.0, 6.0), nn.ReLU6(), ((-INF, 0), (6, INF))),
    "leaky_relu": (of.leaky_relu(), nn.LeakyReLU(), ()),
    "leaky_relu 0.2": (of.leaky_relu(0.2), nn.LeakyReLU(0.2), ()),
    "leaky_relu 0": (of.leaky_relu(0.0), nn.LeakyReLU(0.0), ((-INF, 0),)),
    "prelu": (of.prelu(), nn.PReLU(dtype=torch.float64), ()),
    "rrelu": (of.rrelu(), nn.RReLU().eval(), ()),
    "rrelu 0.1 0.5": (of.rrelu(0.1, 0.5), nn.RReLU(0.1, 0.5).eval(), ()),
    "elu": (of.elu(), nn.ELU(), ()),
    "elu 0.3": (of.elu(0.3), nn.ELU(0.3), ()),
    "elu 0": (of.elu(0.0), nn.ELU(0.0), ((-INF, 0),)),
    "selu": (of.selu(), nn.SELU(), ()),
    "celu": (of.celu(), nn.CELU(), ()),
    "celu 2": (of.celu(2.0), nn.CELU(2.0), ()),
    "gelu": (of.gelu(), nn.GELU(), ()),
    "gelu tanh": (of.gelu("tanh"), nn.GELU("tanh"), ()),
    "silu": (of.silu(), nn.SiLU(), ()),
    "mish": (of.mish(), nn.Mish(), ()),
    "softplus": (of.softplus(), nn.Softplus(), ()),
    "softplus 2, 5": (of.softplus(2.0, 5.0), nn.Softplus(2.0, 5.0), ()),
    "hardtanh": (of.hardtanh(-1.0, 1.0), nn.Hardtanh(), ((-INF, -1), (1, INF))),
    "hardtanh -2 0.5": (of.hardtanh(-2.0, 0.5), nn.Hardtanh(-2.0, 0.5), ((-INF, -2), (0.5, INF))),
    "hardswish": (of.hardswish(), nn.Hardswish(), ((-INF, -3),)),
    "hardsigmoid": (of.hardsigmoid(), nn.Hardsigmoid(), ((-INF, -3), (3, INF))),
    "glu": (of.glu(), lambda x: F.glu(torch.stack([torch.ones_like(x), x]), 0).squeeze(0), ()),
    "softsign": (of.softsign(), nn.Softsign(), ()),
    "tanhshrink": (of.tanhshrink(), nn.Tanhshrink(), ()),
    "logsigmoid": (of.logsigmoid(), nn.LogSigmoid(), ()),
    "softshrink": (of.softshrink(), nn.Softshrink(), ((-0.5, 0.5),)),
    "hardshrink 2": (of.hardshrink(2.0), nn.Hardshrink(2.0), ((-2, 2),)),
    "threshold": (of.threshold(1.5, 0.0), nn.Threshold(1.5, 0.0), ((-INF, 1.5),)),
    "threshold 0 -1": (of.threshold(0.0, -1.0), nn.Threshold(0.0, -1.0), ((-INF, 0),)),
}
every = pytest.mark.parametrize(("entry", "torchs", "flat"), STANDARD.values(), ids=STANDARD)
FLAT = {n: c for n, c in STANDARD.items() if c[2]}


def slope(function, x: torch.Tensor) -> torch.Tensor:
    """f'(x) as torch's own backward has it."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


@every
def test_the_function_is_torchs_own(entry: Activation, torchs, flat) -> None:
    torch.testing.assert_close(entry.function(GRID), torchs(GRID), rtol=0, atol=0)


@every
def test_the_derivative_is_torchs_own_away_from_the_kinks(entry: Activation, torchs, flat) -> None:
    x = GRID + 0.0003  # on no edge
    torch.testing.assert_close(entry.derivative(x), slope(torchs, x), rtol=1e-12, atol=1e-12)


@every
def test_the_flat_zone_is_stated(entry: Activation, torchs, flat) -> None:
    assert entry.flat == Zone(tuple((float(a), float(b)) for a, b in flat))


@pytest.mark.parametrize(("entry", "torchs", "flat"), FLAT.values(), ids=FLAT)
def test_the_flat_zone_is_where_torchs_gradient_is_exactly_zero(entry: Activation, torchs, flat) -> None:
    x = GRID + 0.0003  # on no edge, and not where hardswish turns
    assert torch.equal(entry.flat.contains(x), slope(torchs, x) == 0)
    assert not entry.derivative(GRID[entry.flat.contains(GRID)]).any()


@pytest.mark.parametrize(("entry", "torchs", "flat"), FLAT.values(), ids=FLAT)
def test_the_flat_zone_begins_at_the_very_edge_in_float32(entry: Activation, torchs, flat) -> None:
    for low, high in flat:
        for edge, out in ((low, -INF), (high, INF)):
            if math.isinf(edge):
                continue
            at = torch.tensor([edge], dtype=torch.float32)
            outside, inside = (torch.nextafter(at, torch.tensor(v)) for v in (out, -out))
            assert slope(torchs, outside) != 0
            assert slope(torchs, inside) == 0
            assert [bool(entry.flat.contains(v)) for v in (outside, at, inside)] == [False, True, True]


@every
def test_the_saturated_zone_is_where_the_slope_is_below_one_in_a_hundred(entry: Activation, torchs, flat) -> None:
    x = GRID + 0.0003
    assert torch.equal(entry.saturated.contains(x), entry.derivative(x).abs() < 0.01)


@every
def test_units_in_one_linear_interval_are_affine_there(entry: Activation, torchs, flat) -> None:
    for low, high in entry.linear_zone.intervals:
        x = torch.linspace(max(low, -12), min(high, 12), 1001, dtype=torch.float64)[1:-1]
        slopes = entry.derivative(x)
        assert slopes.max() - slopes.min() <= 0.02
        assert not entry.flat.contains(x).any()


# The edges in closed form; "exact" ones are where straight pieces end.
LINEAR = {
    "relu": ((5e-324, INF),),
    "leaky_relu": ((-INF, 0), (0, INF)),
    "prelu": ((-INF, 0), (0, INF)),
    "rrelu": ((-INF, 0), (0, INF)),
    "elu": ((0, INF),),
    "selu": ((0, INF),),
    "celu": ((0, INF),),
    "hardswish": ((3, INF),),
    "sigmoid": (),
    "glu": (),
    "tanh": ((-math.atanh(0.1), math.atanh(0.1)),),
    "softplus": ((math.log(99), INF),),
    "logsigmoid": ((-INF, -math.log(99)),),
    "tanhshrink": ((-INF, -math.atanh(math.sqrt(0.99))), (math.atanh(math.sqrt(0.99)), INF)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_the_linear_zone_is_the_straight_part(name: str) -> None:
    found = STANDARD[name][0].linear_zone.intervals
    assert len(found) == len(LINEAR[name])
    for a, b in zip(found, LINEAR[name], strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=0)


@pytest.mark.parametrize("name", ["gelu", "silu", "mish"])
def test_a_smooth_activation_is_linear_in_its_right_tail_only(name: str) -> None:
    entry = STANDARD[name][0]
    ((low, high),) = entry.linear_zone.intervals
    assert 2 < low < 7
    assert high == INF
    assert entry.derivative(torch.tensor([low - 0.01, low + 0.01])).sub(1).abs().sub(0.01).sign().tolist() == [1, -1]


@pytest.mark.parametrize(
    ("name", "top"), [("relu6", 6.0), ("hardtanh", 1.0), ("hardtanh -2 0.5", 0.5), ("hardsigmoid", 3.0)]
)
def test_a_ceiling_is_known(name: str, top: float) -> None:
    assert STANDARD[name][0].tops == top


def test_nothing_else_has_a_ceiling() -> None:
    with_top = {n for n, (entry, _, _) in STANDARD.items() if entry.tops is not None}
    assert with_top == {"relu6", "hardtanh", "hardtanh -2 0.5", "hardsigmoid"}


@every
def test_an_entry_that_promises_no_negative_output_has_none(entry: Activation, torchs, flat) -> None:
    assert entry.non_negative == bool((entry.function(GRID) >= 0).all()) or entry.name in ("threshold", "glu")
    if entry.non_negative:
        assert (entry.function(GRID) >= 0).all()


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softsign", "glu"])
def test_two_sided_saturation_is_counted_sample_by_sample(name: str) -> None:
    entry = STANDARD[name][0]
    assert entry.counts_responsive
    assert entry.counted_zone == entry.saturated


@pytest.mark.parametrize("name", ["gelu", "leaky_relu", "softplus", "tanhshrink"])
def test_one_sided_saturation_follows_from_the_extremes_and_is_not_counted(name: str) -> None:
    assert not STANDARD[name][0].counted_zone


@pytest.mark.parametrize(
    "entry",
    [of.leaky_relu(0.0), of.threshold(0.0, 0.0), of.rrelu(0.0, 0.0), of.elu(0.0), of.hardtanh(0.0, INF)],
    ids=["leaky_relu", "threshold", "rrelu", "elu", "hardtanh"],
)
def test_parameters_that_make_a_relu_give_the_relu(entry: Activation) -> None:
    assert entry is of.relu()


def test_a_limit_at_infinity_clips_nothing() -> None:
    below, above = of.hardtanh(-INF, 3.0), of.hardtanh(-2.0, INF)
    assert (below.flat.intervals, below.tops) == (((3.0, INF),), 3.0)
    assert (above.flat.intervals, above.tops) == (((-INF, -2.0),), None)
    assert below.linear_zone.covers(torch.tensor([-1e300]), torch.tensor([2.9])).all()


def test_a_leaky_slope_of_one_is_linear_across_zero() -> None:
    assert of.leaky_relu(1.0).linear_zone.covers(torch.tensor([-5.0]), torch.tensor([5.0])).all()
    assert not of.leaky_relu(0.2).linear_zone.covers(torch.tensor([-5.0]), torch.tensor([5.0])).any()


@given(st.floats(-30, 30, width=32), st.floats(0.0625, 20, width=32))
def test_any_limits_give_torchs_clipping_and_its_zones(low: float, width: float) -> None:
    high = low + width
    entry = of.hardtanh(low, high)
    x = torch.tensor([low - 1, low, (low + high) / 2, high, high + 1], dtype=torch.float64)
    assert torch.equal(entry.function(x), x.clamp(low, high))
    assert entry.flat.contains(x).tolist() == [True, True, False, True, True]


@given(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32))
def test_a_threshold_is_flat_up_to_and_including_it(at: float, value: float) -> None:
    x = torch.tensor([at - 1, at, at + 0.5], dtype=torch.float64)
    entry = of.threshold(at, value)
    assert entry.flat.contains(x).tolist() == [True, True, False]
    assert torch.equal(entry.function(x), F.threshold(x, at, value))
    assert entry.linear_zone.contains(x).tolist() == [False, False, True]
