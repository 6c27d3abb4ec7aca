"""What to do about each cause, with the call that does it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from relume.diagnose.finding import Remedy
from relume.sites import Site

_CALM = Remedy("lower the learning rate, or warm it up")
_CLIP = Remedy("clip the gradient", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)")
_LEAKY = Remedy("take an activation whose negative side keeps a gradient", 'relume.convert(model, to="drelu")')
_CENTRE = Remedy("centre and scale the inputs of the layer, by standardizing the data or by a normalization")
_INIT = Remedy("initialize anew for the data", "relume.init.lsuv_(model, batches)")
_REVIVE = Remedy("revive the dead units in place", "relume.revive(model, census, optimizer=optimizer, batches=batches)")
_DECAY = Remedy("lower the weight decay, or leave this layer out of it")

#: What to do about each cause in general, best first.
REMEDIES: Mapping[str, tuple[Remedy, ...]] = {
    "born-dead": (_INIT, Remedy("start biases at zero or above"), _REVIVE, _LEAKY),
    "deep-narrow": (Remedy("make the network wider, less deep, or residual"), _INIT, _LEAKY),
    "killed-by-step": (_CALM, _CLIP, _REVIVE, _LEAKY),
    "bias-drift": (Remedy("look for a term of the loss that pushes activations down"), _CALM, _REVIVE, _LEAKY),
    "weight-drift": (_CENTRE, _CALM, _REVIVE, _LEAKY),
    "weight-decay": (_DECAY, _REVIVE),
    "norm-collapse": (Remedy("keep γ and β out of weight decay, and lower their learning rate"), _REVIVE, _LEAKY),
    "upstream-cascade": (Remedy("mend the layer below first"), _REVIVE, _LEAKY),
    "input-shift": (Remedy("standardize inputs in the same way throughout, and look at what changed in the data"),),
    "silent-site": (Remedy("mend what killed its units first, then revive them"), _REVIVE, _LEAKY),
    "saturation": (_INIT, Remedy("scale the weights down, or normalize what comes in")),
    "vanishing-gradient": (
        Remedy("take ReLU-like activations, normalization or residual connections"),
        _INIT,
    ),
    "exploding-gradient": (_CALM, _CLIP, _INIT),
    "unknown-cause": (_REVIVE, _LEAKY),
}


def remedies(code: str, site: Site, evidence: Mapping[str, Any]) -> tuple[Remedy, ...]:
    """What to do about a finding at a site, best first, with calls that are right there.

    Calls speak of `model`, `optimizer`, `batches` and `census` (of the watch, `watch.census()`).
    """
    known: list[Remedy] = []
    if code == "killed-by-step":
        known += _calmer(evidence)
    elif code == "weight-decay":
        known += _undecayed(evidence)
    elif code == "born-dead":
        known += _lifted(evidence)
    general = [_at(remedy, site) for remedy in REMEDIES.get(code, ())]
    replaced = {(_CALM, _CLIP) if code == "killed-by-step" else (_DECAY,)} if known and code != "born-dead" else set()
    gone = {remedy.text for group in replaced for remedy in group[: len(known)]}
    return (*known, *(r for r in general if r.text not in gone))


def network_remedies(code: str) -> tuple[Remedy, ...]:
    """Of a finding about the whole network."""
    return REMEDIES.get(code, ())


def _at(remedy: Remedy, site: Site) -> Remedy:
    """The same for one site alone."""
    name = repr(site.name)
    if remedy is _LEAKY:
        return Remedy(remedy.text, f'relume.convert(model, to="drelu", where={name}, optimizer=optimizer)')
    return remedy


def _calmer(evidence: Mapping[str, Any]) -> list[Remedy]:
    """A learning rate at which the step would have stayed within the spread; a bound for gradients that were larger."""
    lr, usual, stride = (_number(evidence, name) for name in ("lr", "usual_lr", "stride"))
    gradient, usual_gradient = _number(evidence, "gradient"), _number(evidence, "usual_gradient")
    found = []
    spiked = gradient > 10 * usual_gradient > 0 and not lr > 2 * usual
    if lr > 2 * usual > 0:
        rate, why = usual, "keep the learning rate where it was otherwise"
    else:
        rate = _one_digit(lr / max(2.0, stride)) if math.isfinite(stride) else math.nan
        why = "lower the learning rate so that a step stays within the spread of the units"
    if rate > 0:
        text = f"{why}: {rate:.2g} instead of {lr:.2g}"
        found.append(Remedy(text, f'for group in optimizer.param_groups: group["lr"] = min(group["lr"], {rate:.2g})'))
    else:
        found.append(_CALM)
    if spiked:
        bound = _one_digit(2 * usual_gradient)
        layer = str(evidence.get("layer", ""))
        of = f"model.get_submodule({layer!r})" if layer else "model"
        text = f"clip the gradient, which was {gradient:.2g} where it is {usual_gradient:.2g} as a rule"
        found.insert(0, Remedy(text, f"torch.nn.utils.clip_grad_norm_({of}.parameters(), {bound:.2g})"))
    else:
        found.append(_CLIP)
    return found


def _undecayed(evidence: Mapping[str, Any]) -> list[Remedy]:
    decay, layer = _number(evidence, "weight_decay"), str(evidence.get("layer", ""))
    if not decay > 0:
        return [Remedy("lower the penalty on weights in the loss, or leave this layer out of it")]
    if not layer:
        return []
    weight = f"model.get_submodule({layer!r}).weight"
    group = f"next(g for g in optimizer.param_groups if any(p is {weight} for p in g['params']))"
    return [
        Remedy(
            f"set the weight decay of its parameter group to 0 (it is {decay:.2g})", f"{group}['weight_decay'] = 0.0"
        )
    ]


def _lifted(evidence: Mapping[str, Any]) -> list[Remedy]:
    """Where it is the bias that buries them, and a known layer has it."""
    bias, weights = _number(evidence, "bias"), _number(evidence, "weights_times_input")
    layer = str(evidence.get("layer", ""))
    if layer and bias < 0 and abs(bias) > 3 * abs(weights):
        return [Remedy("start its biases at zero", f"torch.nn.init.zeros_(model.get_submodule({layer!r}).bias)")]
    return []


def _number(evidence: Mapping[str, Any], name: str) -> float:
    value = evidence.get(name, math.nan)
    return float(value) if isinstance(value, int | float) else math.nan


def _one_digit(value: float) -> float:
    """Rounded down to one digit."""
    if not (value > 0 and math.isfinite(value)):
        return math.nan
    unit = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / unit) * unit
