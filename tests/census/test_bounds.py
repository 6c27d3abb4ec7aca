"""The bound for a unit that never fired: exact, and it covers what it says it covers."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relume.census import never_fired_bound


@given(st.integers(1, 10**9), st.floats(0.001, 0.999999))
def test_at_the_bound_so_many_inputs_without_firing_have_just_the_chance_left_over(n: int, confidence: float) -> None:
    p = never_fired_bound(n, confidence)
    assert 0 < p < 1
    assert math.exp(n * math.log1p(-p)) == pytest.approx(1 - confidence, rel=1e-6)


def test_it_is_exact_in_whole_numbers() -> None:
    """(1 - 1/2)^10 = 1/1024 and (1 - 1/10)^3 = 729/1000, without rounding."""
    assert never_fired_bound(10, float(1 - Fraction(1, 1024))) == pytest.approx(0.5, rel=1e-15)
    assert never_fired_bound(3, float(1 - Fraction(729, 1000))) == pytest.approx(0.1, rel=1e-14)


def test_it_is_about_three_over_n_at_95_percent() -> None:
    assert never_fired_bound(10_000) * 10_000 == pytest.approx(-math.log(0.05), rel=1e-3)


def test_it_keeps_its_digits_for_very_many_inputs() -> None:
    assert never_fired_bound(10**15) * 10**15 == pytest.approx(-math.log(0.05), rel=1e-12)


@given(st.integers(0, 10**6), st.floats(0.01, 0.99))
def test_more_inputs_give_a_smaller_bound_and_more_confidence_a_larger_one(n: int, confidence: float) -> None:
    assert never_fired_bound(n + 1, confidence) < never_fired_bound(n, confidence)
    assert never_fired_bound(n + 1, confidence) < never_fired_bound(n + 1, confidence + 0.005)


def test_after_no_inputs_nothing_is_known() -> None:
    assert never_fired_bound(0) == 1.0


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_a_confidence_that_is_none_is_refused(confidence: float, counted) -> None:
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        never_fired_bound(10, confidence)
    for simultaneous in (False, True):
        with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
            counted(-torch.ones(8, 2)).death_bound(confidence, simultaneous=simultaneous)


def test_a_negative_number_of_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="can't be negative: -1"):
        never_fired_bound(-1)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("true", [0.01, 0.02, 0.03, 0.0295])
def test_the_bound_misses_the_truth_no_oftener_than_it_says(true: float, confidence: float) -> None:
    """A unit that fires with chance `true`, seen on 100 inputs, 20 000 times: how often is it bounded too low?"""
    fired = torch.rand(20_000, 100) < true
    silent = ~fired.any(1)
    wrong = silent & torch.tensor(never_fired_bound(100, confidence) < true)
    assert wrong.float().mean() <= (1 - confidence) + 3 * math.sqrt(0.1 * 0.9 / 20_000)


# Of a site


def test_the_bound_is_for_the_units_that_never_fired(counted) -> None:
    x = torch.tensor([[-1.0, 1.0, math.nan, -1.0]] * 100)
    bound = counted(x).death_bound()
    assert bound[0] == bound[3] == never_fired_bound(100)
    assert bound[1].isnan()
    assert bound[2].isnan()  # NaN is no evidence of silence
    assert bound.dtype == torch.float64


def test_all_units_at_once_share_the_error_between_all_of_them(counted) -> None:
    x = -torch.ones(100, 20)
    x[0, :17] = 1.0  # three are silent
    site = counted(x)
    assert site.death_bound(0.95, simultaneous=True)[17] == pytest.approx(never_fired_bound(100, 1 - 0.05 / 20))
    assert site.death_bound(0.95, simultaneous=True)[17] > site.death_bound(0.95)[17]


def test_of_one_unit_alone_both_bounds_are_the_same(counted) -> None:
    site = counted(-torch.ones(100, 1))
    assert site.death_bound(simultaneous=True) == pytest.approx(site.death_bound())


def test_simultaneous_bounds_hold_at_once_where_each_for_itself_would_not(counted) -> None:
    """Of 100 rare units about one is silent on 100 inputs: the worst case for bounds chosen by looking."""
    units, inputs, trials = 100, 100, 400
    true = 1 - 0.01 ** (1 / inputs)
    wrong = {False: 0, True: 0}
    for _ in range(trials):
        site = counted((torch.rand(inputs, units) < true).float() - 0.5)
        for simultaneous in wrong:
            wrong[simultaneous] += bool((site.death_bound(simultaneous=simultaneous) < true).any())
    assert wrong[True] <= 0.05 * trials
    assert wrong[False] > 0.3 * trials
