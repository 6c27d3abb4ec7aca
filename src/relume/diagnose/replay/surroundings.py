"""What a torch call depends on beside its arguments: random state, autograd and autocast."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """Of python, numpy and torch, on the CPU and on CUDA devices in use."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: tuple[tuple[int, Tensor], ...]

    @classmethod
    def now(cls, cuda: tuple[int, ...] = ()) -> RandomState:
        """As it is.

        Args:
            cuda: indices of the CUDA devices that matter.
        """
        states = tuple((i, torch.cuda.get_rng_state(i)) for i in cuda)
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), states)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        for i, state in self.cuda:
            torch.cuda.set_rng_state(state, i)

    def same(self, other: RandomState) -> bool:
        """Has nothing been drawn in between?"""
        return (
            torch.equal(self.torch, other.torch)
            and self.python == other.python
            and self.numpy[2:] == other.numpy[2:]
            and bool(np.array_equal(self.numpy[1], other.numpy[1]))
            and all(torch.equal(a, b) for (_, a), (_, b) in zip(self.cuda, other.cuda, strict=True))
        )

    nbytes = 25_000  # python's 625 integers take most of it


# Are gradients recorded; per device type, autocast's dtype or None.
Ambient = tuple[bool, tuple[tuple[str, "torch.dtype | None"], ...]]


def ambient(devices: tuple[str, ...]) -> Ambient:
    """As it is now, for some device types."""
    cast = tuple((d, torch.get_autocast_dtype(d) if torch.is_autocast_enabled(d) else None) for d in devices)
    return torch.is_grad_enabled(), cast


@contextlib.contextmanager
def within(given: Ambient) -> Iterator[None]:
    """Gradients and autocast as they were."""
    grad, cast = given
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(grad))
        for device, dtype in cast:
            if dtype is not None or torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=dtype is not None))
        yield
