"""`Reel`: the segments of a training that are kept, each a snapshot and what came after it, up to a number of bytes.

Where they no longer fit, those go in which nothing died; the first of all, those in which the most died, and the latest
stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from relume.diagnose.replay.events import Event
from relume.diagnose.replay.snapshot import Snapshot


@dataclass(eq=False)
class Segment:
    """From one snapshot to the next.

    Attributes:
        start: what stood at its beginning.
        first, last: steps made before it began, and when it ended.
        events: what happened.
        nbytes: of all of it.
        trouble: why it cannot be played, or "".
        hints: what may be why a replay goes astray.
        end: of the tensors in `start.values`, what became of them; the next segment's, where there is one.
    """

    start: Snapshot
    first: int
    last: int
    events: Sequence[Event]
    nbytes: int
    trouble: str = ""
    hints: tuple[str, ...] = ()
    end: tuple[Tensor, ...] | None = None


@dataclass
class Reel:
    """Segments in order, with gaps where some were let go of.

    Attributes:
        limit: bytes that they may take.
        window: steps before a death that belong to it.
        segments: kept, oldest first.
        deaths: by step, how many units died there.
    """

    limit: int
    window: int
    segments: list[Segment] = field(default_factory=list)
    deaths: Counter[int] = field(default_factory=Counter)

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for s in self.segments)

    def add(self, segment: Segment, open_bytes: int = 0) -> None:
        """Add the next segment, and let go of others if need be.

        Args:
            open_bytes: what the segment now in progress takes.
        """
        self.segments.append(segment)
        while self.segments and self.nbytes + open_bytes > self.limit:
            self._let_go(min(self.segments, key=self._worth))

    def _let_go(self, segment: Segment) -> None:
        self.segments.remove(segment)
        for before in self.segments:
            if before.last == segment.first:  # whose end it was the beginning of
                before.end = segment.start.values
                before.nbytes += sum(t.numel() * t.element_size() for t in before.end)

    def _worth(self, segment: Segment) -> tuple[bool, bool, bool, int, int]:
        recent = segment.last > self.segments[-1].last - 2 * self.window
        # Deaths of recent segments are not known yet.
        died = sum(n for step, n in self.deaths.items() if segment.first <= step < segment.last + self.window)
        return (segment.trouble == "", segment is self.segments[0], recent, died, segment.last)

    def run_up(self, last: int, steps: int) -> list[Segment]:
        """Segments without a gap that end with the one in which step `last` lies: so many as take no more than
        `steps` steps, but at least one; empty where that step is not kept."""
        found: list[Segment] = []
        for segment in reversed(self.segments):
            if not found:
                if segment.first < last <= segment.last:
                    found = [segment]
            elif segment.last != found[0].first or found[-1].last - segment.first > steps:
                break
            else:
                found.insert(0, segment)
        return found
