"""`lsuv_`: layer-sequential unit-variance: orthogonal weights, each layer then scaled by what its output really is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from relume.census import Phase
from relume.errors import RelumeError
from relume.init.biases import Bias
from relume.init.draws import Distribution
from relume.init.layers import Layer, all_or_nothing, checked, find
from relume.init.passes import ChannelMoments, calls, fit_in_order, in_phase, measure
from relume.init.scaled import draw_layers
from relume.init.summary import Initialization
from relume.watch import arguments

# A variance below this share of the mean square is rounding: the output is constant.
_CONSTANT = 1e-12


def lsuv_(
    model: nn.Module,
    batches: Any,
    *,
    tolerance: float = 0.1,
    max_iterations: int = 10,
    pre_init: bool = True,
    bias: Bias = "zeros",
    phase: Phase = "train",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    frozen: bool = False,
    generator: torch.Generator | None = None,
) -> Initialization:
    """Draw orthogonal weights, then scale each layer, from the first to the last, until its output has variance 1.

    No gain is needed: the scale comes from the data, with whatever activation, normalization or sum lies in between.
    The variance is over inputs, channels and positions together. With one batch all layers are done in the midst of
    one forward pass, as each depends only on those before it; with several, a layer's output is gathered over all.
    Of attention the output's projection is scaled; recurrent layers are drawn and not scaled.

    Args:
        model: any module.
        batches: as `relume.census` takes them; kept in memory. One batch of a few hundred inputs will do.
        tolerance: how far from 1 the variance may stay.
        max_iterations: how often one layer is scaled at most.
        pre_init: draw orthogonal weights first; False scales the weights as they are.
        bias: as in `he_`; anything but zeros makes the variance partly the biases', and needs more iterations.
        phase: mode the model is run in. In "train" batch norm normalizes by the batch and dropout drops. Mode,
            buffers (running statistics too) and random state are put back.
        include, exclude, frozen: as in `he_`.
        generator: as in `he_`, for the pre-initialization.

    Returns:
        Initialization: per layer the variance reached, measured over all batches at the end, and in how many
        iterations; `.reached` is False when a layer is outside tolerance, and its entry says so.

    Raises:
        RelumeError: as `he_`; or a layer's output is constant or not finite. The model is then as before.
        BatchError, EmptyCensusError: the batches do not fit, hold NaN, or there is none.

    Source: Mishkin & Matas 2016, arXiv 1511.06422, algorithm 1.

    >>> net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2))
    >>> lsuv_(net, torch.randn(64, 8)).reached
    True
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be above 0, not {tolerance!r}")
    arguments.positive("max_iterations", max_iterations)
    if bias == "alive":
        raise ValueError("bias='alive' moves what lsuv_ has measured: call init.alive_ first, then lsuv_(bias='keep')")
    model = checked(model, "lsuv_")
    found = find(model, include=include, exclude=exclude, frozen=frozen)
    given = calls(model, batches)
    scaled = [layer for layer in found.layers if layer.kind != "recurrent"]

    def fit(layer: Layer, moments: ChannelMoments) -> bool:
        variance = moments.variance
        if abs(variance - 1) <= tolerance:
            return False
        if variance <= _CONSTANT * float(moments.mean.square().mean() + variance):
            raise constant(layer)
        layer.out.write(layer.out.read() / math.sqrt(variance))
        return True

    def rule(weight: Any, gain: float) -> float:
        return float(gain / math.sqrt(weight.fan_in))

    with all_or_nothing(model), in_phase(model, phase):
        kind: Distribution | None = "orthogonal" if pre_init else None
        drawn = draw_layers(found, {}, "forward", rule, kind, bias, generator)
        changed = fit_in_order(model, scaled, given, fit, max_iterations)
        now = measure(model, scaled, given)
    by_name = {layer.shown: layer for layer in scaled}
    done, notes = [], []
    for entry in drawn:
        layer = by_name.get(entry.layer)
        if layer is None or layer.weights[-1].label != entry.weight:
            done.append(replace(entry, reads=None, gain=None))
            continue
        moments = now.get(layer.name)
        std = float(layer.out.read().double().square().mean().sqrt())
        if moments is None:
            notes.append(f"'{layer.shown}' was not called on these batches: drawn, not scaled")
            done.append(replace(entry, reads=None, gain=None))
            continue
        reached = abs(moments.variance - 1) <= tolerance
        if not reached:
            by = f" (parametrized by {layer.out.parametrized})" if layer.out.parametrized else ""
            notes.append(
                f"'{layer.shown}'{by} did not reach variance 1 ± {tolerance:g}: it is {moments.variance:.3g} after "
                f"{changed[layer.name]} iterations"
            )
        done.append(
            replace(
                entry,
                reads=None,
                gain=None,
                std=std,
                variance=moments.variance,
                iterations=changed[layer.name],
                reached=reached,
            )
        )
    return Initialization("lsuv", type(model).__name__, tuple(done), tuple(found.left), tuple(notes))


def constant(layer: Layer, channels: str = "") -> RelumeError:
    """No scale gives a constant output a variance."""
    return RelumeError(
        f"layer '{layer.shown}' gives a constant output{channels} on these batches, which no scale can give a variance "
        "of 1: its input is constant, or what lies before it is dead (relume.init.check says which), or its weights "
        f"are zero. Leave it out with exclude={layer.name!r}. Nothing was changed"
    )
