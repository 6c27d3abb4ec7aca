"""Gradients that vanish or explode on their way through the producers, and trainings that have diverged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from relume.census import Census
from relume.diagnose.finding import Finding
from relume.diagnose.record import Record
from relume.diagnose.remedies import REMEDIES
from relume.diagnose.wording import gradient_sentence

# Gradient per weight at the layer nearest to the input, divided by the largest of any layer.
VANISHED, EXPLODED = 1e-3, 1e3
LAYERS = 3


def gradient_findings(record: Record, census: Census, findings: Sequence[Finding]) -> Iterable[Finding]:
    """At most one finding about the whole network.

    A site that is silent lets no gradient through, which is said there and not once more here.
    """
    rows = list(record.steps.rows)
    names = list(dict.fromkeys(name for row in rows for name in row.gradient))
    series = {name: record.steps.numbers(name, "gradient") for name in names}
    diverged = [name for name, site in census.items() if bool(site.diverged.any())]
    infinite = [
        (step, name)
        for name, (steps, values) in series.items()
        for step, value, row in zip(steps, values, rows, strict=True)
        if name in row.gradient and not math.isfinite(value)
    ]
    if diverged or infinite:
        end = max((trace.series().steps[-1] for trace in record.traces.values()), default=0)
        step = min([s for s, _ in infinite], default=end)
        finite = [v for _, values in series.values() for v in values if math.isfinite(v)]
        evidence: dict[str, float | str] = {
            "first_step": step,
            "largest_finite_gradient": max(finite, default=math.nan),
            "first_gradient": next(iter(finite), math.nan),
            "sites_not_finite": len(diverged),
            "lr": _lr(record, names),
        }
        yield _about("exploding-gradient", "error", (step, max(step, end)), evidence)
        return
    ratios = {name: _relative(record, name) for name in names}
    known = {name: value for name, value in ratios.items() if math.isfinite(value)}
    if len(known) < LAYERS:
        return
    first, last = next(iter(known)), list(known)[-1]
    evidence = {
        "first_layer": first,
        "last_layer": last,
        "gradient_per_weight_first": known[first],
        "gradient_per_weight_last": known[last],
        "layers": len(known),
    }
    silent = any(site.silent for site in census.values())
    grave = any(f.severity == "error" and f.code != "saturation" for f in findings)
    if known[first] < VANISHED * max(known.values()) and not silent and not grave:
        yield _about("vanishing-gradient", "warning", (rows[0].step, rows[-1].step), evidence)
    elif known[first] > EXPLODED * known[last] and not silent:
        yield _about("exploding-gradient", "warning", (rows[0].step, rows[-1].step), evidence)


def _about(code: str, severity: str, steps: tuple[int, int], evidence: dict[str, float | str]) -> Finding:
    grave = "error" if severity == "error" else "warning"
    return Finding(code, grave, "", (), steps, evidence, gradient_sentence(code, evidence), REMEDIES[code])  # type: ignore[arg-type]


def _relative(record: Record, name: str) -> float:
    """The middle of the norms of the gradient, each divided by the weight's."""
    values = [
        float(row.gradient[name]) / float(row.weight[name])
        for row in record.steps.rows
        if name in row.gradient and float(row.weight[name]) > 0
    ]
    return sorted(values)[len(values) // 2] if values else math.nan


def _lr(record: Record, names: Sequence[str]) -> float:
    known = [own.lr for name in names if (own := record.steps.settings(name)) is not None]
    return max(known, default=math.nan)
