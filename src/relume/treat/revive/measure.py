"""What a revival changed: the output, which should be nothing, and what the units are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relume.census import Census, SiteCensus
from relume.sites import Found
from relume.treat.revive.context import Unit
from relume.treat.surgery import Anatomy
from relume.treat.surgery.trace import Trace
from relume.watch.meters import Meter, collect

Statistics = dict[str, float | None]


def change(before: list[list[Tensor]], after: list[list[Tensor]]) -> tuple[float, float]:
    """max |Δ|, and the same by the largest value that there was."""
    worst, relative = 0.0, 0.0
    for old, new in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True):
        if not old[0].is_floating_point():
            moved = any(not torch.equal(a, b) for a, b in zip(old, new, strict=True))
            worst, relative = max(worst, float(moved)), max(relative, float(moved))
            continue
        size = max((float(t.abs().max()) for t in old if t.numel()), default=0.0)
        moves = [_largest(a, b) for a, b in zip(old, new, strict=True) if a.numel()]
        delta = max(moves, default=0.0)
        worst = max(worst, delta)
        relative = max(relative, delta / size if size else (0.0 if not delta else float("inf")))
    return worst, relative


def _largest(a: Tensor, b: Tensor) -> float:
    """max |a − b|; infinite where only one of them is a number."""
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a.double() - b.double()).abs().nan_to_num(torch.inf).masked_fill(same, 0).max())


def tolerance(outputs: list[list[Tensor]], given: float | None) -> float:
    if given is not None:
        return given
    kinds = [t.dtype for batch in outputs for t in batch if t.is_floating_point()]
    return max((1e-6 if k == torch.float32 else 8 * torch.finfo(k).eps for k in kinds), default=0.0)


def statistics(anatomy: Anatomy, chosen: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], Statistics]:
    """Firing rate, mean and standard deviation of the units as they are now, on the batches."""
    meters: dict[str, Meter] = {}

    def look(found: Found, x: Tensor) -> Any:
        name = anatomy.site_name(found)
        if name not in chosen:
            return None
        if name not in meters:
            meters[name] = Meter(found.plan.n_units, x.device)
        return meters[name].observe(x, found.plan, found.activation, 0)

    for batch in range(len(anatomy.calls)):
        anatomy.run(batch, Trace(anatomy.aliases, str), look)
    found: dict[tuple[str, int], Statistics] = {}
    for name, counts in zip(meters, collect(list(meters.values())), strict=True):
        one = SiteCensus(anatomy.sites[name].site, counts, 1)
        for unit in chosen[name]:
            found[name, unit] = _numbers(one, unit)
    return found


def before(census: Census | None, unit: Unit) -> Statistics:
    return _numbers(census[unit.site], unit.number) if census is not None else {}


def _numbers(site: Any, unit: int) -> Statistics:
    values = {"firing_rate": site.firing_rate, "mean": site.mean, "std": site.std}
    return {k: float(v[unit]) if v[unit].isfinite() else None for k, v in values.items()}
