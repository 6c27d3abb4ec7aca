"""The verdict: what a recording says about its network's units, in one sentence that carries its evidence."""

from __future__ import annotations

import torch

from relume.census import Census, SiteCensus, never_fired_bound, percent
from relume.report.diagnosed import Diagnosed, diagnosed
from relume.report.groups import deaths, grave
from relume.report.words import cause
from relume.watch import Recording

# Up to this share of dead units a network without any other finding is called ordinary.
FEW = 0.1


def verdict(recording: Recording, known: Diagnosed | None = None) -> str:
    """How many units are dead, where, since when and why; on how many inputs, how sure that is; and what is unsure.

    The first sentence is the verdict, what follows is its evidence.

    Args:
        recording: a live watch or a loaded run.
        known: its findings, where they are known already; default: diagnosed now.

    Raises:
        EmptyCensusError: nothing has been recorded.
    """
    return " ".join(sentences(recording, known))


def sentences(recording: Recording, known: Diagnosed | None = None) -> list[str]:
    """The verdict first, then its evidence and what keeps it from being the whole story."""
    known = known or diagnosed(recording)
    census = recording.census(phase=recording.main_phase)
    mortal = [m for m in census.sites if m.reached and m.site.can_die]
    dead = [m for m in mortal if bool(m.dead.any())]
    doubts = _doubts(census)
    # Nothing is said to be well that could not be looked at.
    sound = known.sound and not doubts and not census.notes and (known.findings or not dead) and bool(mortal)
    few = census.dead_fraction <= FEW
    span = "" if census.last_step is None else f" (steps {census.first_step:,}–{census.last_step:,})"
    if not census.sites:
        return ["No activation was seen, so there is nothing to count."]
    if not mortal:
        head = [f"No unit can die: none of the {_sites(len(census))} seen has a flat zone."]
    elif dead:
        most = max(dead, key=lambda m: (int(m.dead.sum()) / m.units, m.units))
        head = [
            f"{census.dead:,} of {census.units:,} units are dead ({percent(census.dead_fraction)}), "
            f"{_where(most, dead)}{', and so few are ordinary' if sound and few else ''}; {_when(recording, dead)}"
            f"{_why(census.dead, known)}.",
            f"In the last window{span} a dead unit fired on none of {_inputs(dead)} inputs, so it fires on fewer than "
            f"1 in {_one_in(min(m.inputs for m in dead))} new ones (95\u00a0% confidence).",
        ]
    else:
        judged = sum(m.units - int(m.unknown.sum()) for m in mortal)
        head = [
            f"No unit is dead: all {judged:,} that could be judged fired in the last window{span}, on "
            f"{census.inputs:,} inputs, in {_sites(len(mortal))}."
            if judged
            else "No unit could be judged yet."
        ]
    worst = grave(known.findings)
    if worst and not deaths(worst[:1]) and worst[0].code != "silent-site":
        head.insert(0, worst[0].sentence)  # what is the matter is not that units died
    if sound:
        head[0] = f"Nothing {'' if few else 'grave '}is the matter: {head[0][0].lower()}{head[0][1:]}"
    return [*head, *doubts]


def _why(dead: int, known: Diagnosed) -> str:
    """What killed the units, by the gravest finding: "; 75 of them were killed by large steps"."""
    found = deaths(grave(known.findings))
    if not found:
        return ""
    n = sum(len(f.units) for f in deaths(known.findings) if f.code == found[0].code)
    words = cause(found[0].code)
    if not words.deed:
        return "; what killed them can't be told" if n >= dead else f"; what killed {n:,} of them can't be told"
    who = "all" if n >= dead > 1 else "it" if dead == 1 else f"{n:,} of them"
    return f"; {who} {'was' if n == 1 else 'were'} {words.deed}"


def _sites(n: int) -> str:
    return "1 site" if n == 1 else f"{n} sites"


def _inputs(sites: list[SiteCensus]) -> str:
    fewest, most = min(m.inputs for m in sites), max(m.inputs for m in sites)
    return f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"


def _where(most: SiteCensus, dead: list[SiteCensus]) -> str:
    silent = [m for m in dead if m.silent]
    if silent:
        cut = "where the signal is cut" if len(silent) == 1 else "so the signal is cut"
        return f"among them all of {_named([m.name for m in silent])}, {cut}"
    share = "all" if len(dead) == 1 else "most"
    return f"{share} in site {most.name} ({int(most.dead.sum())} of {most.units})"


def _when(recording: Recording, dead: list[SiteCensus]) -> str:
    """ "12 were born dead, 40 died between steps 3 and 88"."""
    born, died = 0, []
    for member in dead:
        timeline = recording.timeline(member.name)
        steps = timeline.died_at[member.dead & timeline.dead]
        born += int((steps < 0).sum())
        died.append(steps[steps >= 0])
    steps = torch.cat(died)
    parts = [f"{born:,} {'was' if born == 1 else 'were'} born dead"] if born else []
    if len(steps):
        first, last = int(steps.min()), int(steps.max())
        at = f"at step {first:,}" if first == last else f"between steps {first:,} and {last:,}"
        parts.append(f"{len(steps):,} died {at}")
    return ", ".join(parts) or "when they died was not seen"


def _one_in(inputs: int) -> str:
    return f"{int(1 / never_fired_bound(inputs)):,}"


def _doubts(census: Census) -> list[str]:
    """What keeps the verdict from being the whole story."""
    doubts = []
    nonfinite = [m.name for m in census.sites if bool((m.nonfinite > 0).any())]
    if nonfinite:
        doubts.append(f"NaN or infinite pre-activations were seen in {_named(nonfinite)}: the training has diverged.")
    unknown = [m for m in census.sites if m.reached and bool(m.unknown.any())]
    if unknown:
        n = sum(int(m.unknown.sum()) for m in unknown)
        fewest = min(m.inputs for m in unknown)
        doubts.append(
            f"{n:,} units that did not fire could not be judged: {fewest:,} inputs seen, "
            f"{unknown[0].min_inputs:,} needed."
        )
    unreached = [m.name for m in census.sites if not m.reached]
    if unreached:
        doubts.append(f"Not reached in this window: {_named(unreached)}.")
    return doubts


def _named(names: list[str]) -> str:
    """ "site a", "sites a and b", "sites a, b, c and 4 more"."""
    if len(names) == 1:
        return f"site {names[0]}"
    shown = names if len(names) <= 3 else [*names[:3], f"{len(names) - 3} more"]
    return f"sites {', '.join(shown[:-1])} and {shown[-1]}"
