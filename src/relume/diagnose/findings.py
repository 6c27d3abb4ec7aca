"""`made`: a finding about units of a site, with its severity, sentence and remedies from one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from relume.diagnose.finding import Finding, Severity
from relume.diagnose.remedies import remedies
from relume.diagnose.wording import sentence
from relume.sites import Site

# Shares of a site's units from which on a loss is a warning, an error. Sound trainings lose up to an eighth: where
# inputs are never negative, torch's own initialization makes some units that never fire.
NOTABLE, GRAVE = 0.2, 0.5

Evidence = dict[str, float | str]


def made(
    code: str,
    site: Site,
    units: Sequence[int],
    steps: tuple[int, int],
    evidence: Mapping[str, float | str],
    *,
    severity: Severity | None = None,
    root: tuple[str, str] | None = None,
) -> Finding:
    """A finding; `evidence` gets the count of the units and their share of the site."""
    share = len(units) / max(site.units, 1)
    full: Evidence = {"units": len(units), "of": site.units, "share": share, **evidence}
    return Finding(
        code=code,
        severity=severity or graded(code, share),
        site=site.name,
        units=tuple(units),
        steps=steps,
        evidence=full,
        sentence=sentence(code, site, len(units), steps, full),
        remedies=remedies(code, site, full),
        root=root,
    )


def graded(code: str, share: float) -> Severity:
    """By the share of a site's units that are lost."""
    if code == "sparse":
        return "note"
    return "error" if share >= GRAVE else "warning" if share >= NOTABLE else "note"


def middle(values: Tensor) -> float:
    """The median of the numbers among them."""
    known = values[values.isfinite()]
    return float(known.median()) if len(known) else math.nan


def typical(rows: Sequence[Mapping[str, float | str]]) -> Evidence:
    """Medians over units; words as the first says them."""
    found: Evidence = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        numbers = [v for v in values if isinstance(v, float | int)]
        found[name] = middle(torch.tensor(numbers, dtype=torch.float64)) if numbers else values[0]
    return found
