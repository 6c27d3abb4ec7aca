"""`Blend`: between the activation that was and the one that is to be, so that a model's function does not jump.

    y = (1 − share) · old(x) + share · new(x)

At share 0 it is the old one, exactly, whichever two they are; at 1 the new one, exactly, and the blend can go. A
running τ follows its inputs all the while.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relume.activations.registry import InputDependent, register_module
from relume.activations.zones import Zone


class Blend(nn.Module):
    """A weighted mean of two activations.

    Args:
        old, new: the activations.

    Attributes:
        share: of the new one, buffer of shape [], float32, in [0, 1]; in the state dict, so that a checkpoint goes on
            where it was.

    >>> blend = Blend(nn.ReLU(), nn.LeakyReLU(0.5))
    >>> blend(torch.tensor([-2.0, 1.0]))
    tensor([0., 1.])
    >>> _ = blend.share.fill_(0.5); blend(torch.tensor([-2.0, 1.0]))
    tensor([-0.5000,  1.0000])
    """

    share: Tensor

    def __init__(self, old: nn.Module, new: nn.Module) -> None:
        super().__init__()
        self.old, self.new = old, new
        device = next((t.device for t in (*new.parameters(), *new.buffers())), None)
        self.register_buffer("share", torch.zeros((), device=device))

    def forward(self, x: Tensor) -> Tensor:
        old, new = self.old(x), self.new(x)
        return torch.lerp(old, new, self.share.to(device=old.device, dtype=old.dtype))


register_module(
    Blend,
    InputDependent("blend", "(1 - s) old(x) + s new(x), s annealed from 0 to 1", torch.relu, linear=Zone()),
)
