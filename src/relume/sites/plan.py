"""How one site's tensors are to be counted: which axes hold units, which hold inputs, what is reduced away.

A plan depends on the layout alone, so it is made once per layout and kept.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import prod

from relume.errors import AxisError
from relume.sites import layout as lay
from relume.sites.layout import INPUT, OTHER, UNIT, Layout


@dataclass(frozen=True)
class Plan:
    """Reduction recipe for tensors of one shape.

    Attributes:
        shape: view the tensor so first, or None when it serves as it is.
        inputs, units, others: axes of that view, ascending.
        n_inputs, n_units, n_samples: how many of each; samples are per unit.
        axis: the unit axis as reported (-1 for the last), or a tuple of axes.
        axis_known, inputs_known: whether they follow from the data flow.
    """

    shape: tuple[int, ...] | None
    inputs: tuple[int, ...]
    units: tuple[int, ...]
    others: tuple[int, ...]
    n_inputs: int
    n_units: int
    n_samples: int
    axis: int | tuple[int, ...]
    axis_known: bool
    inputs_known: bool

    @property
    def channels_second(self) -> bool:
        """Images: inputs, units, height, width."""
        return (self.inputs, self.units, self.others) == ((0,), (1,), (2, 3))

    def grouped(self, shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
        """Sizes of `shape` as [inputs, rows, units, inner], or None when the axes do not come in that order."""
        n, first, last = len(self.inputs), self.units[0], self.units[-1]
        if self.inputs != tuple(range(n)) or last - first + 1 != len(self.units):
            return None
        return prod(shape[:n]), prod(shape[n:first]), prod(shape[first : last + 1]), prod(shape[last + 1 :])


@functools.lru_cache(maxsize=4096)
def plan_for(layout: Layout, inputs: int | None, override: int | None = None) -> Plan:
    """Make the plan for a layout.

    Args:
        layout: of the pre-activation.
        inputs: how many inputs the model was given in this forward pass, if known.
        override: unit axis fixed by the user.

    Raises:
        AxisError: the override is no axis of the tensor, or is the axis that counts inputs.
    """
    axis_known = inputs_known = True
    if override is not None:
        if not -len(layout) <= override < len(layout):
            raise AxisError(f"axis={override} was given for a site whose input has {len(layout)} axes")
        chosen = override % len(layout)
        if len(layout) > 1 and any(f.role == INPUT and f.size > 1 for f in layout[chosen]):
            raise AxisError(f"axis={override} was given for a site where that axis counts the inputs")
        layout = tuple(lay.without_units(axis) for axis in layout)
        layout = lay.with_role(layout, chosen, UNIT)
    if lay.has(layout, INPUT) and inputs is not None and lay.count(layout, INPUT) != inputs:
        layout = tuple(tuple(lay.Factor(s, OTHER if r == INPUT else r) for s, r in axis) for axis in layout)
    if not lay.has(layout, UNIT):
        axis_known = False
        free = [i for i in range(len(layout)) if not any(f.role == INPUT for f in layout[i])]
        if not lay.has(layout, INPUT) and len(free) > 1:
            free = free[1:]
        elif not lay.has(layout, INPUT):
            free = []
        if free:
            layout = lay.with_role(layout, 1 if len(layout) >= 4 and 1 in free else free[-1], UNIT)
    if not lay.has(layout, INPUT):
        # Take the axis that has as many entries as there are inputs; failing that, rows can't be traced to inputs.
        same = [i for i, axis in enumerate(layout) if lay.size_of(axis) == inputs and axis[0].role == OTHER]
        if same:
            layout = lay.with_role(layout, same[0], INPUT)
        else:
            inputs_known = inputs == 1  # everything is the one input's
    factors = [f for axis in layout for f in axis]
    if all(f.role == UNIT for f in factors):
        factors.insert(0, lay.Factor(1, OTHER))  # one sample, without an axis of its own
    shape = tuple(f.size for f in factors)
    whole = shape if len(factors) != len(layout) else None
    roles = {role: tuple(i for i, f in enumerate(factors) if f.role == role) for role in (INPUT, UNIT, OTHER)}
    unit_axes = lay.axes_with(layout, UNIT)
    reported: int | tuple[int, ...] = tuple(-1 if i == len(layout) - 1 else i for i in unit_axes)
    if isinstance(reported, tuple) and len(reported) == 1:
        reported = reported[0]
    n_units = lay.count(layout, UNIT)
    total = 1
    for size in shape:
        total *= size
    samples = total // n_units if n_units else 0
    return Plan(
        shape=whole,
        inputs=roles[INPUT],
        units=roles[UNIT],
        others=roles[OTHER],
        n_inputs=lay.count(layout, INPUT) if inputs_known else min(samples, inputs or samples),
        n_units=n_units,
        n_samples=samples,
        axis=reported,
        axis_known=axis_known,
        inputs_known=inputs_known,
    )
