"""The chance that a ReLU network is born dead: closed form, Monte Carlo, bounds; and what RAI makes of it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import relume
from relume.init import born_dead_probability, simulate_born_dead

# Monte Carlo with 20,000 networks (8,000 at depth 50), He normal, zero biases, input of both signs.
DEPTHS = (2, 5, 10, 20, 50)
TABLE = {
    2: (0.160, 0.619, 0.911, 0.995, 1.000),
    3: (0.044, 0.293, 0.632, 0.903, 0.999),
    4: (0.012, 0.112, 0.334, 0.649, 0.947),
    5: (0.003, 0.039, 0.152, 0.374, 0.764),
    8: (0.000, 0.001, 0.010, 0.037, 0.139),
}  # fmt: skip


def test_width_2_depth_2_is_five_thirtyseconds() -> None:
    # One ray dies in the first layer with 1/2, the other then with 1/4; else both in the second, with 1/16.
    found = born_dead_probability([2, 2])
    assert found.lower == found.probability == found.upper == pytest.approx(0.15625, abs=1e-12)


@pytest.mark.parametrize("width", TABLE)
def test_the_table_of_simulations_is_reproduced_within_its_standard_errors(width: int) -> None:
    for depth, simulated in zip(DEPTHS, TABLE[width], strict=True):
        exact = float(born_dead_probability([width] * depth))
        error = math.sqrt(exact * (1 - exact) / (8000 if depth == 50 else 20000))
        assert abs(exact - simulated) < 3 * error + 0.0005, (width, depth, exact)


@pytest.mark.parametrize("widths", [[1, 2], [3, 2, 4], [2] * 4, [5, 2, 2, 5], [4] * 8])
def test_mixed_widths_agree_with_simulated_networks(widths: list[int]) -> None:
    exact = float(born_dead_probability(widths))
    simulated = simulate_born_dead(widths, nets=20_000, generator=torch.Generator().manual_seed(0))
    assert abs(simulated - exact) < 3.5 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-9


def test_the_bounds_hold_for_other_symmetric_weights() -> None:
    """Signs times a heavy-tailed size: the angle between the rays moves otherwise, the bounds are the same."""
    generator = torch.Generator().manual_seed(0)
    nets, h = 20_000, torch.tensor([[1.0, -1.0]]).expand(20_000, 1, 2)
    for _ in range(6):
        w = torch.randn(nets, 3, h.shape[1], generator=generator) ** 3
        h = (w @ h).relu()
    dead = float((h.amax((1, 2)) == 0).double().mean())
    found = born_dead_probability([3] * 6)
    assert found.lower - 0.01 < dead < found.upper + 0.01
    assert found.lower < found.probability < found.upper


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 12))
def test_bounds_enclose_it_and_another_layer_makes_it_likelier(widths: list[int], more: int) -> None:
    one, two = born_dead_probability(widths), born_dead_probability([*widths, more])
    assert 0 <= one.lower <= one.probability <= one.upper <= one.one_ray <= 1
    assert two.probability >= one.probability - 1e-4 * one.probability
    many = born_dead_probability(widths, input_dim=3)
    assert many.probability is None
    assert many.upper == one.probability
    assert many.lower <= one.probability


def test_more_input_dimensions_lie_within_the_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 200, generator=generator)
    h = points.expand(5000, 2, 200)
    for _ in range(5):
        h = (torch.randn(5000, 2, 2, generator=generator) @ h).relu()
    dead = float((h.amax((1, 2)) == 0).double().mean())
    found = born_dead_probability([2] * 5, input_dim=2)
    assert found.lower < dead < found.upper
    assert "between" in str(found)


def test_wide_networks_are_never_born_dead_and_width_1_nearly_always() -> None:
    assert 0 < float(born_dead_probability([64] * 50)) < 1e-17
    assert float(born_dead_probability([1024] * 8)) < 1e-300
    assert float(born_dead_probability([1] * 10)) == pytest.approx(1 - 2**-9)


@pytest.mark.parametrize("widths", [[], [0], [2, -1], [2.5]])
def test_widths_are_checked(widths: list) -> None:
    with pytest.raises(ValueError, match="widths"):
        born_dead_probability(widths)


@pytest.mark.parametrize(("depth", "share"), [(10, 0.270), (20, 0.590)])
def test_asymmetric_weights_leave_fewer_networks_born_dead(depth: int, share: float) -> None:
    """Width 2. He: 0.91 and 0.995. The paper reports less than half of He's at depth 10."""
    nets = 20_000
    rai = simulate_born_dead([2] * depth, "rai", nets=nets, generator=torch.Generator().manual_seed(0))
    he = simulate_born_dead([2] * depth, "he", nets=nets, generator=torch.Generator().manual_seed(0))
    assert abs(rai - share) < 3 * math.sqrt(share * (1 - share) / nets)
    exact = float(born_dead_probability([2] * depth))
    assert abs(he - exact) < 3 * math.sqrt(exact * (1 - exact) / nets) + 1e-4
    assert rai < 0.65 * he


def test_the_simulation_of_rai_and_rai_itself_agree() -> None:
    """A small network drawn by `rai_`, many times over, looked at by a census."""
    dead, nets = 0, 150
    x = torch.linspace(-1.7, 1.7, 65)[:, None]
    layers = [torch.nn.Linear(1, 2), torch.nn.ReLU()]
    for _ in range(5):
        layers += [torch.nn.Linear(2, 2), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(nets):
            relume.init.rai_(model, generator=generator)
            dead += bool((model(x) - model(x[:1])).abs().max() == 0)
    expected = simulate_born_dead([2] * 6, "rai", generator=torch.Generator().manual_seed(1))
    assert abs(dead / nets - expected) < 3.5 * math.sqrt(expected * (1 - expected) / nets)
