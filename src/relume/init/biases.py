"""Biases: zeros, torch's uniform ones, a constant, or such that each unit fires on a chosen share of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relume.activations.zones import INF
from relume.census import Phase
from relume.errors import RelumeError
from relume.init.draws import scratch
from relume.init.layers import NORMS, Layer, Left, all_or_nothing, checked, find
from relume.init.passes import Call, calls, in_phase, seen
from relume.init.summary import Done, Initialization
from relume.sites import Found
from relume.watch import arguments

Bias = Literal["zeros", "uniform", "keep", "alive"] | float


def bias_(
    model: nn.Module,
    value: Bias = "zeros",
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    frozen: bool = False,
    generator: torch.Generator | None = None,
) -> Initialization:
    """Fill the biases of all layers; weights are left as they are.

    Args:
        model: a whole model or one layer.
        value: "zeros", "uniform" (between ±1/√fan_in, torch's default), or a number.
        include, exclude, frozen, generator: as in `he_`.

    Returns:
        Initialization: per layer, what became of its biases.

    Raises:
        RelumeError: as `he_`.
        ValueError: `value` is something else; for "alive" see `alive_`.
    """
    if value in ("alive", "keep"):
        raise ValueError(f"bias_ takes 'zeros', 'uniform' or a number, not {value!r}; 'alive' is init.alive_")
    model = checked(model, "bias_")
    found = find(model, include=include, exclude=exclude, frozen=frozen)
    done = []
    with all_or_nothing(model):
        for layer in found.layers:
            what = fill_biases(layer, value, generator)
            done.append(Done(layer.shown, "", tuple(layer.out.read().shape), "bias only", bias=what))
    return Initialization("bias", type(model).__name__, tuple(done), tuple(found.left))


def fill_biases(layer: Layer, value: Bias, generator: torch.Generator | None) -> str:
    """Fill a layer's biases; returns what was done, for the summary."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number and value not in ("zeros", "uniform", "keep", "alive"):
        raise ValueError(f"bias is 'zeros', 'uniform', 'keep', 'alive' or a number, not {value!r}")
    if not layer.biases:
        return "none"
    if value == "keep":
        return "kept"
    bound = 1 / math.sqrt(layer.weights[0].fan_in)
    with torch.no_grad():
        for module, leaf in layer.biases:
            bias: Tensor = getattr(module, leaf)
            if value == "uniform":
                drawn = scratch(bias, generator)
                bias.copy_(nn.init.uniform_(drawn, -bound, bound, generator=generator))
            else:
                bias.fill_(float(value) if number else 0.0)
    return f"±{bound:.2g}" if value == "uniform" else str(value)


def alive_(
    model: nn.Module,
    batches: Any,
    *,
    share: float = 0.5,
    phase: Phase = "train",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    frozen: bool = False,
) -> Initialization:
    """Set biases so that each unit fires on a chosen share of the inputs; weights are left as they are.

    Site by site in the order of the forward pass, each unit's pre-activation is shifted by its own quantile: by the
    bias of the layer that produces it, or of the normalization in between. One pass over the batches per site.

    Args:
        model: any module.
        batches: as `relume.census` takes them; kept in memory.
        share: of the inputs, between 0 and 1.
        phase: mode the model is run in; mode, buffers and random state are put back.
        include, exclude, frozen: as in `he_`, on the names of the layers.

    Returns:
        Initialization: per layer the share of inputs its units now fire on (mean over units), in words; sites that
        were left alone (no flat zone, no bias to shift, several producers) and why.

    Raises:
        RelumeError: as `he_`, or no site could be set.
        BatchError, EmptyCensusError: the batches do not fit, hold NaN, or there is none.
        ValueError: share is not between 0 and 1.
    """
    arguments.share("share", share)
    model = checked(model, "alive_")
    found = find(model, include=include, exclude=exclude, frozen=frozen)
    given = calls(model, batches)
    with all_or_nothing(model):
        woken = wake(model, given, share, phase, {layer.name for layer in found.layers})
    if not woken.rates:
        reasons = "; ".join(f"{site}: {why}" for site, why in woken.left.items())
        raise RelumeError(
            f"no site of {type(model).__name__} has a bias that could be set ({reasons or 'no site seen'})"
        )
    done = tuple(
        Done(owner, "", (units,), f"fires on {rate:.0%} of inputs", bias="alive")
        for owner, (units, rate) in woken.rates.items()
    )
    left = [entry for entry in found.left if entry.name not in woken.rates]
    left += [Left(site, why) for site, why in woken.left.items()]
    return Initialization("alive", type(model).__name__, done, tuple(left))


@dataclass
class Woken:
    """What `wake` did: per owner of a bias its units and the share of inputs they fire on; per site left, why."""

    rates: dict[str, tuple[int, float]]
    left: dict[str, str]

    def __str__(self) -> str:
        set_ = ", ".join(f"{owner} fires on {rate:.0%}" for owner, (_, rate) in self.rates.items())
        return "; ".join(filter(None, [set_, *(f"{site} left alone ({why})" for site, why in self.left.items())]))


def wake(model: nn.Module, batches: list[Call], share: float, phase: Phase, allowed: set[str]) -> Woken:
    """Shift biases site by site; see `alive_`. `allowed`: names of the layers whose sites may be shifted."""
    woken = Woken({}, {})
    with in_phase(model, phase):
        order = list(_Highest(model, batches[:1], None).owners)
        for key in order:
            highest = _Highest(model, batches, key)
            found, owner, why = highest.owners[key]
            if not why and not (set(found.site.producers) & allowed):
                why = "its layer is left alone"
            if why:
                woken.left[found.site.name] = why
                continue
            edge = found.activation.flat.intervals[0][1]
            top = torch.cat(highest.parts)
            if not bool(torch.isfinite(top).all()):
                raise RelumeError(f"site '{found.site.name}' sees NaN or infinite pre-activations; nothing was changed")
            shift = edge - _between(top, share)
            bias: Tensor = owner[1].bias  # type: ignore[assignment]
            with torch.no_grad():
                bias.add_(shift.to(bias))
            again = _Highest(model, batches, key)
            rate = float((torch.cat(again.parts) > edge).double().mean())
            woken.rates[owner[0] or type(owner[1]).__name__] = (found.site.units, rate)
    return woken


def _between(top: Tensor, share: float) -> Tensor:
    """Per unit a level that `share` of its inputs lie above: halfway between the two inputs around it.

    Halfway, as one of the inputs itself would lie on the edge, where rounding decides whether it fires.
    """
    ordered = top.sort(0, descending=True).values
    above = min(max(round(share * len(top)), 1), max(len(top) - 1, 1))
    if len(top) == 1:
        return ordered[0] - 1e-3 * ordered[0].abs().clamp(min=1e-6)
    return (ordered[above - 1] + ordered[above]) / 2


class _Highest:
    """Per input and unit, the highest pre-activation at one site; and for each site, the owner of its bias.

    Attributes:
        owners: by site, what was found, (name, module) that owns the bias, and why it can't be shifted, if so.
        parts: of the site asked for, per batch [inputs, units], float64.
    """

    def __init__(self, model: nn.Module, batches: list[Call], key: Any) -> None:
        self.owners: dict[Any, tuple[Found, tuple[str, nn.Module], str]] = {}
        self.parts: list[Tensor] = []
        self._key, self._run = key, []  # type: tuple[Any, list[tuple[str, nn.Module]]]
        names = {id(m): name for name, m in model.named_modules()}
        handles = [
            m.register_forward_hook(lambda m, a, o: self._run.append((names[id(m)], m)))
            for m in model.modules()
            if isinstance(m, NORMS) or getattr(m, "weight", None) is not None
        ]
        try:
            for call in batches:
                self._run.clear()
                seen(model, call, self._meter)
        finally:
            for handle in handles:
                handle.remove()

    def _meter(self, found: Found, x: Tensor) -> None:
        if found.key not in self.owners:
            self.owners[found.key] = (found, *self._owner(found))
        if found.key == self._key:
            plan = found.plan
            y = x.detach().double()
            y = y if plan.shape is None else y.reshape(plan.shape)
            if plan.others:
                y = y.amax(plan.others, keepdim=True)
            y = y.permute(*plan.inputs, *plan.units, *plan.others)
            self.parts.append(y.reshape(-1, plan.n_units))

    def _owner(self, found: Found) -> tuple[tuple[str, nn.Module], str]:
        """The last module before the site whose bias shifts its pre-activation, and why it can't, if so."""
        site, nobody = found.site, ("", nn.Identity())
        flat = found.activation.flat.intervals
        if not flat or flat[0][0] != -INF:
            return nobody, f"{site.activation} has no flat zone on the left"
        if len(site.producers) != 1:
            return nobody, "several producers" if site.producers else "its producer is unknown"
        for name, module in reversed(self._run):
            norm = isinstance(module, NORMS) and name.rpartition(".")[2] in site.between
            if not norm and name != site.producers[0]:
                continue
            bias = getattr(module, "bias", None)
            if not isinstance(bias, nn.Parameter) or bias.numel() != site.units:
                return nobody, f"'{name}' has no bias of its units"
            return (name, module), ""
        return nobody, f"'{site.producers[0]}' is no module"
