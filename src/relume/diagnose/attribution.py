"""What moved a unit's mean pre-activation between two moments: bias, weights, normalization, upstream, exactly.

With y = w·μ + b the mean that the producer gives out, and z = γ r (y − c) + β what a normalization makes of it,

    Δz = γ'r' Δb + γ'r' Δw·μ + γ'r' w'·Δμ − γ'r' Δc + γ' Δr (y − c) + Δγ r (y − c) + Δβ + remainder
         bias      weights     upstream      └──── statistics ────┘   gamma         beta

where a prime marks the later moment and everything unmarked is of the earlier. The remainder is what the measured means
differ by from that: rounding for linear layers and batch norm, a covariance for norms of single samples, and whatever
else lies between producer and site (a residual sum, pooling, dropout).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from relume.diagnose.normalization import Norm


@dataclass(frozen=True)
class Moment:
    """A site at one moment; tensors are float64 of shape [units].

    Attributes:
        bias: of the producer.
        response: its weights times its mean input.
        norm: the normalization after it.
        mean: the mean pre-activation that was measured; where nothing was, what the equation gives.
    """

    bias: Tensor
    response: Tensor
    norm: Norm
    mean: Tensor

    @classmethod
    def of(cls, bias: Tensor, response: Tensor, norm: Norm | None = None, mean: Tensor | None = None) -> Moment:
        norm = norm or Norm.none(bias)
        return cls(bias, response, norm, norm.mean(bias + response) if mean is None else mean.double())

    @property
    def unexplained(self) -> Tensor:
        """What was measured beyond the equation: 0 up to rounding where nothing else lies between."""
        return self.mean - self.norm.mean(self.bias + self.response)


@dataclass(frozen=True)
class Parts:
    """A change of mean pre-activation, split; float64 of shape [units], in units of the pre-activation."""

    bias: Tensor
    weights: Tensor
    upstream: Tensor
    statistics: Tensor
    gamma: Tensor
    beta: Tensor
    remainder: Tensor

    @property
    def normalization(self) -> Tensor:
        """By the normalization: its statistics, scale and shift."""
        return self.statistics + self.gamma + self.beta

    @property
    def total(self) -> Tensor:
        """The whole change."""
        return torch.stack([getattr(self, name) for name in PARTS]).sum(0)

    def __add__(self, later: Parts) -> Parts:
        """The change over both spans of time: parts add up."""
        return Parts(*(getattr(self, name) + getattr(later, name) for name in PARTS))

    def stacked(self) -> Tensor:
        """[parts, units], in the order of `PARTS`."""
        return torch.stack([getattr(self, name) for name in PARTS])

    @classmethod
    def unstacked(cls, rows: Tensor) -> Parts:
        """Inverse of `stacked`."""
        return cls(*rows.double().unbind(0))

    @classmethod
    def none(cls, units: int) -> Parts:
        """No change."""
        return cls(*torch.zeros(len(PARTS), units, dtype=torch.float64).unbind(0))


PARTS = tuple(f.name for f in fields(Parts))


def split(before: Moment, after: Moment, crossed: Tensor) -> Parts:
    """Split the change between two moments of one site.

    Args:
        before, after: the moments.
        crossed: the later weights times the earlier mean input, [units].

    Returns:
        Parts, whose sum is `after.mean - before.mean` to rounding.

    Source: the product rule of finite differences, Δ(ab) = a' Δb + Δa b.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> before, after = Moment.of(0 * one, 2 * one), Moment.of(-3 * one, 3 * one)  # weight 1 on mean 2, then 0.5 on 6
    >>> parts = split(before, after, crossed=1 * one)
    >>> [part.item() for part in (parts.bias, parts.weights, parts.upstream, parts.total)]
    [-3.0, -1.0, 2.0, -2.0]
    """
    old, new = before.norm, after.norm
    scale = new.gamma * new.inverse
    centred = before.bias + before.response - old.centre
    return Parts(
        bias=scale * (after.bias - before.bias),
        weights=scale * (crossed - before.response),
        upstream=scale * (after.response - crossed),
        statistics=new.gamma * (new.inverse - old.inverse) * centred - scale * (new.centre - old.centre),
        gamma=(new.gamma - old.gamma) * old.inverse * centred,
        beta=new.beta - old.beta,
        remainder=after.unexplained - before.unexplained,
    )


def summed(moments: Sequence[Moment]) -> Moment:
    """One moment of a site that adds up several producers, such as token and position embeddings.

    Norm and measured mean are the site's, so they are the same in all of them; those of the first are taken.
    """
    first = moments[0]
    bias = torch.stack([m.bias for m in moments]).sum(0)
    response = torch.stack([m.response for m in moments]).sum(0)
    return Moment(bias, response, first.norm, first.mean)
