"""What a study shows while it runs: a bar and the best so far, live in a terminal, as plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from relume.lab import tasks
from relume.lab.study.best import Place, Ranking

_EVERY = 10.0  # seconds between plain lines
_ROWS = 5  # of the best table, of each task


class Display:
    """Shows how far a study is.

    Args:
        name: of the study.
        total: members that it will have.
        ranking: of what is done.
        console: where to; None shows nothing.
    """

    def __init__(self, name: str, total: int, ranking: Ranking, console: Console | None) -> None:
        self._name, self._total, self._ranking, self._console = name, total, ranking, console
        self._done = self._failed = self._before = 0
        self._latest = time.monotonic()
        self._live: Live | None = None
        self._places: list[Place] = []
        self._rank_next = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(compact=True),
        )  # fmt: skip
        self._task = self._bar.add_task(name, total=total, failed="")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Meanwhile it is on the screen; it ends with a last look."""
        if self._console is None:
            yield
        elif self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=4, get_renderable=self._render) as self._live:
                yield
        else:
            self._line()
            yield
            if self._done + self._failed > self._before:
                self._line()

    def known(self, done: int, failed: int) -> None:
        """So many were done before."""
        self._before = done + failed
        self._count(done, failed)

    def add(self, head: Mapping[str, Any]) -> None:
        """One more member has been run."""
        failed = int(head["status"] == "failed")
        self._count(1 - failed, failed)
        if self._console is not None and self._live is None and time.monotonic() - self._latest > _EVERY:
            self._line()

    def _count(self, done: int, failed: int) -> None:
        self._done, self._failed = self._done + done, self._failed + failed
        said = f"{self._failed} failed" if self._failed else ""
        self._bar.update(self._task, completed=self._done + self._failed, failed=said)

    def _line(self) -> None:
        assert self._console is not None
        self._latest = time.monotonic()
        failed = f", {self._failed} failed" if self._failed else ""
        before = f", {self._before} of them before" if self._before else ""
        best = next(iter(self._ranking.best(1)), None)
        told = f"; best: {_in_words(best)}" if best else ""
        line = f"{self._name}: {self._done + self._failed} of {self._total} runs{before}{failed}{told}"
        self._console.print(line, markup=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        began = time.monotonic()
        if began >= self._rank_next:
            self._places = self._ranking.best(_ROWS)
            # Ranking many points takes its time, of which this may be a twentieth.
            self._rank_next = time.monotonic() + 20 * (time.monotonic() - began)
        return Group(self._bar, best_table(self._places)) if self._places else self._bar


def best_table(places: list[Place], title: str = "best so far, means over seeds") -> Table:
    """The best points as a table."""
    table = Table(title=title, title_justify="left")
    names = list(dict.fromkeys(name for place in places for name in place.settings))
    for name in ("task", *names):
        table.add_column(name)
    for name in ("validation", "sd", "dead", "seeds"):
        table.add_column(name, justify="right")
    for place in places:
        metric, dead = tasks.get(place.task).metric, sum(place.dead) / max(len(place.dead), 1)
        settings = (Text(_short(place.settings.get(name, ""))) for name in names)
        spread = f"{place.spread:.2g}" if len(place.scores) > 1 else ""
        numbers = (f"{place.mean:.4g}", spread, f"{dead:.1%}", str(len(place.scores)))
        table.add_row(Text(f"{place.task} ({metric})"), *settings, *numbers)
    return table


def _in_words(place: Place) -> str:
    settings = ", ".join(f"{name} {_short(value)}" for name, value in place.settings.items())
    metric = tasks.get(place.task).metric
    return f"{place.task}{': ' if settings else ''}{settings}: {metric} {place.mean:.4g} over {len(place.scores)}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
