"""Reproductions: findings of papers measured again, in minutes on a laptop, each row with an interval and a judgement.

    relume reproduce lu2019
    relume.lab.reproduce.reproduce("lu2019")        # -> Reproduction

A reproduction is a module here with TITLE, SOURCE and `run(full, seed, progress, scale)`, and its name in `NAMES`.
"""

from __future__ import annotations

import difflib
import importlib
import time

from relume.lab.reproduce.reproduction import Progress, Reproduction
from relume.lab.reproduce.reproduction import Row as Row

#: Name on the command line → module.
NAMES = {
    "lu2019": "lu2019",
    "clevert2015": "clevert2015",
    "xu2015": "xu2015",
    "he2015": "he2015",
    "redo": "redo",
    "dohare2024": "dohare2024",
    "sae-resampling": "sae_resampling",
}


def names() -> tuple[str, ...]:
    """What can be reproduced."""
    return tuple(NAMES)


def title(name: str) -> str:
    """What a reproduction is about."""
    found: str = importlib.import_module(f"{__name__}.{_known(name)}").TITLE
    return found


def reproduce(
    name: str, *, full: bool = False, seed: int = 0, progress: Progress | None = None, scale: float = 1.0
) -> Reproduction:
    """Run one.

    Args:
        name: one of `names()`.
        full: nearer to the paper's scale: hours instead of minutes.
        seed: the first seed; the others follow it.
        progress: told how far it is.
        scale: of the number of seeds and steps; below 1 a trial run, whose rows mean little.

    Returns:
        Reproduction; equal for equal arguments on one machine, but for its `seconds`.

    Raises:
        ValueError: an unknown name, a scale that is not positive.
        MissingExtraError: scipy or scikit-learn is not installed.
    """
    module = importlib.import_module(f"{__name__}.{_known(name)}")
    if not scale > 0:
        raise ValueError(f"scale is positive, not {scale}")
    started = time.monotonic()
    rows, ran, notes = module.run(full, seed, progress or (lambda done, what: None), scale)
    seconds = round(time.monotonic() - started, 1)
    return Reproduction(name, module.TITLE, module.SOURCE, rows, ran, notes, seed, full, seconds)


def _known(name: str) -> str:
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"there is no reproduction {name!r}; {hint}there are: {', '.join(NAMES)}")
    return NAMES[name]
