"""`Death`: how a unit that died went down, and what its producers' steps were like at the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relume.diagnose.around import Around, StepSeries, Surroundings
from relume.diagnose.attribution import PARTS

if TYPE_CHECKING:
    from relume.diagnose.steps import Steps
    from relume.diagnose.trace import Series

__all__ = ["Around", "Death", "Fall", "deaths_of"]

# Steps before the death that count as its last: it takes one to be thrown, and momentum two more.
LAST_STEPS = 3
# Units that are looked at together, and those of a site that say what all of it went through.
TOGETHER, WITNESSES = 256, 128
# Parts that a layer and its normalization do themselves.
OWN = ("bias", "weights", "gamma", "beta")


@dataclass(frozen=True)
class Fall:
    """The fall of one unit; all numbers of means in units of its pre-activation.

    Attributes:
        unit: its index.
        died_at: last step at which it fired.
        from_step, to_step: of the row with the highest maximum before the death, and of the first row after it.
        top, bottom: its maximum in those two rows.
        mean_fall: how far the mean fell between them; negative when it rose.
        std_before, std_after: standard deviations in those rows.
        parts: of the change of the mean, by name; they sum to −mean_fall.
        last: the same over the last steps before the death.
        last_fall: fall of the maximum over the last steps.
        last_from: step that those begin with.
        steepest: the largest fall of the mean between two neighbouring rows of the last steps.
        split: are the parts known?
        std_last: standard deviation at the beginning of the last steps.
        stride: the largest fall in one step of the whole fall that its own parameters made, in standard deviations;
            where rows are several steps apart, that of a row divided by them.
        leap: the largest fall between two rows that its own parameters made, in standard deviations.
        coarsest: the largest number of steps between two rows of the fall.
        shift, last_shift: how far upstream moved it down in standard deviations, added up over the fall, and over the
            last steps.
        usual_shift: the middle of what upstream moves it between two rows in either direction: noise of batches.
        site_shift, site_last_shift: the middle of what upstream moved the units of the site, in either direction.
        site_spread, site_last_spread: the middle of what their standard deviations became over the fall, and over the
            last steps, as a share.
    """

    unit: int
    died_at: int
    from_step: int
    to_step: int
    top: float
    bottom: float
    mean_fall: float
    std_before: float
    std_after: float
    parts: dict[str, float]
    last: dict[str, float]
    last_fall: float
    last_from: int
    steepest: float
    split: bool
    std_last: float = math.nan
    stride: float = math.nan
    leap: float = math.nan
    coarsest: int = 1
    shift: float = math.nan
    last_shift: float = math.nan
    usual_shift: float = math.nan
    site_shift: float = math.nan
    site_last_shift: float = math.nan
    site_spread: float = math.nan
    site_last_spread: float = math.nan

    @property
    def height(self) -> float:
        """How far the maximum fell."""
        return self.top - self.bottom

    @property
    def suddenness(self) -> float:
        """Share of the whole fall that the last steps took; 1 is a drop."""
        return self.last_fall / self.height if self.height > 0 else 0.0

    @property
    def steepness(self) -> float:
        """The steepest fall of the mean in standard deviations before the fall."""
        return self.steepest / self.std_before if self.std_before > 0 else math.inf

    @property
    def last_steps(self) -> int:
        return self.to_step - self.last_from


@dataclass(frozen=True)
class Death:
    """A fall and what was going on around it; of a fall that no row tells of, only when it ended."""

    died_at: int
    fall: Fall | None
    around: Around


def deaths_of(
    series: Series,
    steps: Steps,
    producers: Sequence[str],
    died_at: Tensor,
    units: Tensor,
    below: Sequence[str] = (),
    series_of_steps: StepSeries | None = None,
) -> list[Death]:
    """How some units of a site died.

    Args:
        series: of the site.
        steps: of the optimizer.
        producers: of the site.
        died_at: int64 [units of the site], the last step at which each fired.
        units: int64, indices of those asked for.
        below: producers of the sites below.
        series_of_steps: as for `Surroundings`.
    """
    near = Surroundings(steps, producers, below, series_of_steps)
    site = _Site(series)
    deaths: list[Death] = []
    for chosen in units.split(TOGETHER):
        died = died_at[chosen]
        falls = _falls(series, site, chosen, died) if len(series) else [None] * len(chosen)
        for at, fall in zip(died.tolist(), falls, strict=True):
            around = Around() if fall is None else near.of(fall.from_step, fall.last_from, fall.to_step)
            deaths.append(Death(at, fall, around))
    return deaths


class _Site:
    """What all units of a site went through, by a sample of them."""

    def __init__(self, series: Series) -> None:
        units = series.table.shape[2]
        some = torch.linspace(0, units - 1, min(units, WITNESSES)).long() if units else torch.zeros(0).long()
        std = series.column("std")
        self.std = std[:, some]
        self.moved = _pushes(series, some).cumsum(0)
        self._known: dict[tuple[int, int], tuple[float, float]] = {}

    def between(self, start: int, at: int) -> tuple[float, float]:
        """Medians over units of the way that upstream moved them, and of what became of their spread."""
        if (start, at) not in self._known:
            moved = (self.moved[at] - self.moved[start]).abs()
            spread = self.std[at] / self.std[start]
            self._known[start, at] = (_median(moved), _median(spread))
        return self._known[start, at]


def _pushes(series: Series, units: Tensor) -> Tensor:
    """What upstream moved each unit in each row, in standard deviations of the row; [rows, units]."""
    pushes = series.column("upstream")[:, units] / series.column("std")[:, units]
    return pushes.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _median(values: Tensor) -> float:
    known = values[values.isfinite()]
    return float(known.median()) if len(known) else math.nan


def _falls(series: Series, site: _Site, units: Tensor, died: Tensor) -> list[Fall | None]:
    steps = torch.tensor(series.steps)
    rows, n = torch.arange(len(steps))[:, None], torch.arange(len(units))
    at = torch.searchsorted(steps, died, right=True)  # the first row after each death
    told = (at > 0) & (at < len(steps))
    at = at.clamp(1, max(1, len(steps) - 1)) if len(steps) > 1 else torch.zeros_like(at)
    mean, std, high = (series.column(name)[:, units] for name in ("mean", "std", "max"))
    told &= ((mean.isfinite() & high.isfinite()) | (rows > at)).all(0)
    start = torch.where(rows < at, high, -math.inf).argmax(0)
    # The last steps: back to the row that is so many steps before, one row at least, and not beyond the top.
    recent = torch.searchsorted(steps, steps[at] - LAST_STEPS).minimum(at - 1).maximum(start)
    parts = series.table[:, -len(PARTS) :][:, :, units]  # [rows, parts, units]
    whole, last = _between(parts, start, at), _between(parts, recent, at)
    inside = (rows > start) & (rows <= at)
    drop = torch.cat([torch.zeros_like(mean[:1]), mean[:-1] - mean[1:]])
    steepest = torch.where((rows > recent) & (rows <= at), drop, -math.inf).amax(0)
    own = parts[:, [PARTS.index(name) for name in OWN]].sum(1)
    took = torch.cat([torch.ones_like(steps[:1]), steps.diff()]).clamp(min=1)[:, None]
    before = torch.cat([std[:1], std[:-1]]).clamp(min=1e-30)
    stride = torch.where(inside, -own / before / took, -math.inf).amax(0)
    leap = torch.where(inside, -own / before, -math.inf).amax(0)
    coarsest = torch.where(inside, took, 1).amax(0).tolist()
    push = _pushes(series, units)
    moved = push.cumsum(0)
    shift, last_shift = moved[start, n] - moved[at, n], moved[recent, n] - moved[at, n]
    usual = torch.where((rows > 0) & (rows <= at), push.abs(), math.nan).nanmedian(0).values
    columns = (
        torch.stack(
            [high[start, n], high[at, n], mean[start, n] - mean[at, n], std[start, n], std[at, n],
             high[recent, n] - high[at, n], steepest, std[recent, n], stride, leap, shift, last_shift, usual]
        ).T.tolist()
    )  # fmt: skip
    whole_rows, last_rows = whole.T.tolist(), last.T.tolist()
    split = whole.isfinite().all(0).tolist()
    falls: list[Fall | None] = []
    indices = zip(
        units.tolist(), died.tolist(), start.tolist(), recent.tolist(), at.tolist(), told.tolist(), strict=True
    )
    for i, (unit, died_at, a, r, z, known) in enumerate(indices):
        if not known:
            falls.append(None)
            continue
        top, bottom, mean_fall, std_before, std_after, last_fall, steep, std_last, *further = columns[i]
        (site_shift, site_spread), (site_last_shift, site_last_spread) = site.between(a, z), site.between(r, z)
        falls.append(
            Fall(
                unit=unit,
                died_at=died_at,
                from_step=series.steps[a],
                to_step=series.steps[z],
                top=top,
                bottom=bottom,
                mean_fall=mean_fall,
                std_before=std_before,
                std_after=std_after,
                parts=dict(zip(PARTS, whole_rows[i], strict=True)),
                last=dict(zip(PARTS, last_rows[i], strict=True)),
                last_fall=last_fall,
                last_from=series.steps[r],
                steepest=steep,
                split=split[i],
                std_last=std_last,
                coarsest=coarsest[i],
                **dict(zip(("stride", "leap", "shift", "last_shift", "usual_shift"), further, strict=True)),
                site_shift=site_shift,
                site_last_shift=site_last_shift,
                site_spread=site_spread,
                site_last_spread=site_last_spread,
            )
        )
    return falls


def _between(parts: Tensor, after: Tensor, last: Tensor) -> Tensor:
    """[parts, units], of all rows after the one and up to the other; NaN where one of those is not known."""
    n = torch.arange(parts.shape[2])
    known = parts.isfinite()
    total, lost = torch.where(known, parts, 0.0).cumsum(0), (~known).cumsum(0)
    gone = lost[last, :, n] - lost[after, :, n] > 0
    return torch.where(gone, math.nan, total[last, :, n] - total[after, :, n]).T
