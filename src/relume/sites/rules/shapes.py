"""Rules for operations that only rearrange one tensor: reshape, permute, expand, repeat and their kin."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from relume.sites import layout as lay
from relume.sites.flow import Flow
from relume.sites.layout import OTHER, Factor
from relume.sites.rules.common import argument, by_shape, first_of, ints


def reshape(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None and isinstance(out, Tensor):
        layout = lay.reshape(one[1].layout, out.shape) if out.numel() == one[0].numel() else None
        flow.set(out, one[1].moved(layout) if layout is not None else by_shape([one], out))


def permute(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None:
        order = ints(args[1:]) or ints([kwargs["dims"]])
        flow.set(out, one[1].moved(lay.permute(one[1].layout, [i % len(one[1].layout) for i in order])))


def transpose(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None:
        n = len(one[1].layout)
        a, b = argument(args, kwargs, 1, "dim0", "axis0"), argument(args, kwargs, 2, "dim1", "axis1")
        order = list(range(n))
        order[a % n], order[b % n] = order[b % n], order[a % n]
        flow.set(out, one[1].moved(lay.permute(one[1].layout, order)))


def swap_last(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None:
        n = len(one[1].layout)
        order = [*range(n - 2), *reversed(range(max(n - 2, 0), n))]
        flow.set(out, one[1].moved(lay.permute(one[1].layout, order)))


def reverse(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None:
        flow.set(out, one[1].moved(tuple(reversed(one[1].layout))))


def movedim(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None:
        n = len(one[1].layout)
        source = [i % n for i in ints([argument(args, kwargs, 1, "source")])]
        target = [i % n for i in ints([argument(args, kwargs, 2, "destination")])]
        order = [i for i in range(n) if i not in source]
        for t, s in sorted(zip(target, source, strict=True)):
            order.insert(t, s)
        flow.set(out, one[1].moved(lay.permute(one[1].layout, order)))


def squeeze(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is None:
        return
    x, node = one
    dim = argument(args, kwargs, 1, "dim")
    n = len(node.layout)
    named = set(range(n)) if dim is None else {d % n for d in ints([dim])}
    flow.set(out, node.moved(tuple(a for i, a in enumerate(node.layout) if i not in named or x.shape[i] != 1)))


def unsqueeze(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None:
        at = argument(args, kwargs, 1, "dim") % (len(one[1].layout) + 1)
        axes = one[1].layout
        flow.set(out, one[1].moved((*axes[:at], lay.axis_of(1), *axes[at:])))


def expand(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None:
        grown = (*(lay.axis_of(1) for _ in range(out.dim() - len(one[1].layout))), *one[1].layout)
        axes = tuple(a if lay.size_of(a) == s else lay.axis_of(s) for a, s in zip(grown, out.shape, strict=True))
        flow.set(out, one[1].moved(axes))


def repeat(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Copies: the new outer factor is neither input nor unit."""
    one = first_of(flow, args, kwargs)
    if one is not None:
        grown = (*(lay.axis_of(1) for _ in range(out.dim() - len(one[1].layout))), *one[1].layout)
        axes = tuple(
            a if lay.size_of(a) == s else (Factor(s // max(lay.size_of(a), 1), OTHER), *a)
            for a, s in zip(grown, out.shape, strict=True)
        )
        flow.set(out, one[1].moved(axes))


def repeat_interleave(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is None:
        return
    times, dim = argument(args, kwargs, 1, "repeats"), argument(args, kwargs, 2, "dim")
    if isinstance(times, int) and dim is not None:
        axes = list(one[1].layout)
        axes[dim] = (*axes[dim], Factor(times, OTHER))
        flow.set(out, one[1].moved(tuple(axes)))
    else:
        flow.set(out, by_shape([one], out))


def pixel_shuffle(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    one = first_of(flow, args, kwargs)
    if one is not None:
        axes = (
            *one[1].layout[:-3],
            *(lay.resized(a, s) for a, s in zip(one[1].layout[-3:], out.shape[-3:], strict=True)),
        )
        flow.set(out, one[1].moved(axes))
