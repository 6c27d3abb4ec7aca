"""What a unit is called, and in which order that is decided; each label has a planted unit."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from relume.activations import catalogue as of
from relume.census import STATES, Counts, SiteCensus
from relume.census.site_census import NUMBERS, mean_of

N = 8
UP, DOWN = [float(i + 1) for i in range(N)], [-float(i + 1) for i in range(N)]


def column(*units: list[float]) -> Tensor:
    return torch.tensor(units).T.contiguous()


def with_one(values: list[float], value: float) -> list[float]:
    return [value, *values[1:]]


def test_of_a_relu(counted) -> None:
    site = counted(
        column(
            with_one(DOWN, math.nan),  # would be dead
            with_one(UP, math.inf),  # would be linear
            DOWN,
            [0.0] * N,
            UP,
            with_one(UP, 0.0),
            with_one(DOWN, 1e-30),
        )
    )
    assert site.state == ["non-finite", "non-finite", "dead", "dead", "linear", "alive", "alive"]
    assert site.dead.tolist() == [False, False, True, True, False, False, False]
    assert site.saturated.tolist() == site.dead.tolist()  # a dead unit is saturated too
    assert site.linear.tolist() == [False, False, False, False, True, False, False]
    assert not site.stuck_at_top.any()
    assert not site.unknown.any()


def test_of_a_relu6(counted) -> None:
    both = [-1.0 if i % 2 else 7.0 for i in range(N)]
    inside = [1.0 + i / 2 for i in range(N)]
    site = counted(
        column(DOWN, [6.0 + i for i in range(N)], both, inside, with_one(inside, 0.0)), of.hardtanh(0.0, 6.0)
    )
    assert site.state == ["dead", "stuck-at-top", "dead", "linear", "alive"]
    assert site.dead.tolist() == [True, True, True, False, False]
    assert site.stuck_at_top.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(("activation", "top"), [(of.hardtanh(-1.0, 1.0), 1.0), (of.hardsigmoid(), 3.0)])
def test_stuck_at_the_top_includes_the_edge_itself(counted, activation, top: float) -> None:
    assert counted(column([top] * N, with_one([top] * N, -9.0)), activation).state == ["stuck-at-top", "dead"]


def test_of_a_sigmoid_which_saturates_on_both_sides_at_once(counted) -> None:
    both = [-9.0 if i % 2 else 9.0 for i in range(N)]
    site = counted(column(both, [9.0] * N, with_one(both, 0.0), with_one(both, math.nan)), of.sigmoid())
    assert site.state == ["saturated", "saturated", "alive", "non-finite"]
    assert not site.dead.any()


def test_of_a_gelu_which_saturates_on_the_far_left(counted) -> None:
    site = counted(column([-9.0] * N, with_one([-9.0] * N, -2.0), [4.0 + i for i in range(N)], [2.0] * N), of.gelu())
    assert site.state == ["saturated", "alive", "linear", "alive"]
    assert not site.dead.any()  # its slope is nowhere exactly zero


def test_a_flat_activation_is_also_saturated_where_it_merely_turns(counted) -> None:
    """Hardswish has slope (2x + 3) / 6: nearly none around -1.5, where it fires all the same."""
    site = counted(column([-1.5] * N, [-1.0] * N, [*DOWN[2:], -4.0, -5.0], [5.0] * N), of.hardswish())
    assert site.state == ["saturated", "alive", "dead", "linear"]
    assert site.dead.tolist() == [False, False, True, False]


def test_of_a_leaky_relu_which_is_straight_on_either_side_but_not_across(counted) -> None:
    across = with_one(UP, -1.0)
    site = counted(column(UP, DOWN, across, with_one(UP, 0.0), with_one(DOWN, 0.0)), of.leaky_relu())
    assert site.state == ["linear", "linear", "alive", "linear", "linear"]


def test_an_elu_fed_by_a_relu_is_linear_zeros_included(counted) -> None:
    assert counted(column(with_one(UP, 0.0), with_one(UP, -0.1)), of.elu()).state == ["linear", "alive"]


def test_too_few_inputs_are_unknown_only_where_nothing_fired(counted) -> None:
    x = column(DOWN, UP, with_one(DOWN, 1.0), with_one(DOWN, math.nan))
    site = counted(x, min_inputs=N + 1)
    assert site.state == ["unknown", "alive", "alive", "non-finite"]
    assert not (site.dead | site.linear | site.saturated).any()
    assert site.unknown.tolist() == [True, False, False, False]
    assert counted(x, min_inputs=N).state == ["dead", "linear", "alive", "non-finite"]


def test_an_activation_that_cannot_die_is_not_called_unknown_for_few_inputs(counted) -> None:
    assert counted(column(DOWN), of.gelu(), min_inputs=99).state == ["alive"]


def test_a_site_that_no_input_came_to_is_unknown_and_not_dead(counted) -> None:
    site = counted(torch.empty(0, 3))
    assert site.state == ["unknown"] * 3
    assert not site.reached
    assert not (site.dead | site.saturated | site.linear).any()
    for value in (site.firing_rate, site.mean, site.std, site.min, site.max, site.mean_output, site.score()):
        assert value.isnan().all()
    assert site.death_bound().tolist() == [1.0] * 3


def test_every_label_is_given_to_some_unit_and_the_tally_adds_up(counted) -> None:
    six = of.hardtanh(0.0, 6.0)
    whole = column(with_one(DOWN, math.nan), DOWN, [9.0] * N, [3.0] * N, with_one([3.0] * N, -1.0))
    labels = counted(whole, six).state + counted(column([-9.0] * N), of.tanh()).state
    labels += counted(column(DOWN), six, min_inputs=99).state
    assert set(labels) == set(STATES)
    tally = counted(whole, six).tally()
    assert tally == {**dict.fromkeys(STATES, 0), "non-finite": 1, "dead": 1, "stuck-at-top": 1, "linear": 1, "alive": 1}


def test_a_silent_site_is_one_whose_units_are_all_dead(counted) -> None:
    assert counted(column(DOWN, DOWN)).silent
    assert counted(column(DOWN, [9.0] * N), of.hardtanh(0.0, 6.0)).silent
    assert not counted(column(DOWN, UP)).silent
    assert not counted(column(DOWN, with_one(DOWN, math.nan))).silent
    assert not counted(column(DOWN), min_inputs=99).silent
    assert not counted(torch.empty(4, 0)[:0]).silent


def test_moments_rates_and_extremes_are_over_finite_samples(counted) -> None:
    site = counted(column([1.0, 2.0, math.nan, -3.0], [-1.0, -1.0, -1.0, -1.0]))
    assert site.mean.tolist() == [0.0, -1.0]
    assert site.std.tolist() == pytest.approx([math.sqrt(14 / 3), 0.0])
    assert (site.min.tolist(), site.max.tolist()) == ([-3.0, -1.0], [2.0, -1.0])
    assert site.mean_output.tolist() == [1.0, 0.0]
    assert site.firing_rate.tolist() == [0.5, 0.0]
    assert site.nonfinite.tolist() == [1, 0]


def test_per_unit_results_are_on_the_cpu_with_one_entry_per_unit(counted) -> None:
    site = counted(column(DOWN, UP, UP))
    flags = ("dead", "unknown", "stuck_at_top", "saturated", "linear")
    for value in [*(getattr(site, n) for n in (*NUMBERS, *flags)), site.score(), site.dormant(), site.death_bound()]:
        assert (value.shape, value.device.type) == ((3,), "cpu")
    for name in flags:
        assert getattr(site, name).dtype == torch.bool


def test_a_site_census_is_frozen_and_reads_short(counted) -> None:
    site = counted(column(DOWN, UP))
    with pytest.raises(dataclasses.FrozenInstanceError):
        site.min_inputs = 3
    assert repr(site) == "SiteCensus('1', 2 units, 1 dead, 8 inputs)"
    assert site == SiteCensus(site.site, site.counts, site.min_inputs)
    assert site != SiteCensus(site.site, Counts.empty(2), site.min_inputs)


# Dormant


def by_hand(outputs: Tensor, tau: float) -> list[bool]:
    """Sokar et al. 2023, equation 1, as their code has it: mean |output|, over the layer's mean of that + 1e-9."""
    scores = outputs.abs().mean(0)
    return (scores / (scores.mean() + 1e-9) <= tau).tolist()


@pytest.mark.parametrize("tau", [0.0, 0.025, 0.5])
@pytest.mark.parametrize("activation", [of.relu(), of.tanh(), of.gelu(), of.leaky_relu()], ids=lambda a: a.name)
def test_dormant_is_sokars_score_below_tau(counted, activation, tau: float) -> None:
    x = torch.randn(64, 6) * torch.tensor([1.0, 1e-4, 0.01, 0.2, 3.0, 1.0])
    x[:, 5] = -x[:, 5].abs()
    expected = by_hand(activation.function(x.double()), tau)
    assert counted(x, activation).dormant(tau).tolist() == expected
    if activation.name == "relu":
        assert expected == {0.0: [0, 0, 0, 0, 0, 1], 0.025: [0, 1, 1, 0, 0, 1], 0.5: [0, 1, 1, 1, 0, 1]}[tau]


def test_in_a_layer_of_zeros_all_are_dormant(counted) -> None:
    site = counted(column(DOWN, DOWN))
    assert site.score().tolist() == [0.0, 0.0]
    assert site.dormant(0.0).tolist() == by_hand(torch.zeros(N, 2), 0.0) == [True, True]


def test_units_with_nan_have_no_score_and_spoil_no_other(counted) -> None:
    x = column(UP, [v / 1000 for v in UP], with_one(UP, math.nan), [math.nan] * N, [math.inf] * N)
    site = counted(x)
    assert site.dormant().tolist() == [*by_hand(torch.relu(x[:, :2]), 0.025), False, False, False]
    assert site.dormant().tolist()[:2] == [False, True]
    assert site.score().isnan().tolist() == [False, False, True, True, True]


def test_an_output_that_overflowed_leaves_the_others_their_score(counted) -> None:
    """max(0, x)² of 1e30 is infinite in float32."""
    from relume.activations.registry import Activation

    squared = Activation("squared", "max(0, x)²", lambda x: torch.relu(x) ** 2, of.LEFT)
    site = counted(column(UP, with_one(UP, 1e30)), squared)
    assert not site.dormant().any()


@pytest.mark.parametrize("tau", [-0.1, math.nan])
def test_a_tau_below_zero_is_refused(counted, tau: float) -> None:
    with pytest.raises(ValueError, match="tau must not be negative"):
        counted(column(UP)).dormant(tau)


@pytest.mark.parametrize("units", [64, 40_000])
def test_a_mean_over_units_is_the_same_bits_alone_and_among_others_also_with_several_threads(units: int) -> None:
    """torch splits a long sum over its threads if there is only one to be made, and then it rounds otherwise."""
    values = torch.randn(3, units, dtype=torch.float64) * torch.randn(3, units, dtype=torch.float64).exp()
    values[1, ::7] = math.nan
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = mean_of(values)
        alone = torch.stack([mean_of(row.clone()) for row in values])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, alone)
    torch.testing.assert_close(together, values.nanmean(-1))
