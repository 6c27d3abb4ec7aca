"""`Timeline`: for each unit of a site, whether it was born dead, when it died and when it came back.

Folded window by window in fixed memory, so that a run of any length has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relume.census.site_census import SiteCensus

NEVER = -1


@dataclass
class Timeline:
    """Deaths and revivals of one site's units. Per-unit tensors have shape [units]; steps are -1 where there is none.

    A step s is the state of the network after s optimizer steps, so `died_at` names the update that killed: the unit
    fired on a batch at step s, and never after update s. Resolution is the spacing of observed steps (`every`).

    Attributes:
        name: of the site.
        born_dead: bool, dead in the first window that could tell.
        dead: bool, dead in the last window that could tell.
        died_at: int64, the last step at which a unit now dead fired; -1 for units alive or born dead and never revived.
        revived_at: int64, first step with a firing after the latest dead window; -1 if it was never revived.
        last_fired: int64, last step at which it was seen to fire.
        deaths: int64, how often it has died, being born dead included.
    """

    name: str
    units: int
    born_dead: Tensor = field(init=False)
    dead: Tensor = field(init=False)
    died_at: Tensor = field(init=False)
    revived_at: Tensor = field(init=False)
    last_fired: Tensor = field(init=False)
    deaths: Tensor = field(init=False)

    def __post_init__(self) -> None:
        def steps() -> Tensor:
            return torch.full((self.units,), NEVER, dtype=torch.int64)

        def no() -> Tensor:
            return torch.zeros(self.units, dtype=torch.bool)

        self.born_dead, self.dead = no(), no()
        self.died_at, self.revived_at, self.last_fired = steps(), steps(), steps()
        self.deaths = torch.zeros(self.units, dtype=torch.int64)

    def fold(self, window: SiteCensus) -> None:
        """Take in the next window.

        Args:
            window: the site's census of it; units it calls unknown or non-finite keep their last standing.
        """
        dead = window.dead
        fired = window.counts.fired > 0
        newly = dead & ~self.dead
        self.born_dead |= newly & (self.last_fired < 0)
        self.died_at = torch.where(newly, self.last_fired, self.died_at)
        self.deaths += newly
        back = fired & self.dead
        self.revived_at = torch.where(back, window.counts.first_fired, self.revived_at)
        self.died_at = torch.where(back, NEVER, self.died_at)
        self.dead = (self.dead | dead) & ~fired
        self.last_fired = torch.maximum(self.last_fired, window.counts.last_fired)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        names = ("born_dead", "dead", "died_at", "revived_at", "last_fired", "deaths")
        return {"site": self.name, **{n: getattr(self, n).tolist() for n in names}}

    def describe(self, unit: int) -> str:
        """One line about one unit, such as "born dead, revived at 120".

        Args:
            unit: its index.
        """
        if bool(self.born_dead[unit]) and bool(self.dead[unit]) and int(self.died_at[unit]) < 0:
            return "born dead"
        words = ["born dead"] if bool(self.born_dead[unit]) else []
        if int(self.revived_at[unit]) >= 0:
            words.append(f"revived at {int(self.revived_at[unit])}")
        if bool(self.dead[unit]):
            words.append(f"died at {int(self.died_at[unit])}")
        return ", ".join(words) or "alive throughout"
