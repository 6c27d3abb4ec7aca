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
CALM = Around(
    0.001, 0.001, 0.001, 1.0, 1.0, 0.1, 0.1, 0.0, 0.0, 1.0, SGD, path=0.06, last_path=0.003, below_update=0.001
)


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
        std_last=0.5,
        stride=4.0 if sudden else 0.1,
        leap=4.0 if sudden else 0.1,
        shift=-2 * whole["upstream"],
        last_shift=-2 * whole["upstream"] if sudden else 0.0,
        usual_shift=0.1,
        site_shift=2 * abs(whole["upstream"]),
        site_last_shift=2 * abs(whole["upstream"]) if sudden else 0.0,
        site_spread=std_after / 0.5,
        site_last_spread=1.0,
    )
    return replace(fall, last=last) if last else fall


def code(fall, near=CALM, *, fed=True, unknown="", lost=0.0):
    fed = {True: "sites", False: "input"}.get(fed, fed)
    return verdict(Death(70, fall, near), unknown=unknown, fed=fed, lost_below=lost).code


@pytest.mark.parametrize(
    ("cause", "fall", "near", "fed"),
    [
        ("killed-by-step", a_fall(sudden=True, weights=-1.5, bias=-0.5), CALM, True),
        ("killed-by-step", replace(a_fall(weights=-2.0), stride=0.9), CALM, True),
        ("killed-by-step", replace(a_fall(weights=-2.0), stride=0.3), replace(CALM, largest_update=0.2), True),
        ("killed-by-step", a_fall(sudden=True, upstream=-2.0), replace(CALM, below_update=0.9), True),
        # Rows far apart: the size of the updates tells.
        (
            "killed-by-step",
            replace(a_fall(weights=-2.0), coarsest=50, leap=4.0),
            replace(CALM, largest_update=0.2),
            True,
        ),
        ("weight-drift", replace(a_fall(weights=-2.0), coarsest=50, leap=4.0), CALM, True),
        ("bias-drift", replace(a_fall(bias=-2.0), coarsest=50, leap=4.0), replace(CALM, largest_update=0.2), True),
        ("killed-by-step", a_fall(sudden=True, beta=-2.0), CALM, True),
        ("bias-drift", a_fall(bias=-1.8, weights=-0.2), CALM, True),
        ("weight-drift", a_fall(bias=-0.2, weights=-1.8), CALM, True),
        ("upstream-cascade", a_fall(upstream=-1.9, weights=-0.1), CALM, True),
        ("upstream-cascade", a_fall(sudden=True, upstream=-2.0), CALM, True),
        ("input-shift", a_fall(upstream=-1.9, weights=-0.1), CALM, False),
        ("norm-collapse", a_fall(beta=-1.5, gamma=-0.2, upstream=-0.3), CALM, True),
        ("weight-decay", a_fall(weights=-2.0), replace(CALM, shrink=0.6, weight_ratio=0.5), True),
        # Straight to zero, whoever pulls: Adam's share of it is not known, and a penalty in the loss says nothing.
        (
            "weight-decay",
            a_fall(weights=-2.0),
            replace(CALM, shrink=math.nan, weight_ratio=0.4, path=1.0, settings=replace(SGD, weight_decay=0.1)),
            True,
        ),
        ("weight-decay", a_fall(weights=-2.0), replace(CALM, weight_ratio=0.4, path=1.0), True),
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
        (
            "drift or large steps: rows are far apart, and no optimizer was seen",
            replace(a_fall(weights=-2.0), coarsest=50, leap=4.0, stride=0.3),
            Around(),
        ),
        (
            "weights shrank under Adam's weight decay, by a share that can't be told",
            a_fall(weights=-2.0),
            replace(CALM, shrink=math.nan, weight_ratio=0.4, path=2.0, settings=replace(SGD, weight_decay=0.1)),
        ),
        (
            "neither small steps nor large ones, in rows far apart",
            replace(a_fall(weights=-2.0), coarsest=50, leap=4.0, stride=0.3),
            replace(CALM, largest_update=0.03),
        ),
        ("small strides of weights that are thrown elsewhere", a_fall(weights=-2.0), replace(CALM, largest_update=0.2)),
        ("small strides, and nothing was seen of the steps", a_fall(weights=-2.0), Around()),
        (
            "strides and steps that are neither small nor large",
            replace(a_fall(weights=-2.0), stride=0.5),
            replace(CALM, largest_update=0.03),
        ),
        ("few steps, none of them large", replace(a_fall(weights=-2.0), from_step=68), CALM),
        (
            "a shift as small as batches differ by",
            replace(a_fall(upstream=-0.2, mean_fall=0.2), top=0.1, bottom=-0.1, last_fall=0.01),
            CALM,
        ),
        (
            "the spread shrank while the weights went elsewhere",
            replace(a_fall(std_after=0.01, weights=0.01), std_last=0.015),
            replace(CALM, path=3.0),
        ),
        ("the maximum fell, mean and spread did not", a_fall(weights=-0.1, mean_fall=0.1), CALM),
    ],
)
def test_where_numbers_do_not_decide_the_cause_is_unknown(what, fall, near):
    assert code(fall, near) == "unknown-cause", what


def test_a_shift_of_the_input_moves_all_of_its_units_and_by_more_than_batches_do():
    fall = a_fall(upstream=-1.9, weights=-0.1)
    assert code(fall, fed=False) == "input-shift"
    assert code(replace(fall, site_shift=0.1), fed=False) == "unknown-cause"
    assert code(replace(fall, usual_shift=2.0), fed=False) == "unknown-cause"


def test_what_comes_through_layers_before_is_the_input_only_where_those_stood_still():
    fall = a_fall(upstream=-1.9, weights=-0.1)
    assert code(fall, replace(CALM, below_update=0.0), fed="layers") == "input-shift"
    assert code(fall, replace(CALM, below_update=0.01), fed="layers") == "unknown-cause"
    assert code(fall, replace(CALM, below_update=0.2), fed="layers") == "killed-by-step"
    assert code(fall, replace(CALM, below_update=math.nan), fed="layers") == "unknown-cause"


def test_units_lost_below_are_a_cascade_whatever_the_size_of_steps():
    fall, thrown = a_fall(sudden=True, upstream=-2.0), replace(CALM, below_update=0.9)
    assert code(fall, thrown, lost=0.5) == "upstream-cascade"
    assert code(fall, thrown, lost=0.05) == "killed-by-step"


def test_a_spread_lost_by_one_unit_alone_is_no_shift_of_the_input():
    fall = a_fall(std_after=0.01, mean_fall=0.0, upstream=-0.01)
    assert code(fall, fed=False) == "input-shift"
    assert code(replace(fall, site_spread=0.9), fed=False) == "unknown-cause"


def test_weight_decay_is_not_blamed_where_weights_did_not_shrink():
    assert code(a_fall(weights=-2.0), replace(CALM, shrink=0.6, weight_ratio=1.1)) == "weight-drift"


def test_the_reason_for_an_unknown_producer_is_in_the_evidence():
    fall = replace(a_fall(), split=False)
    found = verdict(Death(70, fall, CALM), unknown="unknown producer: it is an LSTM", fed="sites")
    assert found.evidence["why"] == "unknown producer: it is an LSTM"


def test_a_finding_without_evidence_can_not_be_made():
    with pytest.raises(ValueError, match="needs evidence"):
        Finding("killed-by-step", "error", "1", (0,), (1, 2), {}, "units died.")
