"""Units of one site that are dead, grouped by what killed them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from relume.census import Timeline
from relume.diagnose.below import Flow
from relume.diagnose.death import Around, Death
from relume.diagnose.finding import Finding
from relume.diagnose.findings import Evidence, made, middle, typical
from relume.diagnose.rules import Fed, Verdict, verdict
from relume.diagnose.trace import COLUMNS, Trace
from relume.sites import Site

# Units of unknown cause share that of their neighbours where they lean to it, fell at the same time but for so many
# steps, and are no more than those.
BESIDE = 10


def deaths(site: Site, trace: Trace, flow: Flow, timelines: Mapping[str, Timeline], inputs: float) -> Iterable[Finding]:
    """One finding for each cause that dead units of a site have.

    Args:
        site: that they are of.
        trace: of the site.
        flow: of the network.
        timelines: of all sites.
        inputs: that each unit has seen in the latest window.
    """
    timeline = timelines[site.name]
    dead = timeline.dead
    if not dead.any():
        return
    born = dead & timeline.born_dead & (timeline.died_at < 0)
    if born.any() and trace.first is not None:
        yield _born_dead(site, trace, born, inputs)
    died = (dead & ~born).nonzero().flatten()
    if not len(died):
        return
    below = flow.below(site.name)
    fed: Fed = "sites" if below else "input" if flow.at_input(site.name) else "layers"
    losses = [_Losses(timelines[name]) for name in below if name in timelines]
    at = dict(zip(died.tolist(), timeline.died_at[died].tolist(), strict=True))
    verdicts: dict[int, Verdict] = {}
    for unit, died_at in at.items():
        # Of a unit that died after the last whole window, nothing has been written down yet.
        death = trace.deaths.get(unit, Death(died_at, None, Around()))
        lost = 0.0
        if death.fall is not None and losses:
            lost = max(loss.between(death.fall.from_step, death.fall.to_step) for loss in losses)
        verdicts[unit] = verdict(death, unknown=trace.unknown, fed=fed, lost_below=lost)
    groups = _joined(verdicts, at)
    for code, units in groups.items():
        when = [at[u] for u in units]
        evidence = typical([verdicts[u].evidence for u in units])
        shares = torch.tensor([verdicts[u].share for u in units])
        took = min(1.0, middle(shares)) if shares.isfinite().any() else 0.5
        known = code != "unknown-cause"
        evidence["certainty"] = took * len(units) / len(at) if known else 0.0
        evidence["certainty_basis"] = (
            "share of the fall that this took, times the share of the units that died here of it" if known else "none"
        )
        if trace.producers:
            evidence["layer"] = trace.producers[0]
        yield made(code, site, units, (min(when), max(when) + 1), evidence)


def untold(site: Site, timeline: Timeline, why: str) -> Iterable[Finding]:
    """Dead units of a site that the record tells nothing of."""
    units = timeline.dead.nonzero().flatten()
    if len(units):
        at = timeline.died_at[units].clamp(min=0)
        evidence: Evidence = {"why": why, "certainty": 0.0, "certainty_basis": "none"}
        yield made("unknown-cause", site, units.tolist(), (int(at.min()), int(at.max()) + 1), evidence)


def _joined(verdicts: Mapping[int, Verdict], at: Mapping[int, int]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for unit, found in verdicts.items():
        groups.setdefault(found.code, []).append(unit)
    unknown = groups.pop("unknown-cause", [])
    left = []
    for unit in unknown:
        others = groups.get(verdicts[unit].leaning, [])
        near = others and min(at[u] for u in others) - BESIDE <= at[unit] <= max(at[u] for u in others) + BESIDE
        if not near or 2 * len(others) < len(unknown):
            left.append(unit)
    for unit in set(unknown) - set(left):
        groups[verdicts[unit].leaning].append(unit)
    groups = {code: sorted(units) for code, units in groups.items()}
    return groups | ({"unknown-cause": left} if left else {})


class _Losses:
    """How many units of a site had died by a step."""

    def __init__(self, timeline: Timeline) -> None:
        self._at = sorted(timeline.died_at[timeline.dead].tolist())
        self._units = max(1, timeline.units)

    def between(self, start: int, end: int) -> float:
        """Share of the units that died after the one step and before the other."""
        return (bisect.bisect_right(self._at, end) - bisect.bisect_left(self._at, max(start - 1, 0))) / self._units


def _born_dead(site: Site, trace: Trace, born: Tensor, inputs: float) -> Finding:
    units = born.nonzero().flatten().tolist()
    assert trace.first is not None
    step, row = trace.first
    first = {name: row[i].cpu()[units].double() for i, name in enumerate(COLUMNS)}
    evidence: Evidence = {name: middle(first[name]) for name in ("mean", "std", "max", "min")}
    evidence |= {"bias": middle(first["bias_level"]), "weights_times_input": middle(first["response_level"])}
    evidence |= {"top": math.nan if site.zones.top is None else float(site.zones.top)}
    evidence |= {
        "certainty": 1.0,
        "certainty_basis": f"counted: no firing since the first step, on {inputs:,.0f} inputs",
    }
    if trace.producers:
        evidence["layer"] = trace.producers[0]
    return made("born-dead", site, units, (step, step), evidence)


def recast(finding: Finding, site: Site, code: str, evidence: Evidence, root: tuple[str, str] | None) -> Finding:
    """The same units under another code, with more evidence."""
    kept = {k: v for k, v in finding.evidence.items() if k not in ("units", "of", "share")}
    return replace(made(code, site, finding.units, finding.steps, {**kept, **evidence}), root=root)
