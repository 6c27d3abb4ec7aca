"""`Finding`: one diagnosed fact, with the numbers that say so and what can be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Remedy:
    """Something that can be done.

    Attributes:
        text: what, in a few words.
        call: the line that does it, or "" where it is the user's own setting to change.
    """

    text: str
    call: str = ""


@dataclass(frozen=True)
class Finding:
    """One diagnosed fact.

    Attributes:
        code: the cause, such as "killed-by-step"; "unknown-cause" where the evidence does not decide.
        severity: "error": the signal is cut, or half of a site's units are lost, or the training has diverged;
            "warning": a fifth or more of a site; "note": less, or no illness.
        site: name of the site, "" for the whole network.
        units: indices of the units concerned.
        steps: first and last step of what happened.
        evidence: the numbers it rests on, by name; plain data.
        sentence: what is the matter, as one would say it.
        remedies: best first.
        root: code and site of the finding that this one follows from, or None.
    """

    code: str
    severity: Severity
    site: str
    units: tuple[int, ...]
    steps: tuple[int, int]
    evidence: Mapping[str, Any]
    sentence: str
    remedies: tuple[Remedy, ...] = ()
    root: tuple[str, str] | None = field(default=None)

    def __post_init__(self) -> None:
        if not self.evidence:
            raise ValueError(f"a finding needs evidence, and '{self.code}' at '{self.site}' has none")

    def __str__(self) -> str:
        return self.sentence

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "code": self.code,
            "severity": self.severity,
            "site": self.site,
            "units": list(self.units),
            "steps": list(self.steps),
            "evidence": dict(self.evidence),
            "sentence": self.sentence,
            "remedies": [{"text": r.text, "call": r.call} for r in self.remedies],
            "root": list(self.root) if self.root else None,
        }


_CALM = Remedy("lower the learning rate, or warm it up")
_CLIP = Remedy("clip the gradient", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)")
_LEAKY = Remedy("take an activation whose negative side keeps a gradient", "relume.nn.DReLU()")
_CENTRE = Remedy("centre and scale the inputs of the layer, by standardizing the data or by a normalization")
_INIT = Remedy("initialize anew for the data", "relume.init.lsuv_(model, batches)")

#: What to do about each cause, best first.
REMEDIES: Mapping[str, tuple[Remedy, ...]] = {
    "born-dead": (_INIT, Remedy("start biases at zero or above"), _LEAKY),
    "deep-narrow": (Remedy("make the network wider, less deep, or residual"), _INIT, _LEAKY),
    "killed-by-step": (_CALM, _CLIP, _LEAKY),
    "bias-drift": (Remedy("look for a term of the loss that pushes activations down"), _CALM, _LEAKY),
    "weight-drift": (_CENTRE, _CALM, _LEAKY),
    "weight-decay": (Remedy("lower the weight decay, or leave this layer out of it"),),
    "norm-collapse": (Remedy("keep γ and β out of weight decay, and lower their learning rate"), _LEAKY),
    "upstream-cascade": (Remedy("mend the layer below first"), _LEAKY),
    "input-shift": (Remedy("standardize inputs in the same way throughout, and look at what changed in the data"),),
    "saturation": (_INIT, Remedy("scale the weights down, or normalize what comes in")),
    "vanishing-gradient": (
        Remedy("take ReLU-like activations, normalization or residual connections"),
        _INIT,
    ),
    "exploding-gradient": (_CALM, _CLIP, _INIT),
}
