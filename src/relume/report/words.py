"""Each cause by its plain name, as a heading and as what it did to the units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from relume.diagnose.finding import Confirmation


@dataclass(frozen=True)
class Cause:
    """How a code reads.

    Attributes:
        title: a heading.
        deed: what it did, after "units" and "was" or "were"; "" where it is not about deaths.
    """

    title: str
    deed: str = ""


CAUSES: Mapping[str, Cause] = {
    "born-dead": Cause("Dead from the start", "buried by their initialization"),
    "killed-by-step": Cause("Killed by large steps", "killed by large steps"),
    "bias-drift": Cause("Pushed down by their biases", "pushed down by their biases"),
    "weight-drift": Cause("Pushed down by their weights", "pushed down by their weights"),
    "upstream-cascade": Cause("Followed the layers below", "buried by what the layers below send up"),
    "input-shift": Cause("Buried by the data", "buried by a change of the data"),
    "weight-decay": Cause("Faded by weight decay", "let fade by weight decay"),
    "norm-collapse": Cause("Buried by their normalization", "buried by their normalization"),
    "deep-narrow": Cause("Too deep and narrow", "dead from the start, as happens when a network is deep and narrow"),
    "saturation": Cause("Saturated"),
    "vanishing-gradient": Cause("Vanishing gradient"),
    "exploding-gradient": Cause("Exploding gradient"),
    "silent-site": Cause("Signal cut"),
    "sparse": Cause("Rarely firing, yet alive"),
    "unknown-cause": Cause("Cause not known"),
}


_SAID = {
    True: ("Confirmed by replay", "confirmed:"),
    False: ("Not confirmed by replay", "not confirmed:"),
    None: ("No replay", "could not be replayed:"),
}


def replayed(confirmation: Confirmation) -> tuple[str, str]:
    """What a replay said, as a head and a sentence.

    >>> replayed(Confirmation(True, "lr / 10", (0, 9), 31, 2, "confirmed: with lr / 10 the same 9 batches kill 2"))
    ('Confirmed by replay', 'with lr / 10 the same 9 batches kill 2.')
    """
    head, prefix = _SAID[confirmation.confirmed]
    return head, confirmation.sentence.removeprefix(prefix).strip().rstrip(".") + "."


def cause(code: str) -> Cause:
    """Of any code; one that is not listed goes by its own name."""
    return CAUSES.get(code) or Cause(code.replace("-", " ").capitalize())
