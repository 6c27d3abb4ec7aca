"""`Finding`: one diagnosed fact, with the numbers that say so and what can be done about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from relume.errors import RelumeError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Remedy:
    """Something that can be done.

    Attributes:
        text: what, in a few words.
        call: the line that does it, or "" where it is the user's own setting to change.
        gain: what a replay measured of it, such as "49 of 51 units lived in the replay, with lr 0.03 instead of 0.3";
            "" where none did.
    """

    text: str
    call: str = ""
    gain: str = ""


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
    _replay: Any = field(default=None, repr=False, compare=False)  # that `confirm` asks

    def __post_init__(self) -> None:
        if not self.evidence:
            raise ValueError(f"a finding needs evidence, and '{self.code}' at '{self.site}' has none")

    def __str__(self) -> str:
        return self.sentence

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle leaves the replay behind."""
        return {name: value for name, value in vars(self).items() if name != "_replay"}

    def confirm(self) -> Finding:
        """Run recent training again, on copies, with one thing changed, and say what then lives.

        Returns:
            Finding: this one with `.confirmation`, and with the gain that was measured beside its remedies. Where the
            replay shows that another cause is the right one, the code is that cause's.

        Raises:
            RelumeError: nothing was kept that could be run again.
        """
        if self._replay is None:
            raise RelumeError(
                "nothing is kept that could be run again: relume.watch(model, optimizer, replay=True) keeps snapshots "
                "and recent batches"
            )
        confirmed: Finding = self._replay.confirm(self)
        return confirmed

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON, where None stands for NaN and infinities."""
        return {
            "code": self.code,
            "severity": self.severity,
            "site": self.site,
            "units": list(self.units),
            "steps": list(self.steps),
            "evidence": {name: _finite(value) for name, value in self.evidence.items()},
            "sentence": self.sentence,
            "remedies": [{"text": r.text, "call": r.call, "gain": r.gain} for r in self.remedies],
            "root": list(self.root) if self.root else None,
            "confirmation": self.confirmation.to_dict() if self.confirmation else None,
        }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
