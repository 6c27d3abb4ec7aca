"""What to do about a prediction, in sentences: thresholds and words, no computation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from relume.init.born_dead import BornDead

if TYPE_CHECKING:
    from relume.init.prediction import SitePrediction

FACTOR = 10.0  # over the whole depth, of second moments or of gradients
DEAD = 0.1  # share of a site's units
LIKELY = 0.01  # chance of being born dead
ALIKE = 0.95  # mean cosine between inputs
BY_CHANCE = 1.25  # growth per site that a network which is deep for its width may have without wrong gains


def advice(sites: Sequence[SitePrediction], born: BornDead | None, upper: float | None) -> tuple[str, ...]:
    """Sentences, the gravest first; one that says all is well when there is nothing else to say."""
    found = [*_broken(sites), *_dead(sites), *_forward(sites), *_backward(sites), *_alike(sites), *_chance(born, upper)]
    return tuple(found) or ("Nothing stands in the way of training: scales, gradients and units are in order.",)


def _broken(sites: Sequence[SitePrediction]) -> list[str]:
    bad = [s.name for s in sites if not math.isfinite(s.second_moment)]
    if not bad:
        return []
    return [f"Pre-activations are NaN or infinite, first at '{bad[0]}': look at the inputs and the weights before it."]


def _dead(sites: Sequence[SitePrediction]) -> list[str]:
    silent = next((s for s in sites if s.silent), None)
    if silent is not None:
        return [
            f"All {silent.units} units of '{silent.name}' are dead on this batch, so nothing after it depends on the "
            "input: draw the weights anew, with relume.init.data_dependent_ or rai_, or make the layer wider."
        ]
    worst = max(sites, key=lambda s: s.dead / max(s.units, 1), default=None)
    if worst is None or worst.dead <= DEAD * worst.units:
        return []
    expected = ""
    if worst.expected_dead is not None:
        usual = worst.expected_dead > 0.5 * worst.dead / worst.units
        expected = (
            " That is what to expect of normal weights there, as all its inputs point much the same way"
            if usual
            else f" Fresh normal weights would leave {worst.expected_dead:.0%} dead"
        )
        expected += ":"
    return [
        f"{worst.dead} of {worst.units} units of '{worst.name}' fire on no input of this batch.{expected or ' Either'} "
        "centre the inputs, or set biases with relume.init.alive_, or use relume.init.data_dependent_."
    ]


def _forward(sites: Sequence[SitePrediction]) -> list[str]:
    scales = [s.second_moment for s in sites if math.isfinite(s.second_moment)]
    if len(scales) < 2 or scales[0] <= 0 or any(s.silent for s in sites):
        return []
    ratio = scales[-1] / scales[0]
    if 1 / FACTOR <= ratio <= FACTOR:
        return []
    per_site = ratio ** (1 / (len(scales) - 1))
    what = "grow" if ratio > 1 else "shrink"
    chance = 1 / BY_CHANCE <= per_site <= BY_CHANCE
    why = (
        "as happens where a network is deep for its width" if chance else "the weights don't fit the activations' gains"
    )
    return [
        f"Pre-activations {what} by a factor {per_site:.2g} in mean square from site to site ({ratio:.2g} over all): "
        f"{why}. relume.init.lsuv_(model, batch) sets every layer's scale by the data."
    ]


def _backward(sites: Sequence[SitePrediction]) -> list[str]:
    grads = [s.gradient for s in sites if s.gradient is not None and math.isfinite(s.gradient)]
    if len(grads) < 2 or grads[-1] <= 0 or any(s.silent for s in sites):
        return []
    ratio = grads[0] / grads[-1]
    if 1 / FACTOR**2 <= ratio <= FACTOR**2:
        return []
    what = "explode" if ratio > 1 else "vanish"
    return [
        f"Gradients {what} on the way back: in mean square {ratio:.2g} times as large at the first site as at the "
        "last. relume.init.he_(model, batch, mode='backward'), normalization or shortcuts keep them."
    ]


def _alike(sites: Sequence[SitePrediction]) -> list[str]:
    last = sites[-1] if sites else None
    if last is None or last.silent or last.likeness is None or last.likeness < ALIKE:
        return []
    return [
        f"At '{last.name}' the pre-activations of any two inputs point the same way (mean cosine {last.likeness:.3f}): "
        "they look alike. Fewer layers, normalization, shortcuts, or an activation with mean near 0 keep them apart."
    ]


def _chance(born: BornDead | None, upper: float | None) -> list[str]:
    if born is None or upper is None or upper < LIKELY:
        return []
    bound = "" if born.probability is not None and upper == born.probability else "up to "
    narrow = min(born.widths)
    return [
        f"Of 100 networks drawn like this {bound}{100 * upper:.0f} are born dead: its narrowest layer has {narrow} "
        "units. Make it wider or shallower, or draw with relume.init.rai_, which leaves fewer dead."
    ]
