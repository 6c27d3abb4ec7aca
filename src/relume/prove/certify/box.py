"""Boxes of inputs: found from data, and checked before use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from relume.errors import BatchError, EmptyCensusError
from relume.sites.flow import tensors_in
from relume.watch.passes import batches_in


def box(batches: Iterable[Any], margin: float = 0.0, *, each: bool = True) -> tuple[Tensor, Tensor]:
    """The smallest box that holds all inputs of some data, made wider by a margin.

    Args:
        batches: tensors [inputs, …] or tuples and dicts whose first tensor is that, or a DataLoader; a single tensor
            is one batch.
        margin: by which each end is moved outward, in the data's units.
        each: an interval for each element; False: one for all of them.

    Returns:
        lower, upper: of one input's shape.

    Raises:
        EmptyCensusError: there is no input.
        BatchError: a batch holds no floating-point tensor, inputs of another shape than those before, or NaN.

    >>> lower, upper = box(torch.tensor([[0.0, 1.0], [2.0, -1.0]]), margin=0.5)
    >>> lower, upper
    (tensor([-0.5000, -1.5000]), tensor([2.5000, 1.5000]))
    """
    low: Tensor | None = None
    high: Tensor | None = None
    for k, batch in enumerate([batches] if isinstance(batches, Tensor) else batches_in(batches)):
        x = next(tensors_in(batch), None)
        if x is None or not x.is_floating_point() or x.dim() < 1:
            raise BatchError(f"batch {k} holds no floating-point tensor [inputs, …], of which a box could be made")
        if not len(x):
            continue
        if bool(torch.isnan(x).any()):
            raise BatchError(f"batch {k} holds NaN, which lies in no box: clean the data first")
        if low is not None and x.shape[1:] != low.shape:
            raise BatchError(f"batch {k} has inputs of shape {tuple(x.shape[1:])}, those before {tuple(low.shape)}")
        least, largest = x.detach().amin(0).cpu(), x.detach().amax(0).cpu()
        low = least if low is None else torch.minimum(low, least)
        high = largest if high is None else torch.maximum(high, largest)
    if low is None or high is None:
        raise EmptyCensusError("there is no input of which a box could be made")
    if not each:
        low, high = low.min().expand(low.shape).clone(), high.max().expand(high.shape).clone()
    return low - margin, high + margin


def checked_box(lower: Any, upper: Any, shape: tuple[int, ...] | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both ends in the model's dtype and one input's shape.

    Raises:
        ValueError: says what is wrong with them, and where.
    """
    try:
        ends = [torch.as_tensor(end).detach() for end in (lower, upper)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the box's ends are numbers or tensors, not {type(lower).__name__} and {type(upper).__name__}"
        ) from error
    if any(e.is_complex() or e.dtype is torch.bool for e in ends):
        raise TypeError("the box's ends must be real numbers")
    for name, end in zip(("lower", "upper"), ends, strict=True):
        bad = ~torch.isfinite(end.double())
        if bool(bad.any()):
            raise ValueError(f"{name} holds {int(bad.sum())} values that are NaN or infinite; a box has finite ends")
    try:
        whole = torch.broadcast_shapes(*(e.shape for e in ends), *(() if shape is None else (tuple(shape),)))
    except RuntimeError:
        raise ValueError(
            f"lower has shape {tuple(ends[0].shape)}, upper {tuple(ends[1].shape)}"
            + (f", one input {tuple(shape)}" if shape is not None else "")
            + ": they do not broadcast to one input's shape"
        ) from None
    if shape is not None and whole != tuple(shape):
        raise ValueError(f"the box's ends have shape {tuple(whole)}, more than one input's {tuple(shape)}")
    if not len(whole) or not whole.numel():
        raise ValueError(
            "the box must have the shape of one input: give lower or upper as a tensor of that shape, or "
            "shape=(…), such as "
            "relume.certify(model, 0.0, 1.0, shape=(1, 28, 28))"
        )
    low, high = (e.to(dtype).expand(whole).clone() for e in ends)
    inverted = low > high
    if bool(inverted.any()):
        at = tuple(torch.nonzero(inverted)[0].tolist())
        raise ValueError(
            f"the box is empty: lower > upper at {int(inverted.sum())} of {inverted.numel()} elements, first at {at}: "
            f"{float(low[at]):g} > {float(high[at]):g}"
        )
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError(f"the box goes beyond what {str(dtype).removeprefix('torch.')} holds")
    return low, high
