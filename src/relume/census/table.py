"""A census as a table for the terminal, at most 80 columns wide: one row per site."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relume.census.bounds import never_fired_bound

if TYPE_CHECKING:
    from relume.census.census import Census
    from relume.census.site_census import SiteCensus

WIDTH = 80
_GAP = 2  # between columns
_ACTIVATION, _ALSO_WIDTH = 12, 18  # what is longer is cut
_COLUMNS = ("units", "dead", "fires on", "p fires <")
_ALSO = ("non-finite", "unknown", "stuck-at-top", "saturated", "linear")


def plain_text(shown: Table) -> str:
    """A table without colours, `WIDTH` columns wide."""
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None, legacy_windows=False).print(shown)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def percent(share: float) -> str:
    """A share as a reader wants it: "0 %", "< 0.1 %", "3.4 %", "51 %"; "–" when it is not known.

    Only nothing is "0 %", and only all is "100 %".
    """
    if math.isnan(share):
        return "–"
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.995 <= share < 1:
        return "> 99 %"
    return f"{share * 100:.1f} %" if 0 < share < 0.0995 else f"{share * 100:.0f} %"


def table(census: Census) -> Table:
    """The table. Long names are cut in the middle, so that they stay apart; numbers never are."""
    result = Table(
        title=Text(_title(census), style="bold"),
        title_justify="left",
        caption=Text(_foot(census), style="dim"),
        caption_justify="left",
        box=None,
        pad_edge=False,
        width=WIDTH,
        header_style="dim",
    )
    result.add_column("site", overflow="ellipsis", no_wrap=True, ratio=1)
    result.add_column("activation", overflow="ellipsis", no_wrap=True, max_width=_ACTIVATION)
    for name in _COLUMNS:
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("also", overflow="ellipsis", no_wrap=True, max_width=_ALSO_WIDTH)
    rows = [_cells(m) for m in census.sites]
    others = [max([cell_len(head), *(cell_len(row[i]) for row in rows)]) for i, head in enumerate(_COLUMNS, 1)]
    activation = max([10, *(min(_ACTIVATION, cell_len(row[0])) for row in rows)])
    also = max([4, *(min(_ALSO_WIDTH, cell_len(row[5])) for row in rows)])
    room = WIDTH - activation - sum(others) - also - _GAP * (len(_COLUMNS) + 2)
    for m, (kind, units, dead, rate, bound, more) in zip(census.sites, rows, strict=True):
        colour = "bold red" if m.silent else "red" if dead != "0" else ""
        result.add_row(
            Text(cut(m.name, room)), Text(kind), units, Text(dead, style=colour), rate, bound, Text(more, style="dim")
        )
    return result


def cut(name: str, width: int) -> str:
    """`name` in at most `width` terminal cells: what does not fit is left out in the middle."""
    if cell_len(name) <= width:
        return name
    head, tail = name[: len(name) // 2], name[len(name) // 2 :]
    while cell_len(head) + 1 + cell_len(tail) > width and (head or tail):
        if head and (not tail or cell_len(head) >= cell_len(tail)):
            head = head[:-1]
        else:
            tail = tail[1:]
    return f"{head}…{tail}"


def _title(census: Census) -> str:
    span = "" if census.last_step is None else f", steps {census.first_step}–{census.last_step}"
    partial = "" if census.complete else ", window not complete"
    return (
        f"{census.dead} of {census.units} units dead ({percent(census.dead_fraction)}) · {census.phase}{span}{partial}"
    )


def _cells(m: SiteCensus) -> tuple[str, str, str, str, str, str]:
    """Activation, units, dead, fires on, p fires, also."""
    if not m.reached:
        return m.site.activation, str(m.units), "0", "–", "", "not reached"
    tally = m.tally()
    dead = tally["dead"] + tally["stuck-at-top"]
    return (
        m.site.activation,
        str(m.units),
        f"{dead} !" if m.silent else str(dead),
        percent(float(m.firing_rate.mean())),
        f"{never_fired_bound(m.inputs):.2g}" if dead else "",
        ", ".join(f"{tally[state]} {state}" for state in _ALSO if tally[state]),
    )


def _foot(census: Census) -> str:
    foot = f"{census.inputs} inputs seen"
    if census.dead:
        foot += ". “p fires <”: 95 % bound for a dead unit firing on a new input"
    if census.silent_sites:
        foot += ". “!”: whole site dead, the signal is cut"
    return foot
