"""How tensors flow through one forward pass: for every tensor, its layout, what produced it and which sites feed it.

`Flow` remembers; what each torch operation does to a `Node` is in `rules/`.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from relume.sites import layout as lay
from relume.sites.layout import INPUT, Layout

MEMO = 50_000  # nodes remembered from pass to pass
MANY = 16  # producers and consumers remembered per tensor or site


class Node:
    """What is known of one tensor.

    Attributes:
        layout: roles of its axes.
        sources: names of the operations that produced it.
        between: what it went through since.
        feeds: keys of the sites whose output it carries, for finding their consumers.
        weight: it is computed from parameters only.
        mask: (reference to x, "positive" | "negative") when it is 1 where x is so and else 0.
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
        return Node(layout, self.sources, self.between, self.feeds, self.weight)

    def through(self, what: str) -> Node:
        return Node(self.layout, self.sources, (*self.between, what)[-MANY:], self.feeds, self.weight)


def union(groups: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(item for group in groups for item in group))[:MANY]


def owner_of(parameter: str) -> str:
    """The module that a parameter belongs to, "fc1" for "fc1.weight"; a bare parameter of the root is its own."""
    module, parametrized, _ = parameter.partition(".parametrizations")
    if parametrized:
        return module
    owner, _, leaf = parameter.rpartition(".")
    return owner if owner or leaf in ("weight", "bias") else leaf


def tensors_in(value: Any, depth: int = 6) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        if not value.is_nested:
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
    elif depth and dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name, None), depth - 1)


class Flow:
    """The nodes of one forward pass; forgets a tensor when it is freed, and holds none alive."""

    def __init__(self) -> None:
        self._nodes: dict[int, tuple[weakref.ref[Tensor], Node]] = {}
        self._zeros: dict[int, weakref.ref[Tensor]] = {}
        self._parameters: dict[int, str] = {}
        self._late_parameters: dict[int, str] = {}
        self._weights: dict[
            int, tuple[torch.Size, Node]
        ] = {}  # nodes of parameters, for as long as the parameters are the same
        # Nodes by what they follow from: a pass like the last one finds them here (see `rules.follow`).
        self.memo: dict[Any, Any] = {}
        self.consumers: dict[Any, dict[str, None]] = {}
        self.linked = 0  # consumers found so far
        self.inputs: int | None = None
        self.where = ""  # dotted name of the module now running
        self.running: nn.Module | None = None  # that module

    def start(self, parameters: dict[int, str]) -> None:
        """Begin a pass; `parameters` are the model's, by id."""
        self.clear()
        if parameters is not self._parameters:
            self._weights.clear()
        self._parameters, self._late_parameters = parameters, {}
        if len(self.memo) > MEMO:
            self.memo.clear()
        self.where, self.running = "", None

    def clear(self) -> None:
        self._nodes.clear()
        self._zeros.clear()
        self.inputs = None

    # Nodes

    def node(self, tensor: Any) -> Node | None:
        held = self._nodes.get(id(tensor))
        if held is not None and held[0]() is tensor:
            return held[1]
        kept = self._weights.get(id(tensor))
        if kept is not None and kept[0] == tensor.shape:
            return kept[1]
        name = self._parameters.get(id(tensor))
        if name is None and isinstance(tensor, nn.Parameter):
            name = self._late(tensor)
        if name is not None and not is_lazy(tensor):
            layout = lay.plain(tensor.shape)
            sources = (name,)
            weight = self.same((name, layout), lambda: Node(layout, sources, weight=True))
            if id(tensor) in self._parameters:
                self._weights[id(tensor)] = (tensor.shape, weight)
            return weight
        return None

    def knows(self, tensor: Any) -> bool:
        """Is it a tensor of this pass that has a node?"""
        held = self._nodes.get(id(tensor))
        return held is not None and held[0]() is tensor

    def same(self, key: Any, make: Callable[[], Node]) -> Node:
        """One node for all passes that come to it by the same way."""
        node: Node | None = self.memo.get(key)
        if node is None:
            node = self.memo[key] = make()
        return node

    def share(self, tensor: Tensor) -> None:
        """Let a tensor have the node of an earlier pass, if that is alike."""
        node = self.node(tensor)
        if node is not None and node.mask is None:
            key = (node.layout, node.sources, node.between, node.feeds, node.weight)
            self.set(tensor, self.same(key, lambda: node))

    def _late(self, parameter: nn.Parameter) -> str | None:
        """The name of one that came with the module now running, as FSDP puts them in place only when it is called."""
        if self.running is None:
            return None
        prefix = f"{self.where}." if self.where else ""
        late = self._late_parameters.get(id(parameter))
        if late is not None:
            return late
        found = next((n for n, p in self.running.named_parameters(remove_duplicate=False) if p is parameter), None)
        if found is None:
            return None
        self._late_parameters[id(parameter)] = prefix + found
        return prefix + found

    def set(self, tensor: Tensor, node: Node) -> None:
        self._nodes[id(tensor)] = (weakref.ref(tensor), node)

    def mark_inputs(self, values: Any, axis: int) -> tuple[Node, ...]:
        """Give the model's own inputs a layout: `axis` of the first tensor counts inputs, and of all of that size.

        Returns their nodes.
        """
        nodes = []
        for tensor in tensors_in(values):
            if not tensor.dim():
                continue
            at = axis if tensor.dim() > axis else 0
            self.inputs = int(tensor.shape[at]) if self.inputs is None else self.inputs
            key = ("input", tensor.shape, at, self.inputs)
            nodes.append(self.same(key, lambda t=tensor, a=at: self._input(t, a)))  # type: ignore[misc]
            self.set(tensor, nodes[-1])
        return tuple(nodes)

    def _input(self, tensor: Tensor, at: int) -> Node:
        layout = lay.plain(tensor.shape)
        if int(tensor.shape[at]) == self.inputs:
            layout = lay.with_role(layout, at, INPUT)
        return self.same(layout, lambda: Node(layout))

    def is_zero(self, value: object) -> bool:
        """The number 0, or a tensor of zeros that is neither data nor trainable."""
        if isinstance(value, Tensor):
            held = self._zeros.get(id(value))
            if held is not None and held() is value:
                return True
            node = self.node(value)
            if value.is_nested or torch._C._functorch.is_functorch_wrapped_tensor(value):
                return False
            if (node is not None and (not node.weight or value.requires_grad)) or value.is_meta:
                return False
            with torch._C.DisableTorchFunction():
                zero = not bool(torch.any(value.detach() != 0))
            if zero:
                self._zeros[id(value)] = weakref.ref(value)
                return True
            return False
        return isinstance(value, int | float) and value == 0

    def note_zeros(self, tensor: Tensor) -> None:
        """It was made as a constant of zeros."""
        self._zeros[id(tensor)] = weakref.ref(tensor)

    def sign_mask(self, mask: object, x: object) -> str | None:
        node = self.node(mask)
        return node.mask[1] if node is not None and node.mask is not None and node.mask[0]() is x else None

    def producer_name(self, weight: Any, fallback: str) -> str:
        """The module that owns a weight ("fc1" for fc1.weight), or where the operation ran and what it is."""
        node = self.node(weight) if weight is not None else None
        if node is not None and node.weight and node.sources:
            return owner_of(node.sources[0])
        return f"{self.where}:{fallback}"

    def consume(self, node: Node | None, name: str) -> None:
        if node is not None:
            for key in node.feeds:
                names = self.consumers.setdefault(key, {})
                if len(names) < MANY and name not in names:
                    names[name] = None
                    self.linked += 1
