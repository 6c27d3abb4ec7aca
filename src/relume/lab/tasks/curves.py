"""Two problems of a few numbers: functions of one variable that deep narrow networks fail at (Lu et al. 2019), and two
spirals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relume.lab.tasks.networks import Choice, mlp
from relume.lab.tasks.task import Kind, Part, Split, Task

_FUNCTIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "abs": ("|x|", torch.abs),
    "sine": ("x sin(5x)", lambda x: x * torch.sin(5 * x)),
    "step": ("1(x > 0) + 0.2 sin(5x)", lambda x: (x > 0).to(x.dtype) + 0.2 * torch.sin(5 * x)),
}


@dataclass(frozen=True)
class Curve(Task):
    """A function of one variable on [−√3, √3], where uniform x has variance 1, without noise; 3000 points to train on.

    Source: the functions are those of Lu et al. 2019, arXiv 1903.06733.
    """

    kind: Kind = "regression"
    metric: str = "rmse"
    higher_is_better: bool = False
    outputs: int = 1
    about: str = ""

    def data(self, seed: int = 0) -> Split:
        _, function = _FUNCTIONS[self.name]
        generator = torch.Generator().manual_seed(seed)
        # One point in each of 5000 equal pieces, so that no two are the same.
        places = torch.randperm(5000, generator=generator) + torch.rand(5000, generator=generator)
        x = (places.unsqueeze(1) / 2500 - 1) * math.sqrt(3)
        y = function(x)
        return Split(*(Part(x[rows], y[rows]) for rows in (slice(3000), slice(3000, 4000), slice(4000, 5000))))

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return mlp(choice, 1, 1, width, depth)


@dataclass(frozen=True)
class Spirals(Task):
    """Two interleaved spirals of two turns each, with noise: which one is a point of?

    Source: Lang and Witbrock 1988, with noise of 0.03 at a radius from 0.2 to 1.
    """

    name: str = "spirals"
    kind: Kind = "classification"
    metric: str = "accuracy"
    higher_is_better: bool = True
    outputs: int = 2
    about: str = "2000 points of two interleaved spirals of two turns, with noise (generated)"

    def data(self, seed: int = 0) -> Split:
        generator = torch.Generator().manual_seed(seed)
        n = 2000
        y = torch.arange(n) % 2
        along = torch.rand(n, generator=generator).sqrt()  # evenly by length, more or less
        angle = 4 * math.pi * along + math.pi * y
        radius = 0.2 + 0.8 * along
        x = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)
        x = x + 0.03 * torch.randn(n, 2, generator=generator)
        return Split.of(2 * x, y, seed)

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return mlp(choice, 2, self.outputs, width, depth)


_CURVES = tuple(
    Curve(name=name, about=f"{formula} on [−√3, √3], one of the functions of Lu et al. 2019 (generated)")
    for name, (formula, _) in _FUNCTIONS.items()
)
TASKS = (Spirals(), *_CURVES)
