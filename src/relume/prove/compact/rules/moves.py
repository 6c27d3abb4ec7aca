"""Rules for operations that move elements, take some, or make one of several: done on the shadows as on the tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from relume.prove.compact.rules.common import Args, Kwargs, again, argument, known_of, mixed, name_of, opaque
from relume.prove.compact.slots import FIXED, FREE
from relume.prove.compact.trace import Shadow, Tracer, carries_slots
from relume.sites.flow import tensors_in

_ONLY_FIRST = ("__getitem__", "index_select", "gather", "take_along_dim")
# Their result for a constant depends on how much there is of it, which another input may change.
_GROW = ("sum", "prod", "norm", "logsumexp", "var", "std")
_VIEWS = {"view": torch.Tensor.reshape, "view_as": torch.Tensor.reshape_as}


def move(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """reshape, permute, cat, chunk, indexing, …"""
    name = name_of(func)
    sources = list(tensors_in(args[:1] if name in _ONLY_FIRST else (args, kwargs), 3))
    shadows = {id(t): tracer.shadow(t) for t in sources}
    call = _VIEWS.get(name, func)
    if name == "pad" and argument(args, kwargs, 3, "value"):
        moved = _padded(args, kwargs, shadows)
    else:
        moved = again(call, args, kwargs, {key: s.labels.clone() for key, s in shadows.items()})
    outs = list(tensors_in(out, 1))
    labels = list(tensors_in(moved, 1))
    if [t.shape for t in outs] != [t.shape for t in labels]:
        opaque("{} can't be followed")(tracer, func, args, kwargs, out)
        return
    known: list[Tensor] = []
    values = known_of(tracer, sources)
    if values is not None:
        known = list(tensors_in(again(call, args, kwargs, values), 1))
    constant = all(s.constant for s in shadows.values())
    if constant and values is None:
        held = {key: s.known.clone() for key, s in shadows.items() if s.known is not None}
        known = list(tensors_in(again(call, args, kwargs, held), 1)) if len(held) == len(shadows) else []
    for i, tensor in enumerate(outs):
        fits = len(known) == len(outs) and known[i].is_floating_point()
        tracer.set(tensor, Shadow(labels[i], known[i] if fits else None, constant))


def _padded(args: Args, kwargs: Kwargs, shadows: dict[int, Shadow]) -> Any:
    """Labels of a constant padding, which are FREE, whatever the value."""
    pad = torch.nn.functional.pad
    return pad(shadows[id(args[0])].labels, argument(args, kwargs, 1, "pad"), "constant", FREE)


def reduce(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """sum, mean, amax, … over axes: different units that come together must stay."""
    x = args[0] if args else kwargs["input"]
    dim = argument(args, kwargs, 1, "dim", "axis")
    if isinstance(dim, Tensor):  # torch.max(a, b)
        from relume.prove.compact.rules.pointwise import pointwise

        pointwise(tracer, func, args, kwargs, out)
        return
    source = tracer.shadow(x)
    if dim is None or isinstance(dim, torch.dtype):
        dims = list(range(x.dim()))
    else:
        dims = [d % x.dim() for d in ((dim,) if isinstance(dim, int) else tuple(dim))] or list(range(x.dim()))
    labels = mixed(tracer, source.labels, dims, f"{name_of(func)} in '{tracer.where}' takes all units together")
    values = known_of(tracer, [x])
    known = list(tensors_in(again(func, args, kwargs, values), 1)) if values is not None else []
    if name_of(func) in _GROW:
        known = [torch.where(k == 0, 0.0, math.nan).double() for k in known]
    for i, tensor in enumerate(tensors_in(out, 1)):
        fits = i < len(known) and known[i].is_floating_point() and known[i].shape == tensor.shape
        tracer.set(tensor, Shadow(labels.reshape(tensor.shape), known[i] if fits else None))


def along_dim(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """softmax, cumsum, sort: of the shape of its input, but each entry of one axis depends on the others there."""
    x = args[0]
    position, default = (2, 1) if name_of(func) == "normalize" else (1, None)
    dim = argument(args, kwargs, position, "dim", default=default)
    if not isinstance(dim, int):
        opaque("{} takes all units together")(tracer, func, args, kwargs, out)
        return
    why = f"{name_of(func)} in '{tracer.where}' takes all units together"
    labels = mixed(tracer, tracer.shadow(x).labels, [dim], why)
    for tensor in tensors_in(out, 1):
        tracer.set(tensor, Shadow(labels.expand(tensor.shape).clone()))


def windows(axes: int) -> Any:
    """Pooling and interpolation over the last axes."""

    def rule(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
        x = args[0] if args else kwargs["input"]
        dims = list(range(x.dim() - (axes or x.dim() - 2), x.dim()))
        labels = mixed(
            tracer, tracer.shadow(x).labels, dims, f"{name_of(func)} in '{tracer.where}' takes units together"
        )
        values = known_of(tracer, [x])
        known = list(tensors_in(again(func, args, kwargs, values), 1)) if values is not None else []
        for i, tensor in enumerate(tensors_in(out, 1)):
            if not tensor.is_floating_point():
                tracer.set(tensor, Shadow(torch.full(tensor.shape, FIXED, dtype=torch.float64)))
                continue
            fits = i < len(known) and known[i].shape == tensor.shape
            tracer.set(tensor, Shadow(labels.expand(tensor.shape).clone(), known[i] if fits else None))

    return rule


def matmul(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """A product of two data tensors: what is summed over stays; of the rest, slots of one side only are followed."""
    a, b = (args[0], argument(args, kwargs, 1, "other", "mat2", "vec", "tensor"))
    if name_of(func) == "__rmatmul__":
        a, b = b, a
    if a.dim() < 2 or b.dim() < 2:
        opaque("{} can't be followed")(tracer, func, args, kwargs, out)
        return
    left, right = tracer.shadow(a), tracer.shadow(b)
    why = f"'{tracer.where}' multiplies it with data"
    if not left.constant and not right.constant:
        why += ", as attention does"
    rows = mixed(tracer, left.labels, [-1], why)
    columns = mixed(tracer, right.labels, [-2], why)
    sides = [side for side, labels in ((0, rows), (1, columns)) if carries_slots(labels)]
    if len(sides) == 2:
        tracer.slots.stay(rows, why)
        tracer.slots.stay(columns, why)
    if len(sides) != 1:
        tracer.set(out, Shadow(torch.full(out.shape, FIXED, dtype=torch.float64)))
        return
    labels, source = ((rows, left), (columns, right))[sides[0]]
    known = None
    if source.known is not None:
        zero = (source.known == 0).all(-1 if sides[0] == 0 else -2, keepdim=True)
        known = torch.where(zero, 0.0, math.nan).double().expand(out.shape).clone()
    tracer.set(out, Shadow(labels.expand(out.shape).clone(), known))
