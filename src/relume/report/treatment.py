"""What a guard did, for the report: each act with what came of it, and the acts over the course of dead units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from relume.report.charts import BOTTOM, HEIGHT, TOP, Frame, svg, top_of
from relume.report.numbers import number
from relume.watch import Recording

_OUTCOMES = {
    "kept": ("kept", "good"),
    "undone": ("undone: the loss rose", "warn"),
    "failed": ("could not be done", "warn"),
    "pending": ("not judged: the run ended", "soft"),
    "would": ("would have been done", "soft"),
}


@dataclass(frozen=True)
class ActRow:
    """One act as a row of the table; `mark` is the class of its mark in the drawing."""

    step: int
    what: str
    code: str
    site: str
    outcome: str
    mark: str
    loss: str
    alive: str
    note: str


@dataclass(frozen=True)
class TreatmentView:
    """All acts of a run; `policy` is the guard's."""

    policy: str
    rows: list[ActRow]
    drawing: Markup


def treatment_view(
    recording: Recording, steps: Sequence[int], dead: Sequence[int | None], units: int
) -> TreatmentView | None:
    """What a guard did in a run; None where there was none.

    Args:
        recording: of the run.
        steps: last step of each window that is drawn.
        dead: dead units of all sites in it; None where that is not known.
        units: of all sites.
    """
    policy = recording.about.get("policy")
    if policy is None:
        return None
    rows = [_row(act) for act in recording.about.get("acts", [])]
    return TreatmentView(str(policy), rows, _drawing(rows, steps, dead, units))


def _row(act: Mapping[str, Any]) -> ActRow:
    outcome, mark = _OUTCOMES.get(act["outcome"], (act["outcome"], "soft"))
    before, after = act["loss_before"], act["loss_after"]
    treated = sum(map(len, act["units"].values()))
    code, site = act["why"]
    return ActRow(
        step=act["step"],
        what=act["what"],
        code=code,
        site=site,
        outcome=outcome,
        mark=mark,
        loss=f"{number(before)} → {number(after)}" if before is not None and after is not None else "–",
        alive=f"{act['alive']} of {treated}" if act["alive"] is not None and treated else "–",
        note=act["note"],
    )


def _drawing(rows: Sequence[ActRow], steps: Sequence[int], dead: Sequence[int | None], units: int) -> Markup:
    known = [(s, d) for s, d in zip(steps, dead, strict=True) if d is not None]
    if not known or not rows:
        return Markup("")
    last = max(steps)
    frame = Frame((0, max(last, 1)), (0, top_of(0, units)))
    line = "L".join(f"{frame.px(s):g} {frame.py(d):g}" for s, d in known)
    body = [frame.y_axis(), frame.x_axis("steps"), f'<path class="line l0" d="M{line}"/>']
    for row in rows:
        x = frame.px(row.step)
        body.append(
            f'<path class="act {row.mark}" d="M{x:g} {TOP}V{HEIGHT - BOTTOM}">'
            f"<title>step {row.step}: {escape(row.what)}, {escape(row.outcome)}</title></path>"
        )
    kept = sum(row.mark == "good" for row in rows)
    return svg(
        "chart", (320, HEIGHT), f"dead units over steps, with {len(rows)} acts, {kept} of them kept", "".join(body)
    )


def dead_through(sites: Sequence[Sequence[int | None]]) -> list[int | None]:
    """Dead units of all sites in each window; None where no site tells."""
    total: list[int | None] = []
    for column in zip(*sites, strict=True):
        told = [d for d in column if d is not None and not math.isnan(d)]
        total.append(sum(told) if told else None)
    return total
