"""How each state of a unit looks and reads, on a page and in a terminal: one table for all that draws.

A firing unit is lit, a dead one is dark. Firing units are split once more: those that fire on less than 1 % of inputs
are shown apart, since that is where dying units pass through.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relume.census import STATES, SiteCensus

RARE = 0.01


@dataclass(frozen=True)
class Look:
    """One way a unit is shown.

    Attributes:
        key: CSS class.
        label: in legends.
        meaning: one line for a reader who sees the word for the first time.
        light, dark: colour on a light and on a dark page.
        glyph, style: in a terminal; the glyphs differ also without colour.
    """

    key: str
    label: str
    meaning: str
    light: str
    dark: str
    glyph: str
    style: str


LOOKS = (
    Look("nonfinite", "non-finite", "NaN or infinity seen", "#d6249f", "#ff5cc8", "!", "magenta"),
    Look("unknown", "unknown", "too few inputs to tell", "#c9ccd1", "#565c66", "?", "bright_black"),
    Look("dead", "dead", "fired on no input", "#23262d", "#000000", "·", "bright_black"),
    Look("stuck", "stuck at top", "dead: always at the ceiling", "#6b3fa0", "#8e5bd0", "^", "magenta"),
    Look("saturated", "saturated", "slope below 0.01 on every sample", "#b58bd6", "#b58bd6", "~", "magenta"),
    Look("linear", "linear", "always on: no bend left", "#2b8a9e", "#3fa9bf", "/", "cyan"),
    Look("alive", "fires", "on 1 % of inputs or more", "#f5b83d", "#f5b83d", "█", "yellow"),
    Look("rare", "fires rarely", "on less than 1 % of inputs", "#fbe5b0", "#8a6a24", "▒", "yellow"),
)
UNREACHED = len(LOOKS)  # the site was not reached in that window: nothing is drawn
_ALIVE, _RARE = STATES.index("alive"), len(STATES)
assert [look.label for look in LOOKS[: len(STATES)]] == [
    {"alive": "fires", "stuck-at-top": "stuck at top"}.get(s, s) for s in STATES
]


def codes(site: SiteCensus) -> Tensor:
    """uint8 of shape [units], or [windows, units]: index into LOOKS, or UNREACHED."""
    result = site.codes.clone()
    if site.site.can_die:
        result.masked_fill_((result == _ALIVE) & (site.firing_rate < RARE), _RARE)
    return result.masked_fill_(torch.as_tensor(site.samples) <= 0, UNREACHED)
