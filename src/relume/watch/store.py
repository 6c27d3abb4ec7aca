"""The run file: a SQLite database that holds one run, readable while it is written and after a crash.

WAL mode, one commit per window: kill -9 loses at most the window in progress. Only numbers, JSON and raw
little-endian arrays are stored, never code, so opening a foreign file can fail but not harm.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relume.census import Counts
from relume.census.counts import ARRAYS, INTEGER_ARRAYS
from relume.errors import RunFileError
from relume.sites import Site
from relume.watch.recording import PHASES, PhaseCounts, Recording, Window

FORMAT = 1
APPLICATION_ID = 0x72656C75  # "relu", in the SQLite header
FILE_NAME = "run.sqlite"

_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sites (name TEXT PRIMARY KEY, place INTEGER NOT NULL, description TEXT NOT NULL);
CREATE TABLE windows (
    number INTEGER PRIMARY KEY, first_step INTEGER NOT NULL, last_step INTEGER NOT NULL,
    observed INTEGER NOT NULL, complete INTEGER NOT NULL, settings TEXT NOT NULL, written REAL NOT NULL);
CREATE TABLE counts (
    number INTEGER NOT NULL, phase TEXT NOT NULL, site TEXT NOT NULL, units INTEGER NOT NULL,
    inputs INTEGER NOT NULL, samples INTEGER NOT NULL, arrays BLOB NOT NULL,
    PRIMARY KEY (number, phase, site)) WITHOUT ROWID;
CREATE TABLE scalars (step INTEGER NOT NULL, name TEXT NOT NULL, value REAL NOT NULL);
CREATE TABLE notes (text TEXT PRIMARY KEY);
"""


def run_file(path: str | Path) -> Path:
    """The database of a run that is named by its folder or by the file itself."""
    path = Path(path)
    return path if path.suffix in (".sqlite", ".db") else path / FILE_NAME


class Writer:
    """Writes one run. The file must not exist yet, or hold an empty run.

    Raises:
        RunFileError: the folder can't be made or written, or it already holds a run.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = run_file(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFileError(f"can't make the run folder {self.path.parent}: {error}") from error
        if self.path.exists():
            raise RunFileError(f"{self.path} already holds a run; choose another folder or remove it")
        try:
            self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={FORMAT}")
            self._db.execute("BEGIN")
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._set_about({**about, "status": "running", "started": time.time()})
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise RunFileError(f"can't write a run file at {self.path}: {error}") from error
        self._sites: dict[str, Site] = {}

    def _set_about(self, about: Mapping[str, Any]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO about VALUES (?, ?)", [(k, json.dumps(v)) for k, v in about.items()]
        )

    def write(
        self,
        window: Window | None,
        sites: tuple[Site, ...],
        scalars: list[tuple[int, str, float]],
        notes: list[str],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit one window with the sites, scalars and notes that are new since the last.

        Raises:
            sqlite3.Error: the disk is full, the file was removed, or another process holds it.
        """
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            for place, site in enumerate(sites):
                if self._sites.get(site.name) != site:
                    db.execute(
                        "INSERT OR REPLACE INTO sites VALUES (?, ?, ?)", (site.name, place, json.dumps(site.to_dict()))
                    )
            if window is not None:
                row = (
                    window.index, window.first_step, window.last_step, window.observed, int(window.complete),
                    json.dumps(dict(window.settings)), time.time(),
                )  # fmt: skip
                db.execute("INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                for phase in PHASES:
                    if phase in window.counts:
                        db.executemany(
                            "INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?, ?, ?, ?)",
                            [
                                (window.index, phase, name, c.units, c.inputs, c.samples, pack(c))
                                for name, c in window.counts[phase]().items()
                            ],
                        )
            db.executemany("INSERT INTO scalars VALUES (?, ?, ?)", scalars)
            db.executemany("INSERT OR IGNORE INTO notes VALUES (?)", [(n,) for n in notes])
            if about:
                self._set_about(about)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._sites.update((s.name, s) for s in sites)

    def close(self) -> None:
        self._db.close()


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
            self._check_format()
            about = {k: json.loads(v) for k, v in self._db.execute("SELECT key, value FROM about")}
            super().__init__(int(about["min_inputs"]))
            self.about = about
            for name, description in self._db.execute("SELECT name, description FROM sites ORDER BY place"):
                self._sites[name] = Site.from_dict(json.loads(description))
            phases: dict[int, set[str]] = {}
            for number, phase in self._db.execute("SELECT DISTINCT number, phase FROM counts"):
                phases.setdefault(number, set()).add(phase)
            for number, first, last, observed, complete, settings in self._db.execute(
                "SELECT number, first_step, last_step, observed, complete, settings FROM windows ORDER BY number"
            ):
                counts = {p: (lambda n=number, p=p: self._counts(n, p)) for p in PHASES if p in phases.get(number, ())}
                self._windows.append(
                    Window(number, first, last, observed, bool(complete), counts, json.loads(settings))
                )
            self.scalars = [
                (int(s), str(n), float(v)) for s, n, v in self._db.execute("SELECT step, name, value FROM scalars")
            ]
            self.notes = [str(t) for (t,) in self._db.execute("SELECT text FROM notes")]
        except (sqlite3.Error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFileError(f"{self.path} is damaged or no run file of relume: {error}") from error

    @property
    def status(self) -> str:
        return str(self.about.get("status", "running"))

    def _check_format(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise RunFileError(f"{self.path} is a SQLite database, but no run file of relume")
        if version > FORMAT:
            raise RunFileError(
                f"{self.path} has format {version}; this relume reads up to {FORMAT}: upgrade relume to read it"
            )

    def _counts(self, number: int, phase: str) -> PhaseCounts:
        try:
            rows = self._db.execute(
                "SELECT site, units, inputs, samples, arrays FROM counts WHERE number = ? AND phase = ?",
                (number, phase),
            ).fetchall()
            return {
                site: unpack(units, inputs, samples, arrays)
                for site, units, inputs, samples, arrays in rows
                if site in self._sites and self._sites[site].units == units
            }
        except (sqlite3.Error, ValueError, TypeError, zlib.error) as error:
            raise RunFileError(f"{self.path}: window {number} is damaged: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    """Read-only; where even the log's side files can't be made (a read-only folder), as a file that won't change."""
    uri = path.resolve().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, check_same_thread=False)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        db.close()
        db = sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return db


def pack(counts: Counts) -> bytes:
    """The per-unit arrays, one after the other, compressed."""
    parts = []
    for name in ARRAYS:
        kind = "<i8" if name in INTEGER_ARRAYS else "<f8"
        parts.append(getattr(counts, name).numpy().astype(kind, copy=False).tobytes())
    return zlib.compress(b"".join(parts), 1)


def unpack(units: int, inputs: int, samples: int, blob: bytes) -> Counts:
    """Inverse of `pack`.

    Raises:
        ValueError: the blob has another length than so many units need, or holds impossible counts.
    """
    size = 8 * units * len(ARRAYS)
    raw = zlib.decompressobj().decompress(blob, size + 1)
    if units < 0 or inputs < 0 or samples < 0 or len(raw) != size:
        raise ValueError(f"{len(raw)} bytes for {units} units, {size} expected")
    arrays = {}
    for i, name in enumerate(ARRAYS):
        kind = "<i8" if name in INTEGER_ARRAYS else "<f8"
        values = np.frombuffer(raw, kind, units, 8 * units * i).astype(kind[1:], copy=True)
        arrays[name] = torch.from_numpy(values)
    result = Counts(inputs, samples, **arrays)
    if bool((result.fired < 0).any()) or bool((result.fired > inputs).any()):
        raise ValueError("a unit fired on more inputs than there were")
    return result


def load(path: str | Path) -> Run:
    """Open a run for reading: finished, still running, or killed.

    Args:
        path: the run's folder (as given to `watch(save=…)`) or the file in it.

    Raises:
        RunFileError: there is none, it is damaged, of a newer format, or no run file at all.
    """
    return Run(path)
