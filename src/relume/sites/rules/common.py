"""What every rule is made of: picking arguments, and following an operation of unknown kind by its shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from relume.sites import layout as lay
from relume.sites.flow import Flow, Node, owner_of, tensors_in, union
from relume.sites.layout import INPUT, UNIT, Layout

Shape = tuple[int, ...]
Rule = Callable[[Flow, tuple[Any, ...], dict[str, Any], Any], None]


def nothing(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Not about tensors, or a constant."""


def by_shape(known: Sequence[tuple[Tensor, Node]], out: Tensor) -> Node:
    """The node of an output whose operation has no rule: element-wise if the shapes broadcast, else a best guess."""
    data = [(t, n) for t, n in known if not n.weight]
    use = data or list(known)
    shape = tuple(out.shape)
    layout: Layout | None = None
    first = use[0][1].layout
    if len(use) == 1 and tuple(use[0][0].shape) == shape:
        layout = first
    elif all(t.dim() <= len(shape) for t, _ in use) and _broadcasts([tuple(t.shape) for t, _ in use], shape):
        layout = lay.broadcast([n.layout for _, n in use], shape)
    elif len(first) == len(shape):
        layout = lay.same_rank(first, shape)
    else:
        layout = lay.reshape(first, shape) if use[0][0].numel() == out.numel() else None
    if layout is None:
        layout = tuple(
            first[i] if i < len(first) and lay.size_of(first[i]) == s else lay.axis_of(s) for i, s in enumerate(shape)
        )
    if data and len(data) < len(known):
        weights = [(t, n) for t, n in known if n.weight]
        spread = _spread(layout, [tuple(t.shape) for t, _ in data], [tuple(t.shape) for t, _ in weights], shape)
        if spread != layout:
            return Node(spread, tuple(owner_of(s) for s in union(n.sources for _, n in weights)))
    if len(use) == 1:
        return use[0][1].moved(layout)
    nodes = [n for _, n in use]
    return Node(
        layout, union(n.sources for n in nodes), nodes[0].between, union(n.feeds for n in nodes), weight=not data
    )


def _spread(layout: Layout, data: Sequence[Shape], weights: Sequence[Shape], out: Shape) -> Layout:
    """An element-wise operation with weights makes units where only they have an extent: `x[:, None] * w`.

    Where the data has no units yet, a weight that varies along one axis makes that axis the units.
    """
    if not _broadcasts([*data, *weights], out):
        return layout

    def extends(shapes: Sequence[Shape], back: int) -> bool:
        return any(len(s) >= back and s[-back] > 1 for s in shapes)

    varies = [i for i, a in enumerate(layout) if extends(weights, len(out) - i) and not any(f.role == INPUT for f in a)]
    made = [i for i in varies if not extends(data, len(out) - i)]
    if made or (not lay.has(layout, UNIT) and len(varies) == 1):
        made = varies
    for i in made:
        layout = lay.with_role(layout, i, UNIT)
    return layout


def _broadcasts(shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> bool:
    return all(s in (1, o) for shape in shapes for s, o in zip(reversed(shape), reversed(out), strict=False))


def known_in(flow: Flow, args: Any, kwargs: dict[str, Any]) -> list[tuple[Tensor, Node]]:
    found = [(t, n) for t in tensors_in(args, 2) if (n := flow.node(t)) is not None]
    if kwargs:
        found += [(t, n) for t in tensors_in(kwargs, 2) if (n := flow.node(t)) is not None]
    return found


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], i: int, *names: str) -> Any:
    if len(args) > i:
        return args[i]
    return next((kwargs[n] for n in names if n in kwargs), None)


def generic(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    if not isinstance(out, Tensor) and not isinstance(out, tuple | list):
        return
    known = known_in(flow, args, kwargs)
    if known:
        for tensor in tensors_in(out, 2):
            flow.set(tensor, by_shape(known, tensor))


def _noted(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, what: str) -> None:
    generic(flow, args, kwargs, out)
    for tensor in tensors_in(out, 2):
        node = flow.node(tensor)
        if node is not None and not node.weight:
            flow.set(tensor, node.through(what))


def passing(name: str) -> Rule:
    """Dropout, pooling and the like: followed by shape, and named among what lies between."""
    return lambda flow, args, kwargs, out: _noted(flow, args, kwargs, out, name)


def first_of(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Node] | None:
    x = args[0] if args else kwargs.get("input", kwargs.get("self"))
    node = flow.node(x)
    return (x, node) if isinstance(x, Tensor) and node is not None else None


def ints(values: Sequence[Any]) -> list[int]:
    flat: list[int] = []
    for v in values:
        flat.extend(int(i) for i in v) if isinstance(v, tuple | list | torch.Size) else flat.append(int(v))
    return flat
