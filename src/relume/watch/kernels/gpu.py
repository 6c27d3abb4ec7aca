"""The meter's one pass as a Triton kernel: reads each sample once, sifts NaN and infinity, never waits for the device.

Each program takes a block of units and a share of the inputs, and writes its totals; torch adds up the shares. Tested
in Triton's interpreter, where it runs on the CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relume.watch.kernels.counting import Counting
from relume.watch.kernels.state import ROOM, State

# What a program writes for each of its units.
FIRED, INSIDE, SUM, SQUARES, OUTPUT, BAD, HIGH, LOW, SEEN = range(9)
_TOTALS = 9
_UNITS, _SAMPLES = 64, 32  # a tile: units × samples of one input
# Shares of the inputs, and programs in all, more than which a device has no use for: totals are written for each.
_SHARES, _PROGRAMS = 64, 4096


@functools.cache
def load() -> Any | None:
    """The kernel, or None where Triton is not installed."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None

    @triton.jit  # type: ignore[untyped-decorator]
    def meter(  # type: ignore[no-untyped-def]
        x, pivot, totals, inputs, rows, units, inner, low_edge, high_edge,
        INFINITY: tl.constexpr, SHARES: tl.constexpr, UNITS: tl.constexpr, SAMPLES: tl.constexpr,  # noqa: N803
    ):  # fmt: skip
        share = tl.program_id(1)
        unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
        exists = unit < units
        p = tl.load(pivot + unit, mask=exists, other=0.0)
        per_input = rows * inner
        fired = tl.zeros([UNITS], tl.float32)
        inside = tl.zeros([UNITS], tl.float32)
        seen = tl.zeros([UNITS], tl.float32)
        total = tl.zeros([UNITS], tl.float64)
        squares = tl.zeros([UNITS], tl.float64)
        output = tl.zeros([UNITS], tl.float64)
        bad = tl.zeros([UNITS], tl.float32)
        high = tl.full([UNITS], -INFINITY, tl.float32)
        low = tl.full([UNITS], INFINITY, tl.float32)
        for n in range(share, inputs, SHARES):
            any_inside = tl.zeros([UNITS], tl.float32)
            any_good = tl.zeros([UNITS], tl.float32)
            for start in range(0, per_input, SAMPLES):
                k = start + tl.arange(0, SAMPLES)
                there = (k < per_input)[:, None] & exists[None, :]
                row = (k // inner).to(tl.int64) + n * rows
                at = (row[:, None] * units + unit[None, :]) * inner + (k % inner)[:, None]
                z = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
                good = there & (z - z == 0.0)
                fires = tl.where(good & (z > low_edge) & (z < high_edge), 1.0, 0.0)
                d = tl.where(good, z - p[None, :], 0.0)
                inside += tl.sum(fires, axis=0)
                any_inside = tl.maximum(any_inside, tl.max(fires, axis=0))
                any_good = tl.maximum(any_good, tl.max(tl.where(good, 1.0, 0.0), axis=0))
                total += tl.sum(d, axis=0).to(tl.float64)
                squares += tl.sum(d * d, axis=0).to(tl.float64)
                output += tl.sum(tl.where(good & (z > 0.0), z, 0.0), axis=0).to(tl.float64)
                bad += tl.sum(tl.where(there & (z - z != 0.0), 1.0, 0.0), axis=0)
                high = tl.maximum(high, tl.max(tl.where(good, z, -INFINITY), axis=0))
                low = tl.minimum(low, tl.min(tl.where(good, z, INFINITY), axis=0))
            fired += any_inside
            seen += any_good
        to = totals + share * 9 * units + unit
        tl.store(to, fired.to(tl.float64), mask=exists)
        tl.store(to + units, inside.to(tl.float64), mask=exists)
        tl.store(to + 2 * units, total, mask=exists)
        tl.store(to + 3 * units, squares, mask=exists)
        tl.store(to + 4 * units, output, mask=exists)
        tl.store(to + 5 * units, bad.to(tl.float64), mask=exists)
        tl.store(to + 6 * units, high.to(tl.float64), mask=exists)
        tl.store(to + 7 * units, low.to(tl.float64), mask=exists)
        tl.store(to + 8 * units, seen.to(tl.float64), mask=exists)

    return meter


def totals(x: Tensor, sizes: tuple[int, int, int, int], edges: tuple[float, float], pivot: Tensor) -> Tensor:
    """Reduce samples to float64 [9, units] on their device: see FIRED, INSIDE, … above.

    Args:
        x: float32, float16 or bfloat16, whose memory holds [inputs, rows, units, inner] without gaps.
        sizes: those four.
        edges: a sample is inside when it lies strictly between them.
        pivot: float32 [units], what deviations are taken from.

    Raises:
        RuntimeError: Triton is not installed (`load` is None).
    """
    kernel = load()
    if kernel is None:
        raise RuntimeError("Triton is not installed")
    inputs, rows, units, inner = sizes
    blocks = max(1, math.ceil(units / _UNITS))
    shares = max(1, min(_SHARES, inputs, _PROGRAMS // blocks))
    partial = torch.empty((shares, _TOTALS, units), dtype=torch.float64, device=x.device)
    grid = (blocks, shares)
    kernel[grid](
        x, pivot, partial, inputs, rows, units, inner, float(edges[0]), float(edges[1]),
        INFINITY=math.inf, SHARES=shares, UNITS=_UNITS, SAMPLES=_SAMPLES,
    )  # fmt: skip
    summed = partial.sum(0)
    summed[HIGH] = partial[:, HIGH].amax(0)
    summed[LOW] = partial[:, LOW].amin(0)
    return summed


def prepared(x: Tensor, how: Counting, state: State) -> Callable[[Tensor, int, int | None], bool] | None:
    """A call that adds samples like `x` to a meter's state; see `kernels.prepared`. It sifts: it refuses no sample.
    It writes no moments."""
    if load() is None or x.dtype == torch.float64:
        return None
    bad, whole = state.expect_nonfinite(), state.fired.dtype

    def run(x: Tensor, step: int, moments: int | None) -> bool:
        if step > ROOM and not state.wide_counts:
            return False
        seen = totals(x, how.sizes, how.edges, state.pivot)
        fired = seen[FIRED] if how.flat else seen[SEEN]
        state.fired.add_(fired.to(whole))
        if state.samples_fired is not None:
            state.samples_fired.add_(seen[INSIDE].to(whole))
        state.sum.add_(seen[SUM].nan_to_num_())
        state.squares.add_(seen[SQUARES].nan_to_num_())
        if how.relu:
            state.output.add_(seen[OUTPUT].nan_to_num_())
        bad.add_(seen[BAD].to(whole))
        torch.maximum(state.max, seen[HIGH].to(state.max.dtype), out=state.max)
        torch.minimum(state.min, seen[LOW].to(state.min.dtype), out=state.min)
        fires = fired > 0
        state.last.masked_fill_(fires, step)
        state.first.masked_fill_(fires.logical_and_(state.first < 0), step)
        return True

    return run
