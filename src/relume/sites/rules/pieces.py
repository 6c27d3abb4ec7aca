"""Rules for putting tensors together and taking them apart: cat, stack, unbind, select, indexing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relume.sites import layout as lay
from relume.sites.flow import Flow, Node, union
from relume.sites.layout import INPUT, OTHER, UNIT, Axis, Factor, Layout
from relume.sites.rules.common import argument, by_shape, first_of, generic
from relume.sites.rules.producers import embedding


def cat(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    parts = [t for t in argument(args, kwargs, 0, "tensors") if t.dim() == out.dim()]
    known = [(t, n) for t in parts if (n := flow.node(t)) is not None]
    if not known:
        return
    data = [(t, n) for t, n in known if not n.weight] or known
    dim = (argument(args, kwargs, 1, "dim", "axis") or 0) % out.dim()
    layout = list(lay.broadcast([n.layout for _, n in data], out.shape))
    whole = data[0][1].layout[dim]
    layout[dim] = whole if lay.size_of(whole) == out.shape[dim] else lay.resized(whole, out.shape[dim])
    if len(data) == len(parts) and all(any(f.role == INPUT for f in n.layout[dim]) for _, n in data):
        # Inputs put end to end (two views of a batch): each half holds the batch once more.
        copies, odd = divmod(out.shape[dim], lay.size_of(whole))
        if not odd and copies > 1 and all(t.shape[dim] == parts[0].shape[dim] for t in parts):
            layout[dim] = (Factor(copies, OTHER), *whole)
    nodes = [n for _, n in data]
    flow.set(
        out,
        Node(tuple(layout), union(n.sources for n in nodes), ("cat",), union(n.feeds for n in nodes)),
    )


def stack(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    known = [(t, n) for t in argument(args, kwargs, 0, "tensors") if (n := flow.node(t)) is not None]
    if known:
        nodes = [n for _, n in known if not n.weight] or [n for _, n in known]
        dim = (argument(args, kwargs, 1, "dim") or 0) % out.dim()
        axes = nodes[0].layout
        # Scalars of several producers, side by side, are a unit each.
        made = not lay.has(axes, UNIT) and all(n.sources and not n.weight for n in nodes)
        layout = (*axes[:dim], lay.axis_of(out.shape[dim], UNIT if made else OTHER), *axes[dim:])
        flow.set(out, Node(layout, union(n.sources for n in nodes), nodes[0].between, union(n.feeds for n in nodes)))


def unbind(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None:
        dim = (argument(args, kwargs, 1, "dim") or 0) % len(one[1].layout)
        axes = tuple(a for i, a in enumerate(one[1].layout) if i != dim)
        for tensor in out:
            flow.set(tensor, one[1].moved(axes))


def select(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None:
        dim = argument(args, kwargs, 1, "dim") % len(one[1].layout)
        flow.set(out, one[1].moved(tuple(a for i, a in enumerate(one[1].layout) if i != dim)))


def getitem(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is None or not isinstance(out, Tensor):
        return
    x, node = one
    rows = args[1]
    if node.weight and isinstance(rows, Tensor) and rows.dtype != torch.bool and x.dim() == 2 and flow.node(rows):
        embedding(flow, (rows, x), {}, out)
        return
    axes = indexed(x, node.layout, args[1], out)
    flow.set(out, node.moved(axes) if axes is not None else by_shape([one], out))


def indexed(x: Tensor, layout: Layout, index: Any, out: Tensor) -> Layout | None:
    """The layout of `out = x[index]`; None when it can't be told.

    Rows that a tensor picks out of the inputs can't be traced to them, unless it picks as many as there are.
    """
    given = list(index) if isinstance(index, tuple) else [index]
    eats = [i.dim() if isinstance(i, Tensor) and i.dtype == torch.bool else int(i is not None) for i in given]
    dots = next((at for at, i in enumerate(given) if i is Ellipsis), None)
    if dots is not None:
        given[dots : dots + 1] = [slice(None)] * (x.dim() - sum(eats) + 1)
    axes: list[Axis] = []
    eaten: list[tuple[Axis, Any]] = []  # by tensors, and by which
    places: list[int] = []  # in `axes`, of the tensors
    at = 0
    for i in given:
        if i is None:
            axes.append(lay.axis_of(1))
        elif isinstance(i, slice):
            axes.append(lay.resized(layout[at], len(range(*i.indices(x.shape[at])))))
            at += 1
        elif isinstance(i, Tensor | list):
            width = i.dim() if isinstance(i, Tensor) and i.dtype == torch.bool else 1
            eaten.extend((axis, i) for axis in layout[at : at + width])
            places.append(len(axes))
            at += width
        else:
            at += 1
    axes.extend(layout[at:])
    if places:
        start = places[0] if places == [places[0]] * len(places) else 0
        shape = out.shape[start : start + out.dim() - len(axes)]
        axes[start:start] = _picked(eaten, tuple(shape))
    return tuple(axes) if [lay.size_of(a) for a in axes] == list(out.shape) else None


def _picked(eaten: list[tuple[Axis, Any]], shape: tuple[int, ...]) -> list[Axis]:
    """The axes that an index by tensors puts in place of those it reads."""
    if len(eaten) == len(shape) == 1:
        return [lay.resized(eaten[0][0], shape[0])]
    axes = [lay.axis_of(size) for size in shape]
    for axis, by in eaten:
        own = tuple(by.shape) if isinstance(by, Tensor) and by.dtype != torch.bool else ()
        wide = [len(shape) - back for back in range(len(own), 0, -1) if own[-back] > 1]
        if len(wide) == 1 and shape[wide[0]] == lay.size_of(axis) and any(f.role == INPUT for f in axis):
            axes[wide[0]] = axis  # x[arange(B), last]: one of each input
    return axes


def setitem(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """`x[index] = value`: what is written brings its units and producer, unless x has its own."""
    x, index, value = args
    source = flow.node(value)
    if source is None or source.weight or not isinstance(x, Tensor) or not source.sources:
        return
    with torch._C.DisableTorchFunction():
        numbered = lay.plain(x.shape)
        part = x.detach()[index]
    node = flow.node(x) or Node(numbered)
    # Each axis of x is known by its number, sent through the index, and met by the axis of the value.
    marked = tuple(lay.axis_of(s, str(i)) for i, s in enumerate(x.shape))
    kept = indexed(x, marked, index, part)
    axes = list(node.layout)
    for axis, new in zip(reversed(kept or ()), reversed(source.layout), strict=False):
        role = axis[0].role
        if role.isdigit() and lay.size_of(new) == x.shape[int(role)] and not _has_role(axes[int(role)]):
            axes[int(role)] = new
    flow.set(x, Node(tuple(axes), union((node.sources, source.sources)), (), union((node.feeds, source.feeds))))


def scatter(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """index_add, scatter_add and kin: along `dim` rows are sent elsewhere, the other axes are the source's."""
    dim, src = argument(args, kwargs, 1, "dim"), argument(args, kwargs, 3, "source", "src")
    source, base = flow.node(src), flow.node(args[0])
    if source is None or not isinstance(dim, int) or not isinstance(out, Tensor) or src.dim() != out.dim():
        generic(flow, args, kwargs, out)
        return
    axes = list(base.layout) if base is not None else list(lay.plain(out.shape))
    for i, axis in enumerate(source.layout):
        if i != dim % out.dim() and lay.size_of(axis) == out.shape[i] and not _has_role(axes[i]):
            axes[i] = axis
    nodes = [n for n in (base, source) if n is not None]
    flow.set(out, Node(tuple(axes), union(n.sources for n in nodes), source.between, union(n.feeds for n in nodes)))


def _has_role(axis: Axis) -> bool:
    return any(f.role != OTHER for f in axis)
