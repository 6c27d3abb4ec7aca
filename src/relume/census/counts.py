"""`Counts`: what has been counted for one site over a span of steps, and how two such counts add up.

These are the only numbers relume keeps; everything else (rates, states, bounds) is derived from them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of one site in one phase. Per-unit fields are CPU tensors of shape [units].

    Attributes:
        inputs: inputs seen (the same for all units).
        samples: samples seen per unit; more than inputs where a unit has positions or tokens.
        fired: int64, inputs on which the unit fired.
        samples_fired: int64, finite samples outside the counted zone (flat; for sigmoid and tanh the saturated one).
        mean, m2: float64, mean of the finite pre-activations and their summed squared deviation from it.
        max, min: float64, extremes of the finite pre-activations; -inf and inf when there were none.
        output: float64, sum of |output| over samples with finite pre-activation and output.
        nonfinite: int64, samples that were NaN or infinite.
        first_fired, last_fired: int64, first and last step with a firing, -1 when there was none.
    """

    inputs: int
    samples: int
    fired: Tensor
    samples_fired: Tensor
    mean: Tensor
    m2: Tensor
    max: Tensor
    min: Tensor
    output: Tensor
    nonfinite: Tensor
    first_fired: Tensor
    last_fired: Tensor

    @property
    def units(self) -> int:
        return int(self.fired.numel())

    @property
    def finite(self) -> Tensor:
        """Samples that entered the moments, per unit."""
        return self.samples - self.nonfinite

    @classmethod
    def empty(cls, units: int) -> Counts:
        """Nothing seen yet."""
        ints = {n: torch.zeros(units, dtype=torch.int64) for n in ("fired", "samples_fired", "nonfinite")}
        reals = {n: torch.zeros(units, dtype=torch.float64) for n in ("mean", "m2", "output")}
        steps = {n: torch.full((units,), -1, dtype=torch.int64) for n in ("first_fired", "last_fired")}
        return cls(
            0,
            0,
            **ints,
            **reals,
            **steps,
            max=torch.full((units,), -torch.inf, dtype=torch.float64),
            min=torch.full((units,), torch.inf, dtype=torch.float64),
        )

    def merge(self, later: Counts) -> Counts:
        """Counts of both spans together, exactly (moments by Chan et al. 1979). `later` follows `self` in time."""
        a, b = self.finite.double(), later.finite.double()
        n = a + b
        weight = torch.where(n > 0, b / n.clamp(min=1), 0.0)
        delta = later.mean - self.mean
        first = torch.where(self.first_fired >= 0, self.first_fired, later.first_fired)
        return Counts(
            inputs=self.inputs + later.inputs,
            samples=self.samples + later.samples,
            fired=self.fired + later.fired,
            samples_fired=self.samples_fired + later.samples_fired,
            mean=self.mean + delta * weight,
            m2=self.m2 + later.m2 + delta.square() * a * weight,
            max=torch.maximum(self.max, later.max),
            min=torch.minimum(self.min, later.min),
            output=self.output + later.output,
            nonfinite=self.nonfinite + later.nonfinite,
            first_fired=first,
            last_fired=torch.maximum(self.last_fired, later.last_fired),
        )


ARRAYS = tuple(f.name for f in fields(Counts) if f.name not in ("inputs", "samples"))
INTEGER_ARRAYS = frozenset({"fired", "samples_fired", "nonfinite", "first_fired", "last_fired"})
