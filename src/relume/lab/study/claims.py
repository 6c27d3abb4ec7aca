"""Claims: which process runs which members, so that two on one store share the work. A claim is a lease: it ends by
itself when its owner no longer renews it, and at once when its owner is known to be dead."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

LEASE = 60.0  # seconds; longer than a process may be held up without being thought dead


class Claims:
    """Of one process, in the table `claims`. `take` and `drop` belong in the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"

    def take(self, keys: Sequence[str]) -> list[str]:
        """Claim those that nobody living holds."""
        now = time.time()
        taken = []
        dead: dict[str, bool] = {self.owner: True}
        for key in keys:
            row = self._db.execute("SELECT owner, until FROM claims WHERE key = ?", (key,)).fetchone()
            if row is not None and row[1] > now:
                if row[0] not in dead:
                    dead[row[0]] = _is_dead(row[0])
                if not dead[row[0]]:
                    continue
            taken.append(key)
        rows = ((key, self.owner, now + LEASE) for key in taken)
        self._db.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", rows)
        return taken

    def drop(self) -> None:
        """Give up all of this process."""
        self._db.execute("DELETE FROM claims WHERE owner = ?", (self.owner,))

    @contextlib.contextmanager
    def renewed(self, path: Path) -> Iterator[None]:
        """Meanwhile a thread renews them, by a connection of its own."""
        ended = threading.Event()

        def renew() -> None:
            with contextlib.closing(sqlite3.connect(path, timeout=LEASE / 3, isolation_level=None)) as db:
                while not ended.wait(LEASE / 4):
                    # The next time may do; and a store that can't be written is told where results are.
                    with contextlib.suppress(sqlite3.Error):
                        until = time.time() + LEASE
                        db.execute("UPDATE claims SET until = ? WHERE owner = ?", (until, self.owner))

        thread = threading.Thread(target=renew, name="relume-study-claims", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _is_dead(owner: str) -> bool:
    """Has the owner surely ended? Only of a process on this machine that can be said."""
    host, pid, _ = owner.rsplit(":", 2)
    if os.name != "posix" or host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)  # asks, and does nothing
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return False
