"""`Losses`: the training loss as it was logged, by which a guard judges its acts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

_KEPT = 100_000


class Losses:
    """The numbers that were logged under one name, or under the first that speaks of a training loss.

    Args:
        name: as given to `log`. Where nothing of that name is logged, the first name is taken that has "loss" in it and
            none of "val", "test", "eval", "held".
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: str | None = None
        self._rows: deque[tuple[int, float]] = deque(maxlen=_KEPT)
        self._first = 0.0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if self._name in values and self._found != self._name:
            self._found = self._name
            self._rows.clear()
        if self._found is None:
            self._found = next(filter(_of_training, values), None)
        if self._found is not None and self._found in values:
            if not self._rows:
                self._first = values[self._found]
            self._rows.append((step, values[self._found]))

    @property
    def diverged(self) -> bool:
        """Is the last of them no number?"""
        return bool(self._rows) and not math.isfinite(self._rows[-1][1])

    def recent(self, since: int) -> float:
        """Mean of those logged at a step after `since`, or the last one before; NaN where there is none."""
        recent: list[float] = []
        for step, value in reversed(self._rows):
            if step <= since and recent:
                break
            recent.append(value)
            if step <= since:
                break
        return sum(recent) / len(recent) if recent else math.nan

    def harmed(self, before: float, after: float, tolerance: float) -> bool:
        """Is the loss so much higher that what was done in between counts as harm?

        By more than `tolerance` of what it was, and by more than a hundredth of where it began: a loss that is nearly
        zero doubles by itself.
        """
        if math.isnan(before):  # nothing was logged before: nothing to go by
            return False
        if not math.isfinite(after):
            return math.isfinite(before)
        return after > before + max(tolerance * abs(before), abs(self._first) / 100)


def _of_training(name: str) -> bool:
    low = name.lower()
    return "loss" in low and not any(word in low for word in ("val", "test", "eval", "held"))
