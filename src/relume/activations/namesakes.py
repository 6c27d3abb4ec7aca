"""The published functions that share DReLU's letters, under their full names, and a few compared ones that torch lacks.

Four papers call different things DReLU. Displaced: ReLU moved down along the diagonal. Dual: two inputs, a difference
of ReLUs. Dynamic: pieces chosen by the input (`dynamic_relu.py`). dReLU: ReLU on both halves of a gated layer. None of
them is `relume.nn.DReLU`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relume.activations import catalogue as of
from relume.activations.registry import register_module, seen_as


def displaced_relu(x: Tensor, delta: float = 0.05, inplace: bool = False) -> Tensor:
    """max(x, −δ): the identity reaches into the third quadrant, so the mean output is nearer zero.

    It dies as ReLU does, for inputs at or below −δ.

    Args:
        x: any shape.
        delta: δ, in units of the input; 0.05 after batch normalization in the paper.
        inplace: write into x.

    Source: Macêdo et al. 2019, "Enhancing batch normalized convolutional networks using displaced rectifier linear
    units", Expert Systems with Applications.

    >>> displaced_relu(torch.tensor([-1.0, -0.02, 2.0]))
    tensor([-0.0500, -0.0200,  2.0000])
    """
    return F.threshold(x, -delta, -delta, inplace)


class DisplacedReLU(nn.Threshold):
    """`displaced_relu` as a module: max(x, −δ), any shape."""

    def __init__(self, delta: float = 0.05, inplace: bool = False) -> None:
        super().__init__(-delta, -delta, inplace)

    @property
    def delta(self) -> float:
        return -float(self.threshold)

    def extra_repr(self) -> str:
        return f"delta={self.delta:g}" + (", inplace=True" if self.inplace else "")


def dual_relu(a: Tensor, b: Tensor) -> Tensor:
    """max(0, a) − max(0, b): unbounded on both sides, and exactly zero where both inputs are negative.

    The inputs are pre-activations of two producers of equal shape. As published it takes the place of tanh for the
    candidate of a quasi-recurrent layer, z = max(0, W_a ∗ x) − max(0, W_b ∗ x), while its gates f and o stay sigmoids
    and the state goes on as c_t = f_t c_(t−1) + (1 − f_t) z_t.

    Each input is a ReLU site and dies for itself: a unit of which only one half died still passes the other sign.

    Args:
        a, b: of shapes that broadcast.

    Source: Godin et al. 2017, arXiv 1707.08214.

    >>> dual_relu(torch.tensor([2.0, -1.0, -1.0]), torch.tensor([0.5, 3.0, -2.0]))
    tensor([ 1.5000, -3.0000,  0.0000])
    """
    return torch.relu(a) - torch.relu(b)


class DualReLU(nn.Module):
    """`dual_relu` as a module: of two inputs, or of one that is split in half.

    Args:
        dim: the axis on which a single input is split into a (first half) and b, as `nn.GLU` does.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        if b is None:
            a, b = _halves(a, self.dim, "DualReLU")
        return dual_relu(a, b)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def drelu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """max(0, gate) · max(0, up): the dReLU of sparse gated language models.

    Zero where either half is, so about three quarters of the products are at initialization. Each half is a ReLU site;
    a unit with either half dead puts out nothing.

    Args:
        gate, up: of shapes that broadcast; x W_gate and x W_up in the paper.

    Source: Song et al. 2024, "Turbo Sparse", arXiv 2406.05955, section 3.2.

    >>> drelu_gate(torch.tensor([2.0, -1.0, 3.0]), torch.tensor([4.0, 5.0, -1.0]))
    tensor([8., 0., 0.])
    """
    return torch.relu(gate) * torch.relu(up)


class DReLUGatedMLP(nn.Module):
    """The gated feed-forward block with dReLU in SwiGLU's place: W_down (max(0, x W_gate) · max(0, x W_up)).

    Parameters are named as in Llama and Mistral (`gate_proj`, `up_proj`, `down_proj`), so their weights load.

    Args:
        features: of input and output, on the last axis.
        hidden: units in between.
        bias: of the three projections; the models have none.

    Source: Song et al. 2024, arXiv 2406.05955, section 3.2.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(features, hidden, bias, device=device, dtype=dtype)
        self.up_proj = nn.Linear(features, hidden, bias, device=device, dtype=dtype)
        self.down_proj = nn.Linear(hidden, features, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(drelu_gate(self.gate_proj(x), self.up_proj(x)))
        return out


@seen_as(of.relu_squared())
def squared_relu(x: Tensor) -> Tensor:
    """max(0, x)², any shape. Source: So et al. 2021, arXiv 2109.08668 (Primer).

    >>> squared_relu(torch.tensor([-1.0, 3.0]))
    tensor([0., 9.])
    """
    return torch.relu(x).square()


@seen_as(of.quick_gelu())
def quick_gelu(x: Tensor) -> Tensor:
    """x σ(1.702 x), any shape: GELU's sigmoid approximation. Source: Hendrycks & Gimpel 2016, arXiv 1606.08415.

    >>> quick_gelu(torch.tensor([-1.0, 0.0]))
    tensor([-0.1542,  0.0000])
    """
    return x * torch.sigmoid(1.702 * x)


class SquaredReLU(nn.Module):
    """`squared_relu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return squared_relu(x)


class QuickGELU(nn.Module):
    """`quick_gelu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


def _halves(x: Tensor, dim: int, name: str) -> tuple[Tensor, Tensor]:
    if x.shape[dim] % 2:
        raise ValueError(f"{name} splits axis {dim} in half, but it has {x.shape[dim]} entries: shape {tuple(x.shape)}")
    a, b = x.chunk(2, dim)
    return a, b


register_module(SquaredReLU, of.relu_squared())
register_module(QuickGELU, of.quick_gelu())
