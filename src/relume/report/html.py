"""`write_html`: one self-contained page per recording, with a second run beside it if wanted. No script, no network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

import relume._version as version
from relume.census import never_fired_bound, percent
from relume.diagnose.finding import Finding
from relume.report import charts
from relume.report.diagnosed import diagnosed
from relume.report.findings_view import LISTED, site_anchor
from relume.report.looks import LOOKS
from relume.report.numbers import number, share
from relume.report.view import RunView, SiteView, view
from relume.report.words import replayed
from relume.watch import Recording

# Bytes that the strips of a page may take together, and the rows of one table of dead units.
_STRIPS_BUDGET = 400_000
_TABLE_ROWS = 8


def write_html(
    recording: Recording,
    path: str | Path,
    *,
    title: str | None = None,
    label: str = "this run",
    beside: Sequence[tuple[str, Recording]] = (),
    findings: Sequence[Finding] | None = None,
) -> Path:
    """Write the report of a recording as one HTML file that needs nothing else.

    Args:
        recording: a live watch or a loaded run.
        path: of the file; its folder is made. An existing file is replaced as a whole.
        title: of the page; default: the model's name.
        label: what the page calls this run when others stand beside it.
        beside: (label, recording) of further runs to compare with.
        findings: of the recording, where they are known already; default: diagnosed now.

    Returns:
        The path written.

    Raises:
        EmptyCensusError: nothing has been recorded.
        OSError: the file can't be written.
    """
    path = Path(path)
    page = render(recording, title=title, label=label, beside=beside, findings=findings)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and moved over, so that a reader or a full disk never leaves half a page.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def render(
    recording: Recording,
    *,
    title: str | None = None,
    label: str = "this run",
    beside: Sequence[tuple[str, Recording]] = (),
    findings: Sequence[Finding] | None = None,
) -> str:
    """The page as text; see `write_html`."""
    first = view(recording, label, 0, diagnosed(recording, findings))
    runs = [first, *(view(r, name, i) for i, (name, r) in enumerate(beside, 1))]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("relume.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(percent=percent, number=number, share=share, thousands=lambda n: f"{n:,}")
    n_sites = sum(len(run.sites) for run in runs)
    budget = max(600, _STRIPS_BUDGET // max(n_sites, 1))
    used = {look.key for run in runs for site in run.sites for look in _looks_of(site)}
    return environment.get_template("page.html.j2").render(
        title=title or f"{runs[0].census.model or 'Model'}: units over time",
        runs=runs,
        looks=LOOKS,
        legend=[look for look in LOOKS if look.key in used],
        curves=_curves(runs),
        draw=lambda site: _drawings(site, budget),
        bound=lambda inputs: f"{never_fired_bound(inputs):.2g}",
        table_rows=_TABLE_ROWS,
        listed=LISTED,
        replayed=replayed,
        anchor=site_anchor,
        version=version.__version__,
    )


def _looks_of(site: SiteView) -> list[Any]:
    return [LOOKS[i] for i in site.codes.unique().tolist() if i < len(LOOKS)]


def _curves(runs: list[RunView]) -> list[tuple[str, Any]]:
    """One drawing per logged name, all runs in it."""
    names = dict.fromkeys(name for run in runs for name in run.scalars)
    return [
        (
            name,
            charts.lines(
                [(run.label, run.scalars[name]) for run in runs if name in run.scalars],
                f"{name}: " + "; ".join(f"{r.label} {r.scalars[name][-1][1]:.3g}" for r in runs if name in r.scalars),
                "steps",
            ),
        )
        for name in names
    ]


def _drawings(site: SiteView, budget: int) -> dict[str, Any]:
    census = site.census
    strip, shown = charts.strip(
        site.codes,
        site.order(),
        f"{site.name}: {census.units} units over {len(site.steps)} windows, {site.n_dead} dead at the end",
        budget,
    )
    return {
        "strip": strip,
        "shown": shown,
        "histogram": charts.firing_histogram(
            census.firing_rate,
            f"{site.name}: {int((census.fired == 0).sum())} of {census.units} units fire on no input",
        ),
        "deaths": charts.deaths(
            site.steps,
            site.dead,
            site.deaths,
            census.units,
            f"{site.name}: dead units over steps, {site.n_dead} at the end",
        ),
        "ranges": charts.ranges(
            census.min, census.mean, census.max, census.site.zones.flat, f"{site.name}: pre-activation of each unit"
        ),
    }
