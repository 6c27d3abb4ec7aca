"""From record, timelines and census to findings: units grouped by what killed them, cascades traced to their root.

Every rule takes numbers that are in the finding's evidence. What the numbers do not decide becomes "unknown-cause".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relume.census import SiteCensus
from relume.diagnose.death import Around, Death
from relume.diagnose.finding import SEVERITIES, Finding, Severity
from relume.diagnose.gradients import gradient_findings
from relume.diagnose.record import Record
from relume.diagnose.remedies import REMEDIES
from relume.diagnose.rules import Verdict, verdict
from relume.diagnose.trace import COLUMNS, Trace
from relume.diagnose.wording import sentence
from relume.sites import Site

if TYPE_CHECKING:
    from relume.watch import Watch

# Shares of a site's units from which on a loss is a warning, an error. Sound trainings lose up to an eighth: where
# inputs are never negative, torch's own initialization makes some units that never fire.
NOTABLE, GRAVE = 0.2, 0.5
# So narrow, and so many sites above each other, that a network may be born dead by chance (Lu et al. 2019).
NARROW, DEEP = 8, 6
# A unit that fires on fewer inputs than this is sparse.
SPARSE = 0.01


def diagnose(watch: Watch, record: Record) -> list[Finding]:
    """What is the matter with a training, gravest and nearest to the root first.

    Args:
        watch: of the training, running or closed.
        record: that followed it.

    Returns:
        list[Finding]; empty where nothing is. Losses of less than a fifth of a site's units are notes.
    """
    census = watch.census()
    findings: list[Finding] = []
    for site in watch.sites:
        trace = record.traces.get(site.name)
        if trace is None or site.name not in census:
            continue
        findings += _deaths(watch, site, trace)
        findings += _saturation(census[site.name], trace)
        findings += _sparse(census[site.name])
    findings = _deep_narrow(findings, watch.sites)
    findings = _rooted(findings, watch.sites)
    findings += gradient_findings(record, census, findings)
    order = {site.name: i for i, site in enumerate(watch.sites)}
    return sorted(findings, key=lambda f: (_weight(f, findings), order.get(f.site, -1)))


def _weight(finding: Finding, findings: Sequence[Finding]) -> tuple[int, int, int, float]:
    """Gravest first; roots before what follows from them, with the units of both; divergence before all else."""
    # What follows from a finding makes it as grave as itself.
    followers = [f for f in findings if f.root == (finding.code, finding.site)]
    gravest = min(SEVERITIES.index(f.severity) for f in [finding, *followers])
    units = len(finding.units) + sum(len(f.units) for f in followers)
    return gravest, int(finding.code != "exploding-gradient"), int(finding.root is not None), -units


def _deaths(watch: Watch, site: Site, trace: Trace) -> Iterable[Finding]:
    timeline = watch.timeline(site.name)
    dead = timeline.dead
    if not dead.any():
        return
    born = dead & timeline.born_dead & (timeline.died_at < 0)
    if born.any():
        yield _born_dead(site, trace, born)
    died = (dead & ~born).nonzero().flatten()
    if not len(died):
        return
    fed = bool(_below(site, watch.sites, trace))
    by_code: dict[str, dict[int, Verdict]] = {}
    for unit in died.tolist():
        # Of a unit that died after the last whole window, nothing has been written down yet.
        death = trace.deaths.get(unit, Death(int(timeline.died_at[unit]), None, Around()))
        found = verdict(death, unknown=trace.unknown, fed_by_sites=fed)
        by_code.setdefault(found.code, {})[unit] = found
    for code, verdicts in by_code.items():
        units = tuple(verdicts)
        at = timeline.died_at[list(units)]
        evidence = _typical([v.evidence for v in verdicts.values()])
        yield _finding(code, site, units, (int(at.min()), int(at.max()) + 1), evidence)


def _born_dead(site: Site, trace: Trace, born: Tensor) -> Finding:
    units = tuple(born.nonzero().flatten().tolist())
    assert trace.first is not None
    step, row = trace.first
    first = {name: row[i].cpu()[list(units)].double() for i, name in enumerate(COLUMNS)}
    evidence: dict[str, float | str] = {name: _middle(first[name]) for name in ("mean", "std", "max")}
    evidence |= {"bias": _middle(first["bias_level"]), "weights_times_input": _middle(first["response_level"])}
    return _finding("born-dead", site, units, (step, step), evidence)


def _finding(
    code: str, site: Site, units: tuple[int, ...], steps: tuple[int, int], evidence: dict[str, float | str]
) -> Finding:
    share = len(units) / max(site.units, 1)
    severity: Severity = "error" if share >= GRAVE else "warning" if share >= NOTABLE else "note"
    full = {"units": len(units), "of": site.units, "share": share, **evidence}
    return Finding(
        code, severity, site.name, units, steps, full, sentence(code, site, len(units), steps, full),
        REMEDIES.get(code, ()),
    )  # fmt: skip


def _typical(rows: Sequence[dict[str, float | str]]) -> dict[str, float | str]:
    """Medians over units; words as the first says them."""
    names = dict.fromkeys(name for row in rows for name in row)
    typical: dict[str, float | str] = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        numbers = [v for v in values if isinstance(v, float | int)]
        typical[name] = _middle(torch.tensor(numbers, dtype=torch.float64)) if numbers else values[0]
    return typical


def _middle(values: Tensor) -> float:
    known = values[values.isfinite()]
    return float(known.median()) if len(known) else math.nan


def _below(site: Site, sites: Sequence[Site], trace: Trace) -> list[Site]:
    """Sites whose output the producers of this one read."""
    producers = {*site.producers, *trace.producers}
    return [other for other in sites if other.name != site.name and producers & set(other.consumers)]


def _rooted(findings: Sequence[Finding], sites: Sequence[Site]) -> list[Finding]:
    """Cascades, and units born dead above a site that is silent, are given the finding they follow from."""
    by_name = {site.name: site for site in sites}

    def root(finding: Finding, seen: frozenset[str]) -> tuple[str, str] | None:
        site = by_name[finding.site]
        producers = set(site.producers)
        below = [f for f in findings if f.site not in seen and f.site != finding.site and f.code != "sparse"]
        below = [f for f in below if producers & set(by_name[f.site].consumers) and f.steps[0] <= finding.steps[1]]
        if not below:
            return None
        gravest = max(below, key=lambda f: len(f.units) / by_name[f.site].units)
        further = root(gravest, seen | {finding.site}) if gravest.code == "upstream-cascade" else None
        return further or (gravest.code, gravest.site)

    rooted = []
    for finding in findings:
        follows = finding.code == "upstream-cascade"
        found = root(finding, frozenset()) if follows else None
        rooted.append(replace(finding, root=found) if found else finding)
    return rooted


def _deep_narrow(findings: Sequence[Finding], sites: Sequence[Site]) -> list[Finding]:
    """Where a site of a deep and narrow network is silent from birth, and no bias or weight stands out as buried."""
    widths = sorted(site.units for site in sites if site.can_die)
    silent = [f for f in findings if f.code == "born-dead" and f.evidence["share"] == 1]
    if len(widths) < DEEP or widths[len(widths) // 2] > NARROW or not silent:
        return list(findings)
    order = {site.name: site for site in sites}
    changed = []
    for finding in findings:
        if finding.code == "born-dead":
            evidence = {**finding.evidence, "sites": len(widths), "width": widths[len(widths) // 2]}
            evidence["silent_sites"] = len(silent)
            site = order[finding.site]
            text = sentence("deep-narrow", site, len(finding.units), finding.steps, evidence)
            changed.append(
                replace(
                    finding,
                    code="deep-narrow",
                    evidence=evidence,
                    sentence=text,
                    remedies=REMEDIES["deep-narrow"],
                    root=None if finding is silent[0] else ("deep-narrow", silent[0].site),
                )
            )
        else:
            changed.append(finding)
    return changed


def _saturation(census: SiteCensus, trace: Trace) -> Iterable[Finding]:
    """Units of smooth activations that have no slope left on any input."""
    units = (census.saturated & ~census.dead).nonzero().flatten().tolist()
    if not units or census.site.can_die:
        return
    evidence: dict[str, float | str] = {
        "mean": _middle(census.mean[units]),
        "std": _middle(census.std[units]),
        "min": _middle(census.min[units]),
        "max": _middle(census.max[units]),
    }
    last = trace.series().steps[-1]
    yield _finding("saturation", census.site, tuple(units), (last, last), evidence)


def _sparse(census: SiteCensus) -> Iterable[Finding]:
    """Units that fire rarely and are alive: no illness."""
    rare = (census.firing_rate < SPARSE) & (census.fired > 0) if census.site.can_die else census.fired < 0
    units = tuple(rare.nonzero().flatten().tolist())
    if units:
        evidence: dict[str, float | str] = {
            "firing_rate": _middle(census.firing_rate[list(units)]),
            "inputs": float(census.inputs),
        }
        yield replace(_finding("sparse", census.site, units, (-1, -1), evidence), severity="note")
