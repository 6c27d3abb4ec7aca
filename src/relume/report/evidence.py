"""Evidence of findings in plain words: what each number is called, and which matter most for a cause.

Numbers that belong together are one row, such as the highest pre-activation before and after a fall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relume.diagnose.finding import Finding
from relume.report.numbers import number, share


@dataclass(frozen=True)
class Row:
    """One line of evidence.

    Attributes:
        name: what it is, in plain words.
        value: with its unit.
        keys: of the evidence that it tells of.
    """

    name: str
    value: str
    keys: tuple[str, ...]


#: What a unit's mean was moved by, by the name of the part in the evidence.
PARTS: Mapping[str, str] = {
    "by_bias": "its bias",
    "by_weights": "its weights",
    "by_upstream": "what comes in",
    "by_statistics": "the normalization's statistics",
    "by_gamma": "the normalization's scale γ",
    "by_beta": "the normalization's shift β",
    "by_remainder": "the rest",
}

# Parts below this share of the largest one are not worth a word.
_NEGLIGIBLE = 0.005


def rows(finding: Finding) -> list[Row]:
    """All the evidence of a finding; what is not known is left out.

    Numbers of a finding about several units are medians over them.
    """
    evidence = finding.evidence
    made = [row for make in _ROWS if (row := make(evidence)) is not None]
    told = {key for row in made for key in row.keys} | _TOLD_ELSEWHERE
    further = [
        Row(key.replace("_", " "), value, (key,))
        for key, raw in evidence.items()
        if key not in told and (value := _plain(raw)) is not None
    ]
    return [*made, *further]


def key_rows(finding: Finding) -> list[Row]:
    """The few that matter most for its cause, most telling first."""
    wanted = _TELLING.get(finding.code, ())
    by_key = {key: row for row in rows(finding) for key in row.keys}
    return list(dict.fromkeys(by_key[key] for key in wanted if key in by_key))


def parts(evidence: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What moved the mean, with the name of each part, in the order of `PARTS`; empty where it is not known."""
    known = [(name, _get(evidence, key)) for key, name in PARTS.items()]
    largest = max((abs(v) for _, v in known if not math.isnan(v)), default=0.0)
    return [(name, v) for name, v in known if not math.isnan(v) and abs(v) > _NEGLIGIBLE * largest]


def _get(evidence: Mapping[str, Any], key: str) -> float:
    value = evidence.get(key, math.nan)
    return float(value) if isinstance(value, int | float) else math.nan


def _plain(raw: Any) -> str | None:
    if isinstance(raw, bool):
        return "yes" if raw else "no"
    if isinstance(raw, int | float):
        return None if math.isnan(raw) else number(raw)
    return str(raw) or None


_Maker = Callable[[Mapping[str, Any]], Row | None]


def _one(key: str, name: str, unit: str = "", *, as_share: bool = False) -> _Maker:
    def make(evidence: Mapping[str, Any]) -> Row | None:
        value = evidence.get(key)
        if isinstance(value, str):
            return Row(name, value, (key,)) if value else None
        if value is None or math.isnan(value):
            return None
        text = share(value) if as_share else number(value)
        return Row(name, f"{text} {unit}".rstrip(), (key,))

    return make


def _two(keys: tuple[str, str], name: str, words: str, alone: str = "{}", *, as_share: bool = False) -> _Maker:
    """Two numbers in one row; `words` takes both, `alone` the first where the second is unknown or says no more."""
    text = share if as_share else number

    def make(evidence: Mapping[str, Any]) -> Row | None:
        a, b = (_get(evidence, key) for key in keys)
        if math.isnan(a):
            return None
        same = math.isnan(b) or text(a) == text(b)
        return Row(name, (alone if same else words).format(text(a), text(b)), keys)

    return make


def _parts_row(evidence: Mapping[str, Any]) -> Row | None:
    known = parts(evidence)
    if not known:
        return None
    value = ", ".join(f"{name} {'+' if v > 0 else ''}{number(v)}" for name, v in sorted(known, key=lambda p: p[1]))
    return Row("mean pre-activation moved by", value, tuple(PARTS))


def _fall_row(evidence: Mapping[str, Any]) -> Row | None:
    fall, steps = _get(evidence, "mean_fall"), _get(evidence, "steps")
    if math.isnan(fall):
        return None
    what = f"fell by {number(fall)}" if fall >= 0 else f"rose by {number(-fall)}"
    over = "" if math.isnan(steps) else " in 1 step" if steps == 1 else f" over {number(steps)} steps"
    return Row("mean pre-activation", what + over, ("mean_fall", "steps"))


def _decay_row(evidence: Mapping[str, Any]) -> Row | None:
    decay, shrink = _get(evidence, "weight_decay"), _get(evidence, "decay_shrink")
    keys = ("weight_decay", "decay_shrink")
    if math.isnan(decay):
        return None
    if not decay:
        return Row("weight decay", "none", keys)
    by = "" if math.isnan(shrink) else f": alone it shrinks the weights by {share(shrink)} over the fall"
    return Row("weight decay", f"{number(decay)}{by}", keys)


def _largest_row(evidence: Mapping[str, Any]) -> Row | None:
    # The largest step of the whole fall, where that was not among its last steps.
    largest, last = _get(evidence, "largest_update_ratio"), _get(evidence, "update_ratio")
    if math.isnan(largest) or share(largest) == share(last):
        return None
    return Row("largest step of the fall", f"{share(largest)} of the weights' norm", ("largest_update_ratio",))


def _sudden_row(evidence: Mapping[str, Any]) -> Row | None:
    part, steep = _get(evidence, "suddenness"), _get(evidence, "steepness")
    if math.isnan(part):
        return None
    depth = "" if not math.isfinite(steep) else f"; at most {number(steep)} standard deviations at once"
    return Row("of the fall, in the last steps", f"{share(max(part, 0.0))}{depth}", ("suddenness", "steepness"))


def _below_row(evidence: Mapping[str, Any]) -> Row | None:
    update, layer = _get(evidence, "update_ratio_below"), evidence.get("layer_below") or "the layers below"
    if math.isnan(update):
        return None
    return Row("largest step below", f"{share(update)} of the norm of {layer}", ("update_ratio_below", "layer_below"))


def _sure_row(evidence: Mapping[str, Any]) -> Row | None:
    sure, basis = _get(evidence, "certainty"), evidence.get("certainty_basis")
    if math.isnan(sure):
        return None
    why = f" ({basis})" if basis and basis != "none" else ""
    return Row("how sure", f"{share(sure)}{why}", ("certainty", "certainty_basis"))


_ROWS: tuple[_Maker, ...] = (
    _one("causes", "dead units by cause"),
    _one("silent_above", "silent above it as well"),
    _one("gradient_of_first_layer", "gradient norm of the first layer"),
    _one("died_at", "died at step"),
    _two(("max_before", "max_after"), "highest pre-activation", "{} before, {} after"),
    _fall_row,
    _parts_row,
    _sudden_row,
    _two(("std_before", "std_after"), "spread (standard deviation)", "{} before, {} after"),
    _one("spread_left", "spread left", as_share=True),
    _one("site_spread_left", "spread left in the whole site", as_share=True),
    _one("stride", "one step moved it by", "standard deviations"),
    _two(
        ("shift", "usual_shift"),
        "what comes in moved it down by",
        "{} standard deviations, where batches differ by {}",
        "{} standard deviations",
    ),
    _one("site_shift", "what comes in moved the site by", "standard deviations"),
    _one("first_site_shift", "the first site was moved by", "standard deviations"),
    _one("lost_below", "units that died below meanwhile", as_share=True),
    _two(
        ("update_ratio", "usual_update_ratio"),
        "largest step before the death",
        "{} of the weights' norm, usually {}",
        "{} of the weights' norm",
        as_share=True,
    ),
    _largest_row,
    _below_row,
    _one("updates_added_up", "steps of the fall, added up", "of the weights' norm", as_share=True),
    _one("pull_to_zero", "of each step, straight towards zero", as_share=True),
    _two(("gradient", "usual_gradient"), "gradient norm", "{}, usually {}"),
    _two(("lr", "usual_lr"), "learning rate", "{}, usually {}"),
    _decay_row,
    _one("weight_ratio", "weights' norm after, of that before", as_share=True),
    _one("layer", "layer"),
    _one("max", "highest pre-activation"),
    _one("min", "lowest pre-activation"),
    _two(("mean", "std"), "mean pre-activation", "{} ± {}", "{} ± {}"),
    _one("bias", "of it from the bias"),
    _one("weights_times_input", "of it from weights times mean input"),
    _one("sites", "sites above each other"),
    _one("width", "usual width", "units"),
    _one("silent_sites", "sites that let nothing through"),
    _one("firing_rate", "fires on", "of inputs", as_share=True),
    _one("inputs", "inputs seen"),
    _one("first_step", "first step that was not finite"),
    _one("first_gradient", "gradient norm at first"),
    _one("largest_finite_gradient", "largest finite gradient norm"),
    _one("sites_not_finite", "sites with NaN or infinity"),
    _one("measure", "measured as"),
    _one("first_layer", "first layer"),
    _one("gradient_per_weight_first", "gradient there"),
    _one("last_layer", "last layer"),
    _one("gradient_per_weight_last", "gradient there"),
    _one("ratio", "first by last"),
    _one("layers", "layers compared"),
    _one("top", "upper end of the activation's range"),
    _one("why", "why it can't be told"),
    _sure_row,
)

# Said in a finding's head.
_TOLD_ELSEWHERE = {"units", "of", "share", "largest_update_ratio"}

_FALL = ("max_before", "by_weights")
_TELLING: Mapping[str, tuple[str, ...]] = {
    "killed-by-step": (*_FALL, "stride", "update_ratio", "gradient", "lr"),
    "bias-drift": (*_FALL, "mean_fall"),
    "weight-drift": (*_FALL, "mean_fall"),
    "weight-decay": ("max_before", "weight_decay", "weight_ratio", "pull_to_zero"),
    "norm-collapse": (*_FALL, "mean_fall"),
    "upstream-cascade": (*_FALL, "lost_below", "update_ratio_below"),
    "input-shift": (*_FALL, "shift", "first_site_shift"),
    "silent-site": ("causes", "silent_above", "gradient_of_first_layer"),
    "born-dead": ("max", "bias", "weights_times_input"),
    "deep-narrow": ("sites", "width", "silent_sites"),
    "saturation": ("mean", "min", "max"),
    "vanishing-gradient": ("gradient_per_weight_first", "gradient_per_weight_last"),
    "exploding-gradient": ("first_step", "first_gradient", "largest_finite_gradient", "lr"),
    "unknown-cause": _FALL,
}
