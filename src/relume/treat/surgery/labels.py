"""`Labels`: for each element of a tensor, the rows of the producers that it is made of, the norms on the way, and the
units that it says.

Followed through operations on elements and those that only move data; any other ends the way.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

BITS = 32  # a label is the number of the call, then that of the row or channel
_MANY = 6
_MOVES = {
    "_unsafe_view", "_reshape_alias", "clone", "_to_copy", "contiguous", "repeat", "index", "index_select", "gather",
    "constant_pad_nd", "roll", "flip", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "unsafe_split", "unsafe_chunk", "lift_fresh",
    "split_with_sizes_copy", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
    "narrow_copy",
}  # fmt: skip
_JOINS = {"cat": 0, "stack": 0}
_POOLS = ("max_pool", "avg_pool", "adaptive_", "_adaptive_", "upsample_", "_upsample_", "lp_pool", "fractional_max")


class Label(NamedTuple):
    """Of one tensor.

    Attributes:
        rows: int64 tensors of its shape: products whose rows its elements are sums of.
        norms: the same for the channels of normalizations, in the order in which they were applied.
        units: the same for the units of sites; the number of the site, then the unit.
    """

    rows: tuple[Tensor, ...] = ()
    norms: tuple[Tensor, ...] = ()
    units: tuple[Tensor, ...] = ()

    def map(self, function: Any) -> Label:
        return Label(*(tuple(map(function, kind)) for kind in self))


class Labels:
    """Labels of the tensors of one pass, forgotten when they are freed."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Tensor], Label]] = {}

    def of(self, tensor: Any) -> Label | None:
        entry = self._of.get(id(tensor))
        known = entry is not None and entry[0]() is tensor and any(entry[1])
        return entry[1] if entry is not None and known else None

    def give(self, tensor: Tensor, label: Label) -> None:
        key = id(tensor)
        self._of[key] = (weakref.ref(tensor, lambda ref: self._forget(key, ref)), label)

    def _forget(self, key: int, ref: weakref.ref[Tensor]) -> None:
        entry = self._of.get(key)
        if entry is not None and entry[0] is ref:
            del self._of[key]

    def numbered(self, tensor: Tensor, call: int, numbers: Tensor, norm: Label | None = None) -> None:
        """A call made this tensor, each element its row `numbers`; of a norm, the input's label goes on."""
        own = numbers + (call << BITS)
        if norm is None:
            self.give(tensor, Label((own,)))
        else:
            self.give(tensor, Label(norm.rows, (*norm.norms, own), norm.units))

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """What an operation makes of the labels of its arguments."""
        name = func.overloadpacket.__name__
        if name in _JOINS:
            self._join(func, args, kwargs, out)
            return
        known = [(t, label) for t in _tensors(args) if (label := self.of(t)) is not None]
        if not known:
            return
        first, label = known[0]
        if func.is_view or name in _MOVES:
            if first is not args[0]:
                return
            if name in ("_to_copy", "clone", "contiguous", "lift_fresh"):
                moved: Any = [label]
            else:
                moved = _moved(func, args, kwargs, label)
            outs = [out] if isinstance(out, Tensor) else list(out)
            for tensor, its in zip(outs, moved, strict=False):
                self.give(tensor, its)
        elif torch.Tag.pointwise in func.tags or name in ("native_dropout", "copy_", "add_", "mul_"):
            result = out[0] if isinstance(out, tuple | list) else out
            if isinstance(result, Tensor):
                merged = _union([la.map(lambda t: _expanded(t, result)) for _, la in known])
                self.give(result, merged)
        elif name.startswith(_POOLS):
            result = out[0] if isinstance(out, tuple | list) else out
            if isinstance(result, Tensor) and result.dim() == first.dim():
                pooled = label.map(lambda t: _resized(t, result))
                self.give(result, Label(*(tuple(t for t in ts if t is not None) for ts in pooled)))

    def _join(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        parts = list(args[0])
        labels = [self.of(t) or Label() for t in parts]
        result: list[tuple[Tensor, ...]] = []
        for kind in range(len(Label._fields)):
            joined = []
            for i in range(max(len(la[kind]) for la in labels)):
                pieces = [
                    la[kind][i] if i < len(la[kind]) else torch.full_like(t, -1, dtype=torch.int64)
                    for t, la in zip(parts, labels, strict=True)
                ]
                joined.append(func(pieces, *args[1:], **kwargs))
            result.append(tuple(joined))
        self.give(out, Label(*result))


def _tensors(args: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for a in args:
        if isinstance(a, Tensor):
            found.append(a)
        elif isinstance(a, tuple | list):
            found += [t for t in a if isinstance(t, Tensor)]
    return found


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], label: Label) -> list[Label]:
    """The same movement, made with each label."""
    name = func.overloadpacket.__name__

    def apply(t: Tensor) -> list[Tensor]:
        if name == "constant_pad_nd":
            out = func(t, args[1], -1)
        elif name in ("view", "_unsafe_view", "_reshape_alias"):
            out = t.reshape(args[1])  # a label may lie otherwise in memory
        else:
            out = func(t, *args[1:], **kwargs)
        return [out] if isinstance(out, Tensor) else list(out)

    kinds = [[apply(t) for t in kind] for kind in label]
    n = next(len(parts) for kind in kinds for parts in kind)
    return [Label(*(tuple(parts[i] for parts in kind) for kind in kinds)) for i in range(n)]


def _expanded(t: Tensor, out: Tensor) -> Tensor:
    return t if t.shape == out.shape else t.expand(out.shape)


def _union(labels: list[Label]) -> Label:
    def merged(groups: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for t in (t for group in groups for t in group):
            if not any(t is f or torch.equal(t, f) for f in found):
                found.append(t)
        return tuple(found[:_MANY])

    return Label(*(merged([la[kind] for la in labels]) for kind in range(len(Label._fields))))


def _resized(t: Tensor, out: Tensor) -> Tensor | None:
    """A label that varies along the axes before the pooled ones only, at the new size."""
    changed = [i for i, (a, b) in enumerate(zip(t.shape, out.shape, strict=True)) if a != b]
    for axis in changed:
        first = t.narrow(axis, 0, 1)
        if not torch.equal(first.expand(t.shape), t):
            return None
        t = first
    return t.expand(out.shape)
