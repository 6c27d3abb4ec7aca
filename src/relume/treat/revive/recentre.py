"""`recentre`: the bias moved so that a unit fires on a stated share of recent inputs; the weights stay.

ours. What the unit has learnt to look for is kept, and only its threshold moves: to the (1 − share) quantile of its
highest pre-activation per input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relume.treat.revive.affine import scaled_and_shifted
from relume.treat.revive.context import Patient, Unit, Write
from relume.treat.revive.samples import samples
from relume.watch import arguments


def recentre(patient: Patient, *, share: float = 0.5) -> list[Write]:
    """New biases (or shifts of the last norm).

    Args:
        patient: the units.
        share: of inputs on which a unit is to fire, between 0 and 1. From batches it is met as exactly as their number
            allows; from a census alone a normal distribution with its moments stands in, over samples.
    """
    arguments.share("share", share)
    return recentred(patient, patient.units, share)


def recentred(patient: Patient, units: list[Unit], share: float) -> list[Write]:
    seen = samples(patient.anatomy, {u.site for u in units}) if patient.data_known else {}
    writes = []
    for unit in units:
        top = top_of_flat(patient, unit.site)
        if unit.site in seen:
            of = seen[unit.site]
            shift = _shift(of.highest[:, unit.number], share, top, of.typical)
        else:
            assert patient.census is not None
            one = patient.census[unit.site]
            quantile = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * share)))
            shift = top - float(one.mean[unit.number]) - float(one.std[unit.number]) * quantile
        writes += scaled_and_shifted(patient, unit, 1.0, shift)
    return writes


def top_of_flat(patient: Patient, site: str) -> float:
    """Where the activation's flat zone ends and the unit begins to fire; 0 where there is none."""
    ends = [b for a, b in patient.anatomy.sites[site].activation.flat.intervals if a == -math.inf and b < math.inf]
    return float(ends[0]) if ends else 0.0


def _shift(highest: Tensor, share: float, top: float, typical: float) -> float:
    """What to add so that the share of `highest` that is above `top` is as near to `share` as can be."""
    values = highest.sort(descending=True).values
    n = len(values)
    k = min(max(round(share * n), 1), n)
    low = float(values[k]) if k < n else float(values[-1]) - typical
    high = float(values[k - 1])
    if float(values[0] - values[-1]) <= 1e-6 * float(values.abs().max()):
        low = high - typical  # a constant fires on all or none
    return top - (low + high) / 2
