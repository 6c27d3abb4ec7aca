"""`Death`: how a unit that died went down, and what its producers' steps were like at the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relume.diagnose.attribution import PARTS

if TYPE_CHECKING:
    from relume.diagnose.steps import Settings, Steps
    from relume.diagnose.trace import Series

# Steps before the death that count as its last: it takes one to be thrown, and momentum two more.
LAST_STEPS = 3


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
class Around:
    """What was going on with a site's producers around a fall; NaN where it was not seen.

    Attributes:
        update, usual_update: the largest step of the last ones as a share of the weight's norm, and the median so far.
        largest_update: the largest step of the whole fall.
        gradient, usual_gradient: of the same steps, the gradient's norm.
        lr, usual_lr: the highest learning rate of the last steps, and the median so far.
        decay: share by which weight decay alone shrinks the weight in one step; 0 without it.
        shrink: the same over the whole fall.
        weight_ratio: norm of the weight after the fall, divided by that before.
        settings: of the producer's parameter group.
    """

    update: float = math.nan
    usual_update: float = math.nan
    largest_update: float = math.nan
    gradient: float = math.nan
    usual_gradient: float = math.nan
    lr: float = math.nan
    usual_lr: float = math.nan
    decay: float = math.nan
    shrink: float = math.nan
    weight_ratio: float = math.nan
    settings: Settings | None = None


@dataclass(frozen=True)
class Death:
    """A fall and what was going on around it; of a fall that no row tells of, only when it ended."""

    died_at: int
    fall: Fall | None
    around: Around


def deaths_of(series: Series, steps: Steps, producers: Sequence[str], died_at: Tensor, units: Tensor) -> list[Death]:
    """How some units of a site died.

    Args:
        series: of the site.
        steps: of the optimizer.
        producers: of the site.
        died_at: int64 [units of the site], the last step at which each fired.
        units: int64, indices of those asked for.
    """
    at = torch.tensor(series.steps)
    deaths = []
    for unit in units.tolist():
        died = int(died_at[unit])
        after = (at > died).nonzero()
        fall = _fall(series, unit, died, int(after[0])) if len(after) and int(after[0]) else None
        deaths.append(Death(died, fall, Around() if fall is None else around(steps, producers, fall)))
    return deaths


def _fall(series: Series, unit: int, died: int, at: int) -> Fall | None:
    mean, std, high = (series.column(name)[: at + 1, unit] for name in ("mean", "std", "max"))
    if not (mean.isfinite().all() and high.isfinite().all()):
        return None
    steps = series.steps
    start = int(high[:at].argmax())
    recent = max(start, next(i for i in range(at) if i == at - 1 or steps[at] - steps[i] <= LAST_STEPS))
    whole, last = (series.parts(i, at).stacked()[:, unit] for i in (start, recent))
    return Fall(
        unit=unit,
        died_at=died,
        from_step=steps[start],
        to_step=steps[at],
        top=float(high[start]),
        bottom=float(high[at]),
        mean_fall=float(mean[start] - mean[at]),
        std_before=float(std[start]),
        std_after=float(std[at]),
        parts=dict(zip(PARTS, whole.tolist(), strict=True)),
        last=dict(zip(PARTS, last.tolist(), strict=True)),
        last_fall=float(high[recent] - high[at]),
        last_from=steps[recent],
        steepest=float((mean[recent:at] - mean[recent + 1 : at + 1]).max()),
        split=bool(whole.isfinite().all()),
    )


def around(steps: Steps, producers: Sequence[str], fall: Fall) -> Around:
    """The steps around a fall, of the producer whose step was the largest."""
    seen = [_around(steps, name, fall) for name in producers]
    return max(seen, key=lambda a: -1.0 if math.isnan(a.update) else a.update, default=Around())


def _around(steps: Steps, name: str, fall: Fall) -> Around:
    at, update = steps.numbers(name, "update")
    gradient, weight = (steps.numbers(name, what)[1] for what in ("gradient", "weight"))
    last = [i for i, s in enumerate(at) if fall.last_from <= s < fall.to_step]
    whole = [i for i, s in enumerate(at) if fall.from_step <= s < fall.to_step]
    rates = [math.nan if (own := row.settings.get(name)) is None else own.lr for row in steps.rows]
    settings = steps.settings(name, fall.to_step)
    decay = _decay(settings, _median([rates[i] for i in whole]))
    before = weight[whole[0]] if whole else math.nan
    return Around(
        update=_largest(update, last),
        usual_update=_median(update),
        largest_update=_largest(update, whole),
        gradient=_largest(gradient, last),
        usual_gradient=_median(gradient),
        lr=_largest(rates, last),
        usual_lr=_median(rates),
        decay=decay,
        shrink=1 - math.exp(-decay * (fall.to_step - fall.from_step)),
        weight_ratio=weight[whole[-1]] / before if before > 0 else math.nan,
        settings=settings,
    )


def _decay(settings: Settings | None, lr: float) -> float:
    """Of one step; NaN for optimizers that scale what weight decay adds to the gradient."""
    if settings is None:
        return math.nan
    if settings.weight_decay == 0:
        return 0.0
    if settings.decoupled:
        return lr * settings.weight_decay
    if settings.optimizer == "SGD":
        return lr * settings.weight_decay / (1 - (0 if math.isnan(settings.momentum) else settings.momentum))
    return math.nan


def _largest(values: Sequence[float], at: Sequence[int]) -> float:
    return max((values[i] for i in at if not math.isnan(values[i])), default=math.nan)


def _median(values: Sequence[float]) -> float:
    known = sorted(v for v in values if math.isfinite(v))
    return known[len(known) // 2] if known else math.nan
