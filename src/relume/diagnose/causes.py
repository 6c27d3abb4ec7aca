"""From record, timelines and census to findings: units grouped by what killed them, cascades traced to their root.

Every rule takes numbers that are in the finding's evidence. What the numbers do not decide becomes "unknown-cause".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from relume.diagnose.below import Flow
from relume.diagnose.cascades import deep_narrow, input_shifted, rooted, signal_lost, silent_sites
from relume.diagnose.deaths import deaths, untold
from relume.diagnose.finding import SEVERITIES, Finding
from relume.diagnose.gradients import gradient_findings
from relume.diagnose.record import Record
from relume.diagnose.states import saturation, sparse

if TYPE_CHECKING:
    from relume.watch import Recording


def diagnose(watch: Recording, record: Record) -> list[Finding]:
    """What is the matter with a training, gravest and nearest to the root first.

    Args:
        watch: of the training, running or closed; or the run that was read from its file.
        record: that followed it.

    Returns:
        list[Finding]; empty where nothing is. Losses of less than a fifth of a site's units are notes.
    """
    census = watch.census()
    layers = list(dict.fromkeys(name for row in record.steps.rows for name in row.weight))
    flow = Flow(watch.sites, {name: trace.producers for name, trace in record.traces.items()}, layers)
    timelines = {site.name: watch.timeline(site.name) for site in watch.sites}
    findings: list[Finding] = []
    for site in watch.sites:
        trace = record.traces.get(site.name)
        if site.name not in census:
            continue
        findings += sparse(census[site.name])
        if trace is None:
            findings += untold(site, timelines[site.name], record.off or "the record has not seen this site")
            continue
        findings += deaths(site, trace, flow, timelines, float(census[site.name].inputs))
        findings += saturation(census[site.name], trace)
    findings = deep_narrow(findings, flow)
    findings = rooted(findings, flow)
    findings = input_shifted(findings, flow, record)
    findings += gradient_findings(record, census, flow, findings)
    findings = signal_lost(findings, flow, record)
    findings = silent_sites(findings, flow, timelines, record)
    order = {site.name: i for i, site in enumerate(watch.sites)}
    return sorted(findings, key=lambda f: (_weight(f, findings), order.get(f.site, -1)))


def _weight(finding: Finding, findings: Sequence[Finding]) -> tuple[int, int, int, float]:
    """Gravest first; roots before what follows from them, with the units of both; divergence before all else."""
    # What follows from a finding makes it as grave as itself.
    followers = [f for f in findings if f.root == (finding.code, finding.site)]
    gravest = min(SEVERITIES.index(f.severity) for f in [finding, *followers])
    units = len(finding.units) + sum(len(f.units) for f in followers if f.code != "silent-site")
    return gravest, int(finding.code != "exploding-gradient"), int(finding.root is not None), -units
