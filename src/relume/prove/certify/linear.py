"""Backward linear bounds (CROWN: Zhang et al. 2018, arXiv 1811.00866): an affine function of the model's input, and of
what linear bounds can't pass through, that lies below or above each element of a value.

Coefficients go back from the value, step by step: through affine operations by their transpose, through activations by
the lines that bound them. Every step adds what rounding may have done, in the model and here, times |coefficient|.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relume.errors import RelumeError
from relume.prove.certify.bound import Affine, Bound, Lines, Selected
from relume.prove.certify.rounding import OWN, gamma

# Numbers that coefficients may take up at once.
_ROOM = 2**25


def tighten(bounds: list[Bound | None], target: int) -> None:
    """Let linear bounds improve on those of one value, where they do."""
    bound = bounds[target]
    assert bound is not None
    n = bound.lower.numel()
    widest = max((b.lower.numel() for b in bounds[: target + 1] if b is not None), default=n)
    rows = max(1, min(n, _ROOM // (2 * widest)))
    device = bound.lower.device
    lows, highs = [], []
    for start in range(0, n, rows):
        which = torch.arange(start, min(n, start + rows), device=device)
        seeds = torch.zeros(len(which), n, dtype=torch.float64, device=device)
        seeds[torch.arange(len(which), device=device), which] = 1.0
        low, high = _Backward(bounds, len(which)).run(target, seeds.reshape(len(which), *bound.shape))
        lows.append(low)
        highs.append(high)
    bound.meet(torch.cat(lows).reshape(bound.shape), torch.cat(highs).reshape(bound.shape))


class _Backward:
    """One way back, for `count` elements: rows of coefficients, first those of lower bounds, then of upper ones."""

    def __init__(self, bounds: list[Bound | None], count: int) -> None:
        self.bounds, self.count = bounds, count
        self.pending: dict[int, Tensor] = {}
        self.total: Tensor | float = 0.0
        self.slack: Tensor | float = 0.0
        self.terms: Tensor | float = 0.0
        self.added = 0

    def run(self, target: int, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds, one of each per row of seeds."""
        self._send(target, torch.cat([seeds, seeds]))
        while self.pending:
            index = max(self.pending)
            self._back(index, self.pending.pop(index))
        slack = (self.slack + gamma(2 * self.added + 64, OWN) * self.terms) * (1 + 1e-9)
        assert isinstance(self.total, Tensor)
        assert isinstance(slack, Tensor)
        low, high = self.total[: self.count] - slack[: self.count], self.total[self.count :] + slack[self.count :]
        return torch.nan_to_num(low, -math.inf, math.inf, -math.inf), torch.nan_to_num(
            high, math.inf, math.inf, -math.inf
        )

    def _send(self, index: int, a: Tensor) -> None:
        """Coefficients of a value; what rounding did to them is at most κ |a| on values of its magnitude."""
        bound = self.bounds[index]
        assert bound is not None
        self.slack = self.slack + _weighed(a, gamma(4 * bound.lower.numel() + 64, OWN) * bound.magnitude)
        before = self.pending.get(index)
        self.pending[index] = a if before is None else before + a

    def _add(self, term: Tensor) -> None:
        self.total = self.total + term
        self.terms = self.terms + term.abs()
        self.added += 1

    def _back(self, index: int, a: Tensor) -> None:
        bound = self.bounds[index]
        assert bound is not None
        way = bound.backward
        if way is None:
            self._end(a, bound.lower, bound.upper)
            return
        if bound.error is not None:
            self.slack = self.slack + _weighed(a, bound.error)
        if isinstance(way, Affine):
            self._affine(way, a)
        elif isinstance(way, Lines):
            self._lines(way, a)
        else:
            self._selected(way, a, bound)

    def _end(self, a: Tensor, lower: Tensor, upper: Tensor) -> None:
        """Lower rows take the lower end where the coefficient is positive."""
        low, high, k = a[: self.count], a[self.count :], self.count
        plus, minus = _dot(low.clamp(min=0), lower), _dot(low.clamp(max=0), upper)
        plus_high, minus_high = _dot(high.clamp(min=0), upper), _dot(high.clamp(max=0), lower)
        assert len(plus) == k
        self._add(torch.cat([plus, plus_high]))
        self._add(torch.cat([minus, minus_high]))

    def _affine(self, way: Affine, a: Tensor) -> None:
        zeros = []
        for i in way.inputs:
            bound = self.bounds[i]
            assert bound is not None
            zeros.append(torch.zeros_like(bound.lower))
        constant: Tensor
        constant, transposed = torch.func.vjp(way.function, *zeros)  # type: ignore[misc]
        if bool((constant != 0).any()):
            self._add(_dot(a, constant))
            self.slack = self.slack + _weighed(a, gamma(4 * constant.numel() + 64, OWN) * constant.abs())
        backs = torch.func.vmap(transposed)(a.contiguous())
        if not way.tried and bool(torch.isfinite(constant).all()):
            _try(way, a, constant, zeros, backs)
        for i, back in zip(way.inputs, backs, strict=True):
            self._send(i, back)

    def _lines(self, way: Lines, a: Tensor) -> None:
        size = torch.maximum(way.low_at.abs(), way.high_at.abs())
        self.slack = self.slack + _weighed(a, gamma(4 * size.numel() + 64, OWN) * size)
        plus, minus = a.clamp(min=0), a.clamp(max=0)
        low, high = slice(None, self.count), slice(self.count, None)
        back = torch.cat([
            plus[low] * way.low_slope + minus[low] * way.high_slope,
            plus[high] * way.high_slope + minus[high] * way.low_slope,
        ])  # fmt: skip
        self._end(a, way.low_at, way.high_at)
        self._send(way.input, back)

    def _selected(self, way: Selected, a: Tensor, bound: Bound) -> None:
        plus, minus = a.clamp(min=0), a.clamp(max=0)
        needs_upper = torch.cat([minus[: self.count], plus[self.count :]])
        self._add(_dot(needs_upper * ~way.alone, bound.upper))
        self.slack = self.slack + _weighed(a, gamma(4 * bound.lower.numel() + 64, OWN) * bound.magnitude)
        x = self.bounds[way.input]
        assert x is not None
        _, transposed = torch.func.vjp(way.select, torch.zeros_like(x.lower))  # type: ignore[misc]
        (back,) = torch.func.vmap(transposed)((a - needs_upper * ~way.alone).contiguous())
        self._send(way.input, back)


def _try(way: Affine, a: Tensor, constant: Tensor, zeros: list[Tensor], backs: tuple[Tensor, ...]) -> None:
    """Once for each operation: is what automatic differentiation took for its transpose that? ⟨a, L v⟩ = ⟨Lᵀ a, v⟩."""
    # Fixed, irregular numbers: no random state is used.
    trial = [torch.sin(torch.arange(z.numel(), dtype=z.dtype, device=z.device) + 1.0).reshape(z.shape) for z in zeros]
    there = _dot(a, way.function(*trial) - constant)
    back = sum(_dot(b, v) for b, v in zip(backs, trial, strict=True))
    scale = sum(_dot(b.abs(), v.abs()) for b, v in zip(backs, trial, strict=True)) + 1e-9
    if not bool(((there - back).abs() <= 1e-7 * scale + 1e-9 * _dot(a.abs(), torch.ones_like(constant))).all()):
        raise RelumeError("an operation's transpose is not what it was taken for: a fault of relume; please report it")
    way.tried = True


def _weighed(a: Tensor, size: Tensor) -> Tensor:
    """Σ |a| size, for each row."""
    return _dot(a.abs(), size)


def _dot(a: Tensor, values: Tensor) -> Tensor:
    """Σ a values, for each row; an infinite value counts only where its coefficient is not zero."""
    flat, rows = values.expand(a.shape[1:]).reshape(-1), a.reshape(len(a), -1)
    finite = torch.isfinite(flat)
    if bool(finite.all()):
        return rows @ flat
    far = rows[:, ~finite]
    beyond = torch.where(far == 0, 0.0, far * flat[~finite]).sum(1)
    return rows[:, finite] @ flat[finite] + beyond
