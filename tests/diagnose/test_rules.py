"""The rules by themselves: deaths written by hand, each deciding by one number, and the same with that number gone."""

import math
from dataclasses import replace

import pytest

from relume.diagnose.attribution import PARTS
from relume.diagnose.death import Around, Death, Fall
from relume.diagnose.finding import Finding
from relume.diagnose.rules import verdict
from relume.diagnose.steps import Settings

SGD = Settings("SGD", 0.1, 0.9, 0.0, math.nan, False, False, False)
CALM = Around(0.001, 0.001, 0.001, 1.0, 1.0, 0.1, 0.1, 0.0, 0.0, 1.0, SGD)


def a_fall(*, sudden=False, std_after=0.5, mean_fall=2.0, last=None, **parts):
    """From a maximum of 1.5 to −0.5, over 60 steps or, if sudden, in one."""
    whole = dict.fromkeys(PARTS, 0.0) | parts
    fall = Fall(
        unit=3,
        died_at=70,
        from_step=70 if sudden else 11,
        to_step=71,
        top=1.5,
        bottom=-0.5,
        mean_fall=mean_fall,
        std_before=0.5,
        std_after=std_after,
        parts=whole,
        last=whole if sudden else {k: v / 20 for k, v in whole.items()},
        last_fall=2.0 if sudden else 0.1,
        last_from=70 if sudden else 68,
        steepest=2.0 if sudden else 0.05,
        split=True,
    )
    return replace(fall, last=last) if last else fall


def code(fall, near=CALM, *, fed=True, unknown=""):
    return verdict(Death(70, fall, near), unknown=unknown, fed_by_sites=fed).code


@pytest.mark.parametrize(
    ("cause", "fall", "near", "fed"),
    [
        ("killed-by-step", a_fall(sudden=True, weights=-1.5, bias=-0.5), CALM, True),
        ("killed-by-step", a_fall(weights=-2.0), replace(CALM, largest_update=0.2), True),
        ("killed-by-step", a_fall(sudden=True, beta=-2.0), CALM, True),
        ("bias-drift", a_fall(bias=-1.8, weights=-0.2), CALM, True),
        ("weight-drift", a_fall(bias=-0.2, weights=-1.8), CALM, True),
        ("upstream-cascade", a_fall(upstream=-1.9, weights=-0.1), CALM, True),
        ("upstream-cascade", a_fall(sudden=True, upstream=-2.0), CALM, True),
        ("input-shift", a_fall(upstream=-1.9, weights=-0.1), CALM, False),
        ("norm-collapse", a_fall(beta=-1.5, gamma=-0.2, upstream=-0.3), CALM, True),
        ("weight-decay", a_fall(weights=-2.0), replace(CALM, shrink=0.6, weight_ratio=0.5), True),
        # The spread went, not the mean.
        ("norm-collapse", a_fall(std_after=0.01, mean_fall=0.0, gamma=-0.01), CALM, True),
        ("upstream-cascade", a_fall(std_after=0.01, mean_fall=0.0, upstream=-0.01), CALM, True),
    ],
)
def test_each_cause_is_told_by_its_numbers(cause, fall, near, fed):
    assert code(fall, near, fed=fed) == cause


@pytest.mark.parametrize(
    ("what", "fall", "near"),
    [
        ("no row tells of it", None, CALM),
        ("parts are not known", replace(a_fall(weights=-2.0), split=False), CALM),
        ("most of it came from elsewhere", a_fall(remainder=-1.5, weights=-0.5), CALM),
        ("no part stands out", a_fall(bias=-0.5, weights=-0.4, upstream=-0.9, remainder=-0.2), CALM),
        ("drift or large steps: no optimizer was seen", a_fall(weights=-2.0), Around()),
        (
            "weights shrank under Adam's weight decay, by a share that can't be told",
            a_fall(weights=-2.0),
            replace(CALM, shrink=math.nan, weight_ratio=0.4, settings=replace(SGD, weight_decay=0.1)),
        ),
        ("neither small steps nor large ones", a_fall(weights=-2.0), replace(CALM, largest_update=0.03)),
        ("few steps, none of them large", replace(a_fall(weights=-2.0), from_step=66), CALM),
        (
            "many small steps within the last few rows",
            replace(a_fall(sudden=True, bias=-2.0), steepest=0.2),
            CALM,
        ),
        (
            "a shift as small as batches differ by",
            replace(a_fall(upstream=-0.2, mean_fall=0.2), top=0.1, bottom=-0.1, last_fall=0.01),
            CALM,
        ),
        ("the spread shrank with the weights", a_fall(std_after=0.01, weights=-0.01), replace(CALM, weight_ratio=0.1)),
        ("the maximum fell, mean and spread did not", a_fall(weights=-0.1, mean_fall=0.1), CALM),
    ],
)
def test_where_numbers_do_not_decide_the_cause_is_unknown(what, fall, near):
    assert code(fall, near) == "unknown-cause", what


def test_weight_decay_is_not_blamed_where_weights_did_not_shrink():
    assert code(a_fall(weights=-2.0), replace(CALM, shrink=0.6, weight_ratio=1.1)) == "weight-drift"


def test_the_reason_for_an_unknown_producer_is_in_the_evidence():
    fall = replace(a_fall(), split=False)
    found = verdict(Death(70, fall, CALM), unknown="unknown producer: it is an LSTM", fed_by_sites=True)
    assert found.evidence["why"] == "unknown producer: it is an LSTM"


def test_a_finding_without_evidence_can_not_be_made():
    with pytest.raises(ValueError, match="needs evidence"):
        Finding("killed-by-step", "error", "1", (0,), (1, 2), {}, "units died.")
