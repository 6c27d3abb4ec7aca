"""`Limits`: what a census must keep to, and in words how it doesn't."""

from __future__ import annotations

import math
from dataclasses import dataclass

from relume.census import Census, SiteCensus, percent


@dataclass(frozen=True)
class Limits:
    """Limits of a check; with none set, every census passes.

    Attributes:
        over: most dead units, as a share of the model's judged ones.
        over_site: most dead units of any one site, as a share of its judged ones.
        unknown: fail when units could not be judged, or no input came to a site.
    """

    over: float | None = None
    over_site: float | None = None
    unknown: bool = False

    @property
    def set(self) -> bool:
        return self.over is not None or self.over_site is not None or self.unknown

    def failures(self, census: Census) -> list[str]:
        """What is not kept to, a line each. Once a limit is set, non-finite units and a model of which no unit could
        be judged fail too: nothing is known of them, so nothing speaks for them."""
        if not self.set:
            return []
        found = []
        nonfinite = {m.name: m.tally()["non-finite"] for m in census.sites}
        if any(nonfinite.values()):
            where = ", ".join(f"{n} in {name}" for name, n in nonfinite.items() if n)
            found.append(f"NaN or infinite pre-activations, so the model has diverged: units {where}")
        if math.isnan(census.dead_fraction):
            found.append(f"no unit could be judged: {census.inputs:,} inputs seen, {_needed(census):,} needed")
        if self.over is not None and census.dead_fraction > self.over:
            found.append(
                f"{census.dead:,} of {census.units:,} units are dead: {percent(census.dead_fraction)}, "
                f"limit {percent(self.over)}"
            )
        if self.over_site is not None:
            found += [
                f"{m.name}: {int(m.dead.sum()):,} of {m.units:,} units are dead: {percent(dead_share(m))}, "
                f"limit {percent(self.over_site)}"
                for m in census.sites
                if dead_share(m) > self.over_site
            ]
        if self.unknown:
            found += [
                f"{m.name}: {int(m.unknown.sum()):,} of {m.units:,} units could not be judged: {m.inputs:,} inputs "
                f"seen, {m.min_inputs:,} needed"
                for m in census.sites
                if bool(m.unknown.any())
            ]
        return found


def dead_share(m: SiteCensus) -> float:
    """Dead units among a site's judged ones; NaN when there are none."""
    tally = m.tally()
    judged = m.units - tally["unknown"] - tally["non-finite"]
    return int(m.dead.sum()) / judged if judged else math.nan


def _needed(census: Census) -> int:
    return max((m.min_inputs for m in census.sites), default=0)
