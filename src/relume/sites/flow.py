"""How tensors flow through one forward pass: for every tensor, its layout, what produced it and which sites feed it.

`Flow.follow(func, args, kwargs, out)` is called once per torch function and gives each output a `Node` by the rule
for that function; a function without a rule is followed by shape (see `_by_shape`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from relume.sites import layout as lay
from relume.sites.layout import INPUT, OTHER, UNIT, Axis, Factor, Layout

MANY = 16  # producers and consumers remembered per tensor or site


class Node:
    """What is known of one tensor.

    Attributes:
        layout: roles of its axes.
        sources: names of the operations that produced it.
        between: what it went through since.
        feeds: keys of the sites whose output it carries, for finding their consumers.
        weight: it is computed from parameters only.
        mask: (reference to x, "positive" | "negative") when it was made by comparing x with zero.
    """

    __slots__ = ("between", "feeds", "layout", "mask", "sources", "weight")

    def __init__(
        self,
        layout: Layout,
        sources: tuple[str, ...] = (),
        between: tuple[str, ...] = (),
        feeds: tuple[Any, ...] = (),
        weight: bool = False,
        mask: tuple[weakref.ref[Tensor], str] | None = None,
    ) -> None:
        self.layout, self.sources, self.between = layout, sources, between
        self.feeds, self.weight, self.mask = feeds, weight, mask

    def moved(self, layout: Layout) -> Node:
        return Node(layout, self.sources, self.between, self.feeds, self.weight, self.mask)

    def through(self, what: str) -> Node:
        return Node(self.layout, self.sources, (*self.between, what)[-MANY:], self.feeds, self.weight)


def _union(groups: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(item for group in groups for item in group))[:MANY]


def tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists and dicts (and dataclass-like outputs that are dicts)."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, depth - 1)
    elif depth and hasattr(value, "keys") and hasattr(value, "__getitem__"):
        for key in value.keys():  # noqa: SIM118 - mapping-like objects of other libraries
            yield from tensors_in(value[key], depth - 1)


class Flow:
    """The nodes of one forward pass; forgets a tensor when it is freed, and holds none alive."""

    def __init__(self) -> None:
        self._nodes: dict[int, tuple[weakref.ref[Tensor], Node]] = {}
        self._zeros: dict[int, weakref.ref[Tensor]] = {}
        self._parameters: dict[int, str] = {}
        self.consumers: dict[Any, dict[str, None]] = {}
        self.inputs: int | None = None
        self.where = ""  # dotted name of the module now running

    def start(self, parameters: dict[int, str]) -> None:
        """Begin a pass; `parameters` are the model's, by id."""
        self.clear()
        self._parameters = parameters
        self.where = ""

    def clear(self) -> None:
        self._nodes.clear()
        self._zeros.clear()
        self.inputs = None

    # Nodes

    def node(self, tensor: Any) -> Node | None:
        held = self._nodes.get(id(tensor))
        if held is not None and held[0]() is tensor:
            return held[1]
        name = self._parameters.get(id(tensor))
        if name is not None:
            return Node(lay.plain(tensor.shape), (name,), weight=True)
        return None

    def set(self, tensor: Tensor, node: Node) -> None:
        self._nodes[id(tensor)] = (weakref.ref(tensor), node)

    def mark_inputs(self, values: Any, axis: int) -> None:
        """Give the model's own inputs a layout: `axis` of the first tensor counts inputs, and of all of that size."""
        tensors = [t for t in tensors_in(values) if t.dim()]
        for tensor in tensors:
            at = axis if tensor.dim() > axis else 0
            size = int(tensor.shape[at])
            self.inputs = size if self.inputs is None else self.inputs
            layout = lay.plain(tensor.shape)
            self.set(tensor, Node(lay.with_role(layout, at, INPUT) if size == self.inputs else layout))

    def is_zero(self, value: object) -> bool:
        """The number 0, or a tensor of zeros that is neither data nor trainable."""
        if isinstance(value, Tensor):
            held = self._zeros.get(id(value))
            if held is not None and held() is value:
                return True
            node = self.node(value)
            if (node is not None and (not node.weight or value.requires_grad)) or value.is_meta:
                return False
            with torch._C.DisableTorchFunction():
                zero = not bool(torch.any(value.detach() != 0))
            if zero:
                self._zeros[id(value)] = weakref.ref(value)
                return True
            return False
        return isinstance(value, int | float) and value == 0

    def sign_mask(self, mask: object, x: object) -> str | None:
        node = self.node(mask)
        return node.mask[1] if node is not None and node.mask is not None and node.mask[0]() is x else None

    def producer_name(self, weight: Any, fallback: str) -> str:
        """The module that owns a weight ("fc1" for fc1.weight), or where the operation ran and what it is."""
        node = self.node(weight) if weight is not None else None
        if node is not None and node.weight and node.sources:
            owner, _, leaf = node.sources[0].partition(".parametrizations")[0].rpartition(".")
            if node.sources[0].count(".parametrizations"):
                return node.sources[0].partition(".parametrizations")[0]
            return owner if owner or leaf in ("weight", "bias") else leaf
        return f"{self.where}:{fallback}"

    def consume(self, node: Node | None, name: str) -> None:
        if node is not None:
            for key in node.feeds:
                names = self.consumers.setdefault(key, {})
                if len(names) < MANY:
                    names[name] = None

    # Rules

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        rule = _RULES.get(func)
        if rule is None:
            rule = _RULES[func] = _rule_for(func)
        rule(self, args, kwargs, out)

    def through_module(self, args: tuple[Any, ...], out: Any) -> None:
        """After a module call: follow by shape what no torch function announced (custom kernels, scripted parts)."""
        known: list[tuple[Tensor, Node]] | None = None
        for tensor in tensors_in(out):
            if id(tensor) in self._nodes and self._nodes[id(tensor)][0]() is tensor:
                continue
            if known is None:
                known = [(t, n) for t in tensors_in(args) if (n := self.node(t)) is not None]
            if known:
                self.set(tensor, _by_shape(known, tensor))


Rule = Callable[[Flow, tuple[Any, ...], dict[str, Any], Any], None]


def _nothing(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Not about tensors, or a constant."""


def _by_shape(known: Sequence[tuple[Tensor, Node]], out: Tensor) -> Node:
    """The node of an output whose operation has no rule: element-wise if the shapes broadcast, else as near as can be."""
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
    if len(use) == 1:
        return use[0][1].moved(layout)
    nodes = [n for _, n in use]
    return Node(
        layout, _union(n.sources for n in nodes), nodes[0].between, _union(n.feeds for n in nodes), weight=not data
    )


def _broadcasts(shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> bool:
    return all(s in (1, o) for shape in shapes for s, o in zip(reversed(shape), reversed(out), strict=False))


def _known(flow: Flow, args: Any, kwargs: dict[str, Any]) -> list[tuple[Tensor, Node]]:
    found = [(t, n) for t in tensors_in(args, 2) if (n := flow.node(t)) is not None]
    if kwargs:
        found += [(t, n) for t in tensors_in(kwargs, 2) if (n := flow.node(t)) is not None]
    return found


def _generic(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    if not isinstance(out, Tensor) and not isinstance(out, tuple | list):
        return
    known = _known(flow, args, kwargs)
    if known:
        for tensor in tensors_in(out, 2):
            flow.set(tensor, _by_shape(known, tensor))


def _noted(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, what: str) -> None:
    _generic(flow, args, kwargs, out)
    for tensor in tensors_in(out, 2):
        node = flow.node(tensor)
        if node is not None and not node.weight:
            flow.set(tensor, node.through(what))


def _passing(name: str) -> Rule:
    """Dropout, pooling and the like: followed by shape, and named among what lies between."""
    return lambda flow, args, kwargs, out: _noted(flow, args, kwargs, out, name)


def _norm(name: str, unit_axis: int) -> Rule:
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


def _produce(flow: Flow, out: Tensor, layout: Layout, name: str, *consumed: Node | None) -> None:
    for node in consumed:
        flow.consume(node, name)
    flow.set(out, Node(layout, (name,)))


def _head(node: Node | None, x: Tensor) -> Layout:
    """The layout a producer reads, its old units turned into samples."""
    layout = node.layout if node is not None else lay.plain(x.shape)
    return tuple(lay.without_units(axis) for axis in layout)


def _arg(args: tuple[Any, ...], kwargs: dict[str, Any], i: int, *names: str) -> Any:
    if len(args) > i:
        return args[i]
    return next((kwargs[n] for n in names if n in kwargs), None)


def _linear(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    x, w = _arg(args, kwargs, 0, "input"), _arg(args, kwargs, 1, "weight")
    node = flow.node(x)
    if node is not None and node.weight:
        _generic(flow, args, kwargs, out)
        return
    layout = (*_head(node, x)[:-1], lay.axis_of(out.shape[-1], UNIT)) if out.dim() == x.dim() else lay.plain(out.shape)
    _produce(flow, out, layout, flow.producer_name(w, "linear"), node)


def _bilinear(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    a, b, w = (_arg(args, kwargs, i, n) for i, n in enumerate(("input1", "input2", "weight")))
    layout = (*_head(flow.node(a), a)[:-1], lay.axis_of(out.shape[-1], UNIT))
    _produce(flow, out, layout, flow.producer_name(w, "bilinear"), flow.node(a), flow.node(b))


def _conv(spatial: int) -> Rule:
    def rule(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        x, w = _arg(args, kwargs, 0, "input"), _arg(args, kwargs, 1, "weight")
        node = flow.node(x)
        dims = out.dim() - 2 if spatial < 0 else spatial
        channel = out.dim() - dims - 1
        head = _head(node, x)
        layout = tuple(
            lay.axis_of(s, UNIT) if i == channel else head[i] if i < channel else lay.axis_of(s)
            for i, s in enumerate(out.shape)
        )
        _produce(flow, out, layout, flow.producer_name(w, "conv"), node)

    return rule


def _embedding(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    index, w = _arg(args, kwargs, 0, "input"), _arg(args, kwargs, 1, "weight")
    if isinstance(out, tuple):
        out = out[0]
    node = flow.node(index)
    head = _head(node, index)
    if out.dim() != index.dim() + 1:  # embedding_bag
        head = head[:1] if index.dim() == 2 else lay.plain(out.shape[:1])
        if index.dim() != 2 and out.shape[0] == flow.inputs:
            head = (lay.axis_of(out.shape[0], INPUT),)
    _produce(flow, out, (*head, lay.axis_of(out.shape[-1], UNIT)), flow.producer_name(w, "embedding"), node)


def _matmul(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    a, b = _arg(args, kwargs, 0, "input"), _arg(args, kwargs, 1, "other", "mat2", "vec")
    _product(flow, a, b, out)


def _rmatmul(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    _product(flow, args[1], args[0], out)


def _addmm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    a = _arg(args, kwargs, 1, "mat1", "batch1", "mat")
    b = _arg(args, kwargs, 2, "mat2", "batch2", "vec")
    _product(flow, a, b, out)


def _product(flow: Flow, a: Any, b: Any, out: Any) -> None:
    """a @ b. The factor that is a weight makes the other's units anew: columns of b, or rows of a."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and isinstance(out, Tensor)):
        return
    na, nb = flow.node(a), flow.node(b)
    a_weight = na is None or na.weight
    b_weight = nb is None or nb.weight
    if (na is None and nb is None) or (na is not None and na.weight and nb is not None and nb.weight):
        _generic(flow, (a, b), {}, out)
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

    if b_weight and not a_weight and na is not None:
        head = _head(na, a)
        layout = (
            *weight_batch(head[:-2], lb[:-2]),
            *(head[-2:-1] if a.dim() > 1 else ()),
            *(lay.axis_of(lay.size_of(c), UNIT) for c in columns),
        )
        _produce(flow, out, layout, flow.producer_name(b, "matmul"), na)
    elif a_weight and not b_weight and nb is not None:
        head = _head(nb, b)
        layout = (
            *weight_batch(head[:-2], la[:-2]),
            *(lay.axis_of(lay.size_of(r), UNIT) for r in rows),
            *(head[-1:] if b.dim() > 1 else ()),
        )
        _produce(flow, out, layout, flow.producer_name(a, "matmul"), nb)
    else:  # both are data, as in attention: roles go on, and the columns are units if nothing else is
        batch = lay.broadcast([x for x in (la[:-2], lb[:-2]) if x], batch_shape) if batch_shape else ()
        layout = (*batch, *rows, *columns)
        if layout and not lay.has(layout, UNIT) and not any(f.role == INPUT for f in layout[-1]):
            layout = lay.with_role(layout, -1, UNIT)
        _produce(flow, out, layout, f"{flow.where}:matmul", na, nb)


def _einsum(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    if not args or not isinstance(args[0], str):
        _generic(flow, args, kwargs, out)
        return
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else list(args[1:])
    left, arrow, right = args[0].replace(" ", "").partition("->")
    terms = left.split(",")
    letters: list[list[str]] = []
    for term, x in zip(terms, operands, strict=False):
        wide = x.dim() - len(term.replace("...", ""))
        dots = [f"...{wide - i}" for i in range(wide)]
        head, found, tail = term.partition("...")
        letters.append([*head, *dots, *tail] if found else list(head))
    if arrow:
        wide = out.dim() - len(right.replace("...", ""))
        head, found, tail = right.partition("...")
        target = [*head, *(f"...{wide - i}" for i in range(wide)), *tail] if found else list(head)
    else:
        every = [x for term in letters for x in term]
        target = sorted({x for x in every if x.startswith(".")}, reverse=True)
        target += sorted(x for x in set(every) if every.count(x) == 1 and not x.startswith("."))
    nodes = [flow.node(x) for x in operands]
    data = [(n, term) for n, term in zip(nodes, letters, strict=False) if n is not None and not n.weight]
    weights = [(x, term) for x, n, term in zip(operands, nodes, letters, strict=False) if n is None or n.weight]
    if not data or len(target) != out.dim():
        _generic(flow, args, kwargs, out)
        return
    from_data: dict[str, Axis] = {}
    for node, term in data:
        for letter, axis in zip(term, node.layout, strict=False):
            if letter not in from_data or any(f.role == INPUT for f in axis):
                from_data[letter] = axis
    in_weight = {x for _, term in weights for x in term}
    axes: list[Axis] = []
    for letter, size in zip(target, out.shape, strict=True):
        kept = from_data.get(letter, lay.axis_of(size))
        if weights:
            kept = lay.without_units(kept)
        if letter in in_weight and not any(f.role == INPUT for f in kept):
            kept = lay.axis_of(size, UNIT)
        axes.append(kept if lay.size_of(kept) == size else lay.axis_of(size))
    if axes and not lay.has(tuple(axes), UNIT) and not any(f.role == INPUT for f in axes[-1]):
        axes[-1] = lay.axis_of(lay.size_of(axes[-1]), UNIT)
    name = flow.producer_name(weights[0][0], "einsum") if weights else f"{flow.where}:einsum"
    _produce(flow, out, tuple(axes), name, *(n for n, _ in data))


def _attention(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """scaled_dot_product_attention: queries' axes, values' features."""
    q, v = _arg(args, kwargs, 0, "query"), _arg(args, kwargs, 2, "value")
    nq, nv = flow.node(q), flow.node(v)
    if nq is None or nv is None:
        _generic(flow, args, kwargs, out)
        return
    _produce(flow, out, (*nq.layout[:-1], nv.layout[-1]), f"{flow.where}:attention", nq, nv)


def _multihead(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    x = _arg(args, kwargs, 0, "query")
    w = _arg(args, kwargs, 11, "out_proj_weight")
    node = flow.node(x)
    result = out[0] if isinstance(out, tuple) else out
    layout = (*_head(node, x)[:-1], lay.axis_of(result.shape[-1], UNIT))
    _produce(flow, result, layout, flow.producer_name(w, "attention"), node)


def _recurrent(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """nn.RNN, LSTM, GRU and their cells: features last, other axes as in the input where the number of axes agrees."""
    x = args[0]
    node = flow.node(x)
    name = flow.where or "rnn"
    flow.consume(node, name)
    head = _head(node, x)
    for i, tensor in enumerate(tensors_in(out, 2)):
        if i == 0 and tensor.dim() == x.dim() and tensor.shape[:-1] == x.shape[:-1]:
            layout = (*head[:-1], lay.axis_of(tensor.shape[-1], UNIT))
        else:
            layout = lay.with_role(lay.plain(tensor.shape), -1, UNIT)
            batch = next((a for a in head if any(f.role == INPUT for f in a)), None)
            if tensor.dim() > 1 and batch is not None and lay.size_of(batch) == tensor.shape[-2]:
                layout = (*layout[:-2], batch, layout[-1])
        flow.set(tensor, Node(layout, (name,)))


# Shape operations


def _one(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Node] | None:
    x = args[0] if args else kwargs.get("input", kwargs.get("self"))
    node = flow.node(x)
    return (x, node) if node is not None else None


def _reshape(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None and isinstance(out, Tensor):
        layout = lay.reshape(one[1].layout, out.shape) if out.numel() == one[0].numel() else None
        flow.set(out, one[1].moved(layout) if layout is not None else _by_shape([one], out))


def _ints(values: Sequence[Any]) -> list[int]:
    flat: list[int] = []
    for v in values:
        flat.extend(int(i) for i in v) if isinstance(v, tuple | list | torch.Size) else flat.append(int(v))
    return flat


def _permute(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None:
        order = _ints(args[1:]) or _ints([kwargs["dims"]])
        flow.set(out, one[1].moved(lay.permute(one[1].layout, [i % len(one[1].layout) for i in order])))


def _transpose(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None:
        n = len(one[1].layout)
        a, b = _arg(args, kwargs, 1, "dim0", "axis0"), _arg(args, kwargs, 2, "dim1", "axis1")
        order = list(range(n))
        order[a % n], order[b % n] = order[b % n], order[a % n]
        flow.set(out, one[1].moved(lay.permute(one[1].layout, order)))


def _swap_last(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None:
        n = len(one[1].layout)
        order = [*range(n - 2), *reversed(range(max(n - 2, 0), n))]
        flow.set(out, one[1].moved(lay.permute(one[1].layout, order)))


def _reverse(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None:
        flow.set(out, one[1].moved(tuple(reversed(one[1].layout))))


def _movedim(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None:
        n = len(one[1].layout)
        source = [i % n for i in _ints([_arg(args, kwargs, 1, "source")])]
        target = [i % n for i in _ints([_arg(args, kwargs, 2, "destination")])]
        order = [i for i in range(n) if i not in source]
        for t, s in sorted(zip(target, source, strict=True)):
            order.insert(t, s)
        flow.set(out, one[1].moved(lay.permute(one[1].layout, order)))


def _squeeze(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is None:
        return
    x, node = one
    dim = _arg(args, kwargs, 1, "dim")
    n = len(node.layout)
    named = set(range(n)) if dim is None else {d % n for d in _ints([dim])}
    flow.set(out, node.moved(tuple(a for i, a in enumerate(node.layout) if i not in named or x.shape[i] != 1)))


def _unsqueeze(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None:
        at = _arg(args, kwargs, 1, "dim") % (len(one[1].layout) + 1)
        axes = one[1].layout
        flow.set(out, one[1].moved((*axes[:at], lay.axis_of(1), *axes[at:])))


def _expand(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None:
        grown = (*(lay.axis_of(1) for _ in range(out.dim() - len(one[1].layout))), *one[1].layout)
        axes = tuple(a if lay.size_of(a) == s else lay.axis_of(s) for a, s in zip(grown, out.shape, strict=True))
        flow.set(out, one[1].moved(axes))


def _repeat(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Copies: the new outer factor is neither input nor unit."""
    one = _one(flow, args, kwargs)
    if one is not None:
        grown = (*(lay.axis_of(1) for _ in range(out.dim() - len(one[1].layout))), *one[1].layout)
        axes = tuple(
            a if lay.size_of(a) == s else (Factor(s // max(lay.size_of(a), 1), OTHER), *a)
            for a, s in zip(grown, out.shape, strict=True)
        )
        flow.set(out, one[1].moved(axes))


def _repeat_interleave(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is None:
        return
    times, dim = _arg(args, kwargs, 1, "repeats"), _arg(args, kwargs, 2, "dim")
    if isinstance(times, int) and dim is not None:
        axes = list(one[1].layout)
        axes[dim] = (*axes[dim], Factor(times, OTHER))
        flow.set(out, one[1].moved(tuple(axes)))
    else:
        flow.set(out, _by_shape([one], out))


def _cat(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    parts = [t for t in _arg(args, kwargs, 0, "tensors") if t.dim() == out.dim()]
    known = [(t, n) for t in parts if (n := flow.node(t)) is not None]
    if not known:
        return
    data = [(t, n) for t, n in known if not n.weight] or known
    dim = (_arg(args, kwargs, 1, "dim", "axis") or 0) % out.dim()
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
        Node(tuple(layout), _union(n.sources for n in nodes), ("cat",), _union(n.feeds for n in nodes)),
    )


def _stack(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    known = [(t, n) for t in _arg(args, kwargs, 0, "tensors") if (n := flow.node(t)) is not None]
    if known:
        nodes = [n for _, n in known if not n.weight] or [n for _, n in known]
        dim = (_arg(args, kwargs, 1, "dim") or 0) % out.dim()
        axes = nodes[0].layout
        layout = (*axes[:dim], lay.axis_of(out.shape[dim]), *axes[dim:])
        flow.set(out, Node(layout, _union(n.sources for n in nodes), nodes[0].between, _union(n.feeds for n in nodes)))


def _unbind(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None:
        dim = (_arg(args, kwargs, 1, "dim") or 0) % len(one[1].layout)
        axes = tuple(a for i, a in enumerate(one[1].layout) if i != dim)
        for tensor in out:
            flow.set(tensor, one[1].moved(axes))


def _select(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None:
        dim = _arg(args, kwargs, 1, "dim") % len(one[1].layout)
        flow.set(out, one[1].moved(tuple(a for i, a in enumerate(one[1].layout) if i != dim)))


def _getitem(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is None or not isinstance(out, Tensor):
        return
    x, node = one
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(isinstance(i, Tensor | list) for i in index):
        flow.set(out, _indexed(x, node, index, out))
        return
    used = sum(1 for i in index if i is not None and i is not Ellipsis)
    axes: list[Axis] = []
    at = 0
    for i in index:
        if i is None:
            axes.append(lay.axis_of(1))
        elif i is Ellipsis:
            axes.extend(node.layout[at : at + x.dim() - used])
            at += x.dim() - used
        elif isinstance(i, slice):
            axes.append(lay.resized(node.layout[at], len(range(*i.indices(x.shape[at])))))
            at += 1
        else:
            at += 1
    axes.extend(node.layout[at:])
    flow.set(out, node.moved(tuple(axes)) if len(axes) == out.dim() else _by_shape([one], out))


def _indexed(x: Tensor, node: Node, index: tuple[Any, ...], out: Tensor) -> Node:
    """Indexing by tensors: axes after the index keep their roles; rows picked out can't be traced to inputs."""
    eaten = 0
    for i in index:
        if isinstance(i, Tensor) and i.dtype == torch.bool:
            eaten += i.dim()
        elif i is not None and i is not Ellipsis:
            eaten += 1
    if Ellipsis in [i for i in index if not isinstance(i, Tensor)]:
        return _by_shape([(x, node)], out)
    kept = node.layout[eaten:]
    new = out.dim() - len(kept)
    if new < 0 or tuple(lay.size_of(a) for a in kept) != tuple(out.shape[new:]):
        return _by_shape([(x, node)], out)
    return node.moved((*lay.plain(out.shape[:new]), *kept))


def _reduce(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is None:
        return
    x, node = one
    dim = _arg(args, kwargs, 1, "dim", "axis")
    if isinstance(dim, Tensor) or isinstance(dim, torch.dtype):  # torch.max(a, b)
        _generic(flow, args, kwargs, out)
        return
    keep = bool(_arg(args, kwargs, 2, "keepdim"))
    layout = lay.reduced(node.layout, None if dim is None else _ints([dim]), keep)
    for tensor in tensors_in(out, 2):
        flow.set(tensor, node.moved(layout) if len(layout) == tensor.dim() else _by_shape([(x, node)], tensor))


def _compare(sign: str) -> Rule:
    """x > 0 and x < 0 are remembered, so that `x * (x > 0)` is known for the ReLU it is."""

    def rule(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        _generic(flow, args, kwargs, out)
        if len(args) > 1 and isinstance(args[0], Tensor) and isinstance(out, Tensor) and flow.is_zero(args[1]):
            node = flow.node(out)
            if node is not None:
                node = node.moved(node.layout)
                node.mask = (weakref.ref(args[0]), sign)
                flow.set(out, node)

    return rule


def _zeros(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    flow._zeros[id(out)] = weakref.ref(out)


def _pixel_shuffle(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = _one(flow, args, kwargs)
    if one is not None:
        axes = (
            *one[1].layout[:-3],
            *(lay.resized(a, s) for a, s in zip(one[1].layout[-3:], out.shape[-3:], strict=True)),
        )
        flow.set(out, one[1].moved(axes))


_NAMED: dict[str, Rule] = {
    "linear": _linear,
    "bilinear": _bilinear,
    **{f"conv{t}{d}d": _conv(d) for d in (1, 2, 3) for t in ("", "_transpose")},
    "convolution": _conv(-1),
    "embedding": _embedding,
    "embedding_bag": _embedding,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm", "mv", "dot"), _matmul),
    "__rmatmul__": _rmatmul,
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv"), _addmm),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multihead,
    **dict.fromkeys(
        ("rnn_relu", "rnn_tanh", "lstm", "gru", "rnn_relu_cell", "rnn_tanh_cell", "lstm_cell", "gru_cell"), _recurrent
    ),
    **{n: _norm(n, 1) for n in ("batch_norm", "instance_norm", "group_norm", "native_batch_norm", "native_group_norm")},
    **{n: _norm(n, -1) for n in ("layer_norm", "rms_norm", "native_layer_norm")},
    **{n: _passing(n) for n in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")},
    **{n: _passing("dropout") for n in ("dropout1d", "dropout2d", "dropout3d")},
    **{
        f"{kind}_pool{d}d": _passing(f"{kind}_pool{d}d")
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp", "fractional_max")
        for d in (1, 2, 3)
    },
    **{n: _passing(n) for n in ("boolean_dispatch", "softmax", "log_softmax", "normalize", "interpolate", "upsample")},
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "view_as", "reshape_as", "ravel"), _reshape),
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("t", "adjoint"), _swap_last),
    **dict.fromkeys(("movedim", "moveaxis"), _movedim),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "repeat_interleave": _repeat_interleave,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "stack": _stack,
    "unbind": _unbind,
    "select": _select,
    "__getitem__": _getitem,
    **dict.fromkeys(
        (
            "sum",
            "mean",
            "amax",
            "amin",
            "max",
            "min",
            "prod",
            "std",
            "var",
            "norm",
            "logsumexp",
            "any",
            "all",
            "median",
            "nansum",
            "nanmean",
            "argmax",
            "argmin",
            "count_nonzero",
        ),
        _reduce,
    ),
    **dict.fromkeys(("gt", "ge", "__gt__", "__ge__", "greater"), _compare("positive")),
    **dict.fromkeys(("lt", "le", "__lt__", "__le__", "less"), _compare("negative")),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _zeros),
    "pixel_shuffle": _pixel_shuffle,
    **dict.fromkeys(
        (
            "size",
            "dim",
            "stride",
            "numel",
            "is_floating_point",
            "is_complex",
            "element_size",
            "get_device",
            "__len__",
            "storage_offset",
            "is_contiguous",
            "requires_grad_",
            "register_hook",
            "backward",
            "item",
            "tolist",
            "__bool__",
            "__float__",
            "__int__",
            "ndimension",
            "nelement",
            "_set_grad_enabled",
            "set_grad_enabled",
            "empty",
            "empty_like",
            "rand",
            "randn",
            "rand_like",
            "randn_like",
            "ones",
            "ones_like",
            "full",
            "arange",
            "tensor",
            "as_tensor",
            "new_ones",
            "new_full",
            "new_empty",
            "randint",
            "eye",
            "linspace",
            "is_autocast_enabled",
        ),
        _nothing,
    ),
}
_PROPERTIES: dict[str, Rule] = {"T": _reverse, "mT": _swap_last, "H": _swap_last, "mH": _swap_last}
_PROPERTIES.update(dict.fromkeys(("data", "real"), _generic))

_RULES: dict[Any, Rule] = {}


def _rule_for(func: Any) -> Rule:
    """The rule by the function's name; attribute getters by the attribute's."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return _PROPERTIES.get(getattr(func.__self__, "__name__", ""), _nothing)
    if name == "__set__":
        return _nothing
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = str(name).partition(".")[0]
    if name.startswith("__i") and name.endswith("__") and name[3:-2] in ("add", "sub", "mul", "truediv", "matmul"):
        return _generic
    return _NAMED.get(name) or _NAMED.get(name.rstrip("_")) or _NAMED.get(name.lstrip("_")) or _generic
