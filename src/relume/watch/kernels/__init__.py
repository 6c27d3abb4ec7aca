"""Fused one-pass kernels for meters; where none is to be had, torch's reductions serve.

C++ on the CPU (`cpu.py`), Triton on NVIDIA's and AMD's GPUs (`gpu.py`). `RELUME_KERNELS=off` does without,
`RELUME_KERNELS=triton` takes Triton everywhere, which without a GPU needs its interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from relume.native import OFF
from relume.watch.kernels import cpu, gpu
from relume.watch.kernels.counting import Counting as Counting
from relume.watch.kernels.cpu import reason as reason
from relume.watch.kernels.state import ROOM as ROOM
from relume.watch.kernels.state import State as State

# Of other classes of tensors the address may be of something else, or of nothing.
PLAIN = (Tensor, torch.nn.Parameter)


def sifts(x: Tensor) -> bool:
    """Does the kernel for `x` pass over samples that are not finite, rather than refuse them?"""
    return x.is_cuda or os.environ.get("RELUME_KERNELS", "").lower() == "triton"


def prepared(x: Tensor, how: Counting, state: State) -> Callable[[Tensor, int, int | None], bool] | None:
    """A call that adds samples like `x` to a meter's state, or None where no kernel can.

    Args:
        x: whose memory holds the samples without gaps.
        how: they are to be counted.
        state: held by the call; while it is in use no row may be replaced.

    Returns:
        A function of the samples, the step, and the address of float64 [4, units] or None: kernels that do not sift
        write mean, standard deviation, maximum and minimum of these samples there. False, with nothing added, where it
        refuses the samples as not finite, or the step as too large for the state.
    """
    if (
        os.environ.get("RELUME_KERNELS", "").lower() in OFF
        or type(x) not in PLAIN
        or x.layout != torch.strided
        or x.is_neg()
    ):
        return None
    if sifts(x):
        return gpu.prepared(x, how, state)
    if x.is_cpu:
        return cpu.prepared(x, how, state)
    return None
