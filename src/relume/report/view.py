"""What a report shows, as plain numbers: computed here, drawn in `charts.py`, laid out by the template.

Long runs are thinned: at most `COLUMNS` windows are drawn, evenly spread, first and last included, and the page
says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relume.census import Census, Phase, SiteCensus, Timeline
from relume.report.diagnosed import Diagnosed, diagnosed
from relume.report.findings_view import FindingsView, findings_view
from relume.report.looks import LOOKS, UNREACHED, codes
from relume.report.treatment import TreatmentView, dead_through, treatment_view
from relume.report.verdict import sentences
from relume.watch import Recording, Window

COLUMNS = 120


@dataclass(frozen=True)
class DeadUnit:
    """One row of a site's table of dead units."""

    unit: int
    history: str
    last_fired: int
    highest: float


@dataclass(frozen=True)
class SiteView:
    """One site over the whole run.

    Attributes:
        census: in the window that the report is about.
        timeline: births, deaths, revivals.
        first_step: of the run.
        steps: [columns] last step of each drawn window.
        codes: uint8 [columns, units], indices into LOOKS.
        dead: [columns] dead units, None where the site was not reached.
        deaths: (step, how many died there), units dead at the end only.
    """

    census: SiteCensus
    timeline: Timeline
    first_step: int
    steps: list[int]
    codes: Tensor
    dead: list[int | None]
    deaths: list[tuple[int, int]]

    @property
    def name(self) -> str:
        return self.census.name

    @property
    def n_dead(self) -> int:
        return int(self.census.dead.sum())

    @property
    def n_born_dead(self) -> int:
        return int((self.timeline.born_dead & self.census.dead & (self.timeline.died_at < 0)).sum())

    @property
    def n_revived(self) -> int:
        return int((self.timeline.revived_at >= 0).sum())

    def order(self) -> Tensor:
        """Units so that like lies beside like: by state at the end, then by when they last fired."""
        last = self.codes[-1].long() if len(self.codes) else torch.zeros(self.census.units, dtype=torch.int64)
        rank = torch.tensor([*(_FROM_BELOW.index(look.key) for look in LOOKS), len(LOOKS)])[last]  # unreached: on top
        key = rank * (int(self.timeline.last_fired.max()) + 2) + (self.timeline.last_fired + 1)
        return torch.argsort(key, stable=True)

    def dead_units(self, at_most: int) -> list[DeadUnit]:
        """The first dead units, with their histories."""
        return [
            DeadUnit(
                u,
                self.timeline.describe(u),
                int(self.timeline.last_fired[u]),
                float(self.census.max[u]),
            )
            for u in self.census.dead.nonzero().flatten().tolist()[:at_most]
        ]


# Dark below, lit above: dead first, then what is unwell, then what fires.
_FROM_BELOW = ("dead", "stuck", "nonfinite", "unknown", "saturated", "rare", "alive", "linear")


@dataclass(frozen=True)
class RunView:
    """One recording as the report shows it.

    Attributes:
        label: what the page calls it.
        verdict: its sentences.
        findings: what is the matter, and why.
        census: of its latest complete window.
        drawn, windows: how many windows are drawn, of how many.
        scalars: by name, (step, value) in order.
        settings: name and value, for the table at the end.
        treatment: what a guard did, or None.
    """

    label: str
    phase: Phase
    verdict: list[str]
    findings: FindingsView
    census: Census
    sites: list[SiteView]
    drawn: int
    windows: int
    steps: int
    scalars: dict[str, list[tuple[int, float]]]
    settings: list[tuple[str, str]]
    treatment: TreatmentView | None

    @property
    def last_scalars(self) -> list[tuple[str, float]]:
        return [(name, points[-1][1]) for name, points in self.scalars.items()]


def view(recording: Recording, label: str, run: int = 0, known: Diagnosed | None = None) -> RunView:
    """Gather everything that the page says of one recording.

    Args:
        recording: a live watch or a loaded run.
        label: what the page calls it.
        run: its number on the page.
        known: its findings; default: diagnosed now.

    Raises:
        EmptyCensusError: nothing has been recorded.
    """
    known = known or diagnosed(recording)
    phase = recording.main_phase
    census = recording.census(phase=phase)
    windows = [w for w in recording.windows if phase in w.counts]
    drawn = thinned(windows, COLUMNS)
    through = _Through(recording, drawn, phase)
    sites = []
    for member in census.sites:
        timeline = recording.timeline(member.name)
        died = timeline.died_at[member.dead & (timeline.died_at >= 0)]
        steps, numbers = torch.unique(died, return_counts=True)
        sites.append(
            SiteView(
                census=member,
                timeline=timeline,
                first_step=windows[0].first_step,
                steps=[w.last_step for w in drawn],
                codes=through.codes[member.name],
                dead=through.dead[member.name],
                deaths=list(zip(steps.tolist(), numbers.tolist(), strict=True)),
            )
        )
    scalars: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in recording.scalars:
        if math.isfinite(value):
            scalars.setdefault(name, []).append((step, value))
    return RunView(
        label=label,
        phase=phase,
        verdict=sentences(recording, known),
        findings=findings_view(recording, known, run),
        census=census,
        sites=sites,
        drawn=len(drawn),
        windows=len(windows),
        steps=windows[-1].last_step + 1,
        scalars=scalars,
        settings=_settings(recording, windows),
        treatment=treatment_view(
            recording,
            [w.last_step for w in drawn],
            dead_through([site.dead for site in sites]),
            sum(site.census.units for site in sites),
        ),
    )


class _Through:
    """Each site's states in all drawn windows, read a batch of windows at a time."""

    def __init__(self, recording: Recording, drawn: list[Window], phase: Phase) -> None:
        self.codes = {s.name: torch.full((len(drawn), s.units), UNREACHED, dtype=torch.uint8) for s in recording.sites}
        self.dead: dict[str, list[int | None]] = {s.name: [None] * len(drawn) for s in recording.sites}
        done = 0
        for windows, several in recording.spans(drawn, phase):
            for site in recording.sites:
                for places, counts in several.get(site.name, ()):
                    members = SiteCensus(site, counts, recording.min_inputs)
                    # By numpy: torch starts its threads for it.
                    self.codes[site.name].numpy()[[done + i for i in places]] = codes(members).numpy()
                    tally = zip(places, members.dead.sum(-1).tolist(), members.reached_in, strict=True)
                    for i, dead, reached in tally:
                        self.dead[site.name][done + i] = dead if reached else None
            done += len(windows)


def thinned(windows: list[Window], at_most: int) -> list[Window]:
    """At most so many, evenly spread, the first and the last among them."""
    n = len(windows)
    if n <= at_most:
        return windows
    return [windows[round(i * (n - 1) / (at_most - 1))] for i in range(at_most)]


def _settings(recording: Recording, windows: list[Window]) -> list[tuple[str, str]]:
    about = recording.about
    rows = [(k, about.get(k)) for k in ("model", "parameters", "optimizer", "every", "window", "min_inputs", "status")]
    named = [(k.replace("_", " "), f"{v:,}" if isinstance(v, int) else str(v)) for k, v in rows if v not in (None, "")]
    for i, group in enumerate(windows[-1].settings.get("groups", ())):
        shown = {k: v for k, v in group.items() if k in _SHOWN and v is not None}
        words = ", ".join(f"{k} {v:g}" if isinstance(v, int | float) else f"{k} {v}" for k, v in shown.items())
        named.append((f"parameter group {i}", words))
    named.append(("versions", f"relume {about.get('relume', '?')}, torch {about.get('torch', '?')}"))
    return named


_SHOWN = ("lr", "momentum", "betas", "weight_decay", "nesterov")
