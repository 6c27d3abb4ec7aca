"""Verdicts: a claim, the measured effect with its interval, and so: supported, contradicted, or undecided.

"No difference was found" has two meanings, which an equivalence margin tells apart: the interval lies within what does
not matter, or there is not enough data.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from relume.lab.stats.interval import Interval

Outcome = Literal["supported", "contradicted", "undecided"]
Says = Literal["more", "less", "different", "same"]


@dataclass(frozen=True)
class Claim:
    """Something said about an effect, with what would bear it out, fixed before it is measured.

    Attributes:
        id: short name.
        text: the claim as a sentence.
        source: who says so.
        support: in words, what measurement would support it.
        says: of the effect: "more" than the margin, "less" than minus the margin, "different" from zero by more than
            the margin, "same": within it.
        margin: the largest effect that does not matter, in the effect's unit (ROPE, equivalence margin).

    Raises:
        ValueError: a negative margin, or "same" without one; another word for `says`.
    """

    id: str
    text: str
    source: str
    support: str
    says: Says = "more"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.says not in ("more", "less", "different", "same"):
            raise ValueError(f"claim {self.id!r}: says is more, less, different or same, not {self.says!r}")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"claim {self.id!r}: the margin is a number of at least 0, not {self.margin}")
        if self.says == "same" and self.margin == 0:
            raise ValueError(f"claim {self.id!r}: nothing is the same to infinite precision: give margin=")


@dataclass(frozen=True)
class Verdict:
    """What the measurement says of the claim.

    Attributes:
        outcome: "supported", "contradicted" or "undecided".
        claim: which.
        effect: with its interval.
        ran: what was run.
        why: in a sentence.
        runs_needed: about how many runs would decide, if the effect stays what it is; None where decided or where no
            number would.
    """

    outcome: Outcome
    claim: Claim
    effect: Interval
    ran: str
    why: str
    runs_needed: int | None = None

    @property
    def low(self) -> float:
        """Lower end of the effect's interval."""
        return self.effect.low

    @property
    def high(self) -> float:
        """Upper end of the effect's interval."""
        return self.effect.high

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.outcome}: {self.claim.text} Effect {self.effect}; {self.why}. Ran: {self.ran}"


def verdict(claim: Claim, effect: Interval, ran: str) -> Verdict:
    """Hold an effect's interval against what the claim says of it.

    With margin m, the interval [low, high] lies beyond the margin (low > m), below it (high < −m), within it, or
    across an end, which decides nothing. "more" is supported beyond it, contradicted when high ≤ m: the effect is then
    for certain too small to matter, or the other way. "same" is supported within, contradicted outside.

    Source: equivalence testing by intervals, Schuirmann 1987; region of practical equivalence, Kruschke 2018.

    >>> c = Claim("c", "A beats B.", "essay", "mean accuracy is higher by more than half a point", "more", 0.5)
    >>> [verdict(c, Interval(e, e - 0.4, e + 0.4, n=10), "10 seeds").outcome for e in (2.0, 0.6, 0.0)]
    ['supported', 'undecided', 'contradicted']
    """
    low, high, m = effect.low, effect.high, claim.margin
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        return Verdict("undecided", claim, effect, ran, "the effect has no finite interval")
    where = _where(low, high, m)
    outcome: Outcome = "undecided"
    if claim.says == "same":
        outcome = "supported" if where == "within" else "contradicted" if where in ("above", "below") else "undecided"
    elif claim.says == "different":
        outcome = "supported" if where in ("above", "below") else "contradicted" if where == "within" else "undecided"
    else:
        up = claim.says == "more"
        bound = (high <= m) if up else (low >= -m)
        outcome = "supported" if where == ("above" if up else "below") else "contradicted" if bound else "undecided"
        if m == 0 and where == "within":  # an interval that is the point 0: no effect
            outcome = "contradicted"
    needed = _needed(claim, effect) if outcome == "undecided" else None
    return Verdict(outcome, claim, effect, ran, _why(claim, effect, where, outcome, needed), needed)


def _where(low: float, high: float, m: float) -> str:
    if low > m:
        return "above"
    if high < -m:
        return "below"
    if low >= -m and high <= m:
        return "within"
    return "across"


def _why(claim: Claim, effect: Interval, where: str, outcome: Outcome, needed: int | None) -> str:
    m = claim.margin
    if where == "above":
        return f"the whole interval lies above {m:.3g}" if m else "the whole interval lies above zero"
    if where == "below":
        return f"the whole interval lies below −{m:.3g}" if m else "the whole interval lies below zero"
    if where == "within":
        return f"the whole interval lies within ±{m:.3g}: no difference that matters"
    if outcome == "contradicted":
        side = f"at most {m:.3g}" if claim.says == "more" else f"at least −{m:.3g}"
        return f"the effect is {side}, so not of the size claimed"
    sign = "" if effect.low <= 0 <= effect.high else ", though it has a sign"
    more = f"; about {needed:,} runs would decide if it stays so" if needed else ""
    return f"the interval reaches across {'the margin' if m else 'zero'}{sign}: not enough data{more}"


def _needed(claim: Claim, effect: Interval) -> int | None:
    """Runs after which the interval, narrowing as 1 / √n, would no longer reach across the nearest end that decides."""
    if effect.n < 2:
        return None
    ends = {"more": (claim.margin,), "less": (-claim.margin,)}.get(claim.says, (claim.margin, -claim.margin))
    gap = min(abs(effect.estimate - end) for end in ends)
    half = effect.width / 2
    if half == 0 or gap <= half * 1e-3:
        return None
    return math.ceil(effect.n * (half / gap) ** 2)
