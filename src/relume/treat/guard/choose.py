"""From findings to what is to be done about them: which units to revive, which settings to lower, what to convert."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relume.diagnose.finding import Finding
from relume.treat.guard.policy import Kind, Policy

# Findings about units that are dead now, which a revival helps.
_OF_DEATH = frozenset({
    "born-dead", "killed-by-step", "bias-drift", "weight-drift", "upstream-cascade", "input-shift", "weight-decay",
    "norm-collapse", "deep-narrow", "unknown-cause",
})  # fmt: skip
# A gradient this many times the usual one is a spike.
_SPIKE = 5.0


@dataclass(frozen=True)
class Intent:
    """Something to do, and the finding that asks for it."""

    kind: Kind
    why: tuple[str, str]
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """What has been done so far, as far as it bears on what to do next.

    Attributes:
        resting: may a site ("" for the settings) be left alone for now, as it was treated a moment ago?
        revived: how often each site has been revived without lasting success.
        lowered: how often each setting has been lowered.
        since: the step at which a setting was last lowered; deaths before it ask for no more of it.
        converted: sites that have been converted, or could not be.
    """

    resting: Callable[[str], bool]
    revived: Mapping[str, int]
    lowered: Mapping[str, int]
    since: int
    converted: frozenset[str]


def intents(findings: Sequence[Finding], sizes: Mapping[str, int], policy: Policy, standing: Standing) -> list[Intent]:
    """What a policy does about findings, settings first: units revived under those that killed them die again.

    Args:
        findings: of now, gravest first.
        sizes: units of each site.
        policy: that rules.
        standing: what has been done so far.
    """
    of_death = [
        f for f in findings
        if f.code in _OF_DEATH and f.site in sizes and len(f.units) >= max(1, policy.least * sizes[f.site])
    ]  # fmt: skip
    chosen = [*_settings(findings, of_death, policy, standing)]
    given_up = [f for f in of_death if standing.revived.get(f.site, 0) >= policy.tries]
    for finding in given_up:
        fresh = finding.site not in standing.converted and not standing.resting(finding.site)
        if "convert" in policy.may and fresh and all(i.why[1] != finding.site for i in chosen if i.kind == "convert"):
            chosen.append(Intent("convert", (finding.code, finding.site), {finding.site: finding.units}))
    if "revive" not in policy.may:
        return chosen
    units: dict[str, set[int]] = {}
    first: Finding | None = None
    for finding in of_death:
        if finding in given_up or standing.resting(finding.site):
            continue
        units.setdefault(finding.site, set()).update(finding.units)
        first = first or finding
    if first is not None:
        everywhere = {site: tuple(sorted(units[site])) for site in sizes if site in units}
        chosen.append(Intent("revive", (first.code, first.site), everywhere))
    return chosen


def _settings(
    findings: Sequence[Finding], of_death: Sequence[Finding], policy: Policy, standing: Standing
) -> list[Intent]:
    if standing.resting(""):
        return []
    chosen: dict[Kind, Finding] = {}
    for finding in [*of_death, *(f for f in findings if f.code == "exploding-gradient")]:
        if finding.steps[1] <= standing.since:
            continue
        e = finding.evidence
        if finding.code == "exploding-gradient":
            chosen.setdefault("lr", finding)
            chosen.setdefault("clip", finding)
        elif finding.code == "killed-by-step":
            chosen.setdefault("lr", finding)
            if _number(e, "gradient") >= _SPIKE * _number(e, "usual_gradient"):
                chosen.setdefault("clip", finding)
        elif finding.code == "weight-decay":
            chosen.setdefault("decay", finding)
    return [
        Intent(kind, (f.code, f.site))
        for kind, f in chosen.items()
        if kind in policy.may and standing.lowered.get(kind, 0) < policy.tries
    ]


def _number(evidence: Mapping[str, Any], name: str) -> float:
    value = evidence.get(name, math.nan)
    return float(value) if isinstance(value, int | float) else math.nan
