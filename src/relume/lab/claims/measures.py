"""What is measured of a run: dead units, scores, loss; each with its unit and the difference that does not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relume.lab.claims.runs import Run


@dataclass(frozen=True)
class Measure:
    """Attributes:
    name: of what is measured.
    unit: of differences.
    margin: the largest difference that does not matter.
    value: of a run.
    """

    name: str
    unit: str
    margin: float
    value: Callable[[Run], float]

    def __call__(self, run: Run) -> float:
        return self.value(run)

    @property
    def beyond(self) -> str:
        """What counts as a difference, in words."""
        return f"more than {self.margin:g} {self.unit if self.unit == '%' or self.margin != 1 else 'point'}"


DEAD = Measure("dead units", "points", 1.0, lambda run: run.dead_share)
BORN_DEAD = Measure("units born dead", "points", 1.0, lambda run: run.born_dead_share)
TEST = Measure("test score", "points", 0.5, lambda run: run.test)
LOSS = Measure("training loss", "%", 2.0, lambda run: run.log_loss)
LOWER_LOSS = Measure("training loss, lower", "%", 2.0, lambda run: -run.log_loss)
GAP = Measure("gap, training less test score", "points", 0.5, lambda run: run.gap)
