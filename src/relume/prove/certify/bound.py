"""`Bound`: an interval for every element of one tensor of the forward pass, and how it follows from earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relume.prove.certify.rounding import outward


@dataclass
class Affine:
    """The tensor is an affine function, computed in float64, of earlier ones."""

    function: Callable[..., Tensor]
    inputs: tuple[int, ...]
    tried: bool = False


@dataclass
class Lines:
    """Element by element: low_slope x + low_at ≤ y ≤ high_slope x + high_at, for the one input x."""

    input: int
    low_slope: Tensor
    low_at: Tensor
    high_slope: Tensor
    high_at: Tensor


@dataclass
class Selected:
    """y ≥ select(x) always; y ≤ select(x) where `alone`, else y ≤ its upper bound."""

    input: int
    select: Callable[[Tensor], Tensor]
    alone: Tensor


Backward = Affine | Lines | Selected


@dataclass
class Bound:
    """For every input in the box, the value that the model computes lies in [lower, upper], element by element.

    Attributes:
        lower, upper: float64, of the tensor's shape (truth values are 0 and 1).
        error: part of it that is rounding, which linear bounds must add too; None: nothing is rounded.
        backward: how linear bounds go on from here; None: they end here, at [lower, upper].
        index: which value of the graph it is; set when it is kept.
    """

    lower: Tensor
    upper: Tensor
    error: Tensor | None = None
    backward: Backward | None = None
    index: int = field(default=-1)

    def __post_init__(self) -> None:
        self.lower, self.upper = outward(self.lower, self.upper, self.error)

    @property
    def middle(self) -> Tensor:
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2

    @property
    def magnitude(self) -> Tensor:
        return torch.maximum(self.lower.abs(), self.upper.abs())

    @property
    def shape(self) -> torch.Size:
        return self.lower.shape

    def meet(self, lower: Tensor, upper: Tensor) -> None:
        """Take in other bounds that hold as well."""
        self.lower = torch.maximum(self.lower, lower)
        self.upper = torch.minimum(self.upper, upper)


def middle(value: Any) -> Any:
    return value.middle if isinstance(value, Bound) else value


def magnitude(value: Any) -> Any:
    return value.magnitude if isinstance(value, Bound) else abs(value)
