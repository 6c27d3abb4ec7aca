"""What a run file keeps of a `Record`, as bytes, and a record made of those bytes again.

`Archivist` says after each window what is new: rows of windows, thinned as the record thins its own; deaths and their
courses; recent steps of the optimizer; findings that were confirmed. What it leaves is bounded as the record is,
however long the run. `restored` makes a record of it, by which diagnosis finds what it found by the living one after
its last window.

A row of a window takes 4 bytes per unit and column, and a column that is the same for all units 4 in all. Where the
rows of one window would take more than `ROWS_LIMIT`, only their steps are kept.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from relume.diagnose.course import Course
from relume.diagnose.death import Death
from relume.diagnose.finding import Finding
from relume.diagnose.packing import (
    made,
    pack_row,
    pack_steps,
    plain,
    squeezed,
    to_json,
    unpack_rows,
    unpack_steps,
    unsqueezed,
)
from relume.diagnose.record import Record
from relume.diagnose.trace import COLUMNS, Trace
from relume.sites import Site

VERSION = 1
#: Bytes that the rows of one window may take; beyond it their steps alone are kept.
ROWS_LIMIT = 16 * 2**20
BLOCK = 256  # units whose deaths are written together

_STEP = struct.Struct("<q")

Key = tuple[str, str, int]  # kind, site, number


@dataclass(frozen=True)
class News:
    """Entries of the archive that are new or changed, and keys of those that are gone."""

    put: Mapping[Key, bytes]
    gone: frozenset[Key] = frozenset()


@dataclass
class _Written:
    """What the file has of one site."""

    site: bytes = b""
    first: Tensor | None = None
    rows: dict[int, Tensor] = field(default_factory=dict)  # by the passes up to it, and as it was in the record
    latest: Tensor | None = None
    deaths: dict[int, Death] = field(default_factory=dict)
    courses: list[Course] = field(default_factory=list)


class Archivist:
    """Keeps account of what a file has of a record, and says what it lacks."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._written: dict[str, _Written] = {}
        self._steps: deque[tuple[int, int]] = deque()  # the first step of each entry, and its rows
        self._last_step = -1
        self._about = self._confirmed = b""

    def news(self) -> News:
        """What has come up since the last call; the caller writes it, in one transaction."""
        put: dict[Key, bytes] = {}
        gone: set[Key] = set()
        rows = self._record.steps.rows
        about = to_json({"version": VERSION, "columns": COLUMNS, "steps": rows.maxlen, "off": self._record.off})
        if about != self._about:
            put["about", "", 0] = self._about = about
        units = sum(trace.site.units for trace in self._record.traces.values())
        brief = 4 * len(COLUMNS) * units > ROWS_LIMIT
        for name, trace in self._record.traces.items():
            if trace.first is not None:
                self._site(name, trace, trace.first, brief, put, gone)
        self._recent_steps(put, gone)
        confirmed = to_json([[*key, plain(said)] for key, said in self._record.confirmed.items()])
        if confirmed != self._confirmed and (self._record.confirmed or self._confirmed):
            put["confirmed", "", 0] = self._confirmed = confirmed
        return News(put, frozenset(gone - put.keys()))

    def _site(
        self, name: str, trace: Trace, first: tuple[int, Tensor], brief: bool, put: dict[Key, bytes], gone: set[Key]
    ) -> None:
        had = self._written.setdefault(name, _Written())
        about = to_json({"producers": trace.producers, "unknown": trace.unknown, "units": trace.site.units})
        if about != had.site:
            put["site", name, 0] = had.site = about
        if first[1] is not had.first:
            step, had.first = first
            put["first", name, 0] = _row(step, had.first)
        fresh, n = trace.windows, len(had.rows)
        if n and len(fresh) >= n and fresh[n - 1][2] is had.latest:
            fresh = fresh[n:]
        else:  # thinned, or begun anew
            passes = {p for _, p, _ in fresh}
            gone |= {("row", name, p) for p in had.rows.keys() - passes}
            had.rows = {p: row for p, row in had.rows.items() if p in passes}
            fresh = [window for window in fresh if had.rows.get(window[1]) is not window[2]]
        for step, passes_so_far, row in fresh:
            kept = torch.full_like(row, math.nan) if brief else row
            put["row", name, passes_so_far] = _row(step, kept)
            had.rows[passes_so_far] = had.latest = row
        self._deaths(name, trace, had, put, gone)
        if [*map(id, trace.courses)] != [*map(id, had.courses)]:
            put["courses", name, 0] = squeezed(to_json([plain(course) for course in trace.courses]))
            had.courses = list(trace.courses)

    def _deaths(self, name: str, trace: Trace, had: _Written, put: dict[Key, bytes], gone: set[Key]) -> None:
        blocks = {unit // BLOCK for unit, death in trace.deaths.items() if had.deaths.get(unit) is not death}
        blocks |= {unit // BLOCK for unit in had.deaths.keys() - trace.deaths.keys()}
        if not blocks:
            return
        for block in blocks:
            units = [unit for unit in range(block * BLOCK, (block + 1) * BLOCK) if unit in trace.deaths]
            if units:
                put["deaths", name, block] = squeezed(to_json({u: plain(trace.deaths[u]) for u in units}))
            else:
                gone.add(("deaths", name, block))
        had.deaths = dict(trace.deaths)

    def _recent_steps(self, put: dict[Key, bytes], gone: set[Key]) -> None:
        rows = self._record.steps.rows
        fresh = list(itertools.takewhile(lambda row: row.step > self._last_step, reversed(rows)))[::-1]
        if not fresh:
            return
        put["steps", "", fresh[0].step] = pack_steps(fresh)
        self._last_step = fresh[-1].step
        self._steps.append((fresh[0].step, len(fresh)))
        # As many as the record itself holds.
        while sum(n for _, n in self._steps) - self._steps[0][1] >= len(rows):
            gone.add(("steps", "", self._steps.popleft()[0]))


def restored(entries: Mapping[Key, bytes], sites: Iterable[Site]) -> Record:
    """A record made of what an archivist has left.

    Args:
        entries: all of them, by key.
        sites: of the run.

    Returns:
        Record of no model, for reading alone.

    Raises:
        NewerError: they are of a later version of relume.
        ValueError, KeyError, TypeError, struct.error, zlib.error: they are damaged, or no archive.
    """
    about = json.loads(entries["about", "", 0])
    if about["version"] > VERSION:
        raise NewerError(
            f"it has version {about['version']}, this relume knows up to {VERSION}: upgrade relume to read it"
        )
    by_kind: dict[str, dict[str, list[tuple[int, bytes]]]] = {}
    for (kind, name, number), blob in sorted(entries.items()):
        by_kind.setdefault(kind, {}).setdefault(name, []).append((number, blob))
    record = Record(nn.Module())
    record.steps.rows = deque(maxlen=about["steps"])
    record.off = str(about["off"])
    for _, blob in by_kind.get("steps", {}).get("", ()):
        record.steps.rows.extend(unpack_steps(blob))
    for _, blob in by_kind.get("confirmed", {}).get("", ()):
        record.confirmed = {(code, site): made(Finding, said) for code, site, said in json.loads(blob)}
    sites_kept = by_kind.get("site", {})
    for site in sites:
        if site.name in sites_kept:
            own = {kind: by_site.get(site.name, []) for kind, by_site in by_kind.items()}
            record.traces[site.name] = _trace(site, own, about["columns"])
    if len(record.traces) != len(sites_kept):
        raise ValueError("it speaks of sites that the run does not have")
    return record


def _trace(site: Site, entries: Mapping[str, list[tuple[int, bytes]]], columns: Sequence[str]) -> Trace:
    about = json.loads(entries["site"][0][1])
    if about["units"] != site.units:
        raise ValueError(f"'{site.name}' has {site.units} units, {about['units']} were written")
    ((step, _, first),) = _rows(entries["first"], columns, site.units)
    trace = Trace.ended(site, (step, first), _rows(entries.get("row", []), columns, site.units))
    trace.producers, trace.unknown = tuple(about["producers"]), str(about["unknown"])
    for _, blob in entries.get("deaths", []):
        deaths = json.loads(unsqueezed(blob))
        trace.deaths |= {int(unit): made(Death, death) for unit, death in deaths.items()}
    for _, blob in entries.get("courses", []):
        trace.courses = [made(Course, course) for course in json.loads(unsqueezed(blob))]
    return trace


def _row(step: int, row: Tensor) -> bytes:
    return _STEP.pack(step) + pack_row(row)


def _rows(entries: Sequence[tuple[int, bytes]], columns: Sequence[str], units: int) -> list[tuple[int, int, Tensor]]:
    """Steps, numbers and rows of some entries; columns that this relume does not know are left out, those that were not
    written yet are NaN."""
    table = unpack_rows([blob[_STEP.size :] for _, blob in entries], len(columns), units)
    if tuple(columns) != COLUMNS:
        blank = torch.full((len(entries), 1, units), math.nan)
        at = [columns.index(name) if name in columns else -1 for name in COLUMNS]
        table = torch.cat([table, blank], 1)[:, at]
    steps = [_STEP.unpack_from(blob)[0] for _, blob in entries]
    return [(step, number, row) for step, (number, _), row in zip(steps, entries, table.unbind(0), strict=True)]


class NewerError(ValueError):
    """An archive is of a later version than this relume knows."""
