"""`State`: the numbers of one meter, a row per kind, which torch's reductions and all kernels add to.

48 bytes per unit for float32 samples, one to an input: rows that say nothing new are left out until they do, counts
take 32 bits until 64 are needed, and extremes are of the samples' own precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relume.census.counts import MOST_IN_32_BITS, NEVER

# Counts and steps up to here fit into 32 bits.
ROOM = MOST_IN_32_BITS


@dataclass
class State:
    """Rows of shape [units], on one device.

    Attributes:
        fired: int32 or int64, inputs fired.
        samples_fired: the same, samples fired; None: as many as `fired`.
        sum, squares: float64, of deviations from the pivot.
        output: float64, sum of |output|.
        nonfinite: as `fired`, samples that are not finite; None: none.
        max, min: float32 or float64, extremes.
        first, last: as `fired`, steps of the first and the last firing, -1: none.
        pivot: float32.
    """

    fired: Tensor
    samples_fired: Tensor | None
    sum: Tensor
    squares: Tensor
    output: Tensor
    nonfinite: Tensor | None
    max: Tensor
    min: Tensor
    first: Tensor
    last: Tensor
    pivot: Tensor

    # Rows made in inference mode could not be counted into outside of it.

    @classmethod
    @torch.inference_mode(False)
    def blank(cls, units: int, device: torch.device) -> State:
        """Nothing counted yet."""

        def row(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((units,), value, dtype=dtype, device=device)

        whole, real, wide = torch.int32, torch.float32, torch.float64
        return cls(
            fired=row(0, whole),
            samples_fired=None,
            sum=row(0, wide),
            squares=row(0, wide),
            output=row(0, wide),
            nonfinite=None,
            max=row(-torch.inf, real),
            min=row(torch.inf, real),
            first=row(NEVER, whole),
            last=row(NEVER, whole),
            pivot=row(0, real),
        )

    @property
    def device(self) -> torch.device:
        return self.fired.device

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return sum(row.nbytes for row in self.rows().values())

    @property
    def wide_counts(self) -> bool:
        """Are counts and steps of 64 bits?"""
        return self.fired.dtype == torch.int64

    @property
    def wide_extremes(self) -> bool:
        """Are extremes float64?"""
        return self.max.dtype == torch.float64

    def rows(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {name: row for name, row in self.__dict__.items() if row is not None}

    @torch.inference_mode(False)
    def moved(self, device: torch.device) -> State:
        """The same elsewhere."""
        return replace(self, **{name: row.to(device) for name, row in self.rows().items()})

    def copied(self) -> State:
        """The same in memory of its own."""
        return replace(self, **{name: row.clone() for name, row in self.rows().items()})

    @torch.inference_mode(False)
    def widen_counts(self) -> None:
        """From now on counts and steps have 64 bits."""
        for name in ("fired", "samples_fired", "nonfinite", "first", "last"):
            row = getattr(self, name)
            if row is not None:
                setattr(self, name, row.long())

    @torch.inference_mode(False)
    def widen_extremes(self) -> None:
        """From now on extremes are float64."""
        self.max, self.min = self.max.double(), self.min.double()

    @torch.inference_mode(False)
    def tell_samples_apart(self) -> None:
        """From now on samples fired are counted by themselves."""
        self.samples_fired = self.fired.clone()

    @torch.inference_mode(False)
    def expect_nonfinite(self) -> Tensor:
        """The row of samples that are not finite."""
        if self.nonfinite is None:
            self.nonfinite = torch.zeros_like(self.fired)
        return self.nonfinite
