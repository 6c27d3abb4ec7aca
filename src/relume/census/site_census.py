"""`SiteCensus`: which units of one site are dead, saturated, linear or dormant, and how sure that is.

Derived from `Counts` alone; nothing here touches a model.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relume.census.bounds import never_fired_bound
from relume.census.counts import Counts
from relume.sites import Site

#: One label per unit, in the order in which they are decided.
STATES = ("non-finite", "unknown", "dead", "stuck-at-top", "saturated", "linear", "alive")
(NONFINITE, UNKNOWN, DEAD, STUCK, SATURATED, LINEAR, ALIVE) = range(len(STATES))
DORMANT_TAU = 0.025
# Numbers per unit that go into dicts and data frames.
NUMBERS = ("fired", "firing_rate", "mean", "std", "min", "max", "mean_output", "nonfinite")


@dataclass(frozen=True)
class SiteCensus:
    """The census of one site. Per-unit results are CPU tensors of shape [units].

    Attributes:
        site: what and where it is.
        counts: what was counted.
        min_inputs: below it, a unit that never fired is unknown rather than dead.
    """

    site: Site
    counts: Counts
    min_inputs: int

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def units(self) -> int:
        return self.site.units

    @property
    def inputs(self) -> int:
        """Inputs seen. One that was seen twice counts twice."""
        return self.counts.inputs

    @property
    def samples(self) -> int:
        """Samples seen per unit: positions or tokens of all inputs."""
        return self.counts.samples

    @property
    def reached(self) -> bool:
        """Did any forward pass come here?"""
        return self.counts.samples > 0

    @property
    def fired(self) -> Tensor:
        """int64: on how many inputs each unit fired."""
        return self.counts.fired

    @property
    def firing_rate(self) -> Tensor:
        """float64: share of inputs on which each unit fired; NaN when none was seen."""
        return self.counts.fired.double() / (self.counts.inputs or math.nan)

    @property
    def mean(self) -> Tensor:
        """float64: mean pre-activation over finite samples; NaN when there were none."""
        return torch.where(self.counts.finite > 0, self.counts.mean, math.nan)

    @property
    def std(self) -> Tensor:
        """float64: standard deviation (population) of the pre-activation; NaN when nothing was seen."""
        n = self.counts.finite.double()
        return torch.where(n > 0, (self.counts.m2 / n.clamp(min=1)).sqrt(), math.nan)

    @property
    def min(self) -> Tensor:
        """float64: smallest finite pre-activation; NaN when nothing was seen."""
        return torch.where(self.counts.finite > 0, self.counts.min, math.nan)

    @property
    def max(self) -> Tensor:
        """float64: largest finite pre-activation; NaN when nothing was seen."""
        return torch.where(self.counts.finite > 0, self.counts.max, math.nan)

    @property
    def mean_output(self) -> Tensor:
        """float64: mean |output| over samples with finite pre-activation; NaN when there were none."""
        n = self.counts.finite.double()
        return torch.where(n > 0, self.counts.output / n.clamp(min=1), math.nan)

    @property
    def nonfinite(self) -> Tensor:
        """int64: samples whose pre-activation was NaN or infinite."""
        return self.counts.nonfinite

    @functools.cached_property
    def codes(self) -> Tensor:
        """uint8: index into STATES."""
        c, zones = self.counts, self.site.zones
        never = (c.fired == 0) & self.site.can_die
        seen = torch.tensor(c.samples > 0)
        enough = torch.tensor(c.inputs >= self.min_inputs)
        codes = torch.full((self.units,), ALIVE, dtype=torch.uint8)
        codes[zones.linear.covers(c.min, c.max) & seen & enough] = LINEAR
        codes[self._saturated_samples & seen & enough] = SATURATED
        codes[never & enough] = DEAD
        if zones.top is not None:
            codes[never & enough & (c.min >= zones.top)] = STUCK
        codes[never & ~enough] = UNKNOWN
        if not self.reached:
            codes[:] = UNKNOWN
        codes[c.nonfinite > 0] = NONFINITE
        return codes

    @property
    def _saturated_samples(self) -> Tensor:
        """bool: was every sample in the saturated zone?"""
        c, zones = self.counts, self.site.zones
        covered = zones.saturated.covers(c.min, c.max)
        # Samples on both sides of a two-sided zone: no one interval covers them, but they were counted.
        return covered | (c.samples_fired == 0) if zones.counts_responsive or zones.flat else covered

    @property
    def state(self) -> list[str]:
        """One label per unit, out of `STATES`. The first that holds:

        non-finite: NaN or infinity among its pre-activations. unknown: too few inputs to tell. dead: never fired.
        stuck-at-top: never fired because every sample was at the ceiling (ReLU6 at 6). saturated: |f'| < 0.01 on
        every sample. linear: never in the flat zone or curved part. alive: anything else.
        """
        return [STATES[i] for i in self.codes.tolist()]

    @property
    def dead(self) -> Tensor:
        """bool: fired on no input, out of at least `min_inputs`, with finite pre-activations. Includes stuck at top."""
        return (self.codes == DEAD) | (self.codes == STUCK)

    @property
    def silent(self) -> bool:
        """Are all its units dead? Then the signal is cut here."""
        return self.units > 0 and bool(self.dead.all())

    @property
    def unknown(self) -> Tensor:
        """bool: never fired, on too few inputs to be called dead; or no input came this way at all."""
        return self.codes == UNKNOWN

    @property
    def stuck_at_top(self) -> Tensor:
        """bool: dead because every sample was at the activation's ceiling."""
        return self.codes == STUCK

    @property
    def saturated(self) -> Tensor:
        """bool: |f'(x)| < 0.01 on every sample. Dead units are saturated too."""
        return self._judged & self._saturated_samples

    @property
    def linear(self) -> Tensor:
        """bool: every sample in one affine piece of the activation, outside its flat zone ("always on")."""
        return self._judged & self.site.zones.linear.covers(self.counts.min, self.counts.max)

    @property
    def _judged(self) -> Tensor:
        enough = self.counts.samples > 0 and self.counts.inputs >= self.min_inputs
        return (self.counts.nonfinite == 0) & torch.tensor(enough)

    def score(self) -> Tensor:
        """float64: mean |output| divided by the layer's mean of it; 0 for all units of a layer that is zero.

        NaN when nothing was seen, and for units with non-finite pre-activations, which the layer's mean leaves out.

        Source: Sokar et al. 2023, equation 1; 1e-9 is added to the divisor as in the reference code.
        """
        output = torch.where(self.counts.nonfinite == 0, self.mean_output, math.nan)
        return output / (output.nanmean() + 1e-9)

    def dormant(self, tau: float = DORMANT_TAU) -> Tensor:
        """bool: score ≤ tau. Defined for every activation; a dead ReLU is dormant at any tau.

        Args:
            tau: threshold of Sokar et al. 2023; 0 finds the units whose output was zero on every sample.

        Raises:
            ValueError: tau is negative or NaN.
        """
        if not tau >= 0:
            raise ValueError(f"tau must not be negative: {tau}")
        return self.score() <= tau

    def death_bound(self, confidence: float = 0.95, *, simultaneous: bool = False) -> Tensor:
        """float64: upper confidence bound for the chance that a unit which never fired fires on a fresh input.

        NaN for units that did fire or whose pre-activations were not all finite. It assumes that inputs are drawn
        independently from those it speaks of, and a network that does not change: inputs seen more than once (epochs
        within a window, near-copies) make it too small, and over a training window it is about the networks that the
        window went through, not about the last one.

        Args:
            confidence: of each bound, or of all of them together.
            simultaneous: hold for all units of the site at once (Bonferroni over all its units, not only the silent
                ones: which are silent is seen in the same inputs).

        Raises:
            ValueError: confidence is not between 0 and 1.

        Source: Clopper and Pearson 1934.
        """
        never_fired_bound(0, confidence)  # says what is wrong with a confidence before it is divided
        if simultaneous:
            confidence = 1 - (1 - confidence) / max(self.units, 1)
        silent = (self.counts.fired == 0) & (self.counts.nonfinite == 0)
        bound = torch.full((self.units,), never_fired_bound(self.inputs, confidence), dtype=torch.float64)
        return bound.masked_fill_(~silent, math.nan)

    def tally(self) -> dict[str, int]:
        """How many units have each state."""
        numbers = torch.bincount(self.codes.long(), minlength=len(STATES)).tolist()
        return dict(zip(STATES, numbers, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; NaN is None."""

        def listed(t: Tensor) -> list[Any]:
            return [None if isinstance(v, float) and not math.isfinite(v) else v for v in t.tolist()]

        return {
            "site": self.site.to_dict(),
            "inputs": self.inputs,
            "samples": self.samples,
            "reached": self.reached,
            "tally": self.tally(),
            "state": self.state,
            "death_bound": listed(self.death_bound()),
            **{n: listed(getattr(self, n)) for n in NUMBERS},
        }

    def __repr__(self) -> str:
        return f"SiteCensus({self.name!r}, {self.units} units, {int(self.dead.sum())} dead, {self.inputs} inputs)"
