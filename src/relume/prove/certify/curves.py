"""`Curve`: a function of one number, with what is needed to bound it on an interval: the points between which it is
convex or concave and rises or falls, and how far a floating-point evaluation of it may be off.

Between two neighbouring such points the function lies within the triangle of its chord and its end tangents, which
bounds it, and its distance from any line, without sampling error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relume.activations.drelu import formula
from relume.prove.certify.bound import Bound, Lines
from relume.prove.certify.rounding import ELEMENTARY, OWN, UNIT, gamma

# What a floating-point evaluation of the function may add, in units of rounding: nothing, or some multiples of |f|,
# of 1 + |f|, or of 1 + |x| + |f| (formulas that subtract likes, such as x Φ(x) far left).
Rounded = Literal["exact", "relative", "unit", "wide"]
_CELLS = 16
_ASIDE = 1e-12


@dataclass(frozen=True)
class Curve:
    """A function on the real line.

    Attributes:
        function: float64 to float64, element by element.
        points: where it kinks, turns, or changes between convex and concave; ascending.
        turns: those of `points` at which it changes between rising and falling; empty: it is monotone.
        rounded: how it is rounded.
        straight: between `points` it is affine.
        jumps: it is not continuous; lines then are constants.
        limits: infimum and supremum that also the rounded function keeps to.
    """

    function: Callable[[Tensor], Tensor]
    points: tuple[float, ...] = ()
    turns: tuple[float, ...] = ()
    rounded: Rounded = "wide"
    straight: bool = False
    jumps: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)

    def range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Infimum and supremum over [lower, upper], but for rounding."""
        ends = [self._at(lower), self._at(upper)]
        ends += [self._at(torch.clamp(torch.full_like(lower, turn), lower, upper)) for turn in self.turns]
        stacked = torch.stack(ends)
        return stacked.amin(0), stacked.amax(0)

    def _at(self, x: Tensor) -> Tensor:
        """With its limits at infinity, where formulas may give NaN."""
        value = self.function(torch.clamp(x, -1e30, 1e30))
        return torch.where(torch.isinf(x) & (value.abs() > 1e9), torch.sign(value) * math.inf, value)

    def error(self, x: Bound, low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What rounding adds on [x.lower, x.upper], where the function itself is within [low, high]."""
        if self.rounded == "exact":
            return None
        size = torch.maximum(low.abs(), high.abs())
        if self.rounded != "relative":
            size = size + 1
        if self.rounded == "wide":
            size = size + x.magnitude
        return (gamma(ELEMENTARY, UNIT[dtype]) + gamma(ELEMENTARY, OWN)) * size + torch.finfo(dtype).tiny

    def bound(self, x: Bound, dtype: torch.dtype, *, lines: bool) -> Bound:
        """Of f(x), with lines above and below it where they are wanted and the interval is finite."""
        low, high = self.range(x.lower, x.upper)
        error = self.error(x, low, high, dtype)
        result = Bound(low, high, error)
        result.meet(torch.full_like(low, self.limits[0]), torch.full_like(high, self.limits[1]))
        if lines and not self.jumps:
            result.backward = self.lines(x, low, high)
        return result

    # Lines

    def lines(self, x: Bound, low: Tensor, high: Tensor) -> Lines:
        """The lines, among those with a few likely slopes, that are tightest in the middle of the interval.

        For ReLU these are the triangle's chord above, and below 0 or x, whichever leaves less (Zhang et al. 2018).
        """
        finite = torch.isfinite(x.lower) & torch.isfinite(x.upper) & torch.isfinite(low) & torch.isfinite(high)
        lower, upper = (torch.where(finite, end, 0.0) for end in (x.lower, x.upper))
        grid, values, left, right = self._cells(lower, upper)
        width, middle = upper - lower, (lower + upper) / 2
        chord = torch.where(width > 0, (values[-1] - values[0]) / torch.where(width > 0, width, 1.0), left[0])
        # Slopes may be any: what they are decides tightness alone.
        slopes = (chord, left[0], right[-1], self._slope(middle), torch.zeros_like(chord))
        best_low = best_high = None
        low_slope = high_slope = torch.zeros_like(chord)
        for slope in slopes:
            at_low, at_high = self._offsets(grid, values, left, right, slope)
            below, above = at_low + slope * middle, at_high + slope * middle
            if best_low is None or best_high is None:
                best_low, best_high, low_slope, high_slope = below, above, slope, slope
                continue
            better = below > best_low
            best_low, low_slope = torch.where(better, below, best_low), torch.where(better, slope, low_slope)
            better = above < best_high
            best_high, high_slope = torch.where(better, above, best_high), torch.where(better, slope, high_slope)
        low_at, _ = self._offsets(grid, values, left, right, low_slope)
        _, high_at = self._offsets(grid, values, left, right, high_slope)
        return Lines(
            x.index,
            torch.where(finite, low_slope, 0.0), torch.where(finite, low_at, low),
            torch.where(finite, high_slope, 0.0), torch.where(finite, high_at, high),
        )  # fmt: skip

    def _cells(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points that divide [lower, upper] (axis 0), the values there, and slopes at both ends of each cell."""
        steps = 1 if self.straight else _CELLS
        grid = [lower + (upper - lower) * (k / steps) for k in range(steps)] + [upper]
        grid += [torch.clamp(torch.full_like(lower, p), lower, upper) for p in self.points]
        points = torch.stack(grid).sort(0).values.clamp(lower, upper)
        aside = _ASIDE * (1 + points.abs())
        return points, self.function(points), self._slope(points[:-1] + aside[:-1]), self._slope(points[1:] - aside[1:])

    def _offsets(
        self, grid: Tensor, values: Tensor, left: Tensor, right: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Least and largest f(x) − slope x. In a cell of width h in which f is concave, with slopes p > 0 > −q at its
        ends, the tangents meet at most h p q / (p + q) above the higher end; likewise below where it is convex."""
        distance = values - slope * grid
        h = grid[1:] - grid[:-1]
        slack = 0.0 if self.straight else 1e-6
        rise, fall = left - slope, right - slope
        over = _meeting(h, rise + slack, slack - fall)
        under = _meeting(h, slack - rise, fall + slack)
        noise = 64 * OWN * (values.abs() + slope.abs() * grid.abs()).amax(0)
        if not self.straight:
            noise = noise + 1e-11 * (1 + slope.abs())
        least = (torch.minimum(distance[1:], distance[:-1]) - under).amin(0) - noise
        most = (torch.maximum(distance[1:], distance[:-1]) + over).amax(0) + noise
        return least, most

    def _slope(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.function(leaf).sum(), leaf)
        return slope


def _meeting(h: Tensor, p: Tensor, q: Tensor) -> Tensor:
    p, q = p.clamp(min=0), q.clamp(min=0)
    both = p + q
    return torch.where(both > 0, h * p * q / torch.where(both > 0, both, 1.0), 0.0)


# The functions. Points that have no closed form are found from the formula, to the last digits of float64.


def root(function: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """Where a continuous function changes sign in [low, high], by bisection."""
    sign = float(function(torch.tensor(low, dtype=torch.float64))) > 0
    for _ in range(80):
        middle = (low + high) / 2
        if (float(function(torch.tensor(middle, dtype=torch.float64))) > 0) == sign:
            low = middle
        else:
            high = middle
    return low


def _derivative(function: Callable[[Tensor], Tensor], order: int) -> Callable[[Tensor], Tensor]:
    def derivative(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            value = function(leaf)
            for k in range(order):
                (value,) = torch.autograd.grad(value.sum(), leaf, create_graph=k + 1 < order)
        return value.detach()

    return derivative


def _dip(function: Callable[[Tensor], Tensor], turn: tuple[float, float], *bends: tuple[float, float]) -> Curve:
    """A curve that falls to a dip and rises again, such as GELU: brackets of where it turns, and of where it bends."""
    first, second = _derivative(function, 1), _derivative(function, 2)
    at = root(first, *turn)
    return Curve(function, tuple(sorted((at, *(root(second, *b) for b in bends)))), (at,))


@functools.cache
def gelu(approximate: str = "none") -> Curve:
    return _dip(lambda x: F.gelu(x, approximate=approximate), (-1.0, -0.5), (-1.8, -1.2), (1.2, 1.8))


@functools.cache
def silu(scale: float = 1.0) -> Curve:
    """x σ(scale x); quick GELU has 1.702."""
    ends = [(a / scale, b / scale) for a, b in ((-1.5, -1.0), (-3.0, -2.0), (2.0, 3.0))]
    return _dip(lambda x: x * torch.sigmoid(scale * x), *ends)


@functools.cache
def mish() -> Curve:
    return _dip(lambda x: x * torch.tanh(F.softplus(x, threshold=1e9)), (-1.5, -1.0), (-3.0, -2.0), (1.0, 2.0))


@functools.cache
def elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Curve:
    """α < 0 falls before it rises."""

    def function(x: Tensor) -> Tensor:
        return torch.where(x > 0, scale * x, scale * alpha * torch.expm1(torch.clamp(x, max=0.0) * input_scale))

    return Curve(function, (0.0,), (0.0,), "unit" if abs(alpha) <= 1 else "wide")


@functools.cache
def softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    """Beyond the threshold torch gives x, which is within rounding of the formula only for a high threshold."""

    def function(x: Tensor) -> Tensor:
        return (torch.clamp(x, min=0.0) * beta + torch.log1p(torch.exp(-(x * beta).abs()))) / beta

    switched = threshold < 18
    return Curve(
        (lambda x: torch.where(x * beta > threshold, x, function(x))) if switched else function,
        (threshold / beta,) if switched else (),
        (threshold / beta,) if switched else (),
        jumps=switched,
    )


def hardtanh(low: float, high: float) -> Curve:
    return Curve(
        lambda x: torch.clamp(x, low, high), tuple(p for p in (low, high) if math.isfinite(p)), (), "exact", True
    )


def leaky(slope: float | Tensor) -> Curve:
    """x > 0: x, else slope x; the slope may be a tensor that broadcasts against x."""
    return Curve(lambda x: torch.where(x > 0, x, slope * x), (0.0,), (0.0,), "relative", True)


def threshold(at: float, value: float) -> Curve:
    """x above `at`, else `value`. Just above it lies `at` itself, the least of that piece."""
    above = math.nextafter(at, math.inf)
    return Curve(
        lambda x: torch.where(x > at, x, value), (at, above), (at, above), "exact", jumps=at != value, straight=True
    )


def hardshrink(width: float) -> Curve:
    return Curve(lambda x: torch.where(x.abs() <= width, 0.0, x), (), (), "exact", jumps=True)


def softshrink(width: float) -> Curve:
    def function(x: Tensor) -> Tensor:
        return torch.clamp(x - width, min=0.0) + torch.clamp(x + width, max=0.0)

    return Curve(function, (-width, width), (), "relative", True)


def drelu(tau: Tensor | float, alpha: Tensor | float, form: str) -> Curve:
    """Convex, as its slope falls to the left; τ and α broadcast against x."""

    def function(x: Tensor) -> Tensor:
        t, a = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (tau, alpha))
        return formula.output(x, t, a, form)

    return Curve(function, (0.0,))


def _tanhshrink(x: Tensor) -> Tensor:
    return x - torch.tanh(x)


RELU = hardtanh(0.0, math.inf)
SIGMOID = Curve(torch.sigmoid, (0.0,), (), "unit", limits=(0.0, 1.0))
TANH = Curve(torch.tanh, (0.0,), (), "unit")
SOFTSIGN = Curve(lambda x: x / (1 + x.abs()), (0.0,), (), "unit")
TANHSHRINK = Curve(_tanhshrink, (0.0,))
LOGSIGMOID = Curve(F.logsigmoid)
HARDSWISH = Curve(lambda x: x * torch.clamp(x + 3, 0, 6) / 6, (-3.0, -1.5, 3.0), (-3.0, -1.5))
HARDSIGMOID = Curve(lambda x: torch.clamp(x + 3, 0, 6) / 6, (-3.0, 3.0), (), "wide", True, limits=(0.0, 1.0))
SQUARE = Curve(lambda x: x * x, (0.0,), (0.0,), "relative", limits=(0.0, math.inf))
SQUARED_RELU = Curve(lambda x: torch.clamp(x, min=0) ** 2, (0.0,), (), "relative", limits=(0.0, math.inf))
ABS = Curve(torch.abs, (0.0,), (0.0,), "exact", True)
EXP = Curve(torch.exp, (), (), "relative", limits=(0.0, math.inf))
EXPM1 = Curve(torch.expm1, (), (), "unit")
ERF = Curve(torch.erf, (0.0,), (), "unit")
