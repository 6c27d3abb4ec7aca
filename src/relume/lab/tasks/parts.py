"""What honest splits have in common: no input in two parts, and scales that the training part alone sets."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from relume.lab.tasks.task import Part, Split


def standardized(split: Split, axes: tuple[int, ...]) -> Split:
    """Inputs minus their mean and over their standard deviation, both taken of the training part.

    Args:
        axes: over which mean and deviation are taken; what differs along the others keeps its own. What does not vary
            is only centred.
    """
    deviation, mean = torch.std_mean(split.train.x, axes, correction=0, keepdim=True)
    deviation[deviation < 1e-6] = 1
    return Split(
        *(Part((part.x - mean).div_(deviation), part.y) for part in (split.train, split.validation, split.test))
    )


def keys(x: Tensor) -> list[bytes]:
    """For each input a key that is the same for equal inputs, and for no others."""
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x.flatten(1).numpy()]


def distinct(found: Sequence[Hashable], taken: Sequence[Hashable] = ()) -> list[int]:
    """Which of these inputs, by their keys, to keep: the first of equal ones, and none that is taken elsewhere."""
    seen = set(taken)
    kept = []
    for number, key in enumerate(found):
        if key not in seen:
            seen.add(key)
            kept.append(number)
    return kept
