"""`findings_text`: findings in a terminal, as a colleague would tell them.

Per cause: the sentence, the numbers that matter, what a replay said, and what to do about it, best first, with the call
that does it. Sites that share a cause are told together; what is not worth acting on is one line at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.console import Group as Stack
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from relume.diagnose.finding import Confirmation, Finding
from relume.report.diagnosed import Diagnosed
from relume.report.evidence import key_rows
from relume.report.groups import Group, grouped
from relume.report.numbers import span, units
from relume.report.words import cause, replayed

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold"}
_REPLAYED = {True: "bold green", False: "bold yellow", None: "bold"}
# Sites of one cause that are listed; the others are counted.
LISTED = 5
# Longer lines are hard to read.
READABLE = 100
_INDENT = (0, 0, 0, 2)


def findings_text(findings: Sequence[Finding], *, width: int | None = None) -> RenderableType:
    """Findings as one renderable of rich.

    Args:
        findings: gravest first, as `relume.diagnose` gives them.
        width: columns to stay within; default: those of the console it is printed on. Never more than `READABLE`.

    Returns:
        What `rich.console.Console.print` takes. It reads well without colour.
    """
    groups = grouped(findings)
    notes = [f for f in findings if f.severity == "note"]
    parts: list[RenderableType] = []
    for i, group in enumerate(groups, 1):
        if parts:
            parts.append(Text(" "))
        parts.append(_told(group, i if len(groups) > 1 else None))
    if not groups:
        parts.append(Text("Nothing is the matter.", style="bold green"))
    if notes:
        parts += [Text(" "), *_notes(notes, alone=not groups)]
    return Constrain(Stack(*parts), min(width or READABLE, READABLE))


def _told(group: Group, number: int | None) -> RenderableType:
    head = Text()
    if number is not None:
        head.append(f"{number}. ", style="bold")
    head.append(cause(group.code).title, style=_STYLES[group.severity])
    head.append(f"  {group.severity} · {group.code}", style="dim")
    body: list[RenderableType] = [Text(group.first.sentence)]
    if group.first.root is not None:
        code, site = group.first.root
        where = f"'{site}'" if site else "the network"
        body.append(Text(f"It follows from what happened to {where}: {cause(code).title.lower()}."))
    rows = key_rows(group.first)
    if rows:
        body += [Text(" "), _table([(r.name, r.value) for r in rows])]
    if len(group.findings) > 1:
        body += [Text(" "), *_further(group)]
    if group.followers:
        body += [Text(" "), *_followers(group)]
    for finding, confirmation in group.confirmations[:LISTED]:
        body += [Text(" "), _confirmed(finding, confirmation, many=len(group.confirmations) > 1)]
    if group.first.remedies:
        body += [Text(" "), Text("What to do:", style="bold"), _remedies(group.first)]
    return Stack(head, *(Padding(part, _INDENT, expand=False) for part in body))


def _table(rows: Sequence[tuple[str, str]]) -> RenderableType:
    return _Pairs(tuple(rows))


class _Pairs:
    """Names beside values where there is room for both, else values below their names."""

    def __init__(self, rows: tuple[tuple[str, str], ...]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> list[RenderableType]:
        names = max(len(name) for name, _ in self._rows)
        if options.max_width >= names + 28:
            table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
            table.add_column(style="dim", no_wrap=True, width=names)
            table.add_column()
            for name, value in self._rows:
                table.add_row(Text(name), Text(value))
            return [table]
        lines: list[RenderableType] = []
        for name, value in self._rows:
            lines += [Text(name, style="dim"), Padding(Text(value), _INDENT, expand=False)]
        return lines


def _further(group: Group) -> list[RenderableType]:
    """The other sites of the same cause."""
    others = group.findings[1:]
    lines: list[RenderableType] = [Text(f"The same at {_sites(len(others))} more:")]
    lines += [Padding(Text(_short(f)), _INDENT, expand=False) for f in others[:LISTED]]
    return lines + _rest(others[LISTED:])


def _followers(group: Group) -> list[RenderableType]:
    lines: list[RenderableType] = [Text("What followed from it:")]
    for finding in group.followers[:LISTED]:
        source = f" (from {finding.root[1]})" if len(group.findings) > 1 and finding.root else ""
        lines.append(Padding(Text(f"-> {_short(finding)}{source}"), _INDENT, expand=False))
    return lines + _rest(group.followers[LISTED:])


def _rest(findings: Sequence[Finding]) -> list[RenderableType]:
    if not findings:
        return []
    n = sum(len(f.units) for f in findings)
    sites = len({f.site for f in findings})
    return [Padding(Text(f"and {units(n)} at {_sites(sites)} more", style="dim"), _INDENT, expand=False)]


def _short(finding: Finding) -> str:
    """ "31 of 32 units of :relu, steps 14–35"."""
    of = finding.evidence.get("of")
    who = f"{len(finding.units):,} of {of:,} units" if isinstance(of, int) else units(len(finding.units))
    when = f", {span(*finding.steps)}" if finding.steps[0] >= 0 else ""
    return f"{who} of {finding.site}{when}" if finding.site else finding.sentence


def _confirmed(finding: Finding, confirmation: Confirmation, *, many: bool) -> RenderableType:
    head, sentence = replayed(confirmation)
    text = Text()
    text.append(f"{head}{f' ({finding.site})' if many else ''}: ", style=_REPLAYED[confirmation.confirmed])
    text.append(sentence)
    others = [(change, dead) for change, dead in confirmation.tried if change != confirmation.change]
    if others and confirmation.units:
        tried = "; ".join(f"{change}: {dead} of {confirmation.units}" for change, dead in others)
        text.append(f" Also tried, with how many are then lost: {tried}.", style="dim")
    return text


def _remedies(finding: Finding) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for i, remedy in enumerate(finding.remedies, 1):
        text = Text(remedy.text)
        if remedy.gain:
            text.append(f" ({remedy.gain})", style="green")
        if remedy.call:  # on a line of its own, to be copied
            text.append(f"\n{remedy.call}", style="cyan")
        table.add_row(f"{i}.", text)
    return table


def _notes(notes: Sequence[Finding], *, alone: bool) -> list[RenderableType]:
    ordinary = Diagnosed(tuple(notes)).ordinary()
    lead = f"{ordinary}. In detail:" if alone and ordinary else "Not worth acting on:"
    by_code: dict[str, list[Finding]] = {}
    for finding in notes:
        by_code.setdefault(finding.code, []).append(finding)
    lines: list[RenderableType] = [Text(lead, style="dim")]
    for code, several in by_code.items():
        where = ", ".join(
            f"{len(f.units)} of {f.evidence.get('of', '?')} in {f.site}" if f.site else "the whole network"
            for f in several[:LISTED]
        )
        more = f" and {len(several) - LISTED} more sites" if len(several) > LISTED else ""
        title = cause(code).title
        lines.append(Padding(Text(f"{title[0].lower()}{title[1:]}: {where}{more}", style="dim"), _INDENT, expand=False))
    return lines


def _sites(n: int) -> str:
    return "1 site" if n == 1 else f"{n:,} sites"
