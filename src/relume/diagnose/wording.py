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
        return (
            f"{who} were killed by large steps {when}: one changed the weights by "
            f"{e.percent('largest_update_ratio')} of their norm (usually {e.percent('usual_update_ratio')}), at "
            f"learning rate {e['lr']}."
        )
    if code in ("bias-drift", "weight-drift"):
        what = "bias" if code == "bias-drift" else "weights"
        return (
            f"{who} were pushed down over some {e['steps']} steps by their {what}, which took {e.part('by_' + what)} "
            f"of a fall of {e['mean_fall']} in mean pre-activation."
        )
    if code == "weight-decay":
        return (
            f"{who} faded away: weight decay {e['weight_decay']} alone shrinks their weights by "
            f"{e.percent('decay_shrink')} over {e['steps']} steps, and they shrank to {e.percent('weight_ratio')}."
        )
    if code == "norm-collapse":
        return (
            f"{who} were buried by their normalization: β moved them by {e['by_beta']}, γ by {e['by_gamma']}, of a "
            f"fall of {e['mean_fall']} in mean pre-activation."
        )
    if code == "upstream-cascade":
        return (
            f"{who} died {when} because what the layers below send up changed: that moved their mean "
            f"pre-activation by {e['by_upstream']}, their own weights by {e['by_weights']}."
        )
    if code == "input-shift":
        return (
            f"{who} died {when} because the model's input changed: that moved their mean pre-activation by "
            f"{e['by_upstream']}, the weights by {e['by_weights']}."
        )
    if code == "saturation":
        return f"{who} are saturated on every input: their pre-activations lie at {e['mean']} ± {e['std']}."
    if code == "sparse":
        return f"{who} fire rarely (on {e.percent('firing_rate')} of inputs) and are alive, which is no illness."
    why = evidence.get("why", "no single part of what moved them stands out")
    return f"{who} died {when}; what killed them can't be told ({why})."


def gradient_sentence(code: str, evidence: Mapping[str, Any]) -> str:
    """What is the matter with the gradients of the whole network."""
    e = _Numbers(evidence)
    if "first_step" in evidence:
        return f"The training diverged at step {evidence['first_step']}, at learning rate {e['lr']}."
    how = "hardly reaches the first layers" if code == "vanishing-gradient" else "grows on its way down"
    return (
        f"The gradient {how}: per weight it is {e['gradient_per_weight_first']} in '{evidence['first_layer']}' and "
        f"{e['gradient_per_weight_last']} in '{evidence['last_layer']}'."
    )


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
