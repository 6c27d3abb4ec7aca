"""`Timeline`: for each unit of a site, whether it was born dead, when it died and when it came back.

Folded window by window in fixed memory, so that a run of any length has one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relume.census.counts import NEVER, Column, same_for_all
from relume.census.site_census import SiteCensus


class Timeline:
    """Deaths and revivals of one site's units. Per-unit tensors have shape [units]; steps are -1 where there is none.

    A step s is the state of the network after s optimizer steps, so `died_at` names the update that killed: the unit
    fired on a batch at step s, and never after update s. Resolution is the spacing of observed steps (`every`).

    Args:
        name: of the site.
        units: how many it has.

    Attributes:
        born_dead: bool, dead in the first window that could tell.
        dead: bool, dead in the last window that could tell.
        died_at: int64, the last step at which a unit now dead fired; -1 for units alive or born dead and never revived.
        revived_at: int64, first step with a firing after the latest dead window; -1 if it was never revived.
        last_fired: int64, last step at which it was seen to fire.
        deaths: int64, how often it has died, being born dead included.
    """

    # Kept as one number for all units until one differs, and in 32 bits while the steps fit in.
    died_at = Column(torch.int64)
    revived_at = Column(torch.int64)
    last_fired = Column(torch.int64)
    deaths = Column(torch.int64)
    born_dead: Tensor
    dead: Tensor

    def __init__(self, name: str, units: int) -> None:
        self.name = name
        self.units = units
        self.born_dead = self.dead = torch.zeros((), dtype=torch.bool).expand(units)
        self.died_at = self.revived_at = self.last_fired = same_for_all(NEVER, units)
        self.deaths = same_for_all(0, units)

    def __repr__(self) -> str:
        return f"Timeline({self.name!r}, {self.units} units, {int(self.dead.sum())} dead)"

    def fold(self, window: SiteCensus) -> None:
        """Take in the next window.

        Args:
            window: the site's census of it; units it calls unknown or non-finite keep their last standing.
        """
        kept, counts = self.__dict__, window.counts
        last, before = kept["last_fired"], self.dead
        fired = counts.kept("fired") > 0
        back = fired & before
        # Whatever fires is not dead: as a rule that is all of them, and no more need be worked out.
        newly = None if bool(fired.all()) else window.dead & ~before
        if newly is not None and newly.any():
            self.born_dead = self.born_dead | (newly & (last < 0))
            self.died_at = torch.where(newly, last, kept["died_at"])
            self.deaths = kept["deaths"] + newly
            self.dead = before | newly
        if back.any():
            self.revived_at = torch.where(back, counts.kept("first_fired"), kept["revived_at"])
            self.died_at = torch.where(back, NEVER, kept["died_at"])
            self.dead = self.dead & ~fired
        self.last_fired = torch.maximum(last, counts.kept("last_fired"))

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
