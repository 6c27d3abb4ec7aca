"""`data_dependent_`: each channel normalized by what it sees, then layers balanced so that all learn at one rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from relume.activations import Activation
from relume.census import Phase
from relume.errors import RelumeError
from relume.init.layers import Layer, all_or_nothing, checked, find
from relume.init.lsuv import constant
from relume.init.passes import (
    Call,
    ChannelMoments,
    calls,
    fit_in_order,
    in_phase,
    measure,
    run,
    seen,
    with_gradients,
)
from relume.init.scaled import draw_layers
from relume.init.summary import Initialization
from relume.sites.flow import tensors_in
from relume.watch import arguments

_TOLERANCE = 1e-3  # of a channel's mean and deviation


def data_dependent_(
    model: nn.Module,
    batches: Any,
    *,
    between: bool = True,
    max_iterations: int = 3,
    phase: Phase = "train",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    frozen: bool = False,
    generator: torch.Generator | None = None,
) -> Initialization:
    """Draw normal weights, then give each channel of each layer mean 0 and variance 1 on the data.

    Within a layer: each channel's weights are divided by the standard deviation of its output, and its bias set to
    minus its mean; a layer without bias keeps its channels' means. As every channel has mean 0, every ReLU behind a
    layer fires on about half of the data and none is born dead.

    Between layers (`between`): where a layer's output goes through a positively homogeneous activation (ReLU, leaky
    ReLU) to other layers only, its weights and bias are scaled by r and those that read it by 1 / r, which keeps the
    function; r is such that the relative gradient ‖∂l/∂W‖ / ‖W‖ is the same all along such a chain of layers. Variances
    then are no longer 1. A pair is scaled only if that was seen to keep the model's output.

    Args:
        model: any module.
        batches: as `relume.census` takes them; kept in memory. Inputs must outnumber what a channel can fit: a few
            hundred.
        between: balance layers too.
        max_iterations: how often a channel is normalized at most; more than one is needed for parametrized weights.
        phase: mode the model is run in; mode, buffers and random state are put back.
        include, exclude, frozen, generator: as in `he_`.

    Returns:
        Initialization: per layer the variance of its output (over inputs and channels) at the end.

    Raises:
        RelumeError: as `he_`; or a channel's output is constant or not finite. The model is then as before.
        BatchError, EmptyCensusError: the batches do not fit, hold NaN, or there is none.

    Source: Krähenbühl et al. 2016, arXiv 1511.06856, sections 3.1 and 3.2 (normal weights; a random linear loss), whose
    damped iteration is here one linear system.
    """
    arguments.positive("max_iterations", max_iterations)
    model = checked(model, "data_dependent_")
    found = find(model, include=include, exclude=exclude, frozen=frozen)
    given = calls(model, batches)
    scaled = [layer for layer in found.layers if layer.kind != "recurrent"]

    def rule(weight: Any, gain: float) -> float:
        return float(gain / math.sqrt(weight.fan_in))

    with all_or_nothing(model):
        with in_phase(model, phase):
            drawn = draw_layers(found, {}, "forward", rule, "normal", "zeros", generator)
            changed = fit_in_order(model, scaled, given, _normalize, max_iterations)
        notes = list(_balance(model, scaled, given[0], phase, generator)) if between else []
        with in_phase(model, phase):
            now = measure(model, scaled, given)
    by_name = {layer.shown: layer for layer in scaled}
    done = []
    for entry in drawn:
        layer = by_name.get(entry.layer)
        bias = "none"
        if layer is None or layer.out.label != entry.weight or layer.name not in now:
            done.append(replace(entry, reads=None, gain=None))
            continue
        if layer.biases:
            bias = "centred"
        std = float(layer.out.read().double().square().mean().sqrt())
        variance, times = now[layer.name].variance, changed[layer.name]
        done.append(replace(entry, reads=None, gain=None, std=std, bias=bias, variance=variance, iterations=times))
    return Initialization("data_dependent", type(model).__name__, tuple(done), tuple(found.left), tuple(notes))


def _normalize(layer: Layer, moments: ChannelMoments) -> bool:
    """Mean 0 and deviation 1 per channel, as far as the layer's parameters can give them."""
    bias = _bias_of(layer)
    std, mean = moments.std, moments.mean
    off_mean = 0.0 if bias is None else float(mean.abs().max())
    if float((std - 1).abs().max()) <= _TOLERANCE and off_mean <= _TOLERANCE:
        return False
    still = std <= 1e-6 * (mean.square() + std.square()).sqrt()
    if bool(still.any()):
        raise constant(layer, f" in {int(still.sum())} of {len(std)} channels")
    weight = layer.out.read()
    layer.out.write(weight / _along(std, weight, layer).to(weight))
    if bias is not None:
        with torch.no_grad():
            bias.copy_((bias - mean.to(bias)) / std.to(bias))
    return True


def _along(per_channel: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """Per-channel numbers laid along the axis of a weight that its output features are on."""
    if layer.kind == "embedding":
        return per_channel
    if layer.kind == "transposed":  # [in, out / groups, …]: the rows of a group make that group's channels
        groups = layer.out.groups
        rows = per_channel.view(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
        return rows.view(weight.shape[0], -1, *[1] * (weight.dim() - 2))
    return per_channel.view(-1, *[1] * (weight.dim() - 1))


def _bias_of(layer: Layer) -> Tensor | None:
    """The bias that is added to the layer's output."""
    return next((getattr(m, leaf) for m, leaf in layer.biases if m is layer.out.module and leaf == "bias"), None)


@dataclass(frozen=True)
class _Pair:
    """A layer, and those that read it through a homogeneous activation."""

    layer: Layer
    readers: tuple[Layer, ...]

    def scale(self, r: float) -> None:
        """Keeps the function, if the pair is what it seems."""
        self.layer.out.write(self.layer.out.read() * r)
        bias = _bias_of(self.layer)
        if bias is not None:
            with torch.no_grad():
                bias.mul_(r)
        for reader in self.readers:
            for weight in reader.weights:
                weight.write(weight.read() / r)


def _balance(
    model: nn.Module, layers: list[Layer], call: Call, phase: Phase, generator: torch.Generator | None
) -> Iterable[str]:
    pairs = _pairs(model, layers, call)
    rated = {layer.name: layer for p in pairs for layer in (p.layer, *p.readers)}
    if not pairs:
        yield "between layers: no layer's output goes to other layers through a homogeneous activation only; not done"
        return
    cotangents: list[Tensor] = []
    with with_gradients(model, phase):
        before = _rates(model, list(rated.values()), call, cotangents, generator)
        pairs = [p for p in pairs if {p.layer.name, *(r.name for r in p.readers)} <= set(before)]
        for pair, r in zip(pairs, _factors(pairs, before), strict=True):
            pair.scale(r)
        after = _rates(model, list(rated.values()), call, cotangents, generator)
    yield (
        f"between layers: {len(pairs)} scaled; the largest relative gradient was {_spread(pairs, before):.3g} times "
        f"the smallest of its chain, now {_spread(pairs, after):.3g} times"
    )


def _factors(pairs: list[_Pair], rates: dict[str, float]) -> list[float]:
    """What to scale each pair by, so that all layers of a chain have one relative gradient.

    As the function stays, a layer's gradient falls as 1 / r while its weights grow as r: its relative gradient goes
    as r⁻², that of its readers as r². In logarithms that is a linear system, solved by least squares.
    """
    names = list(rates)
    effect = torch.zeros(len(names), len(pairs), dtype=torch.float64)
    for k, pair in enumerate(pairs):
        effect[names.index(pair.layer.name), k] -= 2
        for reader in pair.readers:
            effect[names.index(reader.name), k] += 2
    logs = torch.tensor([math.log(rates[n]) for n in names], dtype=torch.float64)
    wanted = torch.zeros_like(logs)
    for chain in _chains(pairs):
        members = [names.index(n) for n in chain]
        wanted[members] = logs[members].mean() - logs[members]
    found = torch.linalg.lstsq(effect, wanted[:, None], driver="gelsd").solution
    return [math.exp(u) for u in found.flatten().tolist()]


def _chains(pairs: list[_Pair]) -> list[set[str]]:
    """Names of layers that scaling links to one another."""
    chains: list[set[str]] = []
    for pair in pairs:
        linked = {pair.layer.name, *(r.name for r in pair.readers)}
        for chain in [c for c in chains if c & linked]:
            linked |= chain
            chains.remove(chain)
        chains.append(linked)
    return chains


def _spread(pairs: list[_Pair], rates: dict[str, float]) -> float:
    """Largest ratio of relative gradients within a chain."""
    of_chain = [[rates[n] for n in chain if n in rates] for chain in _chains(pairs)]
    return max((max(r) / min(r) for r in of_chain if r), default=math.nan)


def _rates(
    model: nn.Module,
    layers: list[Layer],
    call: Call,
    cotangents: list[Tensor],
    generator: torch.Generator | None,
) -> dict[str, float]:
    """‖∂l/∂W‖ / ‖W‖ of each layer, l a fixed random linear function of the output."""
    outputs = [t for t in tensors_in(run(model, call)) if t.requires_grad]
    if not cotangents:
        for t in outputs:
            where = t.device if generator is None else generator.device
            cotangents.append(torch.randn(t.shape, generator=generator, device=where).to(t))
    layers = [layer for layer in layers if not layer.out.parametrized and layer.out.module.weight.requires_grad]
    weights = [getattr(layer.out.module, layer.out.leaf) for layer in layers]
    if not layers or not outputs:
        return {}
    grads = torch.autograd.grad(outputs, weights, cotangents, allow_unused=True)
    rates = {}
    for layer, weight, grad in zip(layers, weights, grads, strict=True):
        size = float(weight.detach().double().norm())
        rate = 0.0 if grad is None else float(grad.double().norm())
        if rate > 0 and size > 0 and math.isfinite(rate):
            rates[layer.name] = rate / size
    return rates


def _pairs(model: nn.Module, layers: list[Layer], call: Call) -> list[_Pair]:
    by_name = {layer.name: layer for layer in layers if layer.kind != "attention"}
    with in_phase(model, "eval"):
        tracker, _ = seen(model, call, lambda found, x: None)
        sites = [(f.site, f.activation) for f in tracker.found.values()]
        pairs = []
        for site, activation in sites:
            consumers = [c for c in site.consumers if c in by_name]
            fits = (
                len(site.producers) == 1
                and site.producers[0] in by_name
                and consumers
                and len(consumers) == len(site.consumers)
                and _homogeneous(activation)
                and sum(site.producers == other.producers for other, _ in sites) == 1
            )
            if fits:
                pair = _Pair(by_name[site.producers[0]], tuple(by_name[c] for c in consumers))
                if _keeps(model, pair, call):
                    pairs.append(pair)
    return pairs


def _homogeneous(activation: Activation) -> bool:
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    return torch.allclose(activation.function(2 * x), 2 * activation.function(x))


def _keeps(model: nn.Module, pair: _Pair, call: Call) -> bool:
    """Is the model's output the same with the pair scaled? Scaling by a power of two is exact."""
    before = [t.detach().clone() for t in tensors_in(run(model, call))]
    try:
        pair.scale(4.0)
        after = [t.detach() for t in tensors_in(run(model, call))]
    except RelumeError:
        return False
    finally:
        pair.scale(0.25)
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max() if b.numel() else 0))
        for a, b in zip(after, before, strict=True)
        if b.is_floating_point()
    )
