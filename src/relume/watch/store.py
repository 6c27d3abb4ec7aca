"""The run file: a SQLite database that holds one run, readable while it is written and after a crash.

WAL mode, one commit per window: kill -9 loses at most the window in progress. Only numbers, JSON and raw
little-endian arrays are stored, never code, so opening a foreign file can fail but not harm. Every row carries a
checksum of itself, and every window says how many rows of counts it has: a damaged file is refused, never misread.
Counts are written and read site by site. What grows with the run (counts) is read when it is asked for; the timelines
are kept as folded so far, a row per site. What diagnosis keeps are entries that only it understands, and bounded; where
they are damaged, all else can still be read. Format 3 adds those to format 2, which packs arrays otherwise than format
1; both are still read.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from relume.census import Counts, Phase, Timeline
from relume.census.counts import ARRAYS
from relume.errors import RunFileError
from relume.sites import Site
from relume.watch.packing import head, pack, pack_timeline, unpack, unpack_several, unpack_timeline, whole_number
from relume.watch.recording import PHASES, PhaseCounts, Recording, Span, Window, some_at_a_time

if TYPE_CHECKING:
    from relume.diagnose.record import Record

FORMAT = 3
APPLICATION_ID = 0x72656C75  # "relu", in the SQLite header
FILE_NAME = "run.sqlite"
_BATCH = 96 * 2**20  # bytes of arrays that are read at once, where many windows are
_PAGE = 16384  # bytes; several sites of a hundred units fit into one

_ROWS = "rows"  # the entry of `about` that says how many rows each table has

# Zlib can't make data smaller than this, so a file has no room for more units than follow from it; and so many units
# are believed of any file.
_MOST_SQUEEZED = 1100
_UNITS_BELIEVED = 10_000_000

# What reading a row that is not as it was written may raise.
_DAMAGE = (
    sqlite3.Error, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError,
    struct.error, zlib.error,
)  # fmt: skip

# Each table: its columns, ahead of the checksum, and what makes a row unique.
_TABLES = {
    "about": (("key TEXT", "value TEXT"), "key"),
    "sites": (("place INTEGER", "name TEXT", "description TEXT"), "name"),
    "windows": (
        (
            "number INTEGER", "first_step INTEGER", "last_step INTEGER", "observed INTEGER", "complete INTEGER",
            "settings TEXT", "rows TEXT", "written REAL",
        ),
        "number",
    ),
    "counts": (
        (
            "number INTEGER", "phase TEXT", "site TEXT", "inputs INTEGER", "samples INTEGER", "units INTEGER",
            "arrays BLOB",
        ),
        "number, phase, site",
    ),
    "scalars": (("place INTEGER", "step INTEGER", "name TEXT", "value BLOB"), "place"),
    "notes": (("place INTEGER", "text TEXT"), "place"),
    "timelines": (("site TEXT", "number INTEGER", "arrays BLOB"), "site"),
    "diagnosis": (("kind TEXT", "site TEXT", "number INTEGER", "content BLOB"), "kind, site, number"),
}  # fmt: skip


_ONE_WINDOW = "SELECT site, inputs, samples, units, arrays, checksum FROM counts WHERE number = ? AND phase = ?"

# All but most of the file, which is held against the windows' own tallies when it is read, and what is for diagnosis.
_SMALL = [table for table in _TABLES if table not in ("counts", "diagnosis")]


Key = tuple[str, str, int]  # kind, site, number


class Entries(Protocol):
    """News of what is kept for diagnosis; see `relume.diagnose.archive`."""

    @property
    def put(self) -> Mapping[Key, bytes]:
        """New, or in place of those that are there."""

    @property
    def gone(self) -> Collection[Key]:
        """No longer needed."""


def run_file(path: str | Path) -> Path:
    """The database of a run that is named by its folder or by the file itself."""
    path = Path(path)
    return path if path.suffix in (".sqlite", ".db") else path / FILE_NAME


def _log(path: Path) -> Path:
    """SQLite's log, which holds the latest commits."""
    return path.with_name(path.name + "-wal")


def checksum(row: Sequence[Any]) -> int:
    """Of a row's values, in order: whole numbers, floats, strings, bytes."""
    total, pending = 0, ""
    for value in row:
        pending += ","
        if isinstance(value, bytes):
            total, pending = zlib.crc32(value, zlib.crc32(pending.encode(), total)), ""
        else:
            pending += repr(value)
    return zlib.crc32(pending.encode(), total)


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """What is written in it is committed as a whole at its end, or not at all."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


class Writer:
    """Writes one run, to a file that must not exist yet.

    Raises:
        RunFileError: the folder can't be made or written, or it already holds a run.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = run_file(path)
        self._process = os.getpid()
        self._sites: dict[str, Site] = {}
        self._rows = dict.fromkeys([*_SMALL, "diagnosis"], 0)  # committed
        self._about: set[str] = set()
        self._timelines: set[str] = set()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFileError(f"can't make the run folder {self.path.parent}: {error}") from error
        try:
            # Of two writers only one makes the file.
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
            self._file = self.path.stat()
        except FileExistsError:
            raise RunFileError(f"{self.path} already holds a run; choose another folder or remove it") from None
        except OSError as error:
            raise RunFileError(f"can't write a run file at {self.path}: {error}") from error
        try:
            self._begin(about)
        except (sqlite3.Error, OSError) as error:
            with contextlib.suppress(OSError):
                self.path.unlink()  # else it would stand in the way of the next try
            raise RunFileError(f"can't write a run file at {self.path}: {error}") from error

    def _begin(self, about: Mapping[str, Any]) -> None:
        self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        try:
            self._db.execute(f"PRAGMA page_size={_PAGE}")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA wal_autocheckpoint=256")  # pages: 4 MiB of log
            self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={FORMAT}")
            with transaction(self._db):
                for name, (columns, key) in _TABLES.items():
                    body = ", ".join(f"{column} NOT NULL" for column in (*columns, "checksum INTEGER"))
                    # Rows with arrays are long, which SQLite keeps well only in a table with row ids.
                    ids = "" if any("BLOB" in column for column in columns) else "WITHOUT ROWID"
                    self._db.execute(f"CREATE TABLE {name} ({body}, PRIMARY KEY ({key})) {ids}")
                self._put_about({**about, "status": "running", "started": time.time()}, self._rows)
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def again(cls, path: Path) -> Writer:
        """For a run that has ended, to `amend` it.

        Raises:
            sqlite3.Error, OSError, ValueError: it can't be written, or is damaged.
        """
        writer = cls.__new__(cls)
        writer.path, writer._process, writer._file = path, os.getpid(), path.stat()
        writer._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)
        about = dict(_checked_rows(writer._db, "about", ""))
        writer._about, writer._rows = set(about) - {_ROWS}, json.loads(about[_ROWS])
        return writer

    def amend(self, diagnosis: Entries) -> None:
        """Commit what is new of what diagnosis keeps, and nothing else."""
        rows = dict(self._rows)
        with transaction(self._db):
            rows["diagnosis"] += self._put_entries(diagnosis)
            self._put_about({}, rows)
        self._rows = rows

    def _put(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        places = ", ".join("?" * (len(_TABLES[table][0]) + 1))
        self._db.executemany(
            f"INSERT OR REPLACE INTO {table} VALUES ({places})", ((*row, checksum(row)) for row in rows)
        )

    def _put_about(self, about: Mapping[str, Any], rows: dict[str, int]) -> None:
        """With how many rows each table has, so that none can be lost unnoticed."""
        self._about.update(about, [_ROWS])
        rows["about"] = len(self._about)
        self._put("about", [(k, json.dumps(v)) for k, v in {**about, _ROWS: rows}.items()])

    def write(
        self,
        window: Window | None,
        sites: tuple[Site, ...],
        scalars: list[tuple[int, str, float]],
        notes: list[str],
        about: Mapping[str, Any] | None = None,
        timelines: Mapping[str, Timeline] | None = None,
        diagnosis: Entries | None = None,
    ) -> None:
        """Commit one window with the sites, scalars and notes that are new since the last.

        Args:
            window: None when there is only news of the rest.
            sites, notes: all so far.
            scalars: those not yet written.
            about: what has changed of it.
            timelines: by site, this window folded in. Without them a reader folds all windows, which takes longer.
            diagnosis: what is new of it.

        Raises:
            sqlite3.Error, OSError: the disk is full, the file was removed, or another process holds it.
        """
        if os.getpid() != self._process:
            return  # a forked copy, such as a loader's worker: the run is its parent's
        self._check_still_there()
        rows = dict(self._rows)
        new_notes = notes[rows["notes"] :]
        with transaction(self._db):
            self._put(
                "sites",
                [
                    (place, site.name, json.dumps(site.to_dict()))
                    for place, site in enumerate(sites)
                    if self._sites.get(site.name) != site
                ],
            )
            rows["sites"] = len(sites)
            if window is not None:
                self._put_window(window)
                self._put_timelines(window, timelines or {})
                rows["windows"] += 1
                rows["timelines"] = len(self._timelines)
            at = rows["scalars"]
            self._put("scalars", [(at + i, s, n, struct.pack("<d", v)) for i, (s, n, v) in enumerate(scalars)])
            self._put("notes", list(enumerate(new_notes, rows["notes"])))
            rows["scalars"] += len(scalars)
            rows["notes"] += len(new_notes)
            if diagnosis is not None:
                rows["diagnosis"] += self._put_entries(diagnosis)
            self._put_about(about or {}, rows)
        self._sites.update((s.name, s) for s in sites)
        self._rows = rows

    def _put_window(self, window: Window) -> None:
        by_phase = {phase: window.counts[phase]() for phase in PHASES if phase in window.counts}
        rows = {phase: len(counts) for phase, counts in by_phase.items()}
        row = (
            window.index, window.first_step, window.last_step, window.observed, int(window.complete),
            json.dumps(dict(window.settings)), json.dumps(rows), time.time(),
        )  # fmt: skip
        self._put("windows", [row])
        for phase, counts in by_phase.items():
            self._put(
                "counts",
                # In the order of the table, so that its pages are filled one after the other; one at a time in memory.
                ((window.index, phase, n, c.inputs, c.samples, c.units, pack(c)) for n, c in sorted(counts.items())),
            )

    def stored(self, window: Window) -> Window:
        """A window that was written, its counts read from the file each time they are asked for."""
        counts: dict[str, Any] = {}
        for phase, get in window.counts.items():
            units = {name: c.units for name, c in get().items()}
            counts[phase] = partial(_read_again, self.path, units, window.index, phase)
        return replace(window, counts=counts)

    def _put_timelines(self, window: Window, timelines: Mapping[str, Timeline]) -> None:
        counted = window.counts["train"]() if "train" in window.counts else {}
        folded = sorted(timelines.keys() & counted.keys())
        self._put("timelines", ((name, window.index, pack_timeline(timelines[name])) for name in folded))
        self._timelines.update(folded)

    def _put_entries(self, entries: Entries) -> int:
        """Returns how many more there are than before."""
        stale = [*entries.gone, *entries.put]
        before = self._db.executemany("DELETE FROM diagnosis WHERE kind = ? AND site = ? AND number = ?", stale)
        self._put("diagnosis", ((*key, content) for key, content in entries.put.items()))
        return len(entries.put) - before.rowcount

    def _check_still_there(self) -> None:
        """SQLite would go on writing to a file that was removed, and all would be lost at the end."""
        now = self.path.stat()
        if (now.st_ino, now.st_dev) != (self._file.st_ino, self._file.st_dev):
            raise FileNotFoundError("another file is in its place")

    def close(self) -> None:
        if os.getpid() == self._process:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()


_Found = tuple[int, int, int, bytes]  # place of the window, inputs, samples, arrays


@dataclass(frozen=True)
class _OnDisk:
    """Counts of a window that are read when they are asked for."""

    read: Callable[[int, str, int], PhaseCounts]
    number: int
    phase: str
    expected: int  # sites

    def __call__(self) -> PhaseCounts:
        return self.read(self.number, self.phase, self.expected)


class Run(Recording):
    """A run read from disk: finished, still running, or killed. Read-only; sees what was committed when it was opened.

    Attributes:
        path: of the run file.
        status: "finished", "failed: …" with the exception's name, or "running" (which a killed run stays).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = run_file(path)
        if not self.path.exists():
            raise RunFileError(f"there is no run at {path}: {self.path} does not exist")
        try:
            self._db = _open(self.path)
        except (sqlite3.Error, OSError) as error:
            raise RunFileError(f"{self.path} can't be opened as a run file: {error}") from error
        try:
            self._check_format()
            with self._one_moment():
                self._read()
        except RunFileError:
            self._db.close()
            raise
        except _DAMAGE as error:
            self._db.close()
            raise RunFileError(f"{self.path} is damaged: {error}") from error

    @property
    def status(self) -> str:
        return str(self.about.get("status", "running"))

    def close(self) -> None:
        """Let go of the file; what is not yet read can't be read any more."""
        self._db.close()

    def _check_format(self) -> None:
        try:
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            raise RunFileError(f"{self.path} is damaged, or no run file of relume: {error}") from error
        if application != APPLICATION_ID:
            raise RunFileError(f"{self.path} is a SQLite database, but no run file of relume")
        if version > FORMAT:
            raise RunFileError(
                f"{self.path} has format {version}; this relume reads up to {FORMAT}: upgrade relume to read it"
            )
        if version < 1:
            raise RunFileError(f"{self.path} is damaged: format {version} never was")

    def _read(self) -> None:
        log = _log(self.path)
        (page,) = self._db.execute("PRAGMA page_size").fetchone()
        if not (log.exists() and log.stat().st_size) and self.path.stat().st_size % page:
            raise ValueError("its last page is cut short")  # SQLite would fill it up with zeros
        for table in _SMALL:
            (fault,) = self._db.execute(f"PRAGMA quick_check({table})").fetchone()
            if fault != "ok":
                raise ValueError(fault)
        about = {key: json.loads(value) for key, value in self._rows("about")}
        told = about.pop(_ROWS)
        for table in _SMALL:
            (found,) = self._db.execute(f"SELECT count(*) FROM {table}").fetchone()
            if found != told[table]:
                raise ValueError(f"{table} has {found} rows of {told[table]}")
        super().__init__(whole_number(about["min_inputs"], 1))
        self.about = about
        for place, name, description in self._rows("sites"):
            site = Site.from_dict(json.loads(description))
            if site.name != name or place != len(self._sites):
                raise ValueError(f"site {place} is not what was written")
            self._sites[name] = site
        self._check_room()
        for number, first, last, observed, complete, settings, rows, _ in self._rows("windows"):
            if number != len(self._windows):
                raise ValueError(f"window {len(self._windows)} is missing")
            counts = {
                phase: _OnDisk(self._counts, number, phase, whole_number(n))
                for phase, n in json.loads(rows).items()
                if phase in PHASES
            }
            for value in (first, last, observed, complete):
                whole_number(value)
            self._windows.append(Window(number, first, last, observed, bool(complete), counts, _settings(settings)))
        self.scalars = [
            (whole_number(step), _text(name), struct.unpack("<d", v)[0]) for _, step, name, v in self._rows("scalars")
        ]
        self.notes = [_text(text) for _, text in self._rows("notes")]
        self._timelines = {site: (number, arrays) for site, number, arrays in self._rows("timelines")}
        # A running run rewrites them: they are read with the rest or they would be of another moment.
        self._entries = self._read_entries() if self.status == "running" else None

    def _read_entries(self) -> dict[Key, bytes] | RunFileError:
        """What is kept for diagnosis, or why it can't be read: that is raised when it is asked for."""
        try:
            with self._one_moment():
                rows = dict(self._rows("about", "WHERE key = ?", _ROWS))
                told = whole_number(json.loads(rows[_ROWS]).get("diagnosis", 0))
                found = self._rows("diagnosis") if told else iter(())
                entries = {(kind, site, number): content for kind, site, number, content in found}
            if len(entries) != told:
                raise ValueError(f"it has {len(entries)} rows of {told}")
        except _DAMAGE as error:
            return self._undiagnosed(error)
        return entries

    @contextlib.contextmanager
    def _one_moment(self) -> Iterator[None]:
        """What is read in it is as of one moment, though the run goes on."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def _undiagnosed(self, error: BaseException) -> RunFileError:
        but = "" if isinstance(error, sqlite3.ProgrammingError) else ", but all else can"  # else it was closed
        return RunFileError(f"{self.path}: what it keeps for diagnosis can't be read{but}: {error}")

    def kept_record(self) -> Record | None:
        if self.record is None:
            entries = self._entries if self._entries is not None else self._read_entries()
            if isinstance(entries, RunFileError):
                raise entries
            if entries:
                from relume.diagnose.archive import restored  # diagnosis is above the run file

                try:
                    self.record = restored(entries, self.sites)
                except _DAMAGE as error:
                    raise self._undiagnosed(error) from error
            self._entries = {}
        return self.record

    kept_record.__doc__ = Recording.kept_record.__doc__

    def _check_room(self) -> None:
        """A site's arrays are made as long as it says; a foreign file may not have them made of any length."""
        files = (self.path, _log(self.path))
        room = sum(f.stat().st_size for f in files if f.exists()) * _MOST_SQUEEZED // (8 * len(ARRAYS))
        units = sum(whole_number(site.units) for site in self.sites)
        if units > max(room, _UNITS_BELIEVED):
            raise ValueError(f"its sites have {units} units, for which it has no room")

    def timeline(self, site: str) -> Timeline:
        name = self._name(site)
        if name not in self._timelines:
            return super().timeline(name)
        number, arrays = self._timelines[name]
        try:
            if whole_number(number) >= len(self._windows):
                raise ValueError(f"it speaks of window {number}")
            return unpack_timeline(name, self._sites[name].units, arrays)
        except _DAMAGE as error:
            raise RunFileError(f"{self.path}: the timeline of {name} can't be read: {error}") from error

    timeline.__doc__ = Recording.timeline.__doc__

    def _rows(self, table: str, where: str = "", *values: Any) -> Iterator[tuple[Any, ...]]:
        return _checked_rows(self._db, table, where, *values)

    def _counts(self, number: int, phase: str, expected: int) -> PhaseCounts:
        units = {name: site.units for name, site in self._sites.items()}
        return _read_counts(self._db, self.path, units, number, phase, expected)

    def spans(self, windows: Sequence[Window], phase: Phase) -> Iterator[Span]:
        """As of any recording, but read so that a row takes a few microseconds."""
        batch: list[Window] = []
        size = 0
        found: dict[tuple[str, bytes], list[_Found]] = {}
        for window in windows:
            if size > _BATCH:
                yield batch, self._several(batch, found)
                batch, size, found = [], 0, {}
            place = len(batch)
            batch.append(window)
            get = window.counts.get(phase)
            if isinstance(get, _OnDisk):
                try:
                    size += self._gather(get, place, found)
                except _DAMAGE as error:
                    raise self._unreadable(get.number, get.number, error) from error
        if batch:
            yield batch, self._several(batch, found)

    def _gather(
        self, get: _OnDisk, place: int, found: dict[tuple[str, bytes], list[tuple[int, int, int, bytes]]]
    ) -> int:
        """Read a window's rows, each held against its checksum as `_checked_rows` does; returns their bytes."""
        rows = self._db.execute(_ONE_WINDOW, (get.number, get.phase)).fetchall()
        if len(rows) != get.expected:
            raise ValueError(f"{len(rows)} sites of {get.expected}")
        begun = zlib.crc32(f",{get.number!r},{get.phase!r}".encode())
        size = 0
        for site, inputs, samples, units, arrays, told in rows:
            ahead = f",{site!r},{inputs!r},{samples!r},{units!r},".encode()
            if zlib.crc32(arrays, zlib.crc32(ahead, begun)) != told:
                raise ValueError("a row of counts is not what was written")
            key, row = (site, head(arrays)), (place, inputs, samples, arrays)
            if key in found:
                found[key].append(row)
            else:
                found[key] = [row]
            size += len(arrays)
        return size

    def _several(
        self, batch: Sequence[Window], found: Mapping[tuple[str, bytes], list[_Found]]
    ) -> Mapping[str, list[tuple[list[int], Counts]]]:
        several: dict[str, list[tuple[list[int], Counts]]] = {}
        try:
            for (name, _), rows in found.items():
                units = self._sites[name].units
                for part in some_at_a_time(len(rows), units):
                    places, inputs, samples, blobs = zip(*rows[part], strict=True)
                    counts = unpack_several(units, inputs, samples, blobs)
                    several.setdefault(name, []).append((list(places), counts))
        except _DAMAGE as error:
            raise self._unreadable(batch[0].index, batch[-1].index, error) from error
        return several

    def _unreadable(self, first: int, last: int, error: BaseException) -> RunFileError:
        which = f"window {first}" if first == last else f"a window from {first} to {last}"
        return RunFileError(f"{self.path}: the counts of {which} can't be read: {error}")


def _checked_rows(db: sqlite3.Connection, table: str, where: str, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Rows in order, each held against its checksum.

    Raises:
        ValueError: a row is not what was written.
    """
    order = _TABLES[table][0][0].partition(" ")[0]
    for row in db.execute(f"SELECT * FROM {table} {where} ORDER BY {order}", values):
        if checksum(row[:-1]) != row[-1]:
            raise ValueError(f"a row of {table} is not what was written")
        yield row[:-1]


def _read_counts(
    db: sqlite3.Connection, path: Path, units: Mapping[str, int], number: int, phase: str, expected: int
) -> PhaseCounts:
    try:
        rows = _checked_rows(db, "counts", "WHERE number = ? AND phase = ?", number, phase)
        found = {site: unpack(units[site], inputs, samples, arrays) for _, _, site, inputs, samples, _, arrays in rows}
        if len(found) != expected:
            raise ValueError(f"{len(found)} sites of {expected}")
    except _DAMAGE as error:
        raise RunFileError(f"{path}: the counts of window {number} can't be read: {error}") from error
    return found


def _read_again(path: Path, units: Mapping[str, int], number: int, phase: str) -> PhaseCounts:
    """Counts that a watch has written and let go of."""
    try:
        db = _open(path)
    except (sqlite3.Error, OSError) as error:
        raise RunFileError(f"{path}: the counts of window {number} can't be read: {error}") from error
    try:
        return _read_counts(db, path, units, number, phase, len(units))
    finally:
        db.close()


def _open(path: Path) -> sqlite3.Connection:
    """Read-only; where even the log's side files can't be made (a read-only folder), as a file that won't change."""
    uri = path.resolve().as_uri()

    def connect(options: str) -> sqlite3.Connection:
        db = sqlite3.connect(f"{uri}?{options}", uri=True, check_same_thread=False, isolation_level=None)
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    try:
        return connect("mode=ro")
    except sqlite3.OperationalError:
        log = _log(path)
        if log.exists() and log.stat().st_size:
            raise  # its latest windows are still in the log, which can't be read from here
        return connect("mode=ro&immutable=1")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _settings(text: str) -> dict[str, Any]:
    settings = json.loads(text)
    if not isinstance(settings, dict) or not all(isinstance(g, dict) for g in settings.get("groups", ())):
        raise ValueError("the settings are not as they were written")
    return settings


def load(path: str | Path) -> Run:
    """Open a run for reading: finished, still running, or killed.

    Args:
        path: the run's folder (as given to `watch(save=…)`) or the file in it.

    Returns:
        Run: read-only; census, history, timeline and report as of a live watch, up to the last window committed.

    Raises:
        RunFileError: there is none, it is damaged, of a newer format, or no run file at all.
    """
    return Run(path)
