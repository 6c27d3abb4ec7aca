"""A zone is a set of pre-activation values (a union of closed intervals) in which an activation behaves in one way.

Flat, saturated and linear zones are all `Zone`s, so one test serves "is this unit dead", "saturated" and "linear".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

INF = math.inf
# The smallest positive float64: "x > 0" written as a closed interval.
ABOVE_ZERO = 5e-324


@dataclass(frozen=True)
class Zone:
    """Union of disjoint closed intervals, in ascending order; empty when there are none."""

    intervals: tuple[tuple[float, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.intervals)

    @property
    def left_edge(self) -> float | None:
        """c when the zone is exactly x <= c, else None: the one case that a single comparison decides."""
        if len(self.intervals) == 1 and self.intervals[0][0] == -INF:
            return self.intervals[0][1]
        return None

    @functools.cached_property
    def edges(self) -> tuple[float, float] | None:
        """(a, b) when what is outside the zone is exactly a < x < b, else None. An empty zone leaves all outside."""
        lows = [i for i in self.intervals if i[0] == -INF]
        highs = [i for i in self.intervals if i[1] == INF]
        if len(lows) + len(highs) != len(self.intervals) or len(lows) > 1 or len(highs) > 1:
            return None
        return lows[0][1] if lows else -INF, highs[0][0] if highs else INF

    def contains(self, x: Tensor) -> Tensor:
        """Bool tensor of x's shape: which values lie in the zone. NaN lies in none."""
        inside = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        for low, high in self.intervals:
            if low == -INF:
                inside |= x <= high
            elif high == INF:
                inside |= x >= low
            else:
                inside |= (x >= low) & (x <= high)
        return inside

    def covers(self, low: Tensor, high: Tensor) -> Tensor:
        """Bool tensor: does one interval of the zone hold the whole range [low, high]?"""
        covered = torch.zeros(low.shape, dtype=torch.bool)
        for a, b in self.intervals:
            covered |= (low >= a) & (high <= b)
        return covered

    def __str__(self) -> str:
        def one(low: float, high: float) -> str:
            if low == -INF and high == INF:
                return "all x"
            if low == -INF:
                return f"x ≤ {high:.4g}"
            if high == INF:
                return "x > 0" if low == ABOVE_ZERO else f"x ≥ {low:.4g}"
            return f"{0 if low == ABOVE_ZERO else low:.4g} ≤ x ≤ {high:.4g}"

        return " or ".join(one(*i) for i in self.intervals) or "none"


def where(predicate: Callable[[Tensor], Tensor]) -> Zone:
    """The zone in which `predicate` holds, found on a grid of step 0.002 over [-40, 40] and refined by bisection.

    Runs that touch an end of the grid are taken to go on to infinity.
    """
    grid = torch.arange(-20_000, 20_001, dtype=torch.float64) / 500  # whole and half numbers are hit exactly
    holds = predicate(grid)
    flips = torch.nonzero(holds[1:] != holds[:-1]).flatten().tolist()

    def refine(i: int) -> float:
        """The edge between grid[i] and grid[i + 1], on the side where the predicate holds."""
        inside, outside = (i, i + 1) if bool(holds[i]) else (i + 1, i)
        a, b = float(grid[inside]), float(grid[outside])
        for _ in range(60):
            middle = (a + b) / 2
            if bool(predicate(torch.tensor([middle], dtype=torch.float64))[0]):
                a = middle
            else:
                b = middle
        return a

    edges = [refine(i) for i in flips]
    if bool(holds[0]):
        edges.insert(0, -INF)
    if bool(holds[-1]):
        edges.append(INF)
    return Zone(tuple((edges[i], edges[i + 1]) for i in range(0, len(edges), 2)))
