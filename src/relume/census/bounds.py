"""How sure is "dead"? The upper confidence bound for a unit that has not fired, from the number of inputs it saw."""

from __future__ import annotations

import math


def never_fired_bound(inputs: int, confidence: float = 0.95) -> float:
    """Upper bound for the chance p that a unit fires on a fresh input, after `inputs` independent ones without firing.

    Solves (1 - p)^n = 1 - confidence: p = 1 - (1 - confidence)^(1/n), about 3/n at 95 %. 1.0 for n = 0.

    Raises:
        ValueError: confidence outside (0, 1), or a negative number of inputs.

    Source: Clopper and Pearson 1934, with no success in n trials.

    >>> round(never_fired_bound(300), 5)
    0.00994
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    if inputs < 0:
        raise ValueError(f"the number of inputs can't be negative: {inputs}")
    if inputs == 0:
        return 1.0
    return -math.expm1(math.log1p(-confidence) / inputs)
