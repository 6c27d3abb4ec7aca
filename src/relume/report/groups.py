"""Findings grouped for a reader: those of one code and gravity together, notes apart, followers with their root.

Fifty sites that died of one cause are one thing to read about, not fifty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relume.diagnose.finding import Confirmation, Finding

# A share of a site from which on what followed is worth a word, beside what is grave.
FOLLOWED = 0.1
#: Codes of findings that are no loss of units, or repeat one that another finding has counted.
NOT_DEATHS = frozenset({"sparse", "saturation", "vanishing-gradient", "exploding-gradient", "silent-site"})


@dataclass(frozen=True)
class Group:
    """Findings of one code, gravest first.

    Attributes:
        findings: at least one.
        followers: findings that follow from one of them, in the order in which they died; none where all are few.
    """

    findings: tuple[Finding, ...]
    followers: tuple[Finding, ...] = ()

    @property
    def first(self) -> Finding:
        return self.findings[0]

    @property
    def code(self) -> str:
        return self.first.code

    @property
    def severity(self) -> str:
        return self.first.severity

    @property
    def units(self) -> int:
        return sum(len(f.units) for f in self.findings)

    @property
    def sites(self) -> int:
        return len({f.site for f in self.findings})

    @property
    def steps(self) -> tuple[int, int]:
        known = [f.steps for f in self.findings if f.steps[0] >= 0]
        return (min(a for a, _ in known), max(b for _, b in known)) if known else (-1, -1)

    @property
    def confirmations(self) -> tuple[tuple[Finding, Confirmation], ...]:
        """What replays said of its findings, those that could be tried first."""
        tried = [(f, f.confirmation) for f in self.findings if f.confirmation is not None]
        return tuple(sorted(tried, key=lambda pair: pair[1].confirmed is None))


def grave(findings: Sequence[Finding]) -> list[Finding]:
    """Those that are more than notes."""
    return [f for f in findings if f.severity != "note"]


def grouped(findings: Sequence[Finding]) -> list[Group]:
    """Grave findings by code, in the order in which their first was given (gravest first)."""
    by_code: dict[str, list[Finding]] = {}
    for finding in grave(findings):
        by_code.setdefault(finding.code, []).append(finding)
    return [Group(tuple(several), followers(several, findings)) for several in by_code.values()]


def followers(roots: Sequence[Finding], findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Findings that follow from some others, in the order in which they died; those of no weight only beside others."""
    by_root: dict[tuple[str, str], list[Finding]] = {(f.code, f.site): [] for f in roots}
    for finding in findings:
        # A silent site repeats what became of its units.
        if finding.root in by_root and finding not in roots and finding.code != "silent-site":
            by_root[finding.root].append(finding)
    told = [f for several in by_root.values() if any(map(_notable, several)) for f in several]
    return tuple(sorted(told, key=lambda f: f.steps))


def _notable(finding: Finding) -> bool:
    return finding.severity != "note" or finding.evidence.get("share", 0.0) >= FOLLOWED


def deaths(findings: Sequence[Finding]) -> list[Finding]:
    """Those that say what killed units."""
    return [f for f in findings if f.code not in NOT_DEATHS]
