"""The store of a study: a SQLite database with a row for each member, committed as its result lands.

WAL mode: kill -9 loses no result that was committed. Only text, numbers and compressed JSON are stored, never code, so
that a foreign file can fail but not harm; every row carries a checksum of itself. What a table shows is in `runs`,
curves and the census of each site are in `details`. `claims` keep two processes from running the same member: each
names its members before it runs them, and while it lives it renews its claims.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from relume.lab.result import Result
from relume.lab.runners.work import Outcome
from relume.lab.study.claims import Claims
from relume.lab.study.errors import StoreError
from relume.lab.study.rows import Head, head_of, packed, read_head, result_of
from relume.watch.store import checksum, transaction

FORMAT = 1
APPLICATION_ID = 0x72656C73  # "rels", in the SQLite header
FILE_NAME = "study.sqlite"
_PAGE = 16384
_WAIT = 60.0  # seconds for another process to finish its commit

_TABLES = (
    "CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE runs (key TEXT PRIMARY KEY, status TEXT NOT NULL, diagnosed INTEGER NOT NULL, head TEXT NOT NULL, "
    "checksum INTEGER NOT NULL)",
    "CREATE TABLE details (key TEXT PRIMARY KEY, body BLOB NOT NULL, checksum INTEGER NOT NULL)",
    "CREATE TABLE trials (family TEXT NOT NULL, number INTEGER NOT NULL, point TEXT NOT NULL, "
    "checksum INTEGER NOT NULL, PRIMARY KEY (family, number)) WITHOUT ROWID",
    "CREATE TABLE claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
)
# A result is kept once. What has failed may be tried again; a diagnosis may be added.
_PUT_RUN = (
    "INSERT INTO runs VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET status = excluded.status, "
    "diagnosed = excluded.diagnosed, head = excluded.head, checksum = excluded.checksum "
    "WHERE runs.status = 'failed' OR (excluded.status = 'done' AND excluded.diagnosed > runs.diagnosed)"
)
_DAMAGE = (sqlite3.DatabaseError, ValueError, KeyError, TypeError, AttributeError, zlib.error, RecursionError)


class Store:
    """The results of one study. To be used by the thread that opened it.

    Args:
        folder: of the study; made where there is none.
        make: make the store where there is none.

    Raises:
        StoreError: it is damaged, of a newer format, no store, or can't be written; or there is none.
    """

    def __init__(self, folder: str | Path, *, make: bool = True) -> None:
        folder = Path(folder)
        self.path = folder if folder.suffix == ".sqlite" else folder / FILE_NAME
        if not make and not self.path.is_file():
            raise StoreError(f"there is no study at {self.path}")
        with self._told("open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
        try:
            with self._told("open"):
                self._begin()
            self._file = self.path.stat()
        except BaseException:
            self._db.close()
            raise
        self.claims = Claims(self._db)

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StoreError(f"can't {doing} {self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error
        except OSError as error:
            raise StoreError(f"can't {doing} {self.path}: {error.strerror or error}") from error

    def _damaged(self, why: object) -> StoreError:
        return StoreError(
            f"{self.path} is damaged: {why}. Nothing was changed. Put a copy of it back, or move it away: the same "
            "study then begins anew"
        )

    def _begin(self) -> None:
        log = self.path.with_name(self.path.name + "-wal")
        size = self.path.stat().st_size
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == 0 and version == 0 and tables == 0:
            self._make()
            return
        if application != APPLICATION_ID:
            raise StoreError(f"{self.path} is a SQLite database, but no study of relume")
        if version > FORMAT:
            raise StoreError(f"{self.path} has format {version}; this relume reads up to {FORMAT}: upgrade relume")
        (page,) = self._db.execute("PRAGMA page_size").fetchone()
        if not (log.exists() and log.stat().st_size) and size % page:
            raise self._damaged("its last page is cut short")
        self._db.execute("PRAGMA synchronous=NORMAL")
        for table in ("about", "trials"):
            (fault,) = self._db.execute(f"PRAGMA quick_check({table})").fetchone()
            if fault != "ok":
                raise self._damaged(fault)

    def _make(self) -> None:
        """All at once, so that whoever is killed meanwhile leaves an empty file, which the next begins again."""
        self._db.execute(f"PRAGMA page_size={_PAGE}")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        with transaction(self._db):
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:  # else another process was sooner
                for table in _TABLES:
                    self._db.execute(table)
                self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version={FORMAT}")

    # About

    def about(self) -> dict[str, Any]:
        """What is kept of the study itself."""
        with self._reading():
            rows = self._db.execute("SELECT * FROM about").fetchall()
            return {row[0]: json.loads(row[1]) for row in self._checked("about", rows)}

    def set_about(self, about: Mapping[str, Any]) -> None:
        """Keep that too."""
        rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in about.items()]
        with self._told("write"), transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?, ?)", ((*r, checksum(r)) for r in rows))

    # Results

    def put(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Commit what became of members, all at once, and let go of them. Returns their keys.

        Raises:
            StoreError: the disk is full, the file was removed, another process holds it for long.
        """
        rows = [_rows(outcome) for outcome in outcomes]
        with self._told("write"):
            now = self.path.stat()
            if (now.st_ino, now.st_dev) != (self._file.st_ino, self._file.st_dev):
                raise StoreError(f"can't write {self.path}: another file is in its place")
            with transaction(self._db):
                for run, details in rows:
                    landed = self._db.execute(_PUT_RUN, run).rowcount
                    if landed and details is not None:
                        self._db.execute("INSERT OR REPLACE INTO details VALUES (?, ?, ?)", details)
                self._db.executemany("DELETE FROM claims WHERE key = ?", ((run[0],) for run, _ in rows))
        return [run[0] for run, _ in rows]

    def statuses(self) -> dict[str, tuple[str, bool]]:
        """By key of each member that was run: "done" or "failed", and was it diagnosed? Every row is checked."""
        return {key: (status, bool(diagnosed)) for key, status, diagnosed, _ in self._runs()}

    def heads(self) -> Iterator[tuple[str, Head]]:
        """Key and what a table shows of each member that was run: its settings, status, scores and counts."""
        for key, status, _, text in self._runs():
            with self._reading():
                head = read_head(status, text)
            yield key, head

    def head(self, key: str) -> Head | None:
        """Of one member."""
        for _, status, _, text in self._runs("WHERE key = ?", key):
            with self._reading():
                return read_head(status, text)
        return None

    def result(self, key: str, head: Head) -> Result:
        """The whole result of a member that is done."""
        with self._reading():
            rows = self._db.execute("SELECT * FROM details WHERE key = ?", (key,)).fetchall()
            if not rows:
                raise ValueError(f"the details of run {key} are missing")
            ((_, body),) = self._checked("details", rows)
            return result_of(head, body)

    def _runs(self, where: str = "", *values: Any) -> Iterator[tuple[str, str, int, str]]:
        with self._reading():
            for row in self._checked("runs", self._db.execute(f"SELECT * FROM runs {where}", values)):
                if row[1] not in ("done", "failed"):
                    raise ValueError(f"run {row[0]} is {row[1]!r}")
                yield row

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with self._told("read"):
                yield
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def _checked(self, table: str, rows: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        for row in rows:
            if checksum(row[:-1]) != row[-1]:
                raise ValueError(f"row {row[0]!r} of {table} is not what was written")
            yield row[:-1]

    # Trials of a sampler that learns

    def trials(self, family: str) -> list[dict[str, Any]]:
        """Points that were named for a family of members, in order."""
        with self._reading():
            rows = self._db.execute("SELECT * FROM trials WHERE family = ? ORDER BY number", (family,)).fetchall()
            return [json.loads(row[2]) for row in self._checked("trials", rows)]

    def add_trials(self, family: str, first: int, points: Sequence[Mapping[str, Any]]) -> None:
        """Name points. Where another process has named those of these numbers before, its points stay."""
        rows = [(family, first + i, json.dumps(point)) for i, point in enumerate(points)]
        with self._told("write"), transaction(self._db):
            self._db.executemany("INSERT OR IGNORE INTO trials VALUES (?, ?, ?, ?)", ((*r, checksum(r)) for r in rows))

    # Claims

    def claim(self, keys: Sequence[str], *, diagnose: bool = False, again: bool = False) -> list[str]:
        """Those of the members that are still to be run and that nobody else is running: they are ours now.

        Args:
            diagnose: a result without a diagnosis does not count.
            again: a failed one does not count.
        """
        with self._told("write"), transaction(self._db):
            done = set()
            for key in keys:
                row = self._db.execute("SELECT status, diagnosed FROM runs WHERE key = ?", (key,)).fetchone()
                if row and counts(row[0], bool(row[1]), diagnose=diagnose, again=again):
                    done.add(key)
            return self.claims.take([key for key in keys if key not in done])

    def release(self) -> None:
        """Let go of all members that were claimed and not run."""
        with self._told("write"), transaction(self._db):
            self.claims.drop()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


def counts(status: str, diagnosed: bool, *, diagnose: bool, again: bool) -> bool:
    """Need a member with such a row not be run?"""
    return (not again) if status == "failed" else (diagnosed or not diagnose)


def _rows(outcome: Outcome) -> tuple[tuple[Any, ...], tuple[Any, ...] | None]:
    """A row of `runs`, and one of `details` where there is a result."""
    key, result = outcome.member.key, outcome.result
    diagnosed = int(result is not None and result.causes is not None)
    run = (key, "failed" if result is None else "done", diagnosed, json.dumps(head_of(outcome)))
    details = None if result is None else (key, packed(result))
    return (*run, checksum(run)), None if details is None else (*details, checksum(details))
