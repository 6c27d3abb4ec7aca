"""The page of verdicts as Markdown, and its plots: all figures are computed of the stored runs."""

from __future__ import annotations

from collections.abc import Sequence

from relume.lab.claims import death, plot
from relume.lab.claims.effects import values
from relume.lab.claims.measures import DEAD
from relume.lab.claims.members import SHOWN, TASKS
from relume.lab.claims.question import Judged
from relume.lab.claims.runs import Runs
from relume.lab.claims.sections import EVERYWHERE, NOT_RUN, SECTIONS, Section
from relume.lab.claims.standing_tables import course_of_profiles, headline, tables
from relume.lab.stats import Interval, interval
from relume.lab.verdicts import verdict

HEAD = """\
# Verdicts

Made by `python docs/verdicts.py` from {runs:,} trainings stored in `docs/verdicts.csv.gz`; with \
`--run` it first trains what is missing (all of it, where there is no such file: some twenty minutes of one core). \
Each claim of the essay behind relume is put as one or more sentences, with what would support it, and a verdict: \
**supported**, **contradicted** or **undecided**. “Contradicted” includes effects that are surely too small to matter.

{summary}

{headline}
"""


def page(judged: Sequence[Judged], runs: Runs) -> str:
    """All of docs/verdicts.md."""
    counts = {o: sum(j.verdict.outcome == o for j in judged) for o in ("supported", "contradicted", "undecided")}
    summary = (
        f"Of {len(judged) + len(NOT_RUN)} sentences {counts['supported']} are supported, {counts['contradicted']} "
        f"contradicted, {counts['undecided']} undecided, {len(NOT_RUN)} not run."
    )
    head = HEAD.format(runs=len(runs), summary=summary, headline=headline(runs))
    sections = (_section(s, [one for one in judged if one.question.number == s.number], runs) for s in SECTIONS)
    return "\n".join([head, _table(judged), "## What holds for all of it\n", EVERYWHERE, "", *sections])


def plots(judged: Sequence[Judged], runs: Runs) -> dict[str, str]:
    """By file name, each plot of the page."""
    found = {f"claim-{s.number}.svg": _plot(s, [j for j in judged if j.question.number == s.number]) for s in SECTIONS}
    found["claim-1-course.svg"] = _course("depth", [str(d) for d in death.DEPTHS], "hidden layers", runs)
    found["claim-2-course.svg"] = _course("lr", [f"{r:g}" for r in death.RATES], "learning rate", runs)
    found["profiles.svg"] = course_of_profiles(runs)
    return found


def _table(judged: Sequence[Judged]) -> str:
    rows = ["| | claim | verdict | effect [interval] | what was run |", "|---|---|---|---|---|"]
    for section in SECTIONS:
        rows += [_row(one) for one in judged if one.question.number == section.number]
        rows += [f"| {n} | {text} | **not run** | – | {why} |" for n, text, why in NOT_RUN if n == section.number]
    return "\n".join(rows) + "\n"


def _row(one: Judged) -> str:
    claim, note = one.verdict.claim, f", {one.effect.note}" if one.effect.note else ""
    said = f"{_shown(one.verdict.effect)} {one.question.unit}{note}{_alone(one)}"
    return f"| {one.question.number} | {claim.text} | **{one.verdict.outcome}** | {said} | {one.question.ran} |"


def _alone(one: Judged) -> str:
    """On how many of its parts the claim would be supported by themselves: a mean may be made by one of them."""
    if len(one.effect.parts) < 2:
        return ""
    outcomes = [verdict(one.verdict.claim, effect, "").outcome for _, effect in one.effect.parts]
    what = "others" if one.question.number >= 8 else "tasks"
    return f"; by itself on {outcomes.count('supported')} of {len(outcomes)} {what}"


def _section(section: Section, judged: Sequence[Judged], runs: Runs) -> str:
    lines = [f"## {section.number}. {section.title}", "", section.how, ""]
    if section.number in (1, 2):
        lines += [f"![Dead units along the setting](verdicts/claim-{section.number}-course.svg)", ""]
    lines += [f"![Effects of claim {section.number}](verdicts/claim-{section.number}.svg)", ""]
    for one in judged:
        lines += [_answer(one), ""]
    if section.number == 9:
        lines += [*tables(runs), "![Performance profiles](verdicts/profiles.svg)", ""]
    lines += [f"*Reservations.* {section.reservations}", ""]
    return "\n".join(lines)


def _answer(one: Judged) -> str:
    claim, found = one.verdict.claim, one.verdict
    shown = SHOWN if len(one.effect.parts) == len(SHOWN) else {}
    parts = "; ".join(f"{shown.get(name, name)} {_shown(effect)}" for name, effect in one.effect.parts)
    note = f" ({one.effect.note})" if one.effect.note else ""
    each = f" Of each: {parts}." if len(one.effect.parts) > 1 else ""
    return (
        f"- **{found.outcome.capitalize()}**: {claim.text} {_shown(found.effect)} {one.question.unit}{note}; "
        f"{found.why}.{each} Would support it: {claim.support}."
    )


def _plot(section: Section, judged: Sequence[Judged]) -> str:
    if section.number >= 8:
        (one,) = judged
        claim = one.verdict.claim
        ordered = sorted(one.effect.parts, key=lambda part: part[1].estimate)
        bars = tuple(plot.Bar(f"against {name}", e, verdict(claim, e, "").outcome) for name, e in ordered)
        panel = plot.Panel(f"DReLU is ahead by: {one.question.measure.name}, {one.question.unit}", bars, claim.margin)
        return plot.effects(claim.text, [panel])
    panels: dict[str, list[plot.Bar]] = {}
    for one in judged:
        parts = tuple(effect.estimate for _, effect in one.effect.parts) if len(one.effect.parts) > 1 else ()
        bar = plot.Bar(one.verdict.claim.id, one.verdict.effect, one.verdict.outcome, parts)
        panels.setdefault(f"{one.question.measure.name}, {one.question.unit}", []).append(bar)
    margins = {f"{one.question.measure.name}, {one.question.unit}": one.verdict.claim.margin for one in judged}
    return plot.effects(section.title, [plot.Panel(unit, tuple(bars), margins[unit]) for unit, bars in panels.items()])


def _course(setting: str, levels: Sequence[str], along: str, runs: Runs) -> str:
    lines = []
    for task in TASKS:
        found = [interval(values(runs, level[task], DEAD), "mean") for level in death.LEVELS[setting]]
        lines.append((SHOWN[task], [f.estimate for f in found], [f.low for f in found], [f.high for f in found]))
    return plot.courses(f"Dead units by {along}", "dead units at the end, %", levels, lines, along)


def _shown(effect: Interval) -> str:
    """What is smaller than the rounding of stored values is zero."""
    estimate, low, high = (0.0 if abs(v) < 5e-4 else v for v in (effect.estimate, effect.low, effect.high))
    return plot.minus(str(Interval(estimate, low, high)))
