"""What killed a unit: rules that take the numbers of its `Death` to a cause.

They decide only where numbers do: where parts are unknown, or none of them stands out, the answer is "unknown-cause".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from relume.diagnose.death import Around, Death, Fall

# A part that made up this share of the fall is what caused it.
MAJORITY = 0.5
# A drop: this share of the fall in so few steps, and so many standard deviations in one of them.
SUDDEN_SHARE, SUDDEN_STEPS, SUDDEN_DEPTH = 0.5, 10, 1.0
# A drift takes at least so many steps.
DRIFT = 8
# Steps that change weights by so much of their norm throw units about: they are no drift, however many it took. Sane
# trainings stay below the lower number, as a rule near 0.001; in between, one can't be told from the other.
SMALL_UPDATE, LARGE_UPDATE = 0.02, 0.04
# What comes in has shifted when it moved the mean by this many standard deviations, which no ordinary batch does.
SHIFTED = 0.5
# The spread is gone when so little of it is left.
COLLAPSED = 0.5
# Weight decay is to blame where it alone shrinks weights by this much over the fall, and they shrank by half of that.
SHRUNK = 0.1


@dataclass(frozen=True)
class Verdict:
    """What killed a unit, and the numbers that say so."""

    code: str
    evidence: dict[str, float | str]


def verdict(death: Death, *, unknown: str, fed_by_sites: bool) -> Verdict:
    """What killed a unit that was alive before.

    Args:
        death: of the unit.
        unknown: why changes at its site can't be split, or "".
        fed_by_sites: does the site's producer read what other sites give out (rather than the model's input)?
    """
    fall, near = death.fall, death.around
    if fall is None:
        return Verdict("unknown-cause", {"died_at": death.died_at, "why": "no row of the record tells of its fall"})
    evidence: dict[str, float | str] = {
        "max_before": fall.top,
        "max_after": fall.bottom,
        "std_before": fall.std_before,
        "std_after": fall.std_after,
        "mean_fall": fall.mean_fall,
        "suddenness": fall.suddenness,
        "steepness": fall.steepness,
        "steps": fall.to_step - fall.from_step,
    }
    if not fall.split:
        return Verdict("unknown-cause", evidence | {"why": unknown or "the parts of the fall are not known"})
    sudden = is_sudden(fall)
    parts = fall.last if sudden else fall.parts
    evidence |= {
        "update_ratio": near.update,
        "usual_update_ratio": near.usual_update,
        "largest_update_ratio": near.largest_update,
        "gradient": near.gradient,
        "usual_gradient": near.usual_gradient,
        "lr": near.lr,
        "usual_lr": near.usual_lr,
        "weight_decay": math.nan if near.settings is None else near.settings.weight_decay,
        "decay_shrink": near.shrink,
        "weight_ratio": near.weight_ratio,
        **{f"by_{name}": value for name, value in parts.items()},
    }
    return Verdict(_code(fall, near, parts, sudden=sudden, fed_by_sites=fed_by_sites), evidence)


def is_sudden(fall: Fall) -> bool:
    """Did few steps do most of it, and did they move the unit by more than its spread?"""
    return fall.steepness >= SUDDEN_DEPTH and fall.suddenness >= SUDDEN_SHARE and fall.last_steps <= SUDDEN_STEPS


def _code(fall: Fall, near: Around, parts: dict[str, float], *, sudden: bool, fed_by_sites: bool) -> str:
    from_below = "upstream-cascade" if fed_by_sites else "input-shift"
    if not sudden and near.shrink >= SHRUNK and near.weight_ratio <= 1 - near.shrink / 2:
        return "weight-decay"
    if _decays(near) and math.isnan(near.shrink) and near.weight_ratio <= 1 - SHRUNK:
        return "unknown-cause"  # weights shrank under a decay whose share in it can't be told
    down = -sum(parts.values())  # of the mean
    if down < MAJORITY * (fall.last_fall if sudden else fall.height):
        # The maximum fell for want of spread.
        if fall.std_after > COLLAPSED * fall.std_before:
            return "unknown-cause"
        if any(parts[name] for name in ("statistics", "gamma", "beta")):
            return "norm-collapse"
        return from_below if near.weight_ratio > COLLAPSED else "unknown-cause"
    shares = {name: -value / down for name, value in parts.items()}
    if shares["gamma"] + shares["beta"] >= MAJORITY:
        return "killed-by-step" if sudden else "norm-collapse"
    decay = 0.0 if math.isnan(near.decay) else near.decay
    own = shares["bias"] + shares["weights"]
    if own >= MAJORITY and own >= shares["upstream"]:
        update = near.largest_update - decay
        if sudden or update >= LARGE_UPDATE:
            return "killed-by-step"
        if not update <= SMALL_UPDATE or fall.to_step - fall.from_step < DRIFT:
            return "unknown-cause"  # a drift is told from large steps by their size, where it is known, and number
        return "bias-drift" if shares["bias"] >= shares["weights"] else "weight-drift"
    if shares["upstream"] >= MAJORITY and -parts["upstream"] >= SHIFTED * fall.std_before:
        return from_below
    return "unknown-cause"


def _decays(near: Around) -> bool:
    return near.settings is not None and near.settings.weight_decay > 0
