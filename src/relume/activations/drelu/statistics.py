"""τ as a running mean: what a batch says of the size of its negative inputs, and how τ follows.

A batch gives for each channel the sum of |x| over its negative inputs, and their number. A channel without negative
inputs, or with a NaN or −inf among its inputs, keeps its τ and doesn't count the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relume.activations.drelu.formula import widened

# τ stays above it, so that 1/τ and |x|/τ are finite.
LEAST = 1e-15


def of_batch(x: Tensor, channels: int, axis: int) -> Tensor:
    """Float [2, channels]: the sum of |x| over negative inputs, and their number; float64 for float64, else float32."""
    z = widened(x.detach())
    below = torch.clamp_min(-z, 0.0)  # NaN stays NaN, and spoils its channel's sum
    negative = (z < 0).to(z.dtype)
    if channels == 1:
        return torch.stack((below.sum().reshape(1), negative.sum().reshape(1)))
    both = torch.stack((below, negative)).movedim(axis if axis < 0 else axis + 1, 1)
    return both.reshape(2, channels, x.numel() // channels).sum(2)


def moved(tau: Tensor, batches: Tensor, batch: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """τ and the number of batches that made it, after one more.

    Args:
        tau: float [channels].
        batches: int64 [channels]; the first batch of a channel sets its τ.
        batch: float [2, channels], as from `of_batch`.
        momentum: the batch's weight; negative for the mean of all batches.
    """
    mean = batch[0] / batch[1]
    counts = torch.isfinite(mean) & (batch[1] > 0)
    share = torch.full_like(mean, momentum) if momentum >= 0 else 1 / (batches + 1).to(mean.dtype)
    share = torch.where(batches == 0, torch.ones_like(share), share)
    now = tau.to(mean.dtype)
    now = torch.clamp_min(now + share * (mean - now), 1e-15)  # LEAST
    return torch.where(counts, now, tau.to(mean.dtype)).to(tau.dtype), batches + counts.to(batches.dtype)


def summed_over_ranks(batch: Tensor) -> Tensor:
    """The batch of all processes: sums of their sums and numbers. Every process must call it equally often."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(batch)
    return batch
