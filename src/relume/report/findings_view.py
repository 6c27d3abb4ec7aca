"""What a page shows of a run's findings: grouped, with their evidence as rows and drawings, and anchors for links."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from relume.diagnose.course import COURSE, Course
from relume.diagnose.finding import Finding
from relume.report import findings_charts as charts
from relume.report.diagnosed import Diagnosed
from relume.report.evidence import Row, key_rows, parts, rows
from relume.report.groups import Group, grouped
from relume.report.numbers import span, units
from relume.report.words import cause
from relume.sites import Site
from relume.watch import Recording

# Other sites of the same cause that a page lists, and findings of no weight.
LISTED = 100
# Cascades of one cause that are drawn.
CHAINS = 3
_MOVED = (
    ("bias", "bias"), ("weights", "weights"), ("normalization", "normalization"), ("upstream", "what comes in"),
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption; `keys` are (class, label) of its curves."""

    caption: str
    drawing: Markup
    keys: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Place:
    """A site, what happened there, and the anchor of its section ("" where the page has none)."""

    site: str
    words: str
    target: str
    finding: Finding


@dataclass(frozen=True)
class Entry:
    """Findings of one cause, as a page tells of them.

    Attributes:
        anchor: of the entry.
        group: the findings.
        title: the cause in plain words.
        place: of the gravest of them.
        key_rows: the evidence that matters most.
        rows: all of it.
        figures: its drawings.
        others: the further sites.
        chains: what followed from it, drawn for each site that something followed from.
        root: what it follows from: the cause in words, the site, the anchor of its entry.
    """

    anchor: str
    group: Group
    title: str
    place: Place
    key_rows: list[Row]
    rows: list[Row]
    figures: list[Figure]
    others: list[Place]
    chains: list[Markup]
    root: tuple[str, str, str] | None


@dataclass(frozen=True)
class Note:
    """Notes of one code."""

    title: str
    places: list[Place]


@dataclass(frozen=True)
class FindingsView:
    """All that a page says of one run's causes.

    Attributes:
        known: the findings.
        entries: those that matter, gravest first.
        notes: those that don't.
        notes_anchor: of the notes.
        by_site: (anchor, words) of what was found there.
    """

    known: Diagnosed
    entries: list[Entry]
    notes: list[Note]
    notes_anchor: str
    by_site: Mapping[str, list[tuple[str, str]]]


def site_anchor(run: int, index: int) -> str:
    """Of a site's section."""
    return f"run{run}-site{index}"


def findings_view(recording: Recording, known: Diagnosed, run: int) -> FindingsView:
    """Findings of a recording, ready for a page.

    Args:
        recording: of the run.
        known: its findings.
        run: its number on the page.
    """
    sites = {site.name: site for site in recording.sites}
    anchors = {name: site_anchor(run, i) for i, name in enumerate(sites)}
    groups = grouped(known.findings)
    anchor_of = {group.code: f"run{run}-finding{i}" for i, group in enumerate(groups)}
    entries = [_entry(recording, group, sites, anchors, anchor_of) for group in groups]
    notes_anchor = f"run{run}-notes"
    by_code: dict[str, list[Place]] = {}
    by_site: dict[str, list[tuple[str, str]]] = {}
    for finding in known.findings:
        note = finding.severity == "note"
        if note:
            by_code.setdefault(finding.code, []).append(_place(finding, anchors))
        title = cause(finding.code).title
        words = f"{title[0].lower()}{title[1:]} ({units(len(finding.units))})"
        by_site.setdefault(finding.site, []).append((notes_anchor if note else anchor_of[finding.code], words))
    notes = [Note(cause(code).title, places) for code, places in by_code.items()]
    return FindingsView(known, entries, notes, notes_anchor, by_site)


def _entry(
    recording: Recording,
    group: Group,
    sites: Mapping[str, Site],
    anchors: Mapping[str, str],
    anchor_of: Mapping[str, str],
) -> Entry:
    first = group.first
    root = None
    if first.root is not None:
        code, site = first.root
        root = (cause(code).title.lower(), site, anchor_of.get(code, ""))
    return Entry(
        anchor=anchor_of[group.code],
        group=group,
        title=cause(group.code).title,
        place=_place(first, anchors),
        key_rows=key_rows(first) or rows(first),
        rows=rows(first),
        figures=_figures(recording, first, sites.get(first.site)),
        others=[_place(f, anchors) for f in group.findings[1:]],
        chains=_chains(group, anchors),
        root=root,
    )


def _place(finding: Finding, anchors: Mapping[str, str]) -> Place:
    return Place(finding.site, _words(finding), anchors.get(finding.site, ""), finding)


def _words(finding: Finding) -> str:
    of = finding.evidence.get("of")
    who = f"{len(finding.units):,} of {of:,} units" if isinstance(of, int) else units(len(finding.units))
    return f"{who}, {span(*finding.steps)}" if finding.steps[0] >= 0 else who


def _chains(group: Group, anchors: Mapping[str, str]) -> list[Markup]:
    drawn: list[Markup] = []
    for root in group.findings:
        followed = [f for f in group.followers if f.root == (root.code, root.site)]
        if followed and len(drawn) < CHAINS:
            links = [
                charts.Link(f.site or "the network", _words(f), anchors.get(f.site, "")) for f in (root, *followed)
            ]
            said = "; then ".join(f"{link.site}: {link.words}" for link in links[: charts.CHAIN])
            drawn.append(charts.chain(links, f"How deaths went on. {said}"))
    return drawn


def _figures(recording: Recording, finding: Finding, site: Site | None) -> list[Figure]:
    figures: list[Figure] = []
    if finding.code == "silent-site":  # drawn where it is said what killed its units
        return figures
    course = _course(recording, finding)
    if course is not None and site is not None:
        who = f"{units(len(course.units))} of {site.name} that died in {span(*course.died)}"
        below = any(a == -math.inf and b >= 0 for a, b in site.zones.flat.intervals)
        levels = [course.column(name) for name in COURSE[:3]]
        drawing = charts.fall(
            course.steps, levels[0], levels[1], levels[2], f"Pre-activation of {who}", flat_below_zero=below
        )
        if drawing:
            keys = (("l0", "highest"), ("l1 plain", "mean, with spread"), ("flat", "flat zone"))
            caption = f"Pre-activation of {who}, medians; step 0 is the last at which a unit fired"
            figures.append(Figure(caption, drawing, keys))
        moved = [(label, course.column(name)) for name, label in _MOVED]
        moved = [(label, values) for label, values in moved if any(math.isfinite(v) and v for v in values)]
        drawing = charts.curves(course.steps, moved, f"What moved the mean of {who}")
        if drawing:
            curves = tuple((f"p{i}", label) for i, (label, _) in enumerate(moved))
            figures.append(Figure("What moved their mean, added up", drawing, curves))
    known = parts(finding.evidence)
    if known:
        said = ", ".join(f"{name} {value:.3g}" for name, value in known)
        of = "in the last steps" if _sudden(finding) else "over the fall"
        caption = f"What moved the mean {of}: medians over {units(len(finding.units))}"
        figures.append(Figure(caption, charts.bars(known, f"What moved the mean {of}: {said}")))
    return figures


def _sudden(finding: Finding) -> bool:
    # Parts of a sudden death are those of its last steps: they do not make up the whole fall.
    return finding.code == "killed-by-step"


def _course(recording: Recording, finding: Finding) -> Course | None:
    """Of the deaths that hold most of a finding's units."""
    record = recording.kept_record()
    trace = record.traces.get(finding.site) if record is not None else None
    courses: Sequence[Course] = trace.courses if trace is not None else ()
    own = set(finding.units)
    return max(courses, key=lambda c: len(own & set(c.units)), default=None) if own else None
