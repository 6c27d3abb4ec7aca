"""The report in small: a live view for a running watch, and the verdict with the census table in the end."""

from __future__ import annotations

from types import TracebackType

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from relume.census import Census, SiteCensus
from relume.report.looks import LOOKS, UNREACHED, codes
from relume.report.verdict import verdict
from relume.watch import Recording, Watch

CELLS = 32
_DEAD = next(i for i, look in enumerate(LOOKS) if look.key == "dead")


class LiveView:
    """A progress bar and one strip per site, kept up to date while a watch runs. A context manager.

    Args:
        total: steps that the run will take.
        label: shown before the bar.
        console: where to draw; default: the terminal.
    """

    def __init__(self, total: int, label: str, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task(label, total=total)
        self._strips: Table | None = None
        self._windows = -1
        self._live = Live(
            get_renderable=self._render, console=self.console, refresh_per_second=8, vertical_overflow="ellipsis"
        )

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)
        if not self.console.is_terminal:
            self.console.line()  # rich ends the last line only on a terminal

    def update(self, watch: Watch) -> None:
        """Call after each step; costs next to nothing unless a window has ended since."""
        self._progress.update(self._task, completed=watch.step)
        if len(watch.windows) != self._windows and watch.windows:
            self._windows = len(watch.windows)
            self._strips = strips(watch.census(phase=watch.main_phase))

    def say(self, words: str) -> None:
        """Show what is going on when the steps are done."""
        self._progress.update(self._task, description=words)

    def _render(self) -> Group:
        return Group(self._progress, self._strips) if self._strips is not None else Group(self._progress)


def strips(census: Census) -> Table:
    """One line per site: its units as a row of cells, dead ones dark, and how many are dead. Fits 80 columns."""
    table = Table(box=None, show_header=False, pad_edge=False, width=80)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column(no_wrap=True, width=CELLS)
    table.add_column(no_wrap=True, width=20)
    for site in census.sites:
        dead = int(site.dead.sum())
        words = Text(
            f"{dead} of {site.units} dead", style="bold red" if dead == site.units else "red" if dead else "dim"
        )
        table.add_row(site.name, strip(site), words if site.reached else Text("not reached", style="dim"))
    return table


def strip(site: SiteCensus) -> Text:
    """The units of a site, dead ones first, as `CELLS` cells; each cell shows the state most of its units have."""
    text = Text()
    order = codes(site)
    order = order[torch.argsort(order == _DEAD, descending=True, stable=True)]
    for part in order.tensor_split(min(CELLS, max(len(order), 1))):
        code = int(part.mode().values)
        if code == UNREACHED:
            text.append(" ")
        else:
            text.append(LOOKS[code].glyph, style=LOOKS[code].style)
    return text


def print_verdict(recording: Recording, console: Console | None = None) -> None:
    """The verdict in words, then the census as a table."""
    console = console or Console(highlight=False)
    console.print(Text(verdict(recording), style="bold"))
    console.print()
    console.print(recording.census(phase=recording.main_phase))
    for note in recording.notes:
        console.print(Text(f"not counted: {note}", style="yellow"))
