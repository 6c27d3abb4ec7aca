"""`Finding`: one diagnosed fact, with the numbers that say so and what can be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
class Confirmation:
    """What became of a finding's units when recent training was run again with one thing changed.

    Attributes:
        confirmed: did the change save most of the units that died? None where it could not be tried.
        change: what was changed, such as "lr 0.03 instead of 0.3".
        steps: first and last step that were run again.
        units: of the finding, those that died in the replay without a change.
        dead: of these, those that died with it.
        sentence: all of it, as one would say it; where nothing could be tried, why.
        tried: every change that was tried, as (change, dead).
    """

    confirmed: bool | None
    change: str
    steps: tuple[int, int]
    units: int
    dead: int
    sentence: str
    tried: tuple[tuple[str, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "confirmed": self.confirmed,
            "change": self.change,
            "steps": list(self.steps),
            "units": self.units,
            "dead": self.dead,
            "sentence": self.sentence,
            "tried": [{"change": change, "dead": dead} for change, dead in self.tried],
        }


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
        confirmation: what a replay said of it, or None where none was asked.
    """

    code: str
    severity: Severity
    site: str
    units: tuple[int, ...]
    steps: tuple[int, int]
    evidence: Mapping[str, Any]
    sentence: str
    remedies: tuple[Remedy, ...] = ()
    root: tuple[str, str] | None = None
    confirmation: Confirmation | None = None

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
            "confirmation": self.confirmation.to_dict() if self.confirmation else None,
        }
