"""What an activation does to a standard normal pre-activation: mean, second moment, second moment of the slope.

From these follow the gains that keep the scale of a signal through a layer, forward and backward. The integrals are
done numerically, so an activation needs no closed form to have a gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The normal density beyond is below 1e-43: nothing that grows slower than e^(3x) has anything there.
_REACH = 14.0
_RELATIVE = 1e-13  # of each integral, per panel
_LEAST = 1e-280
_MOST_PANELS = 4096
_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(20))
# Between a panel's ends and the nodes next to them, and what the values at the nodes lead to expect there.
_OFF_END = torch.tensor([1e-13, 1e-10, 1e-8, 1e-6, 1e-4, 2e-3], dtype=torch.float64)
_ENDS = torch.cat([_OFF_END - 1, 1 - _OFF_END])
_AT_ENDS = torch.stack(
    [torch.stack([((e - _NODES) / (n - _NODES))[n != _NODES].prod() for n in _NODES]) for e in _ENDS]
)
_ENDS_AGREE = 1e-11  # of the largest value in the panel
_GAP = float(_NODES[0] + 1)  # from an end to the nearest node


@dataclass(frozen=True)
class Moments:
    """Of f(z) and f'(z), z ~ N(0, 1).

    Attributes:
        mean: E f(z), the bias shift: what a layer of such units adds to the next layer's pre-activations.
        second: E f(z)².
        slope: E f'(z)². The derivative is taken piece by piece; a jump of f itself adds nothing.
    """

    mean: float
    second: float
    slope: float

    @property
    def variance(self) -> float:
        return self.second - self.mean**2

    @property
    def gain(self) -> float:
        """1 / sqrt(E f(z)²); infinite for a function that is zero almost everywhere."""
        return _inverse_root(self.second)

    @property
    def backward_gain(self) -> float:
        """1 / sqrt(E f'(z)²); infinite for a function that is flat almost everywhere."""
        return _inverse_root(self.slope)


def moments(
    function: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor], kinks: Iterable[float]
) -> Moments:
    """The moments of an element-wise function of one input.

    Args:
        function, derivative: float64 [n] to float64 [n].
        kinks: where the function is known not to be smooth. Others are found, which takes longer.
    """

    def integrand(x: Tensor) -> Tensor:
        y = function(x)
        return torch.stack([y, y**2, derivative(x) ** 2])

    return Moments(*normal_mean(integrand, kinks))


def moments_of_two(function: Callable[[Tensor, Tensor], Tensor], kinks: Iterable[float]) -> Moments:
    """The moments of an element-wise function of two independent inputs, both N(0, 1).

    `slope` is the mean over both inputs of E (∂f)²: the fan-out then counts the outputs of both producers.

    Args:
        function: float64 [n], [n] to float64 [n]; smooth in each input between the kinks.
        kinks: of either input.
    """
    edges = _edges(kinks)
    x, weights = _nodes(edges[:-1], edges[1:])
    density = weights * _normal(x)
    a, b = x.repeat_interleave(len(x)), x.repeat(len(x))
    w = torch.outer(density, density).flatten()
    with torch.inference_mode(False), torch.enable_grad():
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        y = function(a, b)
        da, db = torch.autograd.grad(y.sum(), (a, b))
    y = y.detach()
    return Moments(float(w @ y), float(w @ y**2), float(w @ (da**2 + db**2)) / 2)


def normal_mean(integrand: Callable[[Tensor], Tensor], kinks: Iterable[float] = ()) -> list[float]:
    """E g(z), z ~ N(0, 1), of several functions at once: Gauss-Legendre on panels, halved until they agree.

    Args:
        integrand: float64 [n] to float64 [k, n].
        kinks: panels end there.

    Returns:
        k numbers, each right to about 1e-12 of E |g(z)|, unless it jumps in thousands of places. NaN where the function
        is NaN.
    """
    edges = _edges(kinks)
    left, right = edges[:-1], edges[1:]
    whole, size, hidden = _panels(integrand, left, right)
    total = torch.zeros(whole.shape[0], dtype=torch.float64)
    # Of numbers so small that they have lost digits, halves never agree.
    scale = size.sum(1, keepdim=True).clamp(min=_LEAST)
    for _ in range(60):
        middle = (left + right) / 2
        halves, _size, hides = _panels(integrand, torch.cat([left, middle]), torch.cat([middle, right]))
        refined = halves.unflatten(1, (2, -1)).sum(1)
        differs = ((refined - whole).abs() > _RELATIVE * scale) | (hidden > _RELATIVE * scale)
        open_ = differs.any(0) & (middle > left) & (middle < right)
        if int(open_.sum()) > _MOST_PANELS:  # rough everywhere: finer panels would not agree either
            open_.zero_()
        total += refined[:, ~open_].sum(1)
        if not open_.any():
            break
        left, right = torch.cat([left[open_], middle[open_]]), torch.cat([middle[open_], right[open_]])
        whole, hidden = halves[:, open_.repeat(2)], hides[:, open_.repeat(2)]
    else:
        total += whole.sum(1)
    return [float(t) for t in total]


def _edges(kinks: Iterable[float]) -> Tensor:
    known = {float(k) for k in kinks if -_REACH < k < _REACH}
    return torch.tensor(sorted({*range(-int(_REACH), int(_REACH) + 1), *known}), dtype=torch.float64, device="cpu")


def _nodes(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Points and weights of all panels, flat."""
    half = ((right - left) / 2)[:, None]
    return (((left + right) / 2)[:, None] + half * _NODES).flatten(), (half * _WEIGHTS).flatten()


def _normal(x: Tensor) -> Tensor:
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _panels(integrand: Callable[[Tensor], Tensor], left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The integral over each panel, that of the absolute value, and what may hide at its ends: all [k, panels].

    A kink or jump between an end and the nearest node changes no value at any node: it takes a look into that gap. The
    difference seen may be tiny (a function near zero on both sides) and larger on the way, so where a value is not the
    expected one, all that the panel could hold in the gap counts as open.
    """
    half = ((right - left) / 2)[:, None]
    x = ((left + right) / 2)[:, None] + half * torch.cat([_NODES, _ENDS])
    values = integrand(x.flatten()).unflatten(1, x.shape) * (half * _normal(x))
    inside, ends = values.split([len(_NODES), len(_ENDS)], 2)
    weighted = inside * _WEIGHTS
    largest = values.abs().amax(2)
    surprised = (inside @ _AT_ENDS.T - ends).abs().amax(2) > _ENDS_AGREE * largest
    return weighted.sum(2), weighted.abs().sum(2), surprised * largest * _GAP


def _inverse_root(x: float) -> float:
    return 1 / math.sqrt(x) if x > 0 else math.inf if x == 0 else math.nan
