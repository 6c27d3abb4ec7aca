"""`Trace`: the rows that are kept of one site, and `Series`, the whole run as they tell it.

A row is one observed pass: of each unit the mean, spread and extremes of its pre-activation, and the parts of the
change of the mean since the row before. Recent passes lie in a ring of fixed length; windows keep the sums of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from relume.diagnose.attribution import PARTS, Moment, Parts
from relume.diagnose.death import Death
from relume.sites import Site

#: What a row holds of each unit: the pre-activation in the pass; of its mean, the producer's bias and response (before
#: normalization); and the parts of the change since the row before.
COLUMNS = ("mean", "std", "max", "min", "bias_level", "response_level", *PARTS)
PARTS_AT = len(COLUMNS) - len(PARTS)


@dataclass
class Trace:
    """What is kept of one site.

    Attributes:
        site: as it was last seen.
        producers: dotted names of the modules whose parts are told apart; empty where they are unknown.
        unknown: why the change can't be split, or "".
        passes: how many observed passes came here.
        ring: float32 [rows, columns, units], the pass p in row p % rows.
        windows: per window its last step, the number of passes up to its end, and float32 [columns, units].
    """

    site: Site
    ring: Tensor
    producers: tuple[str, ...] = ()
    unknown: str = ""
    passes: int = 0
    steps: list[int] = field(default_factory=list)  # of the rows of the ring
    windows: list[tuple[int, int, Tensor]] = field(default_factory=list)
    first: tuple[int, Tensor] | None = None  # step and row of the first pass
    moment: Moment | None = None
    since: Tensor | None = None  # parts since the last window, float64 [parts, units]
    deaths: dict[int, Death] = field(default_factory=dict)  # the latest of each unit

    @property
    def rows(self) -> int:
        return self.ring.shape[0]

    def add(self, step: int, row: Tensor) -> None:
        """Take in one pass: float64 [columns, units]."""
        at = self.passes % self.rows
        self.ring[at] = row
        if self.passes < self.rows:
            self.steps.append(step)
        else:
            self.steps[at] = step
        if self.first is None:
            self.first = (step, row.float())
        parts = row[PARTS_AT:].nan_to_num()
        self.since = parts if self.since is None else self.since + parts
        self.passes += 1

    def end_window(self) -> None:
        """Keep the last pass's state, with the parts of all passes of the window."""
        if self.since is None or not self.passes or (self.windows and self.windows[-1][1] == self.passes):
            return
        at = (self.passes - 1) % self.rows
        row = self.ring[at].clone()
        row[PARTS_AT:] = self.since.float()
        self.windows.append((self.steps[at], self.passes, row.cpu()))
        self.since = None

    def thin(self) -> None:
        """Half as many windows, each with the parts of two."""
        older, latest = self.windows[:-1], self.windows[-1:]
        merged = older[:1] if len(older) % 2 else []
        for (_, _, a), (step, passes, b) in zip(older[len(merged) :: 2], older[len(merged) + 1 :: 2], strict=True):
            row = b.clone()
            row[PARTS_AT:] += a[PARTS_AT:]
            merged.append((step, passes, row))
        self.windows = [*merged, *latest]

    def series(self) -> Series:
        """The whole run as rows: windows as far back as the ring does not reach, then every pass that it holds."""
        oldest = max(0, self.passes - self.rows)
        steps: list[int] = []
        rows: list[Tensor] = []
        if oldest and self.first is not None:
            steps, rows = [self.first[0]], [self.first[1].cpu()]
        held = 0 if not oldest else None  # passes that the rows so far cover
        for step, passes, row in self.windows if held is None else ():
            steps.append(step)
            rows.append(row)
            held = passes
            if passes >= oldest:
                break
        # Passes between the last row and the ring's oldest are lost only before the first window has ended.
        start = max(oldest, held or 0)
        ring = self.ring.cpu()
        for p in range(start, self.passes):
            steps.append(self.steps[p % self.rows])
            rows.append(ring[p % self.rows])
        table = torch.stack(rows) if rows else torch.zeros(0, len(COLUMNS), self.site.units)
        return Series(tuple(steps), table.double())


@dataclass(frozen=True)
class Series:
    """Rows of one site in time.

    Attributes:
        steps: of each row.
        table: float64 [rows, columns, units], columns as in `COLUMNS`.
    """

    steps: tuple[int, ...]
    table: Tensor

    def __len__(self) -> int:
        return len(self.steps)

    def column(self, name: str) -> Tensor:
        """[rows, units]."""
        return self.table[:, COLUMNS.index(name)]

    def parts(self, after: int, last: int) -> Parts:
        """What moved the means between two rows: the sum of the parts of all rows after the one, up to the other."""
        return Parts.unstacked(self.table[after + 1 : last + 1, PARTS_AT:].sum(0))
