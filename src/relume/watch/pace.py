"""`Pace`: chooses how many steps apart to observe, so that watching stays within a stated share of training time."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

MOST = 1000
_START = 10
# Medians over so many step times, of observed and of other steps; fewer than the least are no ground to choose on.
_KEPT_OBSERVED, _KEPT_OTHERS = 9, 41
_LEAST_OBSERVED, _LEAST_OTHERS = 3, 9


class Pace:
    """Measures steps from end to end and compares observed ones with the others.

    Args:
        budget: share of training time that watching may take, e.g. 0.01.
        clock: seconds; for tests.

    Attributes:
        every: observe each so-manieth step; 10 until there is ground to choose on, at most 1000.
        cost: seconds that observing a step adds, or None before it is known.
    """

    def __init__(self, budget: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.budget = budget
        self.every = _START
        self.cost: float | None = None
        self._clock = clock
        self._last: float | None = None
        self._observed: deque[float] = deque(maxlen=_KEPT_OBSERVED)
        self._others: deque[float] = deque(maxlen=_KEPT_OTHERS)
        self._skip = 1  # the first observed step finds the sites, and takes longer than any later one

    def step(self, *, observed: bool) -> None:
        """A step has ended."""
        now = self._clock()
        last, self._last = self._last, now
        if last is None:
            return
        if observed and self._skip:
            self._skip -= 1
        else:
            (self._observed if observed else self._others).append(now - last)

    def pause(self) -> None:
        """What happens until the end of the next step is not training: a window is read, a report written."""
        self._last = None

    def choose(self) -> int:
        """The new `every`, from what was measured so far."""
        if len(self._observed) >= _LEAST_OBSERVED and len(self._others) < _LEAST_OTHERS and self.every < _START:
            self.every = min(self.every * 2, _START)  # every step is observed: let some go, to compare with
        if len(self._observed) < _LEAST_OBSERVED or len(self._others) < _LEAST_OTHERS:
            return self.every
        usual = statistics.median(self._others)
        self.cost = max(statistics.median(self._observed) - usual, 0.0)
        # Of every k steps one costs more: k · budget · usual is what may be spent on it.
        wanted = math.ceil(self.cost / (self.budget * usual)) if usual > 0 else MOST
        # One noisy window must not send it far.
        self.every = min(max(wanted, self.every // 4, 2), self.every * 4, MOST)
        return self.every
