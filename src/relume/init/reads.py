"""Which activation's output each layer reads: the one whose gain its weights must make up for.

Var z = fan_in · Var w · E f(z')² for a layer that reads f(z'), so the gain belongs to the activation before the layer,
not to the one after it; a layer that reads data has gain 1 (He et al. 2015, section 2.2). Known from one forward pass
under a tracker, from the order of an nn.Sequential, or from the user.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from relume.activations import Activation, activation, activation_of
from relume.errors import RelumeError
from relume.init.layers import NORMS, Found, Layer, layer_of
from relume.init.passes import calls, in_phase, seen

Mode = Literal["forward", "backward"]
Named = str | Activation | nn.Module | None
# Modules that hand on what they read, as far as scale is concerned.
_THROUGH: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d, nn.ReflectionPad2d,
)  # fmt: skip


@dataclass(frozen=True)
class Reads:
    """The activations that a layer reads: none, one, or (where outputs are joined) several."""

    activations: tuple[Activation, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a.name for a in self.activations))

    def gain(self, mode: Mode) -> float:
        """1 / sqrt of the mean second moment of what is read (backward: of the slopes); 1 for data.

        Raises:
            RelumeError: an activation has none, being zero or flat everywhere.
        """
        if not self.activations:
            return 1.0
        gains = [a.gain if mode == "forward" else a.backward_gain for a in self.activations]
        if not all(0 < g < math.inf for g in gains):
            worst = self.activations[gains.index(max(gains))]
            raise RelumeError(f"{worst.name} has no {mode} gain ({max(gains)}): give activation= another, or 'linear'")
        return 1 / math.sqrt(sum(1 / g**2 for g in gains) / len(gains))


def reads(
    model: nn.Module, found: Found, batch: Any, given: Named | Mapping[str, Named], doing: str
) -> dict[str, Reads]:
    """What each layer reads, by layer name.

    Args:
        batch: one batch, to look with; None: none is at hand.
        given: one activation, taken to be read by every layer, or activations by shell pattern on layer names;
            layers that no pattern fits are found out.

    Raises:
        RelumeError: it can't be told.
        UnknownActivationError: no activation has a name that was given.
    """
    by_pattern = {p: of(a) for p, a in given.items()} if isinstance(given, Mapping) else {"*": of(given)}
    if given is None:
        by_pattern = {}
    result: dict[str, Reads] = {}
    open_ = []
    for layer in found.layers:
        fits = next((r for p, r in by_pattern.items() if fnmatchcase(layer.name, p)), None)
        if fits is None:
            open_.append(layer)
        else:
            result[layer.name] = fits
    if open_:
        known = _traced(model, found.layers, batch) if batch is not None else _in_order(model, doing)
        for layer in open_:
            result[layer.name] = known.get(layer.name, Reads())
    return result


def of(given: Named) -> Reads:
    """The activation that a person means by a name, an entry, or a module."""
    if isinstance(given, Activation):
        return Reads((given,))
    if isinstance(given, nn.Module):
        entry = activation_of(given)
        if entry is None:
            raise RelumeError(
                f"{type(given).__name__} is no activation that relume knows: make it known with "
                "relume.register_activation, or name the activation"
            )
        return Reads((entry,))
    if given is None or given in ("linear", "identity"):
        return Reads()
    if not isinstance(given, str):
        raise TypeError(f"activation= takes a name, an Activation or a module, not {type(given).__name__}")
    return Reads((activation(given),))


def _traced(model: nn.Module, layers: list[Layer], batch: Any) -> dict[str, Reads]:
    """By one forward pass: a site's consumers read its activation."""
    names = {layer.name: layer.name for layer in layers}
    names.update({f"{la.name}.out_proj".lstrip("."): la.name for la in layers if la.kind == "attention"})
    [call] = calls(model, [batch])
    with in_phase(model, "eval"):
        tracker, _ = seen(model, call, lambda found, x: None)
    result: dict[str, dict[Activation, None]] = {}
    for found in tracker.found.values():
        for consumer in found.site.consumers:
            if consumer in names:
                result.setdefault(names[consumer], {})[found.activation] = None
    return {name: Reads(tuple(activations)) for name, activations in result.items()}


def _in_order(model: nn.Module, doing: str) -> dict[str, Reads]:
    """By the order of an nn.Sequential, through nested ones."""
    result: dict[str, Reads] = {}

    def walk(module: nn.Module, name: str, now: Reads) -> Reads:
        entry = activation_of(module)
        if isinstance(module, nn.Sequential):
            for child, inner in module.named_children():
                now = walk(inner, f"{name}.{child}" if name else child, now)
            return now
        if entry is not None:
            return Reads((entry,))
        if isinstance(module, _THROUGH):
            return now
        if not isinstance(module, NORMS):
            if layer_of(name, module) is None:
                raise RelumeError(
                    f"can't tell which activation the layers read: '{name or type(module).__name__}' is a "
                    f"{type(module).__name__}, whose order of operations only a forward pass shows. Pass a batch, "
                    f"init.{doing}(model, batch), or say it: activation='relu' for every layer, or by layer name, "
                    "activation={'fc1': 'linear', '*': 'relu'}"
                )
            result[name] = now
        return Reads()

    if not isinstance(model, nn.Sequential) and layer_of("", model) is not None:
        raise RelumeError(
            f"can't tell which activation this {type(model).__name__} reads: say activation='relu', or "
            "activation='linear' if it reads data"
        )
    walk(model, "", Reads())
    return result
