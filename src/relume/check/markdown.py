"""`markdown`: a census as the page that code hosts show for a CI job."""

from __future__ import annotations

from relume.census import Census, SiteCensus, never_fired_bound, percent

_ALSO = ("non-finite", "unknown", "stuck-at-top", "saturated", "linear")


def markdown(census: Census, failures: list[str], *, checked: bool) -> str:
    """Verdict, what failed, and a row per site; ends with a newline.

    Args:
        census: what was counted.
        failures: of the limits.
        checked: limits were set, so that there is something to pass.
    """
    head = f"{census.dead:,} of {census.units:,} units dead ({percent(census.dead_fraction)})"
    status = ("failed: " if failures else "passed: ") if checked else ""
    lines = [f"### relume {status}{_escaped(census.model or 'model')}, {head}", ""]
    lines += [f"- ❌ {_escaped(failure)}" for failure in failures]
    lines += [""] if failures else []
    lines += ["| site | activation | units | dead | fires on | p fires < | also |", "|---|---|--:|--:|--:|--:|---|"]
    lines += ["| " + " | ".join(_cells(m)) + " |" for m in census.sites]
    lines += ["", f"{census.inputs:,} inputs seen in {census.phase} mode."]
    if census.dead:
        lines[-1] += " “p fires <” is the 95 % bound for a dead unit firing on a new input."
    lines += [f"- note: {_escaped(note)}" for note in census.notes]
    return "\n".join(lines) + "\n\n"


def _cells(m: SiteCensus) -> list[str]:
    tally = m.tally()
    dead = int(m.dead.sum())
    also = [f"{tally[state]:,} {state}" for state in _ALSO if tally[state]]
    return [
        f"`{m.name.replace('|', chr(92) + '|')}`",
        _escaped(m.site.activation),
        f"{m.units:,}",
        f"**{dead:,}** (all)" if m.silent else f"**{dead:,}**" if dead else "0",
        percent(float(m.firing_rate.mean())) if m.reached else "–",
        f"{never_fired_bound(m.inputs):.2g}" if dead else "",
        ", ".join(also) if m.reached else "not reached",
    ]


def _escaped(text: str) -> str:
    for sign in "\\|<>*_`[]":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())
