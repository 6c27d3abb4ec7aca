"""How a tensor's channels lie in memory: every tensor without gaps is [outer, channels, inner] to a kernel, whatever
the order of its axes (channels-last images, transposed matrices)."""

from __future__ import annotations

from torch import Tensor

Layout = tuple[int, int, int]


def layout_of(x: Tensor, axis: int, channels: int) -> Layout | None:
    """(outer, channels, inner) of x's memory, or None where it has gaps or overlaps.

    Args:
        axis: of the channels.
        channels: 1 where one value serves them all.
    """
    if not (x.is_contiguous() or _dense(x)):
        return None
    total = x.numel()
    if channels == 1:
        return 1, 1, total
    inner = x.stride(axis)
    return total // (channels * inner), channels, inner


def _dense(x: Tensor) -> bool:
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True
