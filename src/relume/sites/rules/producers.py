"""Rules for operations that make new units (linear, convolution, embedding, attention, recurrent), and for norms."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from relume.sites import layout as lay
from relume.sites.flow import Flow, Node, tensors_in
from relume.sites.layout import INPUT, UNIT, Axis, Factor, Layout
from relume.sites.rules.common import Rule, argument, generic


def produce(flow: Flow, out: Tensor, layout: Layout, name: str, *consumed: Node | None) -> None:
    for node in consumed:
        flow.consume(node, name)
    flow.set(out, Node(layout, (name,)))


def head_of(node: Node | None, x: Tensor) -> Layout:
    """The layout a producer reads, its old units turned into samples."""
    layout = node.layout if node is not None else lay.plain(x.shape)
    return tuple(lay.without_units(axis) for axis in layout)


def _contract(flow: Flow, axis: Axis) -> None:
    """A layer with weights reads this axis whole, so it does not count inputs, if taken to: there is one input."""
    if any(f.role == INPUT and f.size > 1 for f in axis):
        flow.inputs = 1


def linear(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    x, w = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    node = flow.node(x)
    if node is not None and node.weight:
        generic(flow, args, kwargs, out)
        return
    head = head_of(node, x)
    _contract(flow, head[-1])
    layout = (*head[:-1], lay.axis_of(out.shape[-1], UNIT)) if out.dim() == x.dim() else lay.plain(out.shape)
    produce(flow, out, layout, flow.producer_name(w, "linear"), node)


def bilinear(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    a, b, w = (argument(args, kwargs, i, n) for i, n in enumerate(("input1", "input2", "weight")))
    layout = (*head_of(flow.node(a), a)[:-1], lay.axis_of(out.shape[-1], UNIT))
    produce(flow, out, layout, flow.producer_name(w, "bilinear"), flow.node(a), flow.node(b))


def conv(spatial: int, groups_at: int = 6) -> Rule:
    def rule(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        x, w = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        node = flow.node(x)
        dims = out.dim() - 2 if spatial < 0 else spatial
        channel = out.dim() - dims - 1
        head = head_of(node, x)
        channels = lay.axis_of(out.shape[channel], UNIT)
        first = head[channel][0]
        if first.role == INPUT and (argument(args, kwargs, groups_at, "groups") or 1) % first.size == 0:
            # Inputs folded into the channels, each convolved with weights of its own.
            channels = (first, Factor(out.shape[channel] // first.size, UNIT))
        else:
            _contract(flow, head[channel])
        layout = tuple(
            channels if i == channel else head[i] if i < channel else lay.axis_of(s) for i, s in enumerate(out.shape)
        )
        produce(flow, out, layout, flow.producer_name(w, "conv"), node)

    return rule


def embedding(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    index, w = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    if isinstance(out, tuple):
        out = out[0]
    node = flow.node(index)
    head = head_of(node, index)
    if out.dim() != index.dim() + 1:  # embedding_bag
        head = head[:1] if index.dim() == 2 else lay.plain(out.shape[:1])
        if index.dim() != 2 and out.shape[0] == flow.inputs:
            head = (lay.axis_of(out.shape[0], INPUT),)
    produce(flow, out, (*head, lay.axis_of(out.shape[-1], UNIT)), flow.producer_name(w, "embedding"), node)


def attention(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """scaled_dot_product_attention: queries' axes, values' features."""
    q, v = argument(args, kwargs, 0, "query"), argument(args, kwargs, 2, "value")
    nq, nv = flow.node(q), flow.node(v)
    if nq is None or nv is None:
        generic(flow, args, kwargs, out)
        return
    produce(flow, out, (*nq.layout[:-1], nv.layout[-1]), f"{flow.where}:attention", nq, nv)


def multihead(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    x = argument(args, kwargs, 0, "query")
    w = argument(args, kwargs, 11, "out_proj_weight")
    node = flow.node(x)
    result = out[0] if isinstance(out, tuple) else out
    layout = (*head_of(node, x)[:-1], lay.axis_of(result.shape[-1], UNIT))
    produce(flow, result, layout, flow.producer_name(w, "attention"), node)


def recurrent(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """nn.RNN, LSTM, GRU and their cells: features last, other axes as in the input where the number of axes agrees."""
    x = args[0]
    node = flow.node(x)
    name = flow.where or "rnn"
    flow.consume(node, name)
    head = head_of(node, x)
    for i, tensor in enumerate(tensors_in(out, 2)):
        if i == 0 and tensor.dim() == x.dim() and tensor.shape[:-1] == x.shape[:-1]:
            layout = (*head[:-1], lay.axis_of(tensor.shape[-1], UNIT))
        else:
            layout = lay.with_role(lay.plain(tensor.shape), -1, UNIT)
            batch = next((a for a in head if any(f.role == INPUT for f in a)), None)
            if tensor.dim() > 1 and batch is not None and lay.size_of(batch) == tensor.shape[-2]:
                layout = (*layout[:-2], batch, layout[-1])
        flow.set(tensor, Node(layout, (name,)))


def norm(name: str, unit_axis: int) -> Rule:
    """Normalization keeps the units; where none are known yet, its own axis carries them."""

    def rule(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        label = flow.where.rpartition(".")[2] or name
        x = args[0] if args else kwargs.get("input")
        node = flow.node(x)
        result = out[0] if isinstance(out, tuple) else out
        if node is None or not isinstance(result, Tensor):
            return
        free = result.dim() > 1 and not any(f.role == INPUT for f in node.layout[unit_axis % result.dim()])
        if free and not lay.has(node.layout, UNIT):
            node = Node(lay.with_role(node.layout, unit_axis, UNIT), (flow.where or name,), (), node.feeds)
            flow.consume(node, flow.where or name)
            flow.set(result, node)
        else:
            flow.set(result, node.through(label))

    return rule
