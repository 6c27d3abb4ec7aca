"""A verdict says what the whole interval says, and tells "no difference" from "not enough data"."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relume.lab.stats import Interval, compare
from relume.lab.verdicts import Claim, verdict


def claim(says="more", margin=1.0):
    return Claim("c", "A beats B.", "a paper", "difference in points", says, margin)


def judged(low, high, says="more", margin=1.0):
    return verdict(claim(says, margin), Interval((low + high) / 2, low, high, n=10), "10 seeds")


@pytest.mark.parametrize(
    ("low", "high", "more", "less", "different", "same"),
    [
        (2, 3, "supported", "contradicted", "supported", "contradicted"),
        (-3, -2, "contradicted", "supported", "supported", "contradicted"),
        (-0.5, 0.5, "contradicted", "contradicted", "contradicted", "supported"),
        (0.5, 3, "undecided", "contradicted", "undecided", "undecided"),
        (-3, 0.5, "contradicted", "undecided", "undecided", "undecided"),
        (-3, 3, "undecided", "undecided", "undecided", "undecided"),
    ],
)
def test_the_outcome_by_where_the_interval_lies(low, high, more, less, different, same):
    found = {says: judged(low, high, says).outcome for says in ("more", "less", "different", "same")}
    assert found == {"more": more, "less": less, "different": different, "same": same}


def test_no_difference_is_told_from_not_enough_data():
    assert "no difference that matters" in judged(-0.2, 0.3).why
    assert "not enough data" in judged(-4, 5).why


def test_an_effect_with_a_sign_that_may_not_matter_is_undecided_and_says_how_many_runs_would_decide():
    found = judged(0.2, 3.0)
    assert found.outcome == "undecided"
    assert "has a sign" in found.why
    # estimate 1.6, half-width 1.4, margin 1: 10 · (1.4 / 0.6)² = 54.4
    assert found.runs_needed == 55


def test_so_many_runs_do_decide():
    rng = np.random.default_rng(0)
    few = rng.normal(1.0, 1.0, 8)
    first = verdict(claim(margin=0.0), compare(few, np.zeros(8)).difference, "8 seeds")
    wide = dataclasses.replace(first.effect, low=-0.5, high=2.5, estimate=1.0)
    needed = verdict(claim(margin=0.0), wide, "8 seeds").runs_needed
    assert needed is not None
    half = (wide.width / 2) * np.sqrt(wide.n / needed)
    assert wide.estimate - half >= -1e-9


@given(st.floats(-10, 10), st.floats(0, 10), st.floats(0, 3), st.sampled_from(["more", "different"]))
def test_a_claim_and_its_mirror_get_mirrored_verdicts(centre, half, margin, says):
    mirrored = {"more": "less", "different": "different"}[says]
    here = judged(centre - half, centre + half, says, margin).outcome
    there = judged(-centre - half, -centre + half, mirrored, margin).outcome
    assert here == there


@given(st.floats(-10, 10), st.floats(0, 10), st.floats(0.01, 3))
def test_more_data_at_the_same_ends_never_turns_a_verdict_around(centre, half, margin):
    wide = judged(centre - half, centre + half, "more", margin).outcome
    narrow = judged(centre - half / 2, centre + half / 2, "more", margin).outcome
    assert wide in ("undecided", narrow)


def test_an_effect_without_a_finite_interval_is_undecided():
    assert judged(float("nan"), float("nan")).outcome == "undecided"


@pytest.mark.parametrize(
    ("says", "margin", "message"), [("same", 0.0, "margin"), ("more", -1, "at least 0"), ("better", 0, "more, less")]
)
def test_a_claim_that_nothing_could_decide_is_refused(says, margin, message):
    with pytest.raises(ValueError, match=message):
        claim(says, margin)


def test_a_verdict_is_plain_data_and_a_sentence():
    found = judged(2, 3)
    assert found.to_dict()["claim"]["id"] == "c"
    assert "supported: A beats B." in str(found)
    assert (found.low, found.high) == (2, 3)
