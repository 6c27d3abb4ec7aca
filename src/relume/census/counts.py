"""`Counts`: what has been counted for one site over a span of steps, and how two such counts add up.

These are the only numbers relume keeps; everything else (rates, states, bounds) is derived from them. They are kept in
the narrowest types that hold them, and read as int64 and float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

NEVER = -1
MOST_IN_32_BITS = 2**31 - 1


class Column:
    """A per-unit array: kept as it was given, in a dtype of any width, and read as int64 or float64."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type | None = None) -> Tensor:
        if instance is None:
            raise AttributeError(self.name)  # so that a dataclass sees no default
        kept: Tensor = instance.__dict__[self.name]
        return kept.to(self.dtype)

    def __set__(self, instance: object, value: Tensor) -> None:
        instance.__dict__[self.name] = value


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of one site in one phase. Per-unit fields are CPU tensors of shape [units].

    Attributes:
        inputs: inputs seen (the same for all units).
        samples: samples seen per unit; more than inputs where a unit has positions or tokens.
        fired: int64, inputs on which the unit fired.
        samples_fired: int64, finite samples outside the counted zone (flat; for sigmoid and tanh the saturated one).
        mean, m2: float64, mean of the finite pre-activations and their summed squared deviation from it.
        max, min: float64, extremes of the finite pre-activations; -inf and inf when there were none.
        output: float64, sum of |output| over samples with finite pre-activation and output.
        nonfinite: int64, samples that were NaN or infinite.
        first_fired, last_fired: int64, first and last step with a firing, -1 when there was none.
    """

    inputs: int
    samples: int
    fired: Column = Column(torch.int64)
    samples_fired: Column = Column(torch.int64)
    mean: Column = Column(torch.float64)
    m2: Column = Column(torch.float64)
    max: Column = Column(torch.float64)
    min: Column = Column(torch.float64)
    output: Column = Column(torch.float64)
    nonfinite: Column = Column(torch.int64)
    first_fired: Column = Column(torch.int64)
    last_fired: Column = Column(torch.int64)

    @property
    def units(self) -> int:
        return int(self.kept("fired").shape[-1])

    @property
    def finite(self) -> Tensor:
        """Samples that entered the moments, per unit."""
        return self.samples - self.nonfinite

    def brief(self, name: str) -> Tensor:
        """An array as it is kept, or the one number that it is for all units: size 1 in place of [units]."""
        kept = self.kept(name)
        return kept[..., :1] if kept.stride(-1) == 0 else kept

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        kept = {id(t): t for t in map(self.kept, ARRAYS)}.values()
        return sum(t.nbytes for t in kept if t.stride() != (0,))

    def kept(self, name: str) -> Tensor:
        """An array as it is kept: of any width, maybe shared with another, maybe one number for all units."""
        array: Tensor = self.__dict__[name]
        return array

    @classmethod
    def empty(cls, units: int) -> Counts:
        """Nothing seen yet."""
        zero, never = same_for_all(0, units), same_for_all(NEVER, units)
        real = same_for_all(0.0, units)
        return cls(
            inputs=0,
            samples=0,
            fired=zero,
            samples_fired=zero,
            mean=real,
            m2=real,
            max=same_for_all(-torch.inf, units),
            min=same_for_all(torch.inf, units),
            output=real,
            nonfinite=zero,
            first_fired=never,
            last_fired=never,
        )

    def merge(self, later: Counts) -> Counts:
        """Counts of both spans together, exactly (moments by Chan et al. 1979). `later` follows `self` in time."""
        a, b = self.finite.double(), later.finite.double()
        n = a + b
        weight = torch.where(n > 0, b / n.clamp(min=1), 0.0)
        delta = later.mean - self.mean
        samples = self.samples + later.samples
        narrow = samples <= MOST_IN_32_BITS

        def total(name: str) -> Tensor:
            ours, theirs = self.kept(name), later.kept(name)
            if ours.stride() == theirs.stride() == (0,):
                return (ours[:1] + theirs[:1]).expand(self.units)
            return ours + theirs if narrow else ours.long() + theirs.long()

        fired = total("fired")
        alike = all(c.kept("samples_fired") is c.kept("fired") for c in (self, later))
        first, then = self.kept("first_fired"), later.kept("first_fired")
        return Counts(
            inputs=self.inputs + later.inputs,
            samples=samples,
            fired=fired,
            samples_fired=fired if alike else total("samples_fired"),
            mean=self.mean + delta * weight,
            m2=self.m2 + later.m2 + delta.square() * a * weight,
            max=torch.maximum(self.kept("max"), later.kept("max")),
            min=torch.minimum(self.kept("min"), later.kept("min")),
            output=self.output + later.output,
            nonfinite=total("nonfinite"),
            first_fired=torch.where(first >= 0, first, then),
            last_fired=torch.maximum(self.kept("last_fired"), later.kept("last_fired")),
        )

    @classmethod
    def stacked(cls, several: Sequence[Counts]) -> Counts:
        """The same site's counts of several windows, as arrays of shape [windows, units]; `inputs` and `samples` are
        int64 tensors of shape [windows, 1]. What is worked out from them elementwise is that of each window."""
        return cls(
            each([c.inputs for c in several]),
            each([c.samples for c in several]),
            **{name: _stacked([c.kept(name) for c in several]) for name in ARRAYS},
        )


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Rows of shape [units] as [windows, units], in the widest of their types."""
    wide = max((row.dtype for row in rows), key=lambda dtype: dtype.itemsize)
    if all(row.stride() == (0,) for row in rows) and len(rows[0]):
        return torch.stack([row[:1].to(wide) for row in rows]).expand(len(rows), len(rows[0]))
    return torch.stack([row.to(wide) for row in rows])


def each(numbers: Sequence[int]) -> Any:
    """One number for each of several windows: int64 [windows, 1]."""
    return torch.tensor(numbers, dtype=torch.int64).unsqueeze(1)


def same_for_all(value: float, units: int) -> Tensor:
    """One number for all units, of the memory of one: int32 if it is whole, else float32."""
    dtype = torch.int32 if isinstance(value, int) else torch.float32
    return torch.tensor(value, dtype=dtype).expand(units)


ARRAYS = tuple(f.name for f in fields(Counts) if f.name not in ("inputs", "samples"))
INTEGER_ARRAYS = frozenset(n for n in ARRAYS if Counts.__dict__[n].dtype == torch.int64)
