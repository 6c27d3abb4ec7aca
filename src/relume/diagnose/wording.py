"""Findings as one sentence, in plain words with the numbers that matter most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from relume.sites import Site


def sentence(code: str, site: Site, units: int, steps: tuple[int, int], evidence: Mapping[str, Any]) -> str:
    """What is the matter at a site, as a colleague would say it."""
    who = f"{units} of {site.units} units of '{site.name}'"
    when = f"between steps {steps[0]} and {steps[1]}"
    e = _Numbers(evidence)
    if code == "born-dead":
        top = evidence.get("top", math.nan)
        if evidence.get("min", math.nan) >= top:
            return (
                f"{who} were born at the top: their pre-activations never come below {e['min']}, and {top:g} is where "
                "the flat zone begins."
            )
        return (
            f"{who} were dead at the first step: their pre-activations reach {e['max']} at most, where the bias gives "
            f"{e['bias']} and the weights {e['weights_times_input']}."
        )
    if code == "deep-narrow":
        return (
            f"{who} were born dead: the network has {evidence['sites']} sites of about {evidence['width']} units, and "
            f"{evidence['silent_sites']} of them let nothing through, as happens by chance when it is deep and narrow."
        )
    if code == "killed-by-step":
        return f"{who} were killed by large steps {when}: {_throw(e, evidence)}{_at_rate(e, evidence)}."
    if code in ("bias-drift", "weight-drift"):
        what = "bias" if code == "bias-drift" else "weights"
        return (
            f"{who} were pushed down over some {e['steps']} steps by their {what}, which took {e.part('by_' + what)} "
            f"of a fall of {e['mean_fall']} in mean pre-activation."
        )
    if code == "weight-decay":
        left = f"over {e['steps']} steps their weights shrank to {e.percent('weight_ratio')}"
        decay = evidence.get("weight_decay", math.nan)
        if not decay > 0:
            whose = (
                "which no optimizer is known to do" if math.isnan(decay) else "and the optimizer has no weight decay"
            )
            return f"{who} faded away: {left}, {e.percent('pull_to_zero')} of each step straight to zero, {whose}: look for a penalty on weights in the loss."  # noqa: E501
        return f"{who} faded away under weight decay {e['weight_decay']}: {left}{_share_of_decay(e, evidence)}."
    if code == "norm-collapse":
        return (
            f"{who} were buried by their normalization: their spread went from {e['std_before']} to {e['std_after']}, "
            f"their mean pre-activation moved by {e.part('mean_fall')}, "
            f"of which β {e['by_beta']} and γ {e['by_gamma']}."
        )
    if code == "upstream-cascade":
        lost = evidence.get("lost_below", 0.0)
        why = f", where {e.percent('lost_below')} of the units died meanwhile" if lost >= 0.01 else ""
        return (
            f"{who} died {when} because what the layers below send up changed{why}: that moved their mean "
            f"pre-activation by {e['by_upstream']}, their own weights by {e['by_weights']}."
        )
    if code == "input-shift":
        if "first_site_shift" in evidence:
            return f"{who} died {when} because the model's input changed: it moved the units of the first site by {e['first_site_shift']} standard deviations."  # noqa: E501
        return (
            f"{who} died {when} because the model's input changed: that moved their mean pre-activation by "
            f"{e['by_upstream']} ({e['shift']} standard deviations down, where batches differ by {e['usual_shift']}), "
            f"the weights by {e['by_weights']}."
        )
    if code == "silent-site":
        above = evidence.get("silent_above", "")
        further = f", nor do the sites above it ({above})" if above else ""
        return f"Nothing passes '{site.name}' from step {steps[1]} on: all its {site.units} units are dead ({evidence['causes']}){further}."  # noqa: E501
    if code == "saturation":
        return f"{who} are saturated on every input: their pre-activations lie at {e['mean']} ± {e['std']}."
    if code == "sparse":
        return f"{who} fire rarely (on {e.percent('firing_rate')} of inputs) and are alive, which is no illness."
    why = evidence.get("why", "no single part of what moved them stands out")
    return f"{who} died {when}; what killed them can't be told ({why})."


def _throw(e: _Numbers, evidence: Mapping[str, Any]) -> str:
    """What a step did: to the units, and to the weights."""
    said = []
    if evidence.get("stride", math.nan) > 0:
        said.append(f"one moved them by {e['stride']} standard deviations")
    largest, below = evidence.get("largest_update_ratio", math.nan), evidence.get("update_ratio_below", math.nan)
    if below > 2 * largest:
        said.append(
            f"one changed the weights of '{evidence.get('layer_below', '')}' below by "
            f"{e.percent('update_ratio_below')} of their norm"
        )
    elif not math.isnan(largest):
        said.append(
            f"one changed the weights by {e.percent('largest_update_ratio')} of their norm (usually "
            f"{e.percent('usual_update_ratio')})"
        )
    return " and ".join(said) or f"the steepest moved them by {e['steepness']} standard deviations"


def _at_rate(e: _Numbers, evidence: Mapping[str, Any]) -> str:
    lr, usual = evidence.get("lr", math.nan), evidence.get("usual_lr", math.nan)
    gradient, usual_gradient = evidence.get("gradient", math.nan), evidence.get("usual_gradient", math.nan)
    if math.isnan(lr):
        return ""
    if lr > 2 * usual > 0:
        return f", at learning rate {e['lr']} (usually {e['usual_lr']})"
    if gradient > 10 * usual_gradient > 0:
        return f", at learning rate {e['lr']} and a gradient of {e['gradient']} (usually {e['usual_gradient']})"
    return f", at learning rate {e['lr']}"


def _share_of_decay(e: _Numbers, evidence: Mapping[str, Any]) -> str:
    if evidence.get("decay_shrink", math.nan) > 0:
        return f", and the decay alone takes {e.percent('decay_shrink')} of them"
    return f", {e.percent('pull_to_zero')} of each step straight to zero"


def gradient_sentence(code: str, evidence: Mapping[str, Any]) -> str:
    """What is the matter with the gradients of the whole network."""
    e = _Numbers(evidence)
    where = "at the outputs of layers" if "signal" in str(evidence.get("measure")) else "per weight"
    if "first_step" in evidence:
        return f"The training diverged at step {evidence['first_step']}, at learning rate {e['lr']}."
    ends = f"{e['gradient_per_weight_first']} in '{evidence['first_layer']}' and {e['gradient_per_weight_last']} in '{evidence['last_layer']}'"  # noqa: E501
    if evidence.get("measure") == "size of the signal":
        return f"The signal grows with each layer, and the gradient on its way back: it is {ends}."
    how = "hardly reaches the first layers" if code == "vanishing-gradient" else "grows on its way down"
    return f"The gradient {how}: {where} it is {ends}."


class _Numbers:
    """Evidence as text."""

    def __init__(self, evidence: Mapping[str, Any]) -> None:
        self._evidence = evidence

    def __getitem__(self, name: str) -> str:
        value = self._evidence.get(name, math.nan)
        return "unknown" if math.isnan(value) else f"{value:.3g}"

    def percent(self, name: str) -> str:
        value = self._evidence.get(name, math.nan)
        return "an unknown share" if math.isnan(value) else f"{100 * value:.3g} %"

    def part(self, name: str) -> str:
        value = self._evidence.get(name, math.nan)
        return "an unknown part" if math.isnan(value) else f"{-value:.3g}"
