"""`Episode`: which steps are run again for a finding, and which of their passes tell who is dead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from relume.diagnose.finding import Finding
from relume.diagnose.replay.reel import Reel, Segment

if TYPE_CHECKING:
    from relume.watch import Watch

# So many steps are run again at most, as long as they lead from before the deaths to after them.
STEPS = 500
AT_BIRTH = ("born-dead", "deep-narrow")


@dataclass(frozen=True)
class Episode:
    """Steps to be run again.

    Attributes:
        segments: that hold them, without a gap.
        judge_from: step from which on a unit must fire to be alive.
        expected: units of the finding that were dead from there on, in the training.
    """

    segments: Sequence[Segment]
    judge_from: int
    expected: frozenset[int]

    @property
    def first(self) -> int:
        return self.segments[0].first

    @property
    def last(self) -> int:
        return self.segments[-1].last


def episode_of(watch: Watch, reel: Reel, finding: Finding) -> Episode | str:
    """Of a finding; or why there is none."""
    if not reel.segments:
        return "no whole step is kept yet"
    died = _died(watch, finding)
    if finding.code in AT_BIRTH or not died:
        born = finding.units and finding.code != "saturation"
        segments = _from_first(reel, 2 * watch.window if born else STEPS)
        if not segments:
            return f"the first steps are no longer kept ({reel.limit / 2**20:.0f} MiB)"
        judge_from = max(segments[0].first, segments[-1].last - max(watch.window, _enough(watch)))
        return Episode(segments, judge_from, frozenset())
    last_death = died[int(0.9 * (len(died) - 1))]
    segments = _from_first(reel, STEPS)
    if not segments or segments[-1].last < min(reel.segments[-1].last, last_death + watch.window):
        wanted = min(last_death + max(watch.window, _enough(watch)), reel.segments[-1].last)
        segments = reel.run_up(wanted, STEPS)
    if not segments or segments[0].first > died[0]:
        return (
            f"the steps in which they died, about {died[0]} to {died[-1]}, are not kept whole within "
            f"{reel.limit / 2**20:.0f} MiB: relume.watch(..., replay=BYTES) allows more"
        )
    end = segments[-1].last
    judge_from = max(end - watch.window, min(last_death + 1, end - _enough(watch)), segments[0].first)
    at = dict(zip(sorted(finding.units), _at(watch, finding), strict=True))
    return Episode(segments, judge_from, frozenset(u for u, step in at.items() if 0 <= step < judge_from))


def _from_first(reel: Reel, steps: int) -> list[Segment]:
    """From the beginning of the training on, without a gap, up to so many steps."""
    found: list[Segment] = []
    for segment in reel.segments:
        if segment.first != (found[-1].last if found else 0) or (found and segment.last > steps):
            break
        found.append(segment)
    return found


def _at(watch: Watch, finding: Finding) -> list[int]:
    died_at: torch.Tensor = watch.timeline(finding.site).died_at
    return [int(died_at[u]) for u in sorted(finding.units)]


def _died(watch: Watch, finding: Finding) -> list[int]:
    """Steps at which its units died, in order; none where it is not about deaths."""
    at = _at(watch, finding) if finding.units and finding.code != "saturation" else []
    return sorted(step for step in at if step >= 0)


def _enough(watch: Watch) -> int:
    """Steps that show as many inputs as it takes to call a unit dead."""
    for window in reversed(watch.windows):
        counts = window.counts["train"]() if "train" in window.counts and window.observed else {}
        inputs = max((c.inputs for c in counts.values()), default=0)
        if inputs:
            return math.ceil(watch.min_inputs / (inputs / window.observed))
    return 1
