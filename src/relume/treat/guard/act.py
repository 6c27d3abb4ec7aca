"""`Act`: one thing that a guard did, or would have done, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from relume.treat.guard.policy import Kind

Outcome = Literal["pending", "kept", "undone", "would", "failed"]


@dataclass(frozen=True)
class Act:
    """One act.

    Attributes:
        step: optimizer steps before it.
        kind: "revive", "lr", "clip", "decay" or "convert".
        what: what was done, in words.
        why: the finding it acts on, as (code, site).
        units: of each site, those treated; empty for a change of settings.
        outcome: "pending" until it is judged; then "kept" or "undone"; "would": of a policy that only says what it
            would do; "failed": it could not be done, `note` says why.
        loss_before, loss_after: mean training loss in the window before it, and in the one it was judged by; NaN where
            none was logged.
        alive: of the units treated, how many fired in the window it was judged by; None before.
        difference: largest change of the model's output by a revival, relative, where it was measured; else NaN.
        note: what else there is to say.
    """

    step: int
    kind: Kind
    what: str
    why: tuple[str, str]
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    outcome: Outcome = "pending"
    loss_before: float = math.nan
    loss_after: float = math.nan
    alive: int | None = None
    difference: float = math.nan
    note: str = ""

    @property
    def treated(self) -> int:
        return sum(map(len, self.units.values()))

    def __str__(self) -> str:
        code, site = self.why
        where = f" at '{site}'" if site else ""
        text = f"step {self.step}: {'would ' if self.outcome == 'would' else ''}{self.what} ({code}{where})"
        if self.alive is not None and self.units:
            text += f"; {self.alive} of {self.treated} alive"
        if math.isfinite(self.loss_before) and not math.isnan(self.loss_after):
            text += f"; loss {self.loss_before:.3g} → {self.loss_after:.3g}"
        if self.outcome in ("undone", "failed"):
            text += f"; {self.outcome}"
        return text + (f": {self.note}" if self.note else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; numbers that are not known are None."""

        def known(x: float) -> float | None:
            return x if math.isfinite(x) else None

        return {
            "step": self.step,
            "kind": self.kind,
            "what": self.what,
            "why": list(self.why),
            "units": {site: list(units) for site, units in self.units.items()},
            "outcome": self.outcome,
            "loss_before": known(self.loss_before),
            "loss_after": known(self.loss_after),
            "alive": self.alive,
            "difference": known(self.difference),
            "note": self.note,
        }
