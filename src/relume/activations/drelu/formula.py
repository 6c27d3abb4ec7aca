"""DReLU written out in torch's operations: the reference that kernels are tested against, and what is traced, compiled,
exported and transformed, where a compiler fuses it or a transform must see through it.

x < 0, u = |x|/τ:   rational  f = αx + (1 − α) x / (1 + u)    exponential  f = αx + (1 − α) τ (e^(−u) − 1)

Everything here can be differentiated again and compiled by TorchScript. τ and α are tensors that broadcast against x.
"""

from __future__ import annotations

import torch
from torch import Tensor

# As |x|/τ beyond this the slope is α to the last digit, while squares of it do not overflow in float32.
FAR = 1e18
FORMS = ("rational", "exponential")


def widened(x: Tensor) -> Tensor:
    """Half precision is computed in float32, as torch's own activations do."""
    if x.dtype == torch.bfloat16 or x.dtype == torch.float16:
        return x.float()
    return x


def output(x: Tensor, tau: Tensor, alpha: Tensor, form: str) -> Tensor:
    """f(x), of x's shape and dtype; all its derivatives by autograd are finite for any x, infinite ones included."""
    z = widened(x)
    if form == "rational":
        u = torch.clamp(-z / tau, 0.0, 1e18)  # FAR; 0 for x >= 0, where the factor is then 1
        y = z * (alpha + (1 - alpha) / (1 + u))
    else:
        below = torch.clamp_max(z, 0.0)
        y = torch.where(z > 0, z, alpha * below + (1 - alpha) * tau * torch.expm1(below / tau))
    return y.to(x.dtype)


def slope(kept: Tensor, tau: Tensor, alpha: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """f'(x) and u = max(0, −x)/τ from what the forward pass keeps: the output (rational), the input (exponential).

    The rational form is inverted: with v = |y|/τ, α u² + (1 − v) u − v = 0, and f' = √((1 − v)² + 4αv) / (1 + u).
    """
    z = widened(kept)
    if form == "exponential":
        u = torch.clamp_min(-z / tau, 0.0)
        return alpha + (1 - alpha) * torch.exp(-u), u
    v = torch.clamp(-z / tau, 0.0, FAR)
    w = 1 - v
    s = torch.sqrt(w * w + 4 * alpha * v)
    top = torch.where(v < 1, 2 * v, s - w)  # two ways to write u = top / bottom; neither subtracts likes
    bottom = torch.where(v < 1, s + w, 2 * alpha)
    return s * bottom / (bottom + top), top / bottom


def partials(u: Tensor, tau: Tensor, alpha: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """∂f/∂τ and ∂f/∂α, of u's shape."""
    if form == "exponential":
        m = torch.expm1(-u)
        return (1 - alpha) * (m + u * (m + 1)), -tau * (u + m)
    q = u / (1 + u)
    return -(1 - alpha) * q * q, -tau * u * q


def per_channel(values: Tensor, dims: int, axis: int) -> Tensor:
    """One value per channel, or one for all, shaped to broadcast along `axis` of a tensor with `dims` axes."""
    if values.numel() == 1:
        return values.reshape([])
    shape = [1] * dims
    shape[axis] = -1
    return values.reshape(shape)
