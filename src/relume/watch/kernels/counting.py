"""`Counting`: what a kernel is told of the samples and the activation, the same for every kind of kernel."""

from __future__ import annotations

from typing import NamedTuple


class Counting(NamedTuple):
    """How samples are to be counted.

    Attributes:
        sizes: the samples' [inputs, rows, units, inner], as they lie in memory.
        edges: a sample fires when it lies strictly between them.
        relu: the output is max(0, x) and its sum is added too.
        counted: `edges` mean something; otherwise every finite sample counts.
        flat: an input fires when one of its samples does; otherwise when one of them is finite.
    """

    sizes: tuple[int, int, int, int]
    edges: tuple[float, float]
    relu: bool
    counted: bool
    flat: bool
