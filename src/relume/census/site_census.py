"""`SiteCensus`: which units of one site are dead, saturated, linear or dormant, and how sure that is.

Derived from `Counts` alone; nothing here touches a model.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
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


def _fill_unless_empty(codes: Tensor, mask: Tensor, code: int) -> None:
    if mask.any():
        codes.masked_fill_(mask, code)


# Numbers more than which torch splits over threads, if they are all that is to be summed.
_SUMMED_BY_ONE_THREAD = 32768


def mean_of(values: Tensor) -> Tensor:
    """The mean over units (the last axis) of those that are not NaN; of a row it is the same bits, whether it stands
    alone or among others. NaN where none is left."""
    if values.dim() > 1 and values.shape[-1] > _SUMMED_BY_ONE_THREAD:
        return torch.stack([mean_of(row) for row in values])
    total = values.sum(-1)
    if not total.isnan().any():
        return total / values.shape[-1]
    known = values.isnan().logical_not_()
    return torch.where(known, values, 0.0).sum(-1) / known.sum(-1)


@dataclass(frozen=True)
class SiteCensus:
    """The census of one site. Per-unit results are CPU tensors of shape [units].

    Of `Counts.stacked`, they have shape [windows, units], each row that of its window.

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
    def reached_in(self) -> list[bool]:
        """`reached`, of each window."""
        reached: list[bool] = torch.as_tensor(self.counts.samples > 0).flatten().tolist()
        return reached

    @property
    def fired(self) -> Tensor:
        """int64: on how many inputs each unit fired."""
        return self.counts.fired

    @property
    def firing_rate(self) -> Tensor:
        """float64: share of inputs on which each unit fired; NaN when none was seen."""
        inputs = torch.as_tensor(self.counts.inputs)
        return self.counts.fired.double() / torch.where(inputs > 0, inputs.double(), math.nan)

    @functools.cached_property
    def _finite(self) -> Tensor:
        """float64: samples that entered the moments, or size 1 where that is the same for all units."""
        return (self.counts.samples - self.counts.brief("nonfinite").long()).double()

    @property
    def mean(self) -> Tensor:
        """float64: mean pre-activation over finite samples; NaN when there were none."""
        return torch.where(self._finite > 0, self.counts.mean, math.nan)

    @property
    def std(self) -> Tensor:
        """float64: standard deviation (population) of the pre-activation; NaN when nothing was seen."""
        n = self._finite
        # numpy's root is rounded exactly, however many there are, and starts no threads.
        root = torch.from_numpy(np.sqrt((self.counts.m2 / n.clamp(min=1)).numpy()))
        return torch.where(n > 0, root, math.nan)

    @property
    def min(self) -> Tensor:
        """float64: smallest finite pre-activation; NaN when nothing was seen."""
        return torch.where(self._finite > 0, self.counts.min, math.nan)

    @property
    def max(self) -> Tensor:
        """float64: largest finite pre-activation; NaN when nothing was seen."""
        return torch.where(self._finite > 0, self.counts.max, math.nan)

    @property
    def mean_output(self) -> Tensor:
        """float64: mean |output| over samples with finite pre-activation; NaN when there were none."""
        n = self._finite
        return torch.where(n > 0, self.counts.output / n.clamp(min=1), math.nan)

    @property
    def nonfinite(self) -> Tensor:
        """int64: samples whose pre-activation was NaN or infinite."""
        return self.counts.nonfinite

    @functools.cached_property
    def codes(self) -> Tensor:
        """uint8: index into STATES."""
        c, zones = self.counts, self.site.zones
        seen = torch.as_tensor(c.samples > 0)
        enough = torch.as_tensor(c.inputs >= self.min_inputs)
        codes = torch.full(c.kept("fired").shape, ALIVE, dtype=torch.uint8)
        codes.masked_fill_(self._linear_samples, LINEAR).masked_fill_(self._saturated_samples, SATURATED)
        _fill_unless_empty(codes, ~(seen & enough), ALIVE)
        if self.site.can_die:
            never = c.kept("fired") == 0
            codes.masked_fill_(never, DEAD)
            if zones.top is not None:
                codes.masked_fill_(never & (c.min >= zones.top), STUCK)
            if not enough.all():
                codes.masked_fill_(never & ~enough, UNKNOWN)
        _fill_unless_empty(codes, ~seen, UNKNOWN)
        _fill_unless_empty(codes, c.brief("nonfinite") > 0, NONFINITE)
        return codes

    @functools.cached_property
    def _saturated_samples(self) -> Tensor:
        """bool: was every sample in the saturated zone?"""
        c, zones = self.counts, self.site.zones
        covered = zones.saturated.covers(*self._extremes)
        # Samples on both sides of a two-sided zone: no one interval covers them, but they were counted.
        return covered | (c.kept("samples_fired") == 0) if zones.counts_responsive or zones.flat else covered

    @functools.cached_property
    def _linear_samples(self) -> Tensor:
        """bool: was every sample in one affine piece?"""
        return self.site.zones.linear.covers(*self._extremes)

    @functools.cached_property
    def _extremes(self) -> tuple[Tensor, Tensor]:
        return self.counts.min, self.counts.max

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
        dead = self.codes == DEAD
        return dead if self.site.zones.top is None else dead | (self.codes == STUCK)

    @property
    def silent(self) -> bool:
        """Are all its units dead? Then the signal is cut here."""
        return self.units > 0 and bool(self.dead.all())

    @property
    def unknown(self) -> Tensor:
        """bool: never fired, on too few inputs to be called dead; or no input came this way at all."""
        return self.codes == UNKNOWN

    @property
    def diverged(self) -> Tensor:
        """bool: NaN or infinity among its pre-activations."""
        return self.codes == NONFINITE

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
        return self._judged & self._linear_samples

    @property
    def _judged(self) -> Tensor:
        c = self.counts
        enough = torch.as_tensor(c.samples > 0) & torch.as_tensor(c.inputs >= self.min_inputs)
        return (c.brief("nonfinite") == 0) & enough

    def score(self) -> Tensor:
        """float64: mean |output| divided by the layer's mean of it; 0 for all units of a layer that is zero.

        NaN when nothing was seen, and for units with non-finite pre-activations, which the layer's mean leaves out.

        Source: Sokar et al. 2023, equation 1; 1e-9 is added to the divisor as in the reference code.
        """
        output = torch.where(self.counts.brief("nonfinite") == 0, self.mean_output, math.nan)
        return output / (mean_of(output).unsqueeze(-1) + 1e-9)

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
