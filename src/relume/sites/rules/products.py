"""Rules for products of tensors: matmul and its kin, einsum. The factor that is a weight makes the units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relume.sites import layout as lay
from relume.sites.flow import Flow, Node
from relume.sites.layout import INPUT, UNIT, Axis, Layout
from relume.sites.rules.common import argument, generic
from relume.sites.rules.producers import head_of, produce


def matmul(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    a, b = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "other", "mat2", "vec")
    _product(flow, a, b, out)


def rmatmul(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    _product(flow, args[1], args[0], out)


def addmm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    a = argument(args, kwargs, 1, "mat1", "batch1", "mat")
    b = argument(args, kwargs, 2, "mat2", "batch2", "vec")
    _product(flow, a, b, out)


def cdist(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Distances to learnt centres: a centre is a unit."""
    a, b = argument(args, kwargs, 0, "x1"), argument(args, kwargs, 1, "x2")
    with torch._C.DisableTorchFunction():
        centres = b.detach().mT
    node = flow.node(b)
    if node is not None:
        flow.set(centres, node.moved((*node.layout[:-2], node.layout[-1], node.layout[-2])))
    _product(flow, a, centres, out)


def _product(flow: Flow, a: Any, b: Any, out: Any) -> None:
    """a @ b. The factor that is a weight makes the other's units anew: columns of b, or rows of a."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and isinstance(out, Tensor)):
        return
    na, nb = flow.node(a), flow.node(b)
    a_weight = na is None or na.weight
    b_weight = nb is None or nb.weight
    weights = na is not None and na.weight and nb is not None and nb.weight
    if (na is None and nb is None) or weights or (a_weight and b_weight and ".parametrizations" in flow.where):
        generic(flow, (a, b), {}, out)
        return
    la = na.layout if na is not None else lay.plain(a.shape)
    lb = nb.layout if nb is not None else lay.plain(b.shape)
    rows = la[-2:-1] if a.dim() > 1 else ()
    columns = lb[-1:] if b.dim() > 1 else ()
    batch_shape = tuple(out.shape[: out.dim() - len(rows) - len(columns)])

    def weight_batch(axes: Sequence[Axis], weight_axes: Sequence[Axis]) -> Layout:
        """Batch axes that the weight has too hold units: one set of weights each."""
        merged = list(lay.broadcast([tuple(axes)], batch_shape)) if batch_shape else []
        for back in range(1, len(merged) + 1):
            own = len(weight_axes) >= back and lay.size_of(weight_axes[-back]) > 1
            if own and not any(f.role == INPUT for f in merged[-back]):
                merged[-back] = lay.axis_of(batch_shape[-back], UNIT)
        return tuple(merged)

    if na is not None and nb is None and _only_mixes(na, -1 if a.dim() == 1 else len(la) - 1):
        flow.set(out, na.through("matmul").moved((*la[:-1], *(lay.axis_of(lay.size_of(c)) for c in columns))))
    elif nb is not None and na is None and _only_mixes(nb, max(b.dim() - 2, 0)):
        batch = lay.broadcast([lb[:-2]], batch_shape) if batch_shape else ()
        same = lb[-2:-1] if b.dim() > 1 and rows and out.shape[-2] == b.shape[-2] else lay.plain(a.shape[-2:-1])
        flow.set(out, nb.through("matmul").moved((*batch, *(same if rows else ()), *columns)))
    elif b_weight and not a_weight and na is not None:
        head = head_of(na, a)
        layout = (
            *weight_batch(head[:-2], lb[:-2]),
            *(head[-2:-1] if a.dim() > 1 else ()),
            *(lay.axis_of(lay.size_of(c), UNIT) for c in columns),
        )
        produce(flow, out, layout, flow.producer_name(b, "matmul"), na)
    elif a_weight and not b_weight and nb is not None:
        head = head_of(nb, b)
        layout = (
            *weight_batch(head[:-2], la[:-2]),
            *(lay.axis_of(lay.size_of(r), UNIT) for r in rows),
            *(head[-1:] if b.dim() > 1 else ()),
        )
        produce(flow, out, layout, flow.producer_name(a, "matmul"), nb)
    else:  # both are data, as in attention: roles go on, and the columns are units if nothing else is
        batch = lay.broadcast([x for x in (la[:-2], lb[:-2]) if x], batch_shape) if batch_shape else ()
        layout = (*batch, *rows, *columns)
        if layout and not lay.has(layout, UNIT) and not any(f.role == INPUT for f in layout[-1]):
            layout = lay.with_role(layout, -1, UNIT)
        produce(flow, out, layout, f"{flow.where}:matmul", na, nb)


def _only_mixes(node: Node, axis: int) -> bool:
    """A constant (an adjacency, a filter) applied along another axis than the units' leaves them as they are."""
    return lay.has(node.layout, UNIT) and not any(f.role == UNIT for f in node.layout[axis])


def _letters(term: str, dims: int) -> list[str]:
    """One name per axis; an ellipsis becomes "...2", "...1", counted from its right end as broadcasting does."""
    head, dots, tail = term.partition("...")
    wide = dims - len(head) - len(tail)
    return [*head, *(f"...{wide - i}" for i in range(wide)), *tail] if dots else list(head)


def einsum(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    if not args or not isinstance(args[0], str):
        generic(flow, args, kwargs, out)
        return
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else list(args[1:])
    left, arrow, right = args[0].replace(" ", "").partition("->")
    terms = left.split(",")
    letters = [_letters(term, x.dim()) for term, x in zip(terms, operands, strict=False)]
    if arrow:
        target = _letters(right, out.dim())
    else:
        every = [x for term in letters for x in term]
        target = sorted({x for x in every if x.startswith(".")}, reverse=True)
        target += sorted(x for x in set(every) if every.count(x) == 1 and not x.startswith("."))
    nodes = [flow.node(x) for x in operands]
    data = [(n, term) for n, term in zip(nodes, letters, strict=False) if n is not None and not n.weight]
    weights = [(x, term) for x, n, term in zip(operands, nodes, letters, strict=False) if n is None or n.weight]
    if not data or len(target) != out.dim():
        generic(flow, args, kwargs, out)
        return
    from_data: dict[str, Axis] = {}
    for node, term in data:
        for letter, axis in zip(term, node.layout, strict=False):
            if letter not in from_data or any(f.role == INPUT for f in axis):
                from_data[letter] = axis
    # Units that a constant (an adjacency, a filter) leaves in place stay; a learnt weight makes new ones.
    learnt = any(n is not None for n in nodes if n is None or n.weight)
    kept_units = any(f.role == UNIT for x in target if x in from_data for f in from_data[x])
    makes = bool(weights) and (learnt or not kept_units)
    in_weight = {x for _, term in weights for x in term} if makes else set()
    axes: list[Axis] = []
    for letter, size in zip(target, out.shape, strict=True):
        kept = from_data.get(letter, lay.axis_of(size))
        if makes:
            kept = lay.without_units(kept)
        if letter in in_weight and not any(f.role == INPUT for f in kept):
            kept = lay.axis_of(size, UNIT)
        axes.append(kept if lay.size_of(kept) == size else lay.axis_of(size))
    if axes and not lay.has(tuple(axes), UNIT) and not any(f.role == INPUT for f in axes[-1]):
        axes[-1] = lay.axis_of(lay.size_of(axes[-1]), UNIT)
    name = flow.producer_name(weights[0][0], "einsum") if weights else f"{flow.where}:einsum"
    produce(flow, out, tuple(axes), name, *(n for n, _ in data))
