"""Units that live and yet are worth a word: saturated, or firing rarely."""

from __future__ import annotations

from collections.abc import Iterable

from relume.census import SiteCensus
from relume.diagnose.finding import Finding
from relume.diagnose.findings import Evidence, made, middle
from relume.diagnose.trace import Trace

# A unit that fires on fewer inputs than this is sparse.
SPARSE = 0.01


def saturation(census: SiteCensus, trace: Trace) -> Iterable[Finding]:
    """Units of smooth activations that have no slope left on any input."""
    units = (census.saturated & ~census.dead).nonzero().flatten().tolist()
    if not units or census.site.can_die:
        return
    evidence: Evidence = {name: middle(getattr(census, name)[units]) for name in ("mean", "std", "min", "max")}
    evidence |= {"certainty": 1.0, "certainty_basis": f"counted: no slope above 0.01 on {census.inputs:,} inputs"}
    if trace.producers:
        evidence["layer"] = trace.producers[0]
    last = trace.series().steps[-1]
    yield made("saturation", census.site, units, (last, last), evidence)


def sparse(census: SiteCensus) -> Iterable[Finding]:
    """Units that fire rarely and are alive: no illness."""
    rare = (census.firing_rate < SPARSE) & (census.fired > 0) if census.site.can_die else census.fired < 0
    units = rare.nonzero().flatten().tolist()
    if units:
        evidence: Evidence = {"firing_rate": middle(census.firing_rate[units]), "inputs": float(census.inputs)}
        evidence |= {"certainty": 1.0, "certainty_basis": f"counted on {census.inputs:,} inputs"}
        yield made("sparse", census.site, units, (-1, -1), evidence)
