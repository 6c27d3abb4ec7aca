"""`Recording`: the windows of one run and everything that is read from them (census, history, timeline, report).

A live `Watch` and a `Run` loaded from disk are both recordings, so all that reads one reads the other.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from relume.census import Census, Counts, Phase, SiteCensus, Timeline
from relume.census.site_census import mean_of
from relume.errors import CensusMismatchError, EmptyCensusError, missing_extra
from relume.sites import Site

if TYPE_CHECKING:
    import pandas as pd

    from relume.diagnose import Finding
    from relume.diagnose.record import Record

PHASES: tuple[Phase, Phase] = ("train", "eval")
PhaseCounts = Mapping[str, Counts]
_SPAN = 2**20  # units, over windows and sites, that are worked on at once
# Of one site: from 32,768 numbers on torch splits its work over threads, which takes longer than the work.
_TOGETHER = 2**15 - 1


@dataclass(frozen=True)
class Window:
    """One span of steps and what was counted in it.

    Attributes:
        index: number in the run, from 0.
        first_step, last_step: steps covered, both included; a step is the number of optimizer steps made before it.
        observed: how many training steps of it were observed.
        complete: it has its full length.
        counts: per phase, a function that gives the counts by site name (read from disk on demand).
        settings: the optimizer's at its end (lr and the like).
    """

    index: int
    first_step: int
    last_step: int
    observed: int
    complete: bool
    counts: Mapping[str, Callable[[], PhaseCounts]]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """Counts in memory, as a window's `counts` hands them out."""

    counts: PhaseCounts

    def __call__(self) -> PhaseCounts:
        return self.counts

    @property
    def nbytes(self) -> int:
        return sum(counts.nbytes for counts in self.counts.values())


def held(counts: PhaseCounts) -> Held:
    return Held(counts)


def in_memory(window: Window) -> int:
    """Bytes of memory that a window's counts take; what is read from disk takes none."""
    return sum(get.nbytes for get in window.counts.values() if isinstance(get, Held))


# Some windows in a row, and for each site what was counted there: the places of windows among them, and their counts
# as `Counts.stacked` makes them.
Span = tuple[list[Window], Mapping[str, list[tuple[list[int], Counts]]]]


def coarser(windows: list[Window]) -> list[Window]:
    """Add up neighbours two by two, all but the latest window; counts stay exact, resolution halves. Windows that are
    on disk stay as they are."""

    def both(a: Window, b: Window) -> list[Window]:
        if not in_memory(a) or not in_memory(b):
            return [a, b]
        counts: dict[str, Callable[[], PhaseCounts]] = {}
        for phase in dict.fromkeys([*a.counts, *b.counts]):
            merged = dict(a.counts[phase]()) if phase in a.counts else {}
            for name, c in (b.counts[phase]() if phase in b.counts else {}).items():
                merged[name] = merged[name].merge(c) if name in merged else c
            counts[phase] = held(merged)
        complete = a.complete and b.complete
        return [Window(a.index, a.first_step, b.last_step, a.observed + b.observed, complete, counts, b.settings)]

    older, latest = windows[:-1], windows[-1:]
    paired = [w for a, b in zip(older[::2], older[1::2], strict=False) for w in both(a, b)]
    return [*paired, *(older[-1:] if len(older) % 2 else []), *latest]


def latest(windows: list[Window]) -> list[Window]:
    """For each phase the latest complete window and what came after it, and all that take no memory."""
    kept: list[Window] = []
    done: set[str] = set()
    for window in reversed(windows):
        counts = {p: get for p, get in window.counts.items() if p not in done or not isinstance(get, Held)}
        if counts:
            kept.append(replace(window, counts=counts))
        if window.complete:
            done |= set(window.counts)
    return kept[::-1]


def give_back_memory() -> None:
    """Let the system have what was freed. glibc keeps it, in gaps that none of torch's aligned arrays fit into."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def some_at_a_time(windows: int, units: int) -> list[slice]:
    """So many windows of a site, in parts that are worked on quickest."""
    size = max(1, _TOGETHER // max(units, 1))
    return [slice(i, i + size) for i in range(0, windows, size)]


class History(list[dict[str, Any]]):
    """One row per window, phase and site, oldest first; a list of dicts that can become a data frame."""

    def to_dict(self) -> list[dict[str, Any]]:
        """The rows as plain data."""
        return [dict(row) for row in self]

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a data frame.

        Raises:
            MissingExtraError: pandas is not installed (extra "pandas").
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_extra("pandas", "pandas", "to_pandas()") from error
        return pd.DataFrame(list(self))


class Recording:
    """Windows in order, the sites they speak of, and the run's settings.

    Attributes:
        about: what was run: model class, number of parameters, `every`, `window`, versions.
        notes: what could not be counted, and why.
        scalars: (step, name, value) logged by the user with `Watch.log`.
        record: what a watch keeps for diagnosis; None where it keeps nothing, and where it is in the run file.
    """

    record: Record | None = None

    def __init__(self, min_inputs: int) -> None:
        self.min_inputs = min_inputs
        self.about: dict[str, Any] = {}
        self.notes: list[str] = []
        self.scalars: list[tuple[int, str, float]] = []
        self._sites: dict[str, Site] = {}
        self._windows: list[Window] = []

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site seen so far, in the order of first sight."""
        return tuple(self._sites.values())

    @property
    def main_phase(self) -> Phase:
        """Training where there was any, else evaluation: what timeline, verdict and report speak of."""
        return "train" if any("train" in w.counts for w in self._windows) else "eval"

    @property
    def windows(self) -> tuple[Window, ...]:
        """All windows kept, oldest first."""
        return tuple(self._windows)

    def census(self, window: int | Literal["all"] = -1, *, phase: Phase = "train") -> Census:
        """The census of one window, or of all together.

        Args:
            window: -1 is the latest complete window, -2 the one before; 0, 1, … count from the first, a cut-short
                last one included; "all" adds up the whole run. When no window is complete, -1 is the one there is.
            phase: training or evaluation passes.

        Raises:
            EmptyCensusError: no window holds a pass of that phase.
            IndexError: there is no such window.
        """
        if phase not in PHASES:
            raise ValueError(f"phase is 'train' or 'eval', not {phase!r}")
        usable = [w for w in self._windows if phase in w.counts]
        if not usable:
            other = next((p for p in PHASES if p != phase and any(p in w.counts for w in self._windows)), None)
            hint = f"; there are {other} passes: phase='{other}'" if other else ": the model was not called yet"
            raise EmptyCensusError(f"no {phase} pass has been recorded{hint}")
        if window == "all":
            merged: dict[str, Counts] = {}
            for w in usable:
                for name, counts in w.counts[phase]().items():
                    merged[name] = merged[name].merge(counts) if name in merged else counts
            return self._census(merged, phase, usable[0].first_step, usable[-1].last_step, complete=True)
        if window < 0:
            full = [w for w in usable if w.complete] or usable
            if -window > len(full):
                raise IndexError(f"window {window} of {len(full)} complete windows with {phase} passes")
            chosen = full[window]
        else:
            found = [w for w in usable if w.index == window]
            if not found:
                raise IndexError(f"window {window} is not among the {len(usable)} windows with {phase} passes")
            chosen = found[0]
        return self.census_of(chosen, phase)

    def census_of(self, window: Window, phase: Phase = "train") -> Census:
        """The census of a window of this recording."""
        counts = window.counts[phase]() if phase in window.counts else {}
        return self._census(counts, phase, window.first_step, window.last_step, window.complete)

    def _census(self, counts: PhaseCounts, phase: Phase, first: int | None, last: int | None, complete: bool) -> Census:
        return Census(
            sites=tuple(
                SiteCensus(site, counts.get(site.name) or Counts.empty(site.units), self.min_inputs)
                for site in self.sites
            ),
            phase=phase,
            first_step=first,
            last_step=last,
            complete=complete,
            notes=tuple(self.notes),
            model=str(self.about.get("model", "")),
        )

    def spans(self, windows: Sequence[Window], phase: Phase) -> Iterator[Span]:
        """What was counted in some windows of this recording, many at a time: to work on all of them together."""
        batch: list[Window] = []
        found: dict[str, tuple[list[int], list[Counts]]] = {}
        units = 0

        def span() -> Span:
            several: dict[str, list[tuple[list[int], Counts]]] = {}
            for name, (places, counts) in found.items():
                parts = some_at_a_time(len(places), counts[0].units)
                several[name] = [(places[p], Counts.stacked(counts[p])) for p in parts]
            return batch, several

        for window in windows:
            if units > _SPAN:
                yield span()
                batch, found, units = [], {}, 0
            place = len(batch)
            batch.append(window)
            for name, counts in (window.counts[phase]() if phase in window.counts else {}).items():
                places, several = found.setdefault(name, ([], []))
                places.append(place)
                several.append(counts)
                units += counts.units
        if batch:
            yield span()

    def history(self) -> History:
        """One row per window, phase and reached site: how many units are dead, saturated, linear, dormant, unknown,
        with the inputs seen and the site's mean firing rate, pre-activation mean and deviation."""
        by_phase = [list(self._rows_of(phase)) for phase in PHASES]
        return History(row for of_window in zip(*by_phase, strict=True) for rows in of_window for row in rows)

    def _rows_of(self, phase: Phase) -> Iterator[list[dict[str, Any]]]:
        """Rows of each window in turn."""
        for windows, several in self.spans(self._windows, phase):
            rows: list[list[dict[str, Any]]] = [[] for _ in windows]
            for site in self.sites:
                for places, counts in several.get(site.name, ()):
                    members = SiteCensus(site, counts, self.min_inputs)
                    for place, row in zip(places, _rows([windows[i] for i in places], phase, members), strict=True):
                        if row["samples"] > 0:
                            rows[place].append(row)
            yield from rows

    def timeline(self, site: str) -> Timeline:
        """Births, deaths and revivals of a site's units in training (or evaluation, if the run never trained).

        Raises:
            CensusMismatchError: there is no such site.
        """
        name = self._name(site)
        phase = self.main_phase
        timeline = Timeline(name, self._sites[name].units)
        for window in self._windows:
            if phase in window.counts:
                counts = window.counts[phase]().get(name)
                if counts is not None:
                    timeline.fold(SiteCensus(self._sites[name], counts, self.min_inputs))
        return timeline

    def _name(self, site: str) -> str:
        if site in self._sites:
            return site
        by_alias = [s.name for s in self.sites if s.alias == site]
        if len(by_alias) == 1:
            return by_alias[0]
        raise CensusMismatchError(f"there is no site {site!r}; sites: {', '.join(self._sites) or 'none yet'}")

    def diagnose(self, confirm: bool = False) -> list[Finding]:
        """What is the matter, and what killed the units that died; as `relume.diagnose(run, confirm)`.

        Args:
            confirm: run recent training again with one thing changed; takes a watch with `replay=True`.

        Raises:
            RelumeError: the run kept nothing to diagnose by, or nothing that a replay could run again.
            EmptyCensusError: no training pass has been observed yet.
        """
        from relume.diagnose import diagnose  # a recording is below diagnosis; only this call looks up

        return diagnose(self, confirm)

    def kept_record(self) -> Record | None:
        """What was kept of the run for diagnosis, or None."""
        return self.record

    def report(self, path: str | Path, *, title: str | None = None) -> Path:
        """Write the HTML report; returns its path.

        Raises:
            EmptyCensusError: nothing has been recorded.
            OSError: the file can't be written.
        """
        from relume.report import write_html  # a recording is below the report; only this call looks up

        return write_html(self, path, title=title)


def _rows(windows: Sequence[Window], phase: Phase, m: SiteCensus) -> list[dict[str, Any]]:
    """History's rows of one site.

    Args:
        windows: at least one.
        m: the site's census of all of them: its results have shape [windows, units].
    """
    figures: dict[str, Tensor] = {
        "inputs": torch.as_tensor(m.inputs),
        "samples": torch.as_tensor(m.samples),
        "dead": m.dead.sum(-1),
        "unknown": m.unknown.sum(-1),
        "saturated": m.saturated.sum(-1),
        "linear": m.linear.sum(-1),
        "nonfinite": m.diverged.sum(-1),
        "dormant": m.dormant().sum(-1),
        "firing_rate": mean_of(m.firing_rate),
        "mean": mean_of(m.mean),
        "std": mean_of(m.std),
    }
    keys = ("window", "first_step", "last_step", "complete", "phase", "site", "activation", "units", *figures)
    values = zip(
        [w.index for w in windows],
        [w.first_step for w in windows],
        [w.last_step for w in windows],
        [w.complete for w in windows],
        *map(repeat, (phase, m.name, m.site.activation, m.units)),
        *(column.flatten().tolist() for column in figures.values()),
        strict=False,  # some repeat for ever
    )
    return [dict(zip(keys, row, strict=True)) for row in values]
