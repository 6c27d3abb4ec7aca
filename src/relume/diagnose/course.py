"""`Course`: how the units of a site that died in one window went down: medians over them, each in its own time.

Kept while the rows last: a picture for readers. What is concluded comes from each unit's own `Death`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relume.diagnose.attribution import PARTS

if TYPE_CHECKING:
    from relume.diagnose.death import Death
    from relume.diagnose.trace import Series

#: Columns of a course: the pre-activation, and what moved its mean since the first row, added up.
COURSE = ("mean", "std", "max", "bias", "weights", "normalization", "upstream")
# Rows of a course before a death at most, those before the fall, those after the death; and courses of one site that
# are kept, of the most units.
ROWS, BEFORE, AFTER, KEPT = 24, 3, 1, 16


@dataclass(frozen=True)
class Course:
    """How some units went down: medians over them, each in its own time, so that all of them die at step 0.

    Attributes:
        units: those that it tells of.
        died: first and last step of their deaths.
        steps: of its rows, ascending, from the last step at which a unit fired.
        table: float32 [rows, columns], columns as in `COURSE`; parts that are not known are NaN.
    """

    units: tuple[int, ...]
    died: tuple[int, int]
    steps: tuple[int, ...]
    table: Tensor

    def column(self, name: str) -> list[float]:
        """One value per row."""
        return self.table[:, COURSE.index(name)].tolist()


def course_of(series: Series, deaths: Sequence[Death], units: Tensor) -> Course | None:
    """The course of units that died, from rows that still tell of it; None where none does.

    Args:
        series: of their site.
        deaths: of the units, in their order.
        units: int64, their indices.
    """
    known = [(int(u), d.fall) for u, d in zip(units, deaths, strict=True) if d.fall is not None]
    if not known:
        return None
    place = {step: i for i, step in enumerate(series.steps)}
    # The row in which each is dead for the first time, and how many rows before it are worth a look.
    at = torch.tensor([place[fall.to_step] for _, fall in known])
    wanted = at - torch.tensor([place[fall.from_step] for _, fall in known]) + BEFORE
    before = min(ROWS, int(wanted.median()), int(at.median()))
    far = at >= before  # at least half of them
    after = min(AFTER, len(series) - 1 - int(at[far].max()))
    own, at = torch.tensor([u for u, _ in known])[far], at[far]
    died = torch.tensor([fall.died_at for _, fall in known])[far]
    rows = at[None] + torch.arange(-before, after + 1)[:, None]  # [rows of the course, units]
    table = series.table.transpose(1, 2)[rows, own]  # [rows, units, columns]
    parts = dict(zip(PARTS, table[..., -len(PARTS) :].unbind(2), strict=True))
    normalization = parts["statistics"] + parts["gamma"] + parts["beta"]
    moved = torch.stack([parts["bias"], parts["weights"], normalization, parts["upstream"]], 2)
    moved[0] = 0  # what led to the first row is not of this course
    columns = torch.cat([table[..., :3], moved.cumsum(0)], 2)  # mean, std and max lead the columns of a row
    steps = (torch.tensor(series.steps)[rows] - died).median(1).values
    return Course(
        units=tuple(own.tolist()),
        died=(int(died.min()), int(died.max())),
        steps=tuple(steps.tolist()),
        table=columns.median(1).values.float(),
    )


def with_course(courses: Sequence[Course], new: Course | None) -> list[Course]:
    """Those of the most units, in the order of their deaths, so that what is kept stays bounded."""
    if new is None:
        return list(courses)
    most = sorted([*courses, new], key=lambda c: -len(c.units))[:KEPT]
    return sorted(most, key=lambda c: c.died)
