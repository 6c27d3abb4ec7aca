"""`Trace`: the rows that are kept of one site, and `Series`, the whole run as they tell it.

A row is one observed pass: of each unit the mean, spread and extremes of its pre-activation, and the parts of the
change of the mean since the row before. Recent passes lie in a ring of fixed length; windows keep the sums of theirs.

A pass writes raw numbers alone, what was measured and what the producer gave; they become rows several at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from relume.diagnose.attribution import PARTS, Moment, Parts, split
from relume.diagnose.course import Course
from relume.diagnose.death import Death
from relume.diagnose.normalization import Norm
from relume.sites import Site
from relume.watch.meters import Moments

#: What a row holds of each unit: the pre-activation in the pass; of its mean, the producer's bias and response (before
#: normalization); and the parts of the change since the row before.
COLUMNS = ("mean", "std", "max", "min", "bias_level", "response_level", *PARTS)
PARTS_AT = len(COLUMNS) - len(PARTS)

#: What a pass writes of each unit: the first six columns, the weights as they are now times the mean input of the pass
#: before, and what a normalization did.
RAW = (*COLUMNS[:PARTS_AT], "crossed", "gamma", "beta", "inverse", "centre")
MEASURED, BIAS, RESPONSES, NORM = slice(0, 4), 4, slice(5, 7), slice(7, 11)
_CROSSED, _MEAN, _RESPONSE = 6, 0, 5
_OF_ALL = tuple(map(PARTS.index, ("bias", "weights", "upstream", "remainder")))
_NO_NORM = (1.0, 0.0, 1.0, 0.0)
#: Bytes of each unit in one row, and in one raw row.
ROW_BYTES, RAW_BYTES = 4 * len(COLUMNS), 8 * len(RAW)


class Place(NamedTuple):
    """Where one pass writes, float64 on the device of the site.

    Attributes:
        row: [raw columns, units].
        moments: its first four columns, for a meter.
        bias: [units].
        responses: [2, units].
    """

    row: Tensor
    moments: Moments
    bias: Tensor
    responses: Tensor

    @classmethod
    def of(cls, row: Tensor) -> Place:
        return cls(row, Moments(row[MEASURED]), row[BIAS], row[RESPONSES])


@dataclass
class Trace:
    """What is kept of one site.

    Attributes:
        site: as it was last seen.
        producers: dotted names of the modules whose parts are told apart; empty where they are unknown.
        unknown: why the change can't be split, or "".
        passes: how many observed passes came here.
        ring: float32 [rows, columns, units], the pass p in row p % rows; without rows, windows are all there is.
        windows: per window its last step, the number of passes up to its end, and float32 [columns, units].
    """

    site: Site
    ring: Tensor
    producers: tuple[str, ...] = ()
    unknown: str = ""
    passes: int = 0
    steps: list[int] = field(default_factory=list)  # of the rows of the ring
    first: tuple[int, Tensor] | None = None  # step and row of the first pass
    deaths: dict[int, Death] = field(default_factory=dict)  # the latest of each unit
    courses: list[Course] = field(default_factory=list)  # how those that died in a window went down, for readers
    buried: Tensor | None = None  # int64 [units], steps of the deaths that have been written down
    number: int = -1  # of the record's pass that came here last
    raw: Tensor | None = None  # float64 [1 + passes at a time, raw columns, units]; row 0 is of the pass before those
    _windows: list[tuple[int, int, Tensor]] = field(default_factory=list)
    _pending: list[tuple[int, bool]] = field(default_factory=list)  # step of each raw row; can its change be split?
    _ends: list[int] = field(default_factory=list)  # passes up to the ends of windows that are still to be made
    _places: list[Place] = field(default_factory=list)  # one for each raw row but the first
    _since: Tensor | None = None  # parts since the last window, float64 [parts, units]
    _latest: int = -1  # step of the last row
    _normed: bool = False  # has any place been written to where norms are?

    @classmethod
    def begun(cls, site: Site, device: torch.device, rows: int, at_once: int) -> Trace:
        """Of a site that is seen for the first time; `at_once`: passes that are written before they become rows."""
        ring = torch.full((rows, len(COLUMNS), site.units), math.nan, dtype=torch.float32, device=device)
        raw = torch.full((1 + at_once, len(RAW), site.units), math.nan, dtype=torch.float64, device=device)
        trace = cls(site, ring, raw=raw, steps=[-1] * rows)
        trace._write_norm(raw, None)
        return trace

    @classmethod
    def ended(cls, site: Site, first: tuple[int, Tensor], windows: list[tuple[int, int, Tensor]]) -> Trace:
        """Of a run that was read from its file: windows are all there is."""
        ring = torch.empty(0, len(COLUMNS), site.units)
        return cls(site, ring, passes=windows[-1][1] if windows else 0, first=first, _windows=windows)

    @property
    def rows(self) -> int:
        return self.ring.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept of it."""
        tensors = [self.ring, self.raw, self._since, self.buried]
        windows = self.kept_windows * ROW_BYTES * self.site.units
        return windows + sum(t.nbytes for t in tensors if t is not None)

    @property
    def place(self) -> Place:
        """Where the next pass writes."""
        places = self._places
        if not places:
            assert self.raw is not None
            places += [Place.of(row) for row in self.raw[1:]]
        return places[len(self._pending)]

    def tell(self, place: Place, bias: Tensor | None, responses: Tensor, norm: Norm | None) -> None:
        """Write what the producer gave in this pass, and what a normalization made of it.

        Args:
            place: as `place` was.
            bias: [units]; None: it has none.
            responses: [2, units], with the mean input of this pass and of the one before.
            norm: None: there is none.
        """
        place.bias.copy_(bias) if bias is not None else place.bias.zero_()
        place.responses.copy_(responses)
        if norm is not None or self._normed:
            self._write_norm(place.row, norm)

    def tell_nothing(self, place: Place) -> None:
        """The producer is unknown in this pass."""
        self._normed = True
        place.row[BIAS:].fill_(math.nan)

    def _write_norm(self, place: Tensor, norm: Norm | None) -> None:
        if norm is not None:
            self._normed = True
            for i, value in enumerate((norm.gamma, norm.beta, norm.inverse, norm.centre), NORM.start):
                place[i].copy_(value)
        else:
            for i, number in enumerate(_NO_NORM, NORM.start):
                place[..., i, :].fill_(number)

    def add(self, step: int, *, connected: bool) -> None:
        """Take in the pass that has been written to `place`.

        Args:
            step: of the pass.
            connected: are its responses with the mean input of this trace's own pass before?
        """
        assert self.raw is not None
        self._pending.append((step, connected))
        self.passes += 1
        if len(self._pending) == len(self.raw) - 1 or self.first is None:
            self.settle()

    @property
    def windows(self) -> list[tuple[int, int, Tensor]]:
        self.settle()
        return self._windows

    @windows.setter
    def windows(self, windows: list[tuple[int, int, Tensor]]) -> None:
        self._windows = windows

    @property
    def kept_windows(self) -> int:
        """How many there are."""
        return len(self._windows) + len(self._ends)

    def settle(self) -> None:
        """Turn what has been written into rows and windows."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        assert self.raw is not None
        n = len(pending)
        raw = self.raw[: n + 1]
        parts = self._parts(raw, pending)  # [parts, passes, units]
        if self.first is None:
            self.first = (pending[0][0], torch.cat([raw[1, :PARTS_AT], parts[:, 0]]).float())
            counted = parts.clone()
            counted[:, 0] = 0.0  # before the first row there was nothing to change
        else:
            counted = parts
        ends, self._ends = self._ends, []
        start = 0
        for passes in ends:
            stop = n - (self.passes - passes)
            row = torch.cat([raw[stop, :PARTS_AT], self._changed(counted[:, start:stop])]).float().cpu()
            self._windows.append((pending[stop - 1][0], passes, row))
            self._since, start = None, stop
        if start < n:
            self._since = self._changed(counted[:, start:])
        kept = min(n, self.rows)
        for i in range(n - kept, n):
            self.steps[(self.passes - n + i) % self.rows] = pending[i][0]
        for start, stop, at in self._runs(self.passes - kept, kept):
            i = n - kept + start
            self.ring[at : at + stop - start, :PARTS_AT] = raw[1 + i : 1 + i + stop - start, :PARTS_AT]
            self.ring[at : at + stop - start, PARTS_AT:] = parts[:, i : i + stop - start].transpose(0, 1)
        self.raw[0].copy_(raw[n])
        self._latest = pending[-1][0]

    def _changed(self, parts: Tensor) -> Tensor:
        """Parts since the last window, [parts, units]."""
        window = parts.sum(1)
        return window if self._since is None else self._since + window

    def _parts(self, raw: Tensor, pending: list[tuple[int, bool]]) -> Tensor:
        column = raw.unbind(1)
        old, new = [c[:-1] for c in column], [c[1:] for c in column]
        if self._normed:
            before, after = (Moment(c[BIAS], c[_RESPONSE], Norm(*c[NORM]), c[_MEAN]) for c in (old, new))
            parts = split(before, after, new[_CROSSED]).stacked()
        else:
            # What `split` comes to where there is no normalization, in a third of the time.
            parts = raw.new_zeros(len(PARTS), len(pending), self.site.units)
            by_bias, by_weights, by_upstream, rest = (parts[i] for i in _OF_ALL)
            torch.sub(new[BIAS], old[BIAS], out=by_bias)
            torch.sub(new[_CROSSED], old[_RESPONSE], out=by_weights)
            torch.sub(new[_RESPONSE], new[_CROSSED], out=by_upstream)
            torch.sub(new[_MEAN], old[_MEAN], out=rest).sub_(by_bias).sub_(by_weights).sub_(by_upstream)
        for i, (_, connected) in enumerate(pending):
            if not connected and not self.unknown and self.first is not None:
                # All that is known of this change is how large it was.
                parts[:-1, i] = 0.0
                parts[-1, i] = column[_MEAN][i + 1] - column[_MEAN][i]
        return parts

    def _runs(self, first: int, n: int) -> list[tuple[int, int, int]]:
        """Passes from `first` on as runs of rows: from and to, counted from the first, and the row it starts in."""
        runs, start = [], 0
        while start < n:
            at = (first + start) % self.rows
            stop = min(n, start + self.rows - at)
            runs.append((start, stop, at))
            start = stop
        return runs

    def shrink(self, rows: int, at_once: int) -> None:
        """From now on keep no more than so many rows in the ring, and write no more than so many passes at once."""
        self.settle()
        if rows < self.rows:
            first = max(0, self.passes - rows)
            steps = [self.steps[p % self.rows] for p in range(first, self.passes)]
            recent = self._recent(first, None).to(self.ring.device)
            self.ring = torch.full((rows, *self.ring.shape[1:]), math.nan, device=self.ring.device)
            self.steps = [-1] * rows
            for i, p in enumerate(range(first, self.passes)):
                self.ring[p % rows], self.steps[p % rows] = recent[i], steps[i]
        if self.raw is not None and at_once < len(self.raw) - 1:
            self.raw, self._places = self.raw[: 1 + at_once].clone(), []

    def end_window(self) -> None:
        """Keep the last pass's state, with the parts of all passes of the window."""
        if self._pending:
            if not self._ends or self._ends[-1] != self.passes:
                self._ends.append(self.passes)
        elif self._since is not None and self.raw is not None:
            row = torch.cat([self.raw[0, :PARTS_AT], self._since]).float().cpu()
            self._windows.append((self._latest, self.passes, row))
            self._since = None

    def thin(self) -> None:
        """Half as many windows, each with the parts of two."""
        self.settle()
        older, latest = self._windows[:-1], self._windows[-1:]
        merged = older[:1] if len(older) % 2 else []
        for (_, _, a), (step, passes, b) in zip(older[len(merged) :: 2], older[len(merged) + 1 :: 2], strict=True):
            row = b.clone()
            row[PARTS_AT:] += a[PARTS_AT:]
            merged.append((step, passes, row))
        self._windows = [*merged, *latest]

    def series(self, units: Tensor | None = None) -> Series:
        """The whole run as rows: windows as far back as the ring does not reach, then every pass that it holds.

        Args:
            units: int64, those that are asked for; None: all.
        """
        self.settle()
        oldest = max(0, self.passes - self.rows)
        steps: list[int] = []
        rows: list[Tensor] = []
        if oldest and self.first is not None:
            steps, rows = [self.first[0]], [self.first[1].cpu()]
        held = 1 if oldest else 0  # passes that the rows so far cover
        for step, passes, row in self._windows if oldest else ():
            if passes == 1 and self.first is not None:
                continue  # the very row
            steps.append(step)
            rows.append(row)
            held = passes
            if passes >= oldest:
                break
        if units is not None:
            rows = [row[:, units] for row in rows]
        ring = self._recent(max(oldest, held), units)
        steps += [self.steps[p % self.rows] for p in range(max(oldest, held), self.passes)]
        if held < oldest and len(ring) and self._since is not None:
            # Passes between the last window and the ring's oldest have left: what they changed is in the first row.
            since = self._since.cpu() if units is None else self._since.cpu()[:, units]
            ring[0, PARTS_AT:] = since - ring[1:, PARTS_AT:].double().sum(0)
        n = self.site.units if units is None else len(units)
        table = torch.stack(rows) if rows else torch.zeros(0, len(COLUMNS), n)
        return Series(tuple(steps), torch.cat([table, ring]).double())

    def _recent(self, start: int, units: Tensor | None) -> Tensor:
        """Rows of the ring from pass `start` on, in a tensor of their own."""
        if not self.rows or start >= self.passes:
            return torch.zeros(0, len(COLUMNS), self.site.units if units is None else len(units))
        rows = [self.ring[at : at + stop - first] for first, stop, at in self._runs(start, self.passes - start)]
        if units is not None:
            rows = [run[:, :, units.to(run.device)] for run in rows]
        return torch.cat(rows).cpu()


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
