"""How likely a ReLU network is born dead: constant from the start, whatever it is given.

With zero biases a ReLU network is positively homogeneous, so a one-dimensional input is two rays, x > 0 and x < 0, and
the network is born dead when both have died. A layer of N units kills one ray with probability 2^-N exactly, for any
weights that are symmetric about zero. Whether it kills both at once depends on how alike the two rays' outputs are: on
the angle between them, which changes from layer to layer, so that a chain on how many units are alive is not enough.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from relume.init.rai import asymmetric

_NODES = 12  # angles at which the chain is followed, and a polynomial through them between; 24 change nothing
_DRAWS = 2**15  # low-discrepancy draws of a layer per transition: their error is what is left
_WIDEST = 64  # wider layers turn angles as this one does; their own width still counts in all else


@dataclass(frozen=True)
class BornDead:
    """The chance that a ReLU network with these hidden widths is born dead.

    Attributes:
        widths: units of each hidden layer.
        input_dim: dimension of the input.
        probability: for Gaussian weights, to 0.5 % of itself up to width 16 and a few per cent beyond, where it is
            below 1e-5; None for more than one input dimension, where only bounds are known.
        lower, upper: hold for any independent weights symmetric about zero.
        one_ray: chance that one given ray dies: 1 − Π (1 − 2^−N).
    """

    widths: tuple[int, ...]
    input_dim: int
    probability: float | None
    lower: float
    upper: float
    one_ray: float

    def __float__(self) -> float:
        """The probability; where it is not known, its upper bound."""
        return self.upper if self.probability is None else self.probability

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**asdict(self), "widths": list(self.widths)}

    def __str__(self) -> str:
        shape = f"{len(self.widths)} hidden layers of width {_widths(self.widths)}"
        if self.probability is not None:
            return f"born dead with probability {_chance(self.probability)} ({shape}, one-dimensional input)"
        return (
            f"born dead with probability between {_chance(self.lower)} and {_chance(self.upper)} ({shape}; an input of "
            f"{self.input_dim} dimensions has more rays than the two that the upper bound follows)"
        )


def born_dead_probability(widths: Sequence[int], input_dim: int = 1) -> BornDead:
    """The chance that a fully connected ReLU network is born dead: zero biases, weights symmetric about zero.

    For one input dimension P = P(both rays die). One ray dies in a layer with probability 2^-N. That a unit is silent
    on both has probability (π − θ) / 2π for Gaussian weights, θ the angle between what the two rays feed it, which
    is π/2 behind the first layer and then makes a Markov chain; it is followed on 12 angles, with transitions from a
    fixed low-discrepancy sequence. For other symmetric weights the silent share is between 1/4 and 1/2, which gives
    the bounds. For more input dimensions the network restricted to any line through zero is the one-dimensional one, so
    its probability is an upper bound; the lower one counts layers all of whose weights are negative.

    Args:
        widths: units of each hidden layer, first to last.
        input_dim: dimension of the input; the inputs are taken to lie on all sides of zero.

    Returns:
        BornDead; `float()` of it is the probability, or the upper bound where only that is known.

    Raises:
        ValueError: no widths, or one below 1; input_dim below 1.

    Source: Lu et al. 2019, arXiv 1903.06733, theorem 3.1 and its proof; the chain of angles: this library.

    >>> round(float(born_dead_probability([2, 2])), 5)
    0.15625
    >>> born_dead_probability([64] * 4, input_dim=10).upper < 1e-15
    True
    """
    sizes = tuple(int(w) for w in widths)
    if not sizes or min(sizes) < 1 or sizes != tuple(widths):
        raise ValueError(f"widths are whole numbers of at least 1, one per hidden layer, not {widths!r}")
    if input_dim < 1 or input_dim != int(input_dim):
        raise ValueError(f"input_dim is a whole number of at least 1, not {input_dim!r}")
    lower, upper = _two_rays(sizes, 0.25), _two_rays(sizes, 0.5)
    gaussian = min(max(_gaussian(sizes), lower), upper)
    if input_dim == 1:
        return BornDead(sizes, 1, gaussian, lower, upper, _one_ray(sizes))
    # A unit with no positive weight is silent on any output of a ReLU layer; a layer of such units ends it all.
    silent = [-(2.0 ** -min(a * b, 1100)) for a, b in itertools.pairwise(sizes)]
    return BornDead(sizes, input_dim, None, _not_all(silent), gaussian, _one_ray(sizes))


def simulate_born_dead(
    widths: Sequence[int],
    method: str = "he",
    *,
    nets: int = 20_000,
    first: str = "he",
    points: int = 65,
    generator: torch.Generator | None = None,
) -> float:
    """Share of random networks with a one-dimensional input that are constant on [−√3, √3]: Monte Carlo.

    Args:
        widths: units of each hidden layer.
        method: "he" (zero biases) or "rai" (as `rai_` draws them).
        nets: how many are drawn. The standard error is √(p (1 − p) / nets).
        first: how "rai" draws the first layer: "he" or "rai".
        points: where each is evaluated, evenly spaced. Born dead: every unit of the last hidden layer gives the same
            at all of them.
        generator: to draw from.

    Returns:
        The share, between 0 and 1.

    Raises:
        ValueError: another method.
    """
    if method not in ("he", "rai") or first not in ("he", "rai"):
        raise ValueError(f"method and first are 'he' or 'rai', not {method!r} and {first!r}")
    like = torch.empty(0)
    h = torch.linspace(-math.sqrt(3), math.sqrt(3), points).expand(nets, 1, points)
    for i, n in enumerate(widths):
        fan_in = h.shape[1]
        if method == "he" or (i == 0 and first == "he"):
            w = torch.randn(nets, n, fan_in, generator=generator) * math.sqrt((1 if i == 0 else 2) / fan_in)
            z = w @ h
        else:
            drawn = asymmetric(nets * n, fan_in, fan_in + 1, generator, like).view(nets, n, fan_in + 1)
            z = torch.baddbmm(drawn[:, :, fan_in:], drawn[:, :, :fan_in], h)
        h = z.relu()
    return float(((h - h[:, :, :1]).abs().amax((1, 2)) == 0).double().mean())


def _one_ray(widths: Sequence[int]) -> float:
    """1 − Π (1 − 2^−N), without loss of small numbers."""
    return _not_all([-(2.0 ** -min(n, 1100)) for n in widths])


def _not_all(negatives: Sequence[float]) -> float:
    """1 − Π (1 + x), x ≤ 0."""
    return 1.0 if any(x <= -1 for x in negatives) else -math.expm1(sum(math.log1p(x) for x in negatives))


def _two_rays(widths: tuple[int, ...], silent: float) -> float:
    """P(both rays die) if, from the third layer on, each unit is silent on both with one and the same probability."""
    later = 0.0  # P(both die in the layers from here on | both alive)
    for i in range(len(widths) - 1, 0, -1):
        share = 0.25 if i == 1 else silent
        later = _step(widths, i, share, later)
    first = 2.0 ** -min(widths[0], 1100)
    return 2 * first * _one_ray(widths[1:]) + (1 - 2 * first) * later


def _step(widths: tuple[int, ...], i: int, silent: Any, later: Any) -> Any:
    """P(both die from layer i on), given P(a unit is silent on both) and P(both die after it | both alive)."""
    one = 2.0 ** -min(widths[i], 1100)
    both = silent ** widths[i]
    return both + 2 * (one - both) * _one_ray(widths[i + 1 :]) + (1 - 2 * one + both) * later


def _gaussian(widths: tuple[int, ...]) -> float:
    angles = _angles()
    silent = (math.pi - angles) / (2 * math.pi)
    later = torch.zeros(_NODES, dtype=torch.float64)
    for i in range(len(widths) - 1, 0, -1):
        carried = _turn(min(widths[i], _WIDEST)) @ later if i + 1 < len(widths) else later
        later = _step(widths, i, silent, carried)
    first = 2.0 ** -min(widths[0], 1100)
    # The first layer's units are alive on one ray each: the two outputs share none and are at a right angle.
    return 2 * first * _one_ray(widths[1:]) + (1 - 2 * first) * float(later[0])


def _angles() -> Tensor:
    """Chebyshev's extrema on [0, π/2], π/2 first."""
    return math.pi / 4 * (1 + torch.cos(torch.arange(_NODES, dtype=torch.float64) * math.pi / (_NODES - 1)))


@functools.lru_cache(maxsize=64)
def _turn(width: int) -> Tensor:
    """[nodes, nodes]: applied to a function's values at the angles, its mean after one layer that both rays survive."""
    uniform = torch.quasirandom.SobolEngine(2 * width, scramble=True, seed=0).draw(_DRAWS, dtype=torch.float64)
    z = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12))
    first, second = z[:, :width], z[:, width:]
    rows = []
    for angle in _angles():
        plus = first.relu()
        minus = (first * torch.cos(angle) + second * torch.sin(angle)).relu()
        size = plus.norm(dim=1) * minus.norm(dim=1)
        alive = size > 0
        cosine = (plus * minus).sum(1)[alive] / size[alive]
        after = torch.arccos(cosine.clamp(-1, 1))
        rows.append(_interpolation(after).mean(0))
    return torch.stack(rows)


def _interpolation(x: Tensor) -> Tensor:
    """[len(x), nodes]: weights of the values at the angles in the polynomial through them (barycentric, exact)."""
    nodes = _angles()
    weights = torch.tensor([(-1.0) ** i for i in range(_NODES)], dtype=torch.float64)
    weights[[0, -1]] /= 2
    gaps = x[:, None] - nodes
    hit = gaps.abs() < 1e-13
    terms = weights / torch.where(hit, 1.0, gaps)
    result = terms / terms.sum(1, keepdim=True)
    return torch.where(hit.any(1, keepdim=True), hit.double(), result)


def _widths(widths: tuple[int, ...]) -> str:
    return str(widths[0]) if len(set(widths)) == 1 else ", ".join(map(str, widths))


def _chance(p: float) -> str:
    return "0" if p == 0 else f"{p:.2g}" if p < 0.1 else f"{p:.3f}"
