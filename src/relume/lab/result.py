"""`Result`: what became of one training: scores, curves, and who died."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from relume.census import SiteCensus, Timeline
from relume.lab.member import Member


@dataclass(frozen=True)
class SiteSummary:
    """What became of the units of one site; indices of units.

    Attributes:
        units: how many.
        dead: that fire on none of the training inputs at the end, in evaluation mode.
        dormant: whose mean |output| on them is at most 0.025 of the site's mean (Sokar et al. 2023).
        born_dead: dead in the first window of the training.
        died_at: of units dead in the last window, the last step at which each fired; born dead ones are not among them.
    """

    units: int
    dead: tuple[int, ...]
    dormant: tuple[int, ...]
    born_dead: tuple[int, ...]
    died_at: Mapping[int, int]

    @classmethod
    def of(cls, census: SiteCensus, timeline: Timeline) -> SiteSummary:
        """From the census at the end and the timeline of the training, of one member's site."""
        died = torch.nonzero(timeline.died_at >= 0).flatten().tolist()
        return cls(
            census.units,
            _indices(census.dead),
            _indices(census.dormant()),
            _indices(timeline.born_dead),
            {unit: int(timeline.died_at[unit]) for unit in died},
        )


def _indices(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(torch.nonzero(mask).flatten().tolist())


@dataclass(frozen=True)
class Curves:
    """How a training went, window by window; equally long tuples.

    Attributes:
        step: steps done at the end of the window.
        loss: mean training loss in it.
        validation: score on the validation part at its end.
        dead: units of all sites that were dead in it.
    """

    step: tuple[int, ...]
    loss: tuple[float, ...]
    validation: tuple[float, ...]
    dead: tuple[int, ...]


@dataclass(frozen=True)
class Result:
    """What became of one training.

    Attributes:
        member: its settings.
        scores: by the task's metric, on "train", "validation" and "test" at the end; NaN once it gave no finite output.
        curves: how it went.
        sites: by name, in forward order.
        causes: by code of the finding, how many units it concerns (0 where it is about no units in particular); None
            where no diagnosis was made.
        seconds: that it took; of members trained as one, an equal share.
        diverged: was the training loss ever NaN or infinite?
    """

    member: Member
    scores: Mapping[str, float]
    curves: Curves
    sites: Mapping[str, SiteSummary]
    causes: Mapping[str, int] | None
    seconds: float
    diverged: bool

    @property
    def units(self) -> int:
        """Of all sites."""
        return sum(site.units for site in self.sites.values())

    @property
    def dead(self) -> int:
        """Dead units of all sites at the end."""
        return sum(len(site.dead) for site in self.sites.values())

    @property
    def dead_fraction(self) -> float:
        """Dead units at the end over units; 0 where there is none."""
        return self.dead / max(self.units, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON but that NaN may be among the scores."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Inverse of `to_dict`, also of what went through JSON, where keys are text and tuples are lists."""
        return cls(
            Member.from_dict(data["member"]),
            dict(data["scores"]),
            Curves(**{name: tuple(values) for name, values in data["curves"].items()}),
            {name: _site(site) for name, site in data["sites"].items()},
            None if data["causes"] is None else dict(data["causes"]),
            data["seconds"],
            data["diverged"],
        )


def _site(data: Mapping[str, Any]) -> SiteSummary:
    dead, dormant, born_dead = (tuple(data[name]) for name in ("dead", "dormant", "born_dead"))
    died_at = {int(unit): step for unit, step in data["died_at"].items()}
    return SiteSummary(data["units"], dead, dormant, born_dead, died_at)
