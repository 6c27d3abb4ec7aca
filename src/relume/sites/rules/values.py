"""Rules for reductions, and for comparisons with zero, which may be half of a ReLU written by hand, and for casts."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from relume.sites import layout as lay
from relume.sites.flow import Flow, Node, tensors_in
from relume.sites.rules.common import Rule, argument, by_shape, first_of, generic, ints


def reduce(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is None:
        return
    x, node = one
    dim = argument(args, kwargs, 1, "dim", "axis")
    if isinstance(dim, Tensor | torch.dtype):  # torch.max(a, b)
        generic(flow, args, kwargs, out)
        return
    keep = bool(argument(args, kwargs, 2, "keepdim"))
    layout = lay.reduced(node.layout, None if dim is None else ints([dim]), keep)
    for tensor in tensors_in(out, 2):
        flow.set(tensor, node.moved(layout) if len(layout) == tensor.dim() else by_shape([(x, node)], tensor))


def compare(sign: str) -> Rule:
    """x > 0 and x < 0 are remembered, so that `x * (x > 0)` is known for the ReLU it is."""

    def rule(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        generic(flow, args, kwargs, out)
        if len(args) > 1 and isinstance(args[0], Tensor) and isinstance(out, Tensor) and flow.is_zero(args[1]):
            _masked(flow, out, weakref.ref(args[0]), sign)

    return rule


def _masked(flow: Flow, out: Any, x: weakref.ref[Tensor], sign: str) -> None:
    node = flow.node(out)
    if node is not None:
        node = node.moved(node.layout)
        node.mask = (x, sign)
        flow.set(out, node)


def negate(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """`~(x > 0)`: a mask the other way round."""
    generic(flow, args, kwargs, out)
    one = first_of(flow, args, kwargs)
    if one is not None and one[0].dtype == torch.bool and one[1].mask is not None:
        x, sign = one[1].mask
        _masked(flow, out, x, "negative" if sign == "positive" else "positive")


def cast(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """The same values, of another type or elsewhere; a mask stays one."""
    generic(flow, args[:1], {}, out)
    one = first_of(flow, args, kwargs)
    if one is not None and one[1].mask is not None:
        _masked(flow, out, *one[1].mask)


def zeros(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Made as a constant: `torch.maximum(x, zeros)` is a ReLU."""
    flow.note_zeros(out)


def like(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """`torch.zeros_like(x)`: other values, but the axis that counts inputs is the same."""
    node = flow.node(args[0] if args else kwargs.get("input"))
    if node is not None and not node.weight:
        flow.set(out, Node(tuple(lay.without_units(axis) for axis in node.layout)))


def zeros_like(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    like(flow, args, kwargs, out)
    flow.note_zeros(out)
