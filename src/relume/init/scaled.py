"""`he_`, `glorot_`, `orthogonal_`: random weights, scaled by fan-in, fan-out and the activations' gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from relume.init.biases import Bias, fill_biases, wake
from relume.init.draws import Distribution, draw
from relume.init.layers import Found, Layer, Weight, all_or_nothing, checked, find
from relume.init.passes import calls
from relume.init.reads import Mode, Named, Reads, reads
from relume.init.summary import Done, Initialization

Rule = Callable[[Weight, float], float]
"""Standard deviation of a weight, given the gain."""


def he_(
    model: nn.Module,
    batch: Any = None,
    *,
    activation: Named | Mapping[str, Named] = None,
    mode: Mode = "forward",
    distribution: Distribution = "normal",
    bias: Bias = "zeros",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    frozen: bool = False,
    generator: torch.Generator | None = None,
) -> Initialization:
    """Draw weights with variance gain² / fan_in, so that pre-activations keep their second moment through the layers.

    The gain is that of the activation whose output a layer reads, 1 / sqrt(E f(z)²) for standard normal z; a layer
    that reads data, a normalized sum or attention has gain 1. What is kept near 1 is E z² over units and inputs, for
    inputs of mean square 1. Of activations whose mean is not zero an ever larger part of it is common to all inputs.

    Which activation a layer reads is seen in a forward pass of `batch`, follows from the order of an `nn.Sequential`,
    or is said by `activation`. Queries, keys and values of attention, and the gates of recurrent layers, are drawn as
    matrices of their own. Fans are counted as they are: a grouped, strided or transposed convolution has others than
    torch.nn.init computes.

    Args:
        model: a whole model or one layer.
        batch: one batch, as `relume.census` takes them, to see what reads what.
        activation: name, entry or module of the activation that every layer reads, or a dict of these by shell
            pattern on layer names; "linear" for data.
        mode: "forward" keeps pre-activations; "backward" keeps the gradient with respect to them, with variance
            backward_gain² / fan_out, exactly so as long as pre-activations are standard normal.
        distribution: "normal" or "uniform" (or "orthogonal", see `orthogonal_`).
        bias: "zeros", "uniform" (torch's ±1/√fan_in), a number, "keep", or "alive" (see `alive_`; needs `batch`).
        include, exclude: shell patterns on layer names.
        frozen: draw layers with `requires_grad=False` too. They are left alone otherwise, as they are so on purpose.
        generator: to draw from; default: torch's global one, which moves on.

    Returns:
        Initialization: per weight what was done, and what was left alone and why. Tied weights are drawn once.

    Raises:
        RelumeError: no layer; a lazy, meta or distributed parameter; what a layer reads can't be told; a
            parametrization that can't be given a value. The model is then as before.
        BatchError: the batch does not fit, or holds NaN.

    Source: He et al. 2015, arXiv 1502.01852, equations 10 and 14; gains as in `relume.activations`.

    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> done = he_(net)
    >>> [(d.layer, d.reads, round(d.gain, 3)) for d in done.done]
    [('0', (), 1.0), ('2', ('relu',), 1.414)]
    """

    def rule(weight: Weight, gain: float) -> float:
        return gain / math.sqrt(weight.fan_in if mode == "forward" else weight.fan_out)

    settings = _Settings(activation, mode, bias, include, exclude, frozen, generator)
    return _scaled("he", model, batch, settings, rule, distribution)


def glorot_(
    model: nn.Module,
    batch: Any = None,
    *,
    activation: Named | Mapping[str, Named] = None,
    mode: Mode = "forward",
    distribution: Distribution = "uniform",
    bias: Bias = "zeros",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    frozen: bool = False,
    generator: torch.Generator | None = None,
) -> Initialization:
    """Draw weights with variance 2 gain² / (fan_in + fan_out): between what keeps the signal and what keeps gradients.

    Args:
        model, batch, activation, bias, include, exclude, frozen, generator: as in `he_`.
        mode: whose gain is used, forward or backward.
        distribution: "uniform" or "normal" (or "orthogonal").

    Returns:
        Initialization, as `he_`.

    Raises:
        RelumeError, BatchError: as `he_`.

    Source: Glorot & Bengio 2010, equation 12; gain 1 there, as tanh has near zero.
    """

    def rule(weight: Weight, gain: float) -> float:
        return gain * math.sqrt(2 / (weight.fan_in + weight.fan_out))

    settings = _Settings(activation, mode, bias, include, exclude, frozen, generator)
    return _scaled("glorot", model, batch, settings, rule, distribution)


def orthogonal_(
    model: nn.Module,
    batch: Any = None,
    *,
    activation: Named | Mapping[str, Named] = None,
    mode: Mode = "forward",
    delta: bool = False,
    bias: Bias = "zeros",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    frozen: bool = False,
    generator: torch.Generator | None = None,
) -> Initialization:
    """Draw orthogonal weights, scaled so that each entry has the root mean square that `he_` would give it.

    A square matrix is then gain times a rotation. One with more rows than columns is larger than torch's
    `nn.init.orthogonal_` makes it, by √(rows / columns), so that each output entry keeps the scale too.

    Args:
        model, batch, activation, mode, bias, include, exclude, frozen, generator: as in `he_`.
        delta: convolutions get an orthogonal matrix at the kernel's centre, zeros around it, so that each position
            is rotated (delta-orthogonal). False: the flattened kernel is orthogonal, as in torch.

    Returns:
        Initialization, as `he_`.

    Raises:
        RelumeError, BatchError: as `he_`.

    Source: Saxe et al. 2013, arXiv 1312.6120; delta: Xiao et al. 2018, arXiv 1806.05393, algorithm 1.
    """

    def rule(weight: Weight, gain: float) -> float:
        return gain / math.sqrt(weight.fan_in if mode == "forward" else weight.fan_out)

    settings = _Settings(activation, mode, bias, include, exclude, frozen, generator)
    return _scaled("orthogonal", model, batch, settings, rule, "orthogonal", delta)


@dataclass(frozen=True)
class _Settings:
    """What `he_`, `glorot_` and `orthogonal_` have in common."""

    activation: Named | Mapping[str, Named]
    mode: Mode
    bias: Bias
    include: str | Iterable[str]
    exclude: str | Iterable[str]
    frozen: bool
    generator: torch.Generator | None


def _scaled(
    method: str,
    model: nn.Module,
    batch: Any,
    given: _Settings,
    rule: Rule,
    distribution: Distribution,
    delta: bool = False,
) -> Initialization:
    if given.mode not in ("forward", "backward"):
        raise ValueError(f"mode is 'forward' or 'backward', not {given.mode!r}")
    if given.bias == "alive" and batch is None:
        raise ValueError("bias='alive' sets biases by what units see: pass a batch")
    model = checked(model, f"{method}_")
    found = find(model, include=given.include, exclude=given.exclude, frozen=given.frozen)
    known = reads(model, found, batch, given.activation, f"{method}_")
    with all_or_nothing(model):
        done = draw_layers(found, known, given.mode, rule, distribution, given.bias, given.generator, delta)
        notes: tuple[str, ...] = ()
        if given.bias == "alive":
            woken = wake(model, calls(model, [batch]), 0.5, "train", {layer.name for layer in found.layers})
            notes = (f"biases: {woken}",)
    return Initialization(method, type(model).__name__, tuple(done), tuple(found.left), notes)


def draw_layers(
    found: Found,
    known: Mapping[str, Reads],
    mode: Mode,
    rule: Rule,
    distribution: Distribution | None,
    bias: Bias,
    generator: torch.Generator | None,
    delta: bool = False,
) -> list[Done]:
    """Draw every weight of the layers found (no distribution: leave it as it is), and fill their biases."""
    done = []
    for layer in found.layers:
        biases = fill_biases(layer, bias, generator)
        for weight in layer.weights:
            read = known.get(layer.name, Reads()) if weight.source == "input" else Reads()
            gain = read.gain(mode)
            done.append(_drawn(layer, weight, read, gain, rule(weight, gain), distribution, biases, generator, delta))
    return done


def _drawn(
    layer: Layer,
    weight: Weight,
    read: Reads,
    gain: float,
    std: float,
    distribution: Distribution | None,
    bias: str,
    generator: torch.Generator | None,
    delta: bool,
) -> Done:
    what = "as it was"
    if distribution is not None:
        # A state is fed back: it must be turned, not stretched.
        kind: Distribution = "orthogonal" if weight.source == "state" else distribution
        centre = delta and layer.kind == "conv"
        weight.write(draw(weight.read(), std, kind, generator, groups=weight.groups, centre=centre))
        what = f"{kind}, through {weight.parametrized}" if weight.parametrized else kind
    new = weight.read()
    return Done(
        layer.shown,
        weight.label,
        tuple(new.shape),
        what,
        read.names,
        gain,
        float(new.double().square().mean().sqrt()) if new.numel() else 0.0,
        bias,
    )
