"""`Overwrites`: for models that read, later on, what an in-place activation made of its input.

A pre-activation block whose shortcut starts at `x`, after `self.relu(x)` has overwritten it, is the usual case: its
author may not know, but its weights were trained so.
"""

from __future__ import annotations

from torch import Tensor, nn


class Overwrites(nn.Module):
    """Applies an activation and puts the result in its input's place as well.

    Args:
        activation: any.

    >>> import torch
    >>> x = torch.tensor([-2.0, 1.0])
    >>> _ = Overwrites(nn.LeakyReLU(0.5))(x); x
    tensor([-1.,  1.])
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return x.copy_(self.activation(x.clone()))
