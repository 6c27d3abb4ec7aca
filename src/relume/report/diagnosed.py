"""The findings of a recording, or why there are none to have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relume.diagnose.finding import Finding
from relume.errors import RelumeError
from relume.report.groups import deaths, grave
from relume.watch import Recording


@dataclass(frozen=True)
class Diagnosed:
    """What is known of a recording's causes.

    Attributes:
        findings: gravest first.
        why_not: where causes could not be looked for, the reason; else "".
    """

    findings: tuple[Finding, ...]
    why_not: str = ""

    @property
    def sound(self) -> bool:
        """Causes were looked for, and nothing worth acting on was found."""
        return not self.why_not and not grave(self.findings)

    def ordinary(self) -> str:
        """Of a sound run: how many units it lost all the same; "" where none."""
        by_site: dict[str, int] = {}
        of: dict[str, int] = {}
        for finding in deaths(self.findings):
            by_site[finding.site] = by_site.get(finding.site, 0) + len(finding.units)
            of[finding.site] = int(finding.evidence.get("of", 0))
        n = sum(by_site.values())
        if not n:
            return ""
        worst = max(by_site, key=lambda s: by_site[s] / max(of[s], 1))
        where = f"at most {by_site[worst]:,} of the {of[worst]:,} of one site"
        return f"1 dead unit, {where}, is ordinary" if n == 1 else f"{n:,} dead units, {where}, are ordinary"


def diagnosed(recording: Recording, findings: Sequence[Finding] | None = None) -> Diagnosed:
    """Findings as they were given, or else as a diagnosis finds them now."""
    if findings is not None:
        return Diagnosed(tuple(findings))
    try:
        return Diagnosed(tuple(recording.diagnose()))
    except RelumeError as error:
        return Diagnosed((), str(error))
