"""Which axis of a tensor counts inputs and which carries units: a layout, and how shape operations carry it along.

A layout has one entry per axis; an entry is a tuple of factors (size, role), outermost first, whose sizes multiply to
the axis. So `x.view(B * T, D)` keeps apart the B inputs and the T positions that share an axis, and `view(B, T, H, d)`
knows that heads and head features both are units. Roles: "n" inputs, "u" units, "." anything else.
All functions here are pure; `None` means "can't be followed".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

INPUT, UNIT, OTHER = "n", "u", "."


class Factor(NamedTuple):
    size: int
    role: str


Axis = tuple[Factor, ...]
Layout = tuple[Axis, ...]


def axis_of(size: int, role: str = OTHER) -> Axis:
    return (Factor(size, role),)


def plain(shape: Sequence[int]) -> Layout:
    """No axis has a role."""
    return tuple(axis_of(s) for s in shape)


def with_role(layout: Layout, axis: int, role: str) -> Layout:
    """`axis` as a whole gets `role`."""
    axis %= len(layout)
    return tuple(axis_of(size_of(a), role) if i == axis else a for i, a in enumerate(layout))


def without_units(axis: Axis) -> Axis:
    """What were units below a producer are samples above it."""
    return tuple(Factor(s, OTHER) if r == UNIT else Factor(s, r) for s, r in axis)


def size_of(axis: Axis) -> int:
    return prod(f.size for f in axis)


def has(layout: Layout, role: str) -> bool:
    return any(f.role == role for axis in layout for f in axis)


def count(layout: Layout, role: str) -> int:
    """How many inputs or units the layout holds."""
    return prod(f.size for axis in layout for f in axis if f.role == role)


def axes_with(layout: Layout, role: str) -> tuple[int, ...]:
    return tuple(i for i, axis in enumerate(layout) if any(f.role == role for f in axis))


def resized(axis: Axis, size: int) -> Axis:
    """An axis of another size after slicing, pooling or padding; which inputs were dropped can't be told any more."""
    if size_of(axis) == size:
        return axis
    roles = {f.role for f in axis if f.size != 1} or {f.role for f in axis}
    role = roles.pop() if len(roles) == 1 else OTHER
    return axis_of(size, OTHER if role == INPUT else role)


def reshape(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """Row-major reshape: factors are regrouped, and split where a new axis cuts through one."""
    if any(s == 0 for s in shape):
        return None
    # Factors of size 1 carry a role that matters only on an axis of size 1; they are put back below.
    rest = [f for axis in layout for f in axis if f.size != 1]
    ones = [f for axis in layout for f in axis if f.size == 1 and f.role != OTHER]
    result: list[Axis] = []
    for size in shape:
        taken: list[Factor] = []
        need = size
        while need > 1:
            if not rest:
                return None
            factor = rest.pop(0)
            if need % factor.size == 0:
                taken.append(factor)
                need //= factor.size
            elif factor.size % need == 0:
                taken.append(Factor(need, factor.role))
                rest.insert(0, Factor(factor.size // need, factor.role))
                need = 1
            else:
                return None
        result.append(tuple(taken) if taken else axis_of(1))
    if rest:
        return None
    for factor in ones:
        index = next((i for i, axis in enumerate(result) if axis == axis_of(1)), None)
        if index is not None:
            result[index] = (factor,)
    return tuple(result)


def permute(layout: Layout, order: Sequence[int]) -> Layout:
    return tuple(layout[i] for i in order)


def broadcast(layouts: Sequence[Layout], shape: Sequence[int]) -> Layout:
    """Element-wise operation: each axis from the first operand that has a role there, then from any of that size."""
    result: list[Axis] = []
    for back in range(len(shape), 0, -1):
        size = shape[-back]
        candidates = [la[-back] for la in layouts if len(la) >= back and size_of(la[-back]) == size]
        best = next((a for a in candidates if any(f.role == INPUT for f in a)), None)
        best = best or next((a for a in candidates if any(f.role != OTHER for f in a)), None)
        result.append(best or (candidates[0] if candidates else axis_of(size)))
    return tuple(result)


def same_rank(layout: Layout, shape: Sequence[int]) -> Layout:
    """An operation of unknown kind that keeps the number of axes (pooling, padding, interpolation, slicing)."""
    return tuple(resized(axis, size) for axis, size in zip(layout, shape, strict=True))


def reduced(layout: Layout, axes: Sequence[int] | None, keep: bool) -> Layout:
    """A reduction over `axes` (None: over all)."""
    gone = set(range(len(layout))) if axes is None else {a % len(layout) for a in axes}
    if keep:
        return tuple(axis_of(1) if i in gone else a for i, a in enumerate(layout))
    return tuple(a for i, a in enumerate(layout) if i not in gone)
