"""Which settings did best: members that differ by seed and split alone are one point, judged by their mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from relume.lab import tasks
from relume.lab.study.config import REPEATS, Config


@dataclass
class Place:
    """A point of a study and how its members did.

    Attributes:
        task: name.
        settings: of those that the study varies, its values.
        scores: by the objective, of each member that is done, in no order.
        dead: dead units over units, likewise.
        failed: members without a result.
    """

    task: str
    settings: dict[str, Any]
    scores: list[float] = field(default_factory=list)
    dead: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def mean(self) -> float:
        """Of the scores; NaN when one is, or there is none."""
        return sum(self.scores) / len(self.scores) if self.scores else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation of the scores; NaN with fewer than two."""
        n = len(self.scores)
        return math.sqrt(sum((s - self.mean) ** 2 for s in self.scores) / (n - 1)) if n > 1 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: None for what is no number."""
        numbers = {
            "mean": self.mean, "sd": self.spread, "dead_fraction": sum(self.dead) / max(len(self.dead), 1)
        }  # fmt: skip
        told = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {"task": self.task, "settings": self.settings, "seeds": len(self.scores), "failed": self.failed, **told}


class Ranking:
    """Places by task, added to as results land."""

    def __init__(self, config: Config) -> None:
        self._objective, self._varied = config.objective, config.varied()
        self._places: dict[tuple[Any, ...], Place] = {}

    def add(self, head: Mapping[str, Any]) -> None:
        """What the store keeps of one more member."""
        member = head["member"]
        key = tuple(value for name, value in member.items() if name not in REPEATS)
        place = self._places.get(key)
        if place is None:
            settings = {name: member[name] for name in self._varied if name != "task"}
            place = self._places[key] = Place(member["task"], settings)
        if head["status"] == "failed":
            place.failed += 1
            return
        place.scores.append(judged(head, self._objective))
        place.dead.append(head["dead"] / max(head["units"], 1))

    def best(self, n: int) -> list[Place]:
        """The n best of each task, tasks in the order in which they came. What diverged comes last."""
        by_task: dict[str, list[Place]] = {}
        for place in self._places.values():
            by_task.setdefault(place.task, []).append(place)
        return [place for task, places in by_task.items() for place in _best(task, places, n)]


def judged(head: Mapping[str, Any], objective: str) -> float:
    """The score of a member that is done, by the objective."""
    return float(head["scores"]["validation"] if objective == "validation" else head["best"])


def _best(task: str, places: Iterable[Place], n: int) -> list[Place]:
    sign = -1 if tasks.get(task).higher_is_better else 1

    def rank(place: Place) -> tuple[bool, float]:
        mean = place.mean
        return (math.isnan(mean), 0.0 if math.isnan(mean) else sign * mean)

    return sorted(places, key=rank)[:n]
