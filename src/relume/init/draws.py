"""Draws one weight with a given standard deviation: normal, uniform, or orthogonal. No layer is known here."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Distribution = Literal["normal", "uniform", "orthogonal"]
DISTRIBUTIONS = ("normal", "uniform", "orthogonal")


def scratch(like: Tensor, generator: torch.Generator | None, shape: tuple[int, ...] | None = None) -> Tensor:
    """An empty tensor to draw into: where the generator draws, and never below float32."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    device = like.device if generator is None else generator.device
    return torch.empty(tuple(like.shape) if shape is None else shape, dtype=dtype, device=device)


def middle(kernel: Tensor) -> Tensor:
    """[a, b]: the matrix at the centre of a convolution's kernel, as a view."""
    for size in reversed(kernel.shape[2:]):
        kernel = kernel.select(-1, size // 2)
    return kernel


def draw(
    like: Tensor,
    std: float,
    distribution: Distribution,
    generator: torch.Generator | None = None,
    *,
    groups: int = 1,
    centre: bool = False,
) -> Tensor:
    """A weight of the shape, type and device of `like`, with mean 0 and root mean square `std`.

    Args:
        distribution: "orthogonal" makes rows (or columns, whichever are fewer) orthogonal and of equal length, per
            group, the kernel flattened as torch does.
        groups: of a grouped convolution; only "orthogonal" minds them.
        centre: put an orthogonal matrix at the kernel's centre and zeros around it (delta-orthogonal, Xiao et al.
            2018). The root mean square then counts the whole kernel.
    """
    drawn = scratch(like, generator)
    if not drawn.numel():
        return like
    if distribution == "normal":
        nn.init.normal_(drawn, 0.0, std, generator=generator)
    elif distribution == "uniform":
        nn.init.uniform_(drawn, -math.sqrt(3) * std, math.sqrt(3) * std, generator=generator)
    elif distribution == "orthogonal":
        target = drawn
        if centre and drawn.dim() > 2:
            drawn.zero_()
            target = middle(drawn)
        for block in target.chunk(groups):
            flat = scratch(like, generator, (block.shape[0], max(block[0].numel(), 1)))
            nn.init.orthogonal_(flat, generator=generator)
            block.copy_(flat.view(block.shape))
        drawn *= std / drawn.square().mean().sqrt()
    else:
        raise ValueError(f"distribution is one of {', '.join(DISTRIBUTIONS)}, not {distribution!r}")
    return drawn.to(like)
