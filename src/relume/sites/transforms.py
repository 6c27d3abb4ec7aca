"""Tensors inside `torch.vmap` and `torch.func` transforms: the whole tensor is counted, not one slice of it.

Inside a transform a tensor shows the shape of one slice; the axis that is mapped over is hidden. Unwrapped, it counts
inputs where it is as long as the batch and nothing else counts them, and units otherwise: one set of weights each.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from relume.sites import layout as lay
from relume.sites.layout import INPUT, UNIT, Layout

wraps = torch._C._functorch.is_functorch_wrapped_tensor


def transformed() -> bool:
    """Is a functorch transform running?"""
    return torch._C._functorch.maybe_current_level() is not None


def hides_inputs() -> bool:
    """Is a transform running that maps over an axis, or whose values are not plain tensors underneath?"""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(i.key() != torch._C._functorch.TransformType.Grad for i in stack)


def outside() -> contextlib.AbstractContextManager[object]:
    """Inside a transform: run what follows as if it were not."""
    return temporarily_clear_interpreter_stack()


def unwrapped(x: Tensor, layout: Layout | None, inputs: int | None) -> tuple[Tensor, Layout]:
    """The whole tensor behind x, and its layout, from that of the slice."""
    layout = lay.plain(x.shape) if layout is None else layout
    while wraps(x):
        at = torch._C._functorch.maybe_get_bdim(x)
        x = torch._C._functorch.get_unwrapped(x)
        if at >= 0:
            size = int(x.shape[at])
            counts = size == inputs and not lay.has(layout, INPUT)
            layout = (*layout[:at], lay.axis_of(size, INPUT if counts else UNIT), *layout[at:])
    return x, layout
