"""Gradients that vanish or explode on their way through the producers, and trainings that have diverged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from relume.census import Census
from relume.diagnose.below import Flow
from relume.diagnose.finding import Finding, Severity
from relume.diagnose.record import Record
from relume.diagnose.remedies import network_remedies
from relume.diagnose.steps import StepRow
from relume.diagnose.trace import Trace
from relume.diagnose.wording import gradient_sentence

# Gradient at the layer nearest to the input, divided by the largest of any layer: per weight, and as a signal.
VANISHED, EXPLODED = 1e-3, 1e3
LAYERS = 3
# The first observed steps tell how a training began, before units died.
EARLY = 5
SIGNAL = "size of the signal"


def gradient_findings(record: Record, census: Census, flow: Flow, findings: Sequence[Finding]) -> Iterable[Finding]:
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
        # A step that was skipped (GradScaler) changed nothing, whatever its gradient was.
        if name in row.gradient and not math.isfinite(value) and row.update.get(name) != 0
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
            "certainty": 1.0,
            "certainty_basis": "counted: numbers that are not finite",
        }
        yield _about("exploding-gradient", "error", (step, max(step, end)), evidence)
        return
    sizes = {name: _size(record.traces[name]) for name in flow.sites if name in record.traces}
    sizes = {name: size for name, size in sizes.items() if math.isfinite(size) and size > 0}
    early = rows[:EARLY] if rows and rows[0].step == _first_step(record) else []
    silent = any(site.silent for site in census.values())
    grave = any(f.severity == "error" and f.code != "saturation" for f in findings)
    span = (rows[0].step, rows[-1].step) if rows else (0, 0)
    measured = [
        ("gradient per weight", _relative(rows, names), _relative(early, names)),
        ("gradient as a signal", _signal(record, flow, rows, names), _signal(record, flow, early, names)),
    ]
    measured = [(measure, values, first) for measure, values, first in measured if len(values) >= LAYERS]
    lr: dict[str, float | str] = {"lr": _lr(record, names)}
    # How it began comes first: weights that were thrown later make gradients explode or vanish as well.
    signal = [first for measure, _, first in measured if measure.endswith("signal") and len(first) >= LAYERS]
    if signal and _exploded(signal[0]) and not silent:
        yield _about("exploding-gradient", "error", span, _evidence(signal[0], "gradient as a signal") | lr)
        return
    if len(sizes) >= LAYERS and list(sizes.values())[-1] > EXPLODED * next(iter(sizes.values())) and not silent:
        # What the same weights do to the gradient on its way back.
        yield _about("exploding-gradient", "error", span, _evidence(sizes, SIGNAL) | lr)
        return
    narrow = any(f.code == "deep-narrow" for f in findings)
    for measure, values, first in measured:
        began = len(first) >= LAYERS and _vanished(first) and not narrow
        if _vanished(values) and ((not silent and not grave) or began):
            yield _about("vanishing-gradient", "warning", span, _evidence(values, measure))
            return
        if _exploded(values) and not silent and not grave:
            yield _about("exploding-gradient", "warning", span, _evidence(values, measure) | lr)
            return


def _exploded(values: Mapping[str, float]) -> bool:
    return next(iter(values.values())) > EXPLODED * list(values.values())[-1]


def _vanished(values: Mapping[str, float]) -> bool:
    return 0 < next(iter(values.values())) < VANISHED * max(values.values())


def _evidence(values: Mapping[str, float], measure: str) -> dict[str, float | str]:
    first, last = next(iter(values)), list(values)[-1]
    return {
        "measure": measure,
        "first_layer": first,
        "last_layer": last,
        "gradient_per_weight_first": values[first],
        "gradient_per_weight_last": values[last],
        "ratio": values[first] / values[last] if values[last] > 0 else math.nan,
        "layers": len(values),
        "certainty": 1.0,
        "certainty_basis": f"measured at {len(values)} places",
    }


def _first_step(record: Record) -> int:
    return min((trace.first[0] for trace in record.traces.values() if trace.first is not None), default=0)


def _about(code: str, severity: Severity, steps: tuple[int, int], evidence: dict[str, float | str]) -> Finding:
    return Finding(code, severity, "", (), steps, evidence, gradient_sentence(code, evidence), network_remedies(code))


def _relative(rows: Sequence[StepRow], names: Sequence[str]) -> dict[str, float]:
    """Of each layer the middle of the norms of its gradient, each divided by its weight's."""
    found = {}
    for name in names:
        values = [
            row.gradient[name] / row.weight[name] for row in rows if name in row.gradient and row.weight[name] > 0
        ]
        if values and math.isfinite(middle := sorted(values)[len(values) // 2]):
            found[name] = middle
    return found


def _signal(record: Record, flow: Flow, rows: Sequence[StepRow], names: Sequence[str]) -> dict[str, float]:
    """Of each layer fed by a site, the gradient at what it gives out: its weight's, divided by the size of its input.

    In a network of ReLUs the gradient per weight, times the weight squared, is alike in all layers, however much the
    signal grows or fades between them (Du, Hu and Lee 2018, arXiv 1806.00900); the gradient at the outputs is not.
    """
    found = {}
    for name in names:
        fed = [record.traces[s] for s in flow.read_by(name) if s in record.traces]
        sizes = [_size(trace) for trace in fed]
        values = sorted(row.gradient[name] for row in rows if name in row.gradient)
        if sizes and values and min(sizes) > 0 and math.isfinite(values[len(values) // 2]):
            found[name] = values[len(values) // 2] / sum(sizes)
    return found


def _size(trace: Trace) -> float:
    """Norm of a site's output in the first row: of what a ReLU lets through where it has a flat zone."""
    if trace.first is None:
        return math.nan
    mean, std, high = (trace.first[1][i].double() for i in range(3))
    square = mean.square() + std.square()
    if trace.site.can_die:
        square = torch.where(high > 0, square / 2, 0.0)
    return float(square.nan_to_num(nan=0.0, posinf=0.0).sum().sqrt())


def _lr(record: Record, names: Sequence[str]) -> float:
    known = [own.lr for name in names if (own := record.steps.settings(name)) is not None]
    return max(known, default=math.nan)
