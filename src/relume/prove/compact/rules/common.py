"""What the rules share: picking arguments, labels merged, and operations done over again on what is known."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from relume.prove.compact.slots import FIRST, FIXED, FREE
from relume.prove.compact.trace import Shadow, Tracer, carries_slots
from relume.sites.flow import tensors_in

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def argument(args: Args, kwargs: Kwargs, position: int, *names: str, default: Any = None) -> Any:
    if len(args) > position:
        return args[position]
    return next((kwargs[n] for n in names if n in kwargs), default)


def name_of(func: Any) -> str:
    return str(getattr(func, "__name__", func))


def varying(labels: Tensor) -> list[int]:
    """The axes along which labels differ."""
    return [a for a in range(labels.dim()) if labels.shape[a] > 1 and bool((labels.amax(a) != labels.amin(a)).any())]


def again(func: Any, args: Args, kwargs: Kwargs, replaced: dict[int, Tensor]) -> Any:
    """The same call, on the CPU, with other tensors in the place of some (by id); None where it can't be made so."""

    def swap(value: Any) -> Any:
        if isinstance(value, Tensor):
            return replaced[id(value)] if id(value) in replaced else value.cpu()
        if isinstance(value, tuple | list):
            return type(value)(map(swap, value)) if not hasattr(value, "_fields") else value
        return value

    try:
        return func(*map(swap, args), **{k: swap(v) for k, v in kwargs.items()})
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None


def known_of(tracer: Tracer, tensors: list[Tensor]) -> dict[int, Tensor] | None:
    """By id what is known of each floating tensor, all NaN where that is nothing; None where no data is known at all.

    Copies, so that a call that writes in place may be made with them.
    """
    values = [(t, *tracer.value(t)) for t in tensors]
    if not any(known is not None and not constant for _, known, constant in values):
        return None
    return {
        id(t): known.clone() if known is not None else torch.full(t.shape, math.nan, dtype=torch.float64)
        for t, known, _ in values
        if t.is_floating_point() or known is not None
    }


def merged(tracer: Tracer, tensors: list[Tensor], shape: torch.Size, why: str) -> Tensor:
    """Labels of an element-wise result: those of its operands, tied where they meet."""
    narrow: list[tuple[Tensor, list[int]]] = []
    wide: list[tuple[Tensor, str]] = []
    for tensor in tensors:
        name = tracer.slots.name(tensor)
        if name is not None and sum(s > 1 for s in tensor.shape) > 1:
            wide.append((tensor, name))
            continue
        labels = tracer.shadow(tensor).labels
        if labels.dim() > len(shape):
            tracer.slots.stay(labels, why)
            continue
        padded = labels.reshape((1,) * (len(shape) - labels.dim()) + tuple(labels.shape))
        narrow.append((padded, varying(padded)))
    narrow.sort(key=lambda pair: -len(pair[1]))
    result, axes = torch.full(shape, FREE, dtype=torch.float64), None
    for labels, own in narrow:
        if axes and all(labels.shape[a] == 1 for a in axes):  # the same for all slots that there are
            tracer.slots.stay(labels, "it meets other units one by one")
            continue
        try:
            spread = labels.expand(shape)
        except RuntimeError:
            tracer.slots.stay(labels, why)
            continue
        tracer.slots.tie(spread, result, why)
        result = torch.where(result == FREE, spread, result)
        axes = own if axes is None else axes
    for tensor, name in wide:
        _tie_wide(tracer, tensor, name, result)
    return result


def _tie_wide(tracer: Tracer, tensor: Tensor, name: str, result: Tensor) -> None:
    """A parameter with several axes: the one along which the labels go is tied to them, the others stay."""
    axes = varying(result) if carries_slots(result) else []
    offset = result.dim() - tensor.dim()
    mine = [a for a in axes if a >= offset and tensor.shape[a - offset] > 1]
    if len(axes) != 1 or not mine:
        tracer.fix(tensor, name)
        if mine:
            tracer.slots.stay(result, f"{name} meets it along several axes")
        return
    axis = mine[0] - offset
    tracer.fix(tensor, name, but=axis)
    labels = result.movedim(mine[0], 0).flatten(1)[:, 0]
    tracer.slots.tie(
        tracer.slots.along(name, axis, tensor.shape[axis]), labels, f"{name} is added to the model's input"
    )


def along(tracer: Tracer, shadow: Shadow, axis: int, why: str) -> tuple[Tensor, Tensor]:
    """What lies along one axis: a label per entry, those of an entry tied, and the constant it is everywhere or NaN."""
    labels = shadow.labels.movedim(axis, 0).flatten(1)
    one = labels.amax(1) if labels.shape[1] else torch.full(labels.shape[:1], FREE, dtype=torch.float64)
    tracer.slots.tie(labels, one.unsqueeze(1).expand_as(labels), why)
    nothing = torch.full_like(one, math.nan)
    if shadow.known is None or not labels.shape[1]:
        return one, nothing
    known = shadow.known.movedim(axis, 0).flatten(1)
    low, high = known.amin(1), known.amax(1)  # NaN if one is
    return one, torch.where(low == high, low, nothing)


def opaque(why: str) -> Any:
    """A rule for what reads tensors in ways that are not followed: all slots that it is given stay."""

    def rule(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
        tracer.stay((args, kwargs), f"{why.format(name_of(func))}, in '{tracer.where}'")
        for tensor in tensors_in(out, 3):
            tracer.set(tensor, Shadow(torch.full(tensor.shape, FIXED, dtype=torch.float64)))

    return rule


def normalizes(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """All units by what all of them are: they stay, and stay apart."""
    x = args[0] if args else kwargs["input"]
    tracer.stay((args, kwargs), f"{name_of(func)} in '{tracer.where}' normalizes all units together")
    tracer.set(out, Shadow(tracer.shadow(x).labels))


def mixed(tracer: Tracer, labels: Tensor, dims: list[int], why: str) -> Tensor:
    """Labels of what is one along some axes, kept with size 1; where different slots come together there, they stay."""
    high, low = labels, labels
    for d in dims:
        high, low = high.amax(d, keepdim=True), low.amin(d, keepdim=True)
    differ = (high != low).expand_as(labels)
    tracer.slots.stay(labels[differ & (labels >= FIRST)], why)
    return torch.where(high != low, FIXED, high)
