"""`rai_`: randomized asymmetric initialization: one entry of each neuron is positive.

Units that read non-negative outputs then fire more often than not, and fewer networks are born dead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from relume.init.draws import draw, scratch
from relume.init.layers import Layer, Left, Weight, all_or_nothing, checked, find
from relume.init.reads import Reads, reads
from relume.init.summary import Done, Initialization

_BETA = 2 / 3, 1 / 2  # mean and second moment of Beta(2, 1)


def _sigma() -> float:
    """σ²/2 + σ E[P] √(2/π) + E[P²] = 1: then an upper bound of the growth of the second moment per layer is 1."""
    half = _BETA[0] * math.sqrt(2 / math.pi)
    return -half + math.sqrt(half**2 + 2 * (1 - _BETA[1]))


#: Standard deviation of the symmetric entries, times √fan_in: 0.6007.
SIGMA = _sigma()


def rai_(
    model: nn.Module,
    batch: Any = None,
    *,
    first: str = "he",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    frozen: bool = False,
    generator: torch.Generator | None = None,
) -> Initialization:
    """Draw each neuron's weights and bias from N(0, 0.6007² / fan_in), but for one entry, from Beta(2, 1).

    Which entry of the neuron's fan_in weights and bias it is, is drawn too; a layer without bias has only weights. A
    layer that reads data, which may be negative, gains nothing by it and is drawn as `he_` draws it, bias zero.

    Args:
        model: a whole model or one layer. Linear and convolution layers, transposed too, are drawn so; embeddings,
            attention and recurrent layers are left alone.
        batch: one batch, to see in a forward pass which layers read data and which an activation; not needed for an
            `nn.Sequential`.
        first: "he", or "rai" to draw layers that read data in the same way as the others; then no batch is needed.
        include, exclude, frozen, generator: as in `he_`.

    Returns:
        Initialization, as `he_`.

    Raises:
        RelumeError, BatchError: as `he_`.

    Source: Lu et al. 2019, arXiv 1903.06733, section 4. σ solves σ²/2 + (2/3) √(2/π) σ + 1/2 = 1: an upper bound
    of E f(z)² per unit of mean square then is kept. The second moment itself falls from layer to layer.
    """
    if first not in ("he", "rai"):
        raise ValueError(f"first is 'he' or 'rai', not {first!r}")
    model = checked(model, "rai_")
    found = find(model, include=include, exclude=exclude, frozen=frozen)
    known = reads(model, found, batch, None, "rai_") if first == "he" else {}
    done, left = [], list(found.left)
    with all_or_nothing(model):
        for layer in found.layers:
            if layer.kind not in ("linear", "conv", "transposed"):
                left.append(_other(layer))
                continue
            read = known.get(layer.name, Reads())
            done.append(_draw(layer, read, generator, symmetric=first == "he" and not read.activations))
    return Initialization("rai", type(model).__name__, tuple(done), tuple(left))


def asymmetric(neurons: int, fan_in: float, entries: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Neurons drawn by RAI: [neurons, entries]; the bias, if there is one, counts as an entry."""
    drawn = scratch(like, generator, (neurons, entries))
    nn.init.normal_(drawn, 0.0, SIGMA / math.sqrt(fan_in), generator=generator)
    # Beta(2, 1) has distribution function p², so it is the root of a uniform number.
    positive = torch.empty_like(drawn[:, :1]).uniform_(generator=generator).sqrt()
    chosen = torch.randint(entries, (neurons, 1), generator=generator, device=drawn.device)
    return drawn.scatter_(1, chosen, positive)


def _draw(layer: Layer, read: Reads, generator: torch.Generator | None, symmetric: bool) -> Done:
    weight, bias = layer.out, (layer.biases or (None,))[0]
    old = weight.read()
    what, said = "N(0, 0.6007² / fan_in), one of Beta(2, 1)", "drawn" if bias else "none"
    if symmetric:
        new, shifts = draw(old, 1 / math.sqrt(weight.fan_in), "normal", generator), None
        what, said = "normal, reads data", "zeros" if bias else "none"
    else:
        entries = _neurons(old, weight, layer).shape[1]
        drawn = asymmetric(_neurons(old, weight, layer).shape[0], weight.fan_in, entries + bool(bias), generator, old)
        new = _back(drawn[:, :entries], old, weight, layer).to(old)
        shifts = drawn[:, entries] if bias else None
    weight.write(new)
    if bias:
        with torch.no_grad():
            parameter: Tensor = getattr(*bias)
            parameter.copy_(torch.zeros_like(parameter) if shifts is None else shifts)
    std = float(weight.read().double().square().mean().sqrt())
    return Done(layer.shown, "", tuple(old.shape), what, read.names, None, std, said)


def _neurons(kernel: Tensor, weight: Weight, layer: Layer) -> Tensor:
    """A weight as [neurons, entries]: a transposed convolution has its outputs on axis 1, per group."""
    if layer.kind != "transposed":
        return kernel.reshape(kernel.shape[0], -1)
    grouped = kernel.reshape(weight.groups, -1, *kernel.shape[1:])
    return grouped.transpose(1, 2).reshape(weight.groups * kernel.shape[1], -1)


def _back(neurons: Tensor, kernel: Tensor, weight: Weight, layer: Layer) -> Tensor:
    if layer.kind != "transposed":
        return neurons.reshape(kernel.shape)
    per_group = kernel.shape[0] // weight.groups
    grouped = neurons.reshape(weight.groups, kernel.shape[1], per_group, *kernel.shape[2:])
    return grouped.transpose(1, 2).reshape(kernel.shape)


def _other(layer: Layer) -> Left:
    return Left(layer.shown, f"{layer.kind}: asymmetric weights are for units that read non-negative outputs")
