"""`Around`: what the optimizer did to a site's producers, and to those below, while a unit fell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from relume.diagnose.steps import Settings, Steps

_Array = npt.NDArray[np.float64]
StepSeries = dict[str, dict[str, _Array]]


@dataclass(frozen=True)
class Around:
    """What was going on with a site's producers around a fall; NaN where it was not seen.

    Attributes:
        update, usual_update: the largest step of the last ones as a share of the weight's norm, and the median so far.
        largest_update: the largest step of the whole fall.
        gradient, usual_gradient: of the same steps, the gradient's norm.
        lr, usual_lr: the learning rate, the largest of the last steps, and the median so far.
        decay: share by which weight decay alone shrinks the weight in one step; 0 without it.
        shrink: the same over the whole fall.
        weight_ratio: norm of the weight after the fall, divided by that before.
        settings: of the producer's parameter group.
        path, last_path: steps of the whole fall, and of the last steps, added up as shares of the weight's norm.
        below_update: the largest step of the whole fall that a producer below took.
        below: its name.
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
    path: float = math.nan
    last_path: float = math.nan
    below_update: float = math.nan
    below: str = ""

    @property
    def pull(self) -> float:
        """Share of all that the steps did which made the weights smaller: 1 when each step goes straight to zero."""
        if not (self.path > 0 and self.weight_ratio > 0):
            return math.nan
        return -math.log(self.weight_ratio) / self.path


class Surroundings:
    """The steps around falls at one site.

    Args:
        steps: of the optimizer.
        producers: of the site.
        below: of the sites below.
        series: what the steps say of each producer, as far as it has been looked up; shared by sites of one moment.
    """

    def __init__(
        self, steps: Steps, producers: Sequence[str], below: Sequence[str] = (), series: StepSeries | None = None
    ) -> None:
        self._steps, self._names, self._below = steps, tuple(producers), tuple(below)
        self._series: StepSeries = {} if series is None else series
        self._known: dict[tuple[int, int, int], Around] = {}

    def of(self, from_step: int, last_from: int, to_step: int) -> Around:
        """Around a fall, of the producer whose step was the largest."""
        key = (from_step, last_from, to_step)
        if key not in self._known:
            seen = [self._one(name, *key) for name in self._names]
            largest = max(seen, key=lambda a: -1.0 if math.isnan(a.update) else a.update, default=Around())
            self._known[key] = self._with_below(largest, from_step, to_step)
        return self._known[key]

    def _of(self, name: str) -> dict[str, _Array]:
        if name not in self._series:
            rates = [math.nan if (own := row.settings.get(name)) is None else own.lr for row in self._steps.rows]
            at, update = self._steps.numbers(name, "update")
            gradient, weight = (self._steps.numbers(name, what)[1] for what in ("gradient", "weight"))
            found = {"at": at, "update": update, "gradient": gradient, "weight": weight, "lr": rates}
            self._series[name] = {what: np.asarray(values, dtype=float) for what, values in found.items()}
        return self._series[name]

    def _one(self, name: str, from_step: int, last_from: int, to_step: int) -> Around:
        seen = self._of(name)
        at, weight, update = seen["at"], seen["weight"], seen["update"]
        last, whole = (at >= last_from) & (at < to_step), (at >= from_step) & (at < to_step)
        settings = self._steps.settings(name, to_step)
        decay = _decay(settings, _median(seen["lr"][whole]))
        during = weight[whole]
        after = weight[at >= to_step]
        end = after[0] if len(after) else during[-1] if len(during) else math.nan
        return Around(
            update=_largest(update[last]),
            usual_update=_median(update),
            largest_update=_largest(update[whole]),
            gradient=_largest(seen["gradient"][last]),
            usual_gradient=_median(seen["gradient"]),
            lr=_largest(seen["lr"][last]),
            usual_lr=_median(seen["lr"]),
            decay=decay,
            shrink=1 - math.exp(-decay * (to_step - from_step)),
            weight_ratio=float(end / during[0]) if len(during) and 0 < during[0] < math.inf else math.nan,
            settings=settings,
            path=_mean(update[whole]) * (to_step - from_step),
            last_path=_mean(update[last]) * (to_step - last_from),
        )

    def _with_below(self, around: Around, from_step: int, to_step: int) -> Around:
        most, name = math.nan, ""
        for other in self._below:
            seen = self._of(other)
            largest = _largest(seen["update"][(seen["at"] >= from_step) & (seen["at"] < to_step)])
            if largest > most or (math.isnan(most) and not math.isnan(largest)):
                most, name = largest, other
        return replace(around, below_update=most, below=name)


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


def _largest(values: _Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else math.nan


def _mean(values: _Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _median(values: _Array) -> float:
    known = np.sort(values[np.isfinite(values)])
    return float(known[len(known) // 2]) if len(known) else math.nan
