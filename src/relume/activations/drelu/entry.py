"""What the registry is told of DReLU: its shape at τ = 1 and α = 0.1, from which gains and zones are computed."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from relume.activations.drelu import formula
from relume.activations.registry import Activation
from relume.activations.zones import INF, Zone


@functools.lru_cache(maxsize=64)
def entry(tau: float = 1.0, alpha: float = 0.1, form: str = "rational") -> Activation:
    """DReLU with these parameters; no flat zone, linear from zero up."""
    below = "x / (1 + |x|/τ)" if form == "rational" else "τ (e^(x/τ) - 1)"

    def function(x: Tensor) -> Tensor:
        t, a = (torch.full((), v, dtype=x.dtype, device=x.device) for v in (tau, alpha))
        return formula.output(x, t, a, form)

    return Activation(
        "drelu" if form == "rational" else "drelu_exponential",
        f"x if x > 0 else αx + (1 - α) {below}, α = {alpha:g}, τ = {tau:g}",
        function,
        linear=Zone(((0.0, INF),)),
        reference="relume, DReLU",
    )
