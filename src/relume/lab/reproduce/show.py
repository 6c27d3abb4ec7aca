"""A reproduction to look at: a table in the terminal, a section of docs/reproductions.md."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from relume.lab.reproduce.reproduction import Reproduction, Row

PAGE = """\
# Reproductions

What papers report of dying, dormant and shifted units, measured again here. Made by `relume reproduce NAME… --store
docs/reproductions.json`, from the results stored in that file; `--full` runs nearer to the papers' scale.

Published figures are quoted as they are commonly cited. Where a paper's figure is of other data than ours, its
statement is what is tested, and the effect with its 95 % interval is shown: "yes" when the whole interval bears the
statement out, "no" when the whole interval speaks against it, "open" when it does neither. How often such intervals
hold the true value is measured by `python benchmarks/coverage.py`. Effects are in the unit that the row names; a row
that says "no" is about this setting, and no more.
"""


def agreement(row: Row) -> str:
    """One word: yes, no, open."""
    return {True: "yes", False: "no", None: "open"}[row.agrees]


def summary(found: Reproduction) -> str:
    """One sentence: how many rows agree."""
    counts = {word: sum(agreement(row) == word for row in found.rows) for word in ("yes", "no", "open")}
    return (
        f"{counts['yes']} of {len(found.rows)} rows agree with what was published, {counts['no']} "
        f"{'does' if counts['no'] == 1 else 'do'} not, {counts['open']} {'is' if counts['open'] == 1 else 'are'} open."
    )


def terminal(found: Reproduction) -> RenderableType:
    """Table, what was run, notes."""
    table = Table(title=f"{found.title}\n{found.source}", title_justify="left", expand=False)
    table.add_column("published")
    table.add_column("measured")
    table.add_column("ours", no_wrap=True)
    table.add_column("agrees", justify="center")
    colours = {"yes": "green", "no": "red", "open": "yellow"}
    for row in found.rows:
        word = agreement(row)
        table.add_row(Text(row.published), Text(row.what), Text(str(row.ours)), Text(word, colours[word]))
    lines = [Text(summary(found), style="bold"), Text(f"Ran ({found.seconds:.0f} s): {found.ran}")]
    return Group(table, *lines, *(Padding(Text(f"· {note}"), (0, 0, 0, 1)) for note in found.notes))


def markdown(found: Reproduction) -> str:
    """A section of the page."""
    lines = [
        f"## {found.name}: {found.title}",
        "",
        f"{found.source}. {summary(found)}",
        "",
        "| published | measured | ours | agrees | because |",
        "|---|---|---|---|---|",
        *(
            f"| {_cell(r.published)} | {_cell(r.what)} | {_cell(str(r.ours))} | {agreement(r)} | {_cell(r.why)} |"
            for r in found.rows
        ),
        "",
        f"Ran in {found.seconds:.0f} s{', --full' if found.full else ''}, first seed {found.seed}: {found.ran}",
        "",
        *(f"- {note}" for note in found.notes),
    ]
    return "\n".join(lines) + "\n"


def page(all_found: Iterable[Reproduction]) -> str:
    """The whole of docs/reproductions.md."""
    return "\n".join([PAGE, *(markdown(found) for found in all_found)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
