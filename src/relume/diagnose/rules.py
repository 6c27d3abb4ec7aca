"""What killed a unit: rules that take the numbers of its `Death` to a cause.

They decide only where numbers do: where parts are unknown, or none of them stands out, the answer is "unknown-cause".
Sizes are told in a unit's own spread, or against what batches and steps usually do, so that they hold at any scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from relume.diagnose.death import Around, Death, Fall

# A part that made up this share of the fall is what caused it.
MAJORITY = 0.5
# A drop: this share of the fall in so few steps, and so many standard deviations in one of them.
SUDDEN_SHARE, SUDDEN_STEPS, SUDDEN_DEPTH = 0.5, 10, 1.0
# A step that moves a unit by this many standard deviations throws it; one that changes its weights by `LARGE_UPDATE` of
# their norm does so from a third of that on. Sane steps change them by a hundredth at most, as a rule by a thousandth.
THROW, LARGE_UPDATE, SMALL_UPDATE = 0.75, 0.04, 0.02
# Rows farther apart than this do not show single steps: then the size of updates has to tell.
FINE = 2
# A drift takes at least so many steps.
DRIFT = 4
# What comes in has shifted when it moved units by this many standard deviations, and by so many times as much as it
# does between two rows as a rule: batches differ as well.
SHIFTED, UNUSUAL = 0.5, 4.0
# The spread is gone when so little of it is left; steps that add up to this share of the weights can't have done it.
COLLAPSED, STILL = 0.5, 0.2
# Weights that lost this share of their norm have been shrunk; by their decay if that alone does half of it, or if this
# share of all that the steps did went straight towards zero. Below the lower share they went elsewhere.
SHRUNK, PULLED, NOT_PULLED = 0.1, 0.7, 0.3
# So many of the units below, lost during the fall, are a cascade.
LOST = 0.2


#: What a site's producer reads: what other sites give out; what layers before it may give out; the model's input.
Fed = Literal["sites", "layers", "input"]


@dataclass(frozen=True)
class Verdict:
    """What killed a unit, and the numbers that say so.

    Attributes:
        code: of the cause.
        evidence: numbers and words by name.
        leaning: of an unknown cause, what it looks like but for one number that is not clear enough; or "".
        share: of the fall that the cause took, 0 to 1; NaN where it isn't told by shares.
    """

    code: str
    evidence: dict[str, float | str]
    leaning: str = ""
    share: float = math.nan


def verdict(death: Death, *, unknown: str, fed: Fed, lost_below: float = 0.0) -> Verdict:
    """What killed a unit that was alive before.

    Args:
        death: of the unit.
        unknown: why changes at its site can't be split, or "".
        fed: what the site's producer reads.
        lost_below: share of the units of the site below that died during the fall.
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
        "stride": fall.stride,
        "shift": fall.last_shift if sudden else fall.shift,
        "usual_shift": fall.usual_shift,
        "site_shift": fall.site_last_shift if sudden else fall.site_shift,
        "spread_left": fall.std_after / fall.std_before if fall.std_before > 0 else math.nan,
        "site_spread_left": fall.site_spread,
        "update_ratio": near.update,
        "usual_update_ratio": near.usual_update,
        "largest_update_ratio": near.largest_update,
        "updates_added_up": near.path,
        "gradient": near.gradient,
        "usual_gradient": near.usual_gradient,
        "lr": near.lr,
        "usual_lr": near.usual_lr,
        "weight_decay": math.nan if near.settings is None else near.settings.weight_decay,
        "decay_shrink": near.shrink,
        "weight_ratio": near.weight_ratio,
        "pull_to_zero": near.pull,
        **{f"by_{name}": value for name, value in parts.items()},
    }
    if fed != "input":
        evidence |= {"lost_below": lost_below, "update_ratio_below": near.below_update, "layer_below": near.below}
    code, leaning, share = _Case(fall, near, parts, sudden, fed, lost_below).decide()
    return Verdict(code, evidence, leaning, share)


def is_sudden(fall: Fall) -> bool:
    """Did few steps do most of it, and did they move the unit by more than its spread?"""
    return fall.steepness >= SUDDEN_DEPTH and fall.suddenness >= SUDDEN_SHARE and fall.last_steps <= SUDDEN_STEPS


_Decision = tuple[str, str, float]  # code, leaning, share


@dataclass(frozen=True)
class _Case:
    fall: Fall
    near: Around
    parts: dict[str, float]
    sudden: bool
    fed: Fed
    lost_below: float

    @property
    def down(self) -> float:
        """How far the mean fell."""
        return -sum(self.parts.values())

    @property
    def from_below(self) -> str:
        """What it is when something else than the layer moved the unit."""
        if self.fed == "layers":
            # Between the model's input and this layer are others: if they stood still, it was the input.
            still = self.near.below_update * (self.fall.to_step - self.fall.from_step) <= STILL / 4
            return "input-shift" if still else "unknown-cause"
        return "upstream-cascade" if self.fed == "sites" else "input-shift"

    @property
    def thrown(self) -> bool:
        """Did one step of its own parameters move the unit by more than steps should?"""
        large = self.near.largest_update >= LARGE_UPDATE
        return self.fall.stride >= THROW or (large and self.fall.stride >= THROW / 3)

    def decide(self) -> _Decision:
        height = self.fall.last_fall if self.sudden else self.fall.height
        # Of a unit that fires rarely the maximum is a matter of luck: its mean fell if it did so by its whole spread.
        by_mean = self.down > 0 and (self.down >= MAJORITY * height or self.down >= self.fall.std_before)
        shares = {name: -value / self.down for name, value in self.parts.items()} if self.down > 0 else {}
        if not self.sudden and not (by_mean and shares["bias"] >= MAJORITY):
            faded = self._faded()
            if faded is not None:
                return faded
        if not by_mean:
            return self._spread()
        if shares["gamma"] + shares["beta"] >= MAJORITY:
            thrown = self.sudden or self.fall.stride >= THROW
            return "killed-by-step" if thrown else "norm-collapse", "", shares["gamma"] + shares["beta"]
        own = shares["bias"] + shares["weights"]
        if own >= MAJORITY and own >= shares["upstream"]:
            return self._own(own, "bias-drift" if shares["bias"] >= shares["weights"] else "weight-drift")
        if shares["upstream"] >= MAJORITY:
            return self._upstream(shares["upstream"])
        return "unknown-cause", "killed-by-step" if self.thrown else "", math.nan

    def _faded(self) -> _Decision | None:
        near = self.near
        decays = near.settings is not None and near.settings.weight_decay > 0
        if not near.weight_ratio <= 1 - SHRUNK:
            return None
        if near.shrink >= SHRUNK and near.weight_ratio <= 1 - near.shrink / 2:
            return "weight-decay", "", min(1.0, near.shrink / (1 - near.weight_ratio))
        if near.pull >= PULLED and (decays or near.weight_ratio <= 1 - 2 * SHRUNK):
            return "weight-decay", "", min(1.0, near.pull)
        if decays and not near.pull <= NOT_PULLED:  # how much of it the decay did can't be told
            return "unknown-cause", "weight-decay", math.nan
        return None

    def _own(self, share: float, drift: str) -> _Decision:
        fall, near = self.fall, self.near
        update = near.largest_update - (0.0 if math.isnan(near.decay) else near.decay)
        if self.sudden:
            return "killed-by-step", "", share
        if fall.coarsest <= FINE:
            thrown = fall.stride >= THROW or (update >= LARGE_UPDATE and fall.stride >= THROW / 3)
            drifted = not thrown and not (update > SMALL_UPDATE and fall.stride >= THROW / 3)
        elif drift == "bias-drift":  # rows do not show single steps, nor do the weights' updates tell of the bias
            thrown, drifted = fall.stride >= THROW, fall.stride < THROW / 2
        else:
            thrown = update >= LARGE_UPDATE and fall.leap >= 2 * THROW
            calm = update <= SMALL_UPDATE or (update < LARGE_UPDATE and fall.stride < THROW / 3)
            drifted = calm or fall.leap < 2 * THROW
        if thrown:
            return "killed-by-step", "", share
        if drift == "weight-drift" and not update < LARGE_UPDATE:
            # Weights that are thrown elsewhere are no drift; where nothing was seen of their steps, it can't be told.
            return "unknown-cause", "killed-by-step", math.nan
        if drifted and fall.to_step - fall.from_step >= DRIFT:
            return drift, "", share
        return "unknown-cause", drift if update <= SMALL_UPDATE else "killed-by-step", math.nan

    def _upstream(self, share: float) -> _Decision:
        fall, near = self.fall, self.near
        shift, site = (
            (fall.last_shift, fall.site_last_shift) if self.sudden else (fall.shift, fall.site_shift)
        )  # fmt: skip
        enough = max(SHIFTED, UNUSUAL * (0.0 if math.isnan(fall.usual_shift) else fall.usual_shift))
        if self.fed != "input":
            if self.lost_below >= LOST:
                return "upstream-cascade", "", share
            if near.below_update >= LARGE_UPDATE or near.largest_update >= LARGE_UPDATE:
                return "killed-by-step", "", share
            if self.fed == "sites":
                return (
                    ("upstream-cascade", "", share)
                    if shift >= SHIFTED
                    else ("unknown-cause", "upstream-cascade", math.nan)
                )
        if shift >= enough and site >= SHIFTED:
            return self.from_below, "", share
        if self.thrown:  # weights that have been thrown turn what batches differ by into falls
            return "killed-by-step", "", math.nan
        return "unknown-cause", "", math.nan

    def _spread(self) -> _Decision:
        """The maximum fell for want of spread, or for one large input less."""
        fall, near, parts = self.fall, self.near, self.parts
        if not fall.std_after <= COLLAPSED * fall.std_before:
            return "unknown-cause", "killed-by-step" if self.thrown else "", math.nan
        if any(parts[name] for name in ("statistics", "gamma", "beta")):
            return "norm-collapse", "", math.nan
        if fall.site_spread <= COLLAPSED:
            at_once = fall.std_after <= COLLAPSED * fall.std_last
            steps = near.last_path if at_once else near.path
            untouched = abs(parts["weights"]) + abs(parts["bias"]) <= 1e-3 * fall.height
            if steps <= STILL or (math.isnan(steps) and untouched):
                return self.from_below, "", math.nan
            if self.fed == "sites" and self.lost_below >= LOST:
                return "upstream-cascade", "", math.nan
        if self.thrown or near.largest_update >= LARGE_UPDATE:
            return ("killed-by-step", "", math.nan) if self.thrown else ("unknown-cause", "killed-by-step", math.nan)
        if near.path > STILL and fall.to_step - fall.from_step >= DRIFT and parts["bias"] + parts["weights"] < 0:
            return "bias-drift" if parts["bias"] <= parts["weights"] else "weight-drift", "", math.nan
        return "unknown-cause", "", math.nan
