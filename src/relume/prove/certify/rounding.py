"""What floating-point rounding can add: the margins by which every bound is moved outward.

The model: each operation of the forward pass gives, element by element, its exact result on the rounded inputs plus an
error that standard analysis bounds. For a sum of n products in unit roundoff u, in any order and with or without fused
multiply-add, that is γ_n Σ|w||x| with γ_n = n u / (1 − n u) (Higham, Accuracy and Stability of Numerical Algorithms,
2nd ed., sections 3.1 and 4.2). The bounds themselves are computed in float64, whose own rounding is added in the same
way. Results that underflow may be flushed to zero; sums that may overflow are unbounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
OWN = UNIT[torch.float64]
_SMALLEST = {torch.float32: 2.0**-125, torch.float64: 2.0**-1021}
# A TF32 product rounds both factors to 11 bits.
TF32 = 2.0**-11
# Rounding errors of one elementary function of a library, in units of the last place, with room to spare.
ELEMENTARY = 16


def gamma(n: float, u: float) -> float:
    """γ_n: the relative error of n operations in unit roundoff u; infinite where the analysis says nothing."""
    return math.inf if n * u >= 1 else n * u / (1 - n * u)


def margin(n: int, scale: Tensor, dtype: torch.dtype, *, extra: float = 0.0) -> Tensor:
    """How far a sum of n terms may be from its exact value, and so may our own float64 evaluation of it.

    Args:
        n: terms.
        scale: the sum of the terms' magnitudes, of the result's shape; float64.
        dtype: in which the model computes.
        extra: further relative error of each term.

    Returns:
        Float64 of `scale`'s shape; infinite where the model's arithmetic may overflow.
    """
    own = gamma(4 * n + 8 * scale.numel() + 64, OWN)
    relative = (gamma(n + 2, UNIT[dtype]) + own + extra) * (1 + 1e-9)
    error = relative * scale + (n + 2) * _SMALLEST[dtype]
    return torch.where(scale * (1 + relative) < torch.finfo(dtype).max, error, math.inf)


def outward(lower: Tensor, upper: Tensor, error: Tensor | None) -> tuple[Tensor, Tensor]:
    """Bounds moved apart by `error`; what is not a number becomes no bound at all."""
    if error is not None:
        lower, upper = lower - error, upper + error
        lower = torch.where(torch.isinf(error), -math.inf, lower)
        upper = torch.where(torch.isinf(error), math.inf, upper)
    return torch.nan_to_num(lower, -math.inf, math.inf, -math.inf), torch.nan_to_num(
        upper, math.inf, math.inf, -math.inf
    )
