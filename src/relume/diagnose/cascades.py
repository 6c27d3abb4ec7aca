"""What follows from what: cascades, networks born dead by chance, and sites that let nothing through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from relume.census import Timeline
from relume.diagnose.below import Flow
from relume.diagnose.deaths import recast
from relume.diagnose.finding import Finding
from relume.diagnose.findings import Evidence, made
from relume.diagnose.record import Record
from relume.diagnose.shift import shift_between

# So narrow, and so many sites above each other, that a network may be born dead by chance (Lu et al. 2019).
NARROW, DEEP = 8, 6
NOT_OF_DEATHS = frozenset({"sparse", "saturation", "silent-site", "vanishing-gradient", "exploding-gradient"})


def rooted(findings: Sequence[Finding], flow: Flow) -> list[Finding]:
    """Cascades, and units that were born dead or died above a site that lets nothing through, with their root."""
    deaths = [f for f in findings if f.code not in NOT_OF_DEATHS]

    def silent(site: str, by: int) -> Finding | None:
        """The gravest finding there, if all units were dead by a step."""
        here = [f for f in deaths if f.site == site and f.steps[0] <= by]
        if here and sum(len(f.units) for f in here) >= flow.sites[site].units:
            return max(here, key=lambda f: len(f.units))
        return None

    def root(finding: Finding, seen: frozenset[str]) -> tuple[str, str] | None:
        below = flow.below(finding.site)
        follows = finding.code == "upstream-cascade"
        chosen = [f for name in below if name not in seen for f in [silent(name, finding.steps[0])] if f is not None]
        if not chosen and follows:
            share = lambda f: len(f.units) / flow.sites[f.site].units  # noqa: E731
            candidates = [
                f for f in deaths if f.site in below and f.site not in seen and f.steps[0] <= finding.steps[1]
            ]
            chosen = [max(candidates, key=share)] if candidates else []
        if not chosen:
            return None
        nearest = chosen[0]
        return root(nearest, seen | {finding.site}) or (nearest.code, nearest.site)

    return [
        replace(f, root=root(f, frozenset())) if f.root is None and f.code not in NOT_OF_DEATHS else f for f in findings
    ]


def input_shifted(findings: Sequence[Finding], flow: Flow, record: Record) -> list[Finding]:
    """Cascades without a root whose network's input moved at that time, though no unit there died of it."""
    changed = []
    for finding in findings:
        if finding.code == "upstream-cascade" and finding.root is None:
            bottoms = [n for n in flow.all_below(finding.site) if not flow.below(n) and n in record.traces]
            before = finding.steps[0] - int(finding.evidence.get("steps", 0) or 0) - 1
            moved = max((shift_between(record.traces[n], before, finding.steps[1]) for n in bottoms), default=0.0)
            if moved >= 1.0:
                site = flow.sites[finding.site]
                finding = recast(finding, site, "input-shift", {"first_site_shift": moved}, None)
        changed.append(finding)
    return changed


def deep_narrow(findings: Sequence[Finding], flow: Flow) -> list[Finding]:
    """Where a site of a deep and narrow network is silent from birth, and no bias or weight stands out as buried."""
    widths = sorted(site.units for site in flow.sites.values() if site.can_die)
    silent = [f for f in findings if f.code == "born-dead" and f.evidence["share"] == 1]
    if len(widths) < DEEP or widths[len(widths) // 2] > NARROW or not silent:
        return list(findings)
    root = ("deep-narrow", silent[0].site)
    more = {"sites": len(widths), "width": widths[len(widths) // 2], "silent_sites": len(silent)}
    return [
        recast(f, flow.sites[f.site], "deep-narrow", more, None if f is silent[0] else root)  # type: ignore[arg-type]
        if f.code == "born-dead"
        else f
        for f in findings
    ]


def silent_sites(
    findings: Sequence[Finding], flow: Flow, timelines: Mapping[str, Timeline], record: Record
) -> list[Finding]:
    """A finding for each site that lets nothing through and lies above no other such site, after what caused it."""
    silent = [name for name in flow.sites if name in timelines and _all_dead(timelines[name])]
    lowest = [name for name in silent if not set(flow.all_below(name)) & set(silent)]
    found = []
    for name in lowest:
        here = [f for f in findings if f.site == name and f.code not in NOT_OF_DEATHS]
        if not here:
            continue
        cause = max(here, key=lambda f: len(f.units))
        above = [other for other in silent if name in flow.all_below(other)]
        site, last = flow.sites[name], max(f.steps[1] for f in here)
        causes = "; ".join(
            f"{len(f.units)} by {f.code}" if f.code != "unknown-cause" else f"{len(f.units)} by what can't be told"
            for f in sorted(here, key=lambda f: -len(f.units))
        )
        evidence: Evidence = {
            "causes": causes,
            "silent_above": ", ".join(above),
            "gradient_of_first_layer": _first_gradient(record),
            "certainty": 1.0,
            "certainty_basis": "counted: no unit fired on any input of the latest window",
        }
        root = cause.root if cause.root is not None else (cause.code, cause.site)
        units = range(site.units)
        found.append(made("silent-site", site, units, (last, last), evidence, severity="error", root=root))
    return [*findings, *found]


def _all_dead(timeline: Timeline) -> bool:
    return timeline.units > 0 and bool(timeline.dead.all())


def _first_gradient(record: Record) -> float:
    """Of the layer nearest to the input at the last observed step: 0 where nothing goes round what is silent."""
    for row in reversed(record.steps.rows):
        for name in row.gradient:
            return float(row.gradient[name])
    return float("nan")


def signal_lost(findings: Sequence[Finding], flow: Flow, record: Record) -> list[Finding]:
    """Deaths where hardly any signal arrives: there each step is large beside it, and no step is to blame."""
    faded = next((f for f in findings if f.code == "vanishing-gradient"), None)
    if faded is None:
        return list(findings)
    scales = {n: _scale(record, n) for n in flow.sites if n in record.traces}
    most = max(scales.values(), default=0.0)
    changed = []
    for finding in findings:
        weak = finding.site in scales and scales[finding.site] < 1e-2 * most
        if weak and finding.code not in NOT_OF_DEATHS:
            site = flow.sites[finding.site]
            if finding.code == "born-dead":
                finding = replace(finding, root=("vanishing-gradient", ""))
            else:
                why = f"the signal has faded to {scales[finding.site] / most:.2g} of its largest before it comes here"
                finding = recast(
                    finding, site, "unknown-cause", {"why": why, "certainty": 0.0}, ("vanishing-gradient", "")
                )
        changed.append(finding)
    return merged(changed, flow)


def merged(findings: Sequence[Finding], flow: Flow) -> list[Finding]:
    """Several findings of unknown cause at one site become one."""
    kept: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = (finding.code, finding.site)
        other = kept.get(key)
        if other is None:
            kept[key] = finding
            continue
        units = sorted({*other.units, *finding.units})
        steps = (min(other.steps[0], finding.steps[0]), max(other.steps[1], finding.steps[1]))
        evidence = {k: v for k, v in other.evidence.items() if k not in ("units", "of", "share")}
        kept[key] = made(other.code, flow.sites[other.site], units, steps, evidence, root=other.root)
    return list(kept.values())


def _scale(record: Record, name: str) -> float:
    """Of the pre-activation in the first row: root of the mean square over units."""
    trace = record.traces[name]
    if trace.first is None:
        return 0.0
    row = trace.first[1].double()
    return float((row[0].square() + row[1].square()).nanmean().sqrt())
