"""How far what comes into a site has moved between two steps, in the spread of its units."""

from __future__ import annotations

import torch

from relume.diagnose.trace import Trace


def shift_between(trace: Trace, start: int, end: int) -> float:
    """The middle of what upstream moved the units of a site, in standard deviations; 0 where no row tells of it."""
    series = trace.series()
    inside = [i for i, step in enumerate(series.steps) if start < step <= end]
    if len(inside) < 2:
        return 0.0
    rows = torch.tensor(inside)
    pushes = series.column("upstream")[rows] / series.column("std")[rows]
    moved = pushes.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).cumsum(0)
    far = moved.amax(0) - moved.amin(0)
    return float(far.median()) if far.numel() else 0.0
