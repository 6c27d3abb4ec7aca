"""A certificate as a table for the terminal, at most 80 columns wide: one row per site."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from relume.census.table import WIDTH, cut, percent

if TYPE_CHECKING:
    from relume.prove.certify.certificate import Certificate, SiteCertificate

_COLUMNS = ("units", "dead", "linear", "open", "fires", "from", "to")
_NAME = 24


def table(certificate: Certificate) -> Table:
    """Units certified dead and linear, open ones, and of those the ones seen to fire; least and largest bound."""
    share = certificate.dead / certificate.units if certificate.units else 0.0
    result = Table(
        title=Text(
            f"{certificate.dead} of {certificate.units} units certified dead ({percent(share)}) · {certificate.method}",
            style="bold",
        ),
        title_justify="left",
        caption=Text(_foot(certificate), style="dim"),
        caption_justify="left",
        box=None,
        pad_edge=False,
        width=WIDTH,
        header_style="dim",
    )
    result.add_column("site", overflow="ellipsis", no_wrap=True, ratio=1)
    result.add_column("activation", overflow="ellipsis", no_wrap=True, max_width=12)
    for name in _COLUMNS:
        result.add_column(name, justify="right", no_wrap=True)
    for site in certificate.sites:
        dead = int(site.dead.sum())
        result.add_row(
            Text(cut(site.name, _NAME)),
            Text(site.site.activation),
            str(site.units),
            Text(str(dead), style="red" if dead else ""),
            str(int(site.linear.sum())),
            str(int(site.open.sum())),
            str(int(site.fires.sum())),
            *_ends(site),
        )
    return result


def _ends(site: SiteCertificate) -> tuple[str, str]:
    if not site.units:
        return "", ""
    return f"{float(site.lower.min()):.3g}", f"{float(site.upper.max()):.3g}"


def _foot(certificate: Certificate) -> str:
    span = f"[{float(certificate.lower.min()):.4g}, {float(certificate.upper.max()):.4g}]"
    return (
        f"For every input of shape {tuple(certificate.lower.shape)} in the box, within {span}. “open”: not "
        f"decided; “fires”: "
        "an input was found that makes the unit fire"
    )
