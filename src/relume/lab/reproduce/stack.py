"""`Stack`: the same small network many times over, one per seed, trained as one by batched products.

Members share nothing but the program: weights, data, batch order and learnt slopes are each member's own, so that a
loss summed over members gives each the gradient that it would have alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, Function] = {
    "relu": torch.relu,
    "leaky_0.01": lambda z: F.leaky_relu(z, 0.01),
    "leaky_0.1": lambda z: F.leaky_relu(z, 0.1),
    "leaky_1/5.5": lambda z: F.leaky_relu(z, 1 / 5.5),
    "elu": F.elu,
    "shifted_relu": lambda z: z.clamp(min=-1),
}


class Activation(nn.Module):
    """By name; "prelu" learns a slope per member and channel, "rrelu" draws them while training."""

    def __init__(self, name: str, members: int, units: int) -> None:
        super().__init__()
        self.name = name
        self.slope = nn.Parameter(torch.full((members, units), 0.25)) if name == "prelu" else None
        if self.slope is None and name != "rrelu" and name not in FUNCTIONS:
            raise ValueError(f"no activation {name!r}; there are: prelu, rrelu, {', '.join(FUNCTIONS)}")

    def forward(self, z: Tensor) -> Tensor:
        if self.slope is not None:
            shape = (1, -1, 1, 1) if z.dim() == 4 else (len(self.slope), 1, -1)
            return torch.where(z > 0, z, z * self.slope.reshape(shape))
        return F.rrelu(z, 1 / 8, 1 / 3, self.training) if self.name == "rrelu" else FUNCTIONS[self.name](z)


class Stack(nn.Module):
    """Convolutions 3 × 3 (the first followed by 2 × 2 max pooling), then linear layers; He-normal weights, zero biases.

    Args:
        seeds: of the weights, one per member.
        inputs: shape of one input, [channels, height, width]; without convolutions it is flattened.
        convolutions, hidden: channels and units of the hidden layers.
        outputs: of the last layer, which is linear.
        activation: of all hidden layers.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        inputs: Sequence[int],
        convolutions: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        activation: str,
    ) -> None:
        super().__init__()
        self.members = len(seeds)
        self.convolutions = len(convolutions)
        channels, height, width = inputs
        shapes: list[tuple[int, ...]] = []
        for out in convolutions:
            shapes.append((out, channels, 3, 3))
            channels = out
        pooled = (height // 2) * (width // 2) if convolutions else height * width
        features = channels * pooled
        for out in (*hidden, outputs):
            shapes.append((out, features))
            features = out
        drawers = [torch.Generator().manual_seed(s) for s in seeds]
        gains = [math.sqrt(2)] * (len(shapes) - 1) + [1.0]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.stack([_he(shape, gain, g) for g in drawers]))
            for shape, gain in zip(shapes, gains, strict=True)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(self.members, shape[0])) for shape in shapes)
        self.activations = nn.ModuleList(Activation(activation, self.members, shape[0]) for shape in shapes[:-1])

    def forward(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        """[members, batch, outputs] of x [members, batch, channels, height, width].

        Each hidden layer's outputs are appended to `keep`, as [members, batch, units, positions].
        """
        members, batch = x.shape[:2]
        h = x.flatten(2)
        if self.convolutions:
            h = x.transpose(0, 1).flatten(1, 2)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if i < self.convolutions:
                z = F.conv2d(h, weight.flatten(0, 1), bias.flatten(), padding=1, groups=members)
            else:
                if h.dim() == 4:
                    h = h.reshape(batch, members, -1).transpose(0, 1)
                z = torch.baddbmm(bias[:, None], h, weight.transpose(1, 2))
            if i == len(self.activations):
                return z
            h = self.activations[i](z)
            if keep is not None:
                units = h.reshape(batch, members, weight.shape[1], -1).transpose(0, 1) if h.dim() == 4 else h[..., None]
                keep.append(units)
            if i == 0 and self.convolutions:
                h = F.max_pool2d(h, 2)
        raise AssertionError("a stack ends with a linear layer")

    def slopes(self) -> Tensor:
        """[members, layers]: mean learnt slope of each hidden layer."""
        found = [a.slope.detach().mean(1) for a in self.activations if isinstance(a.slope, Tensor)]
        return torch.stack(found, 1)


def train(
    stack: Stack,
    x: Tensor,
    y: Tensor,
    seeds: Sequence[int],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch: int,
    each_epoch: Callable[[int], None] | None = None,
) -> None:
    """Cross entropy on x [members, n, …], y [members, n]; each member goes through its data in its own order.

    `each_epoch` is called before the first epoch (0) and after each.
    """
    drawers = [torch.Generator().manual_seed(s + 10_000) for s in seeds]
    n = x.shape[1]
    rows = torch.arange(len(seeds))[:, None]
    if each_epoch:
        each_epoch(0)
    for epoch in range(epochs):
        stack.train()
        order = torch.stack([torch.randperm(n, generator=g) for g in drawers])
        for start in range(0, n - batch + 1, batch):
            chosen = order[:, start : start + batch]
            loss = losses(stack(x[rows, chosen]), y[rows, chosen]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if each_epoch:
            each_epoch(epoch + 1)


def losses(outputs: Tensor, y: Tensor) -> Tensor:
    """[members]: mean cross entropy of outputs [members, n, classes]."""
    return F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


@torch.no_grad()
def evaluate(stack: Stack, x: Tensor, y: Tensor, part: int = 256) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of each member, [members], in evaluation mode."""
    was = stack.training
    stack.eval()
    outputs = torch.cat([stack(x[:, i : i + part]) for i in range(0, x.shape[1], part)], 1)
    stack.train(was)
    return losses(outputs, y), (outputs.argmax(-1) == y).double().mean(1)


def _he(shape: tuple[int, ...], gain: float, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * (gain / math.sqrt(math.prod(shape[1:])))
