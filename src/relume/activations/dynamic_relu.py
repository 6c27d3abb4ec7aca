"""Dynamic ReLU: a piecewise linear activation whose slopes and intercepts a small network reads off the whole input.

y = max over k of (a_k x + b_k); with a = (1, 0), b = 0 it is ReLU. Source: Chen et al. 2020, arXiv 2003.10027.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from relume.activations import catalogue as of
from relume.activations.registry import seen_as


@seen_as(of.dynamic_relu())
def dynamic_relu(x: Tensor, slopes: Tensor, intercepts: Tensor) -> Tensor:
    """max over k of slopes[k] · x + intercepts[k].

    Args:
        x: any shape.
        slopes, intercepts: [K, …], the rest of a shape that broadcasts with x's.

    Returns:
        x's shape.

    >>> dynamic_relu(torch.tensor([-2.0, 3.0]), torch.tensor([[1.0], [0.5]]), torch.tensor([[0.0], [0.0]]))
    tensor([-1.,  3.])
    """
    y = slopes[0] * x + intercepts[0]
    for a, b in zip(slopes[1:], intercepts[1:], strict=True):
        y = torch.maximum(y, a * x + b)
    return y


class DynamicReLU(nn.Module):
    """Dynamic ReLU in its three published kinds.

    From the input's mean over positions, two linear layers with a ReLU between give residuals r, brought to (−1, 1) as
    2σ(r) − 1; slopes are α + λ_a · residual, intercepts β + λ_b · residual, with α = (1, 0, …) and β = 0.

    - `"A"`: one set of K pieces per input, for all channels and positions.
    - `"B"`: one set per input and channel.
    - `"C"`: B's, times an attention π over positions, from a 1×1 convolution z of the input:
      π = min(γ softmax(z / temperature), 1) with γ a third of the number of positions.

    A watch sees three kinds of sites in it: the activation itself, which has no flat zone (`:dynamic_relu`), and inside
    `coefficients` the hidden ReLU, whose units can die, and the sigmoid.

    Args:
        channels: units of the input, on `axis`.
        kind: "A", "B" or "C".
        pieces: K.
        reduction: the hidden layer has channels / reduction units, at least one.
        slope_range, intercept_range: λ_a, λ_b.
        temperature: of the attention of kind C.
        axis: the unit axis: 1 after convolutions, −1 after linear layers. Axis 0 counts inputs.
        as_relu: start with the last layer at zero, so that kinds A and B are exactly ReLU until trained.

    Shape: [N, …] to the same; all axes but 0 and `axis` are positions. Kind C needs at least one of them.

    Source: Chen et al. 2020, arXiv 2003.10027, section 3.

    >>> DynamicReLU(16, "B")(torch.randn(4, 16, 8, 8)).shape
    torch.Size([4, 16, 8, 8])
    """

    rest: Tensor
    scale: Tensor

    def __init__(
        self,
        channels: int,
        kind: Literal["A", "B", "C"] = "B",
        *,
        pieces: int = 2,
        reduction: int = 8,
        slope_range: float = 1.0,
        intercept_range: float = 0.5,
        temperature: float = 10.0,
        axis: int = 1,
        as_relu: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in ("A", "B", "C"):
            raise ValueError(f"kind must be 'A', 'B' or 'C', not {kind!r}")
        if pieces < 1 or channels < 1 or reduction < 1:
            raise ValueError(
                f"channels, pieces and reduction must be at least 1, not {channels}, {pieces}, {reduction}"
            )
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.channels, self.kind, self.pieces = channels, kind, pieces
        self.temperature, self.axis = temperature, axis
        hidden = max(1, channels // reduction)
        sets = 1 if kind == "A" else channels
        last = nn.Linear(hidden, 2 * pieces * sets, device=device, dtype=dtype)
        if as_relu:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        first = nn.Linear(channels, hidden, device=device, dtype=dtype)
        self.coefficients = nn.Sequential(first, nn.ReLU(), last, nn.Sigmoid())
        self.attention = nn.Linear(channels, 1, device=device, dtype=dtype) if kind == "C" else None
        rest = torch.tensor([1.0] + [0.0] * (2 * pieces - 1), device=device, dtype=dtype)
        scale = torch.tensor([slope_range] * pieces + [intercept_range] * pieces, device=device, dtype=dtype)
        self.register_buffer("rest", rest, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        axis = self.axis % x.dim()
        if axis == 0 or x.shape[axis] != self.channels:
            raise ValueError(f"DynamicReLU expects {self.channels} channels on axis {self.axis}, got {tuple(x.shape)}")
        positions = [i for i in range(1, x.dim()) if i != axis]
        if self.attention is not None and not positions:
            raise ValueError(f"DynamicReLU of kind C attends to positions, but {tuple(x.shape)} has none; take kind B")
        pooled = x.mean(positions) if positions else x
        residual = 2 * self.coefficients(pooled).unflatten(1, (2 * self.pieces, -1)) - 1  # [N, 2K, C or 1]
        sets = self.rest[:, None] + self.scale[:, None] * residual
        shape = [2 * self.pieces, x.shape[0], *([1] * (x.dim() - 1))]
        shape[axis + 1] = sets.shape[2]
        slopes, intercepts = sets.transpose(0, 1).reshape(shape).chunk(2)
        if self.attention is not None:
            pi = self._attention(x, axis)
            slopes, intercepts = slopes * pi, intercepts * pi
        return dynamic_relu(x, slopes, intercepts)

    def _attention(self, x: Tensor, axis: int) -> Tensor:
        """π, in (0, 1]: x's shape with one entry on the unit axis."""
        assert self.attention is not None
        z: Tensor = self.attention(x.movedim(axis, -1))  # [N, positions…, 1]
        flat = z.flatten(1)
        share = torch.softmax(flat / self.temperature, 1) * (flat.shape[1] / 3)
        return share.clamp(max=1).view_as(z).movedim(-1, axis)

    def extra_repr(self) -> str:
        return f"{self.channels}, kind={self.kind!r}, pieces={self.pieces}, axis={self.axis}"
