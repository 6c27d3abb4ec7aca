"""`rescale`: incoming weights scaled and shifted so that the spread of the pre-activations lies around zero.

ours, after data-dependent initialization (Krähenbühl et al. 2016; Mishkin and Matas 2016, LSUV), for single units: the
direction that a unit has learnt is kept, its mean becomes the end of the flat zone and its standard deviation that of
its site's other units (the median).
"""

from __future__ import annotations

from relume.treat.revive.affine import scaled_and_shifted
from relume.treat.revive.context import Patient, Write
from relume.treat.revive.recentre import top_of_flat
from relume.treat.revive.samples import samples


def rescale(patient: Patient, *, std: float | None = None) -> list[Write]:
    """New weights and biases (or scales and shifts of the last norm).

    Args:
        patient: the units.
        std: of the pre-activation afterwards; None is the median of the site's units that vary, or 1.
    """
    if std is not None and not std > 0:
        raise ValueError(f"std must be above 0, not {std!r}")
    seen = samples(patient.anatomy, {u.site for u in patient.units}) if patient.data_known else {}
    writes = []
    for unit in patient.units:
        if unit.site in seen:
            of = seen[unit.site]
            mean, spread, target = float(of.mean[unit.number]), float(of.std[unit.number]), of.typical
        else:
            assert patient.census is not None
            one = patient.census[unit.site]
            mean, spread = float(one.mean[unit.number]), float(one.std[unit.number])
            varying = one.std[one.std > 0]
            target = float(varying.median()) if len(varying) else 1.0
        top = top_of_flat(patient, unit.site)
        if spread <= 1e-6 * abs(mean) or spread == 0:
            # Of a constant no scale makes a spread: let it fire, so that the gradient reaches what lies below.
            unit.note = "its input is constant on the batches, so that it fires on all of them or none"
            writes += scaled_and_shifted(patient, unit, 1.0, top - mean + target)
            continue
        scale = (std if std is not None else target) / spread
        writes += scaled_and_shifted(patient, unit, scale, top - scale * mean)
    return writes
