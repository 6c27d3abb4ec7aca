"""Rules for element-wise operations: labels of operands that meet are tied, and constants are computed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from relume.prove.compact.rules.common import Args, Kwargs, again, argument, known_of, merged, name_of
from relume.prove.compact.slots import FIXED, FREE
from relume.prove.compact.trace import Shadow, Tracer
from relume.sites.flow import tensors_in

_PRODUCTS = ("mul", "multiply", "__mul__", "__rmul__", "__imul__", "mul_")


def pointwise(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    operands = list(tensors_in((args, kwargs), 3))
    known = _computed(tracer, func, args, kwargs, operands)
    _set(tracer, func, operands, out, known)


def labels_only(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """For what turns NaN into a number, which is how unknown values are written: nothing is known of its result."""
    _set(tracer, func, list(tensors_in((args, kwargs), 3)), out, None)


def _set(tracer: Tracer, func: Any, operands: list[Tensor], out: Any, known: Tensor | None) -> None:
    for tensor in tensors_in(out, 1):
        why = f"'{tracer.where}' combines it ({name_of(func)}) with what must keep its shape"
        labels = merged(tracer, operands, tensor.shape, why)
        fits = known is not None and known.shape == tensor.shape and tensor.is_floating_point()
        tracer.set(tensor, Shadow(labels, known if fits else None))


def _computed(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, operands: list[Tensor]) -> Tensor | None:
    known = known_of(tracer, operands)
    if known is None or kwargs.get("dtype") is not None or kwargs.get("out") is not None:
        return None
    result = again(func, args, kwargs, {key: value.clone() for key, value in known.items()})
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return None
    unknown = torch.zeros(result.shape, dtype=torch.bool)
    for tensor in operands:
        value = known.get(id(tensor))
        unknown |= value.isnan() if value is not None else torch.ones((), dtype=torch.bool)
    result = result.double().masked_fill(unknown, math.nan)
    if name_of(func) in _PRODUCTS:
        for value in known.values():  # 0 times whatever is finite
            result = torch.where((value == 0).expand_as(result), 0.0, result)
    return result


def where(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """Known where both choices are the same; `masked_fill` chooses between a tensor and a value."""
    operands = list(tensors_in((args, kwargs), 3))
    known = None
    values = [v for v in (*args, *kwargs.values()) if not (isinstance(v, Tensor) and v.dtype == torch.bool)]
    if len(values) == 2:
        choices = [tracer.shadow(v).known if isinstance(v, Tensor) else torch.tensor(float(v)).double() for v in values]
        a, b = choices
        if a is not None and b is not None:
            a, b = torch.broadcast_tensors(a, b)
            known = torch.where(a == b, a, math.nan).expand(out.shape).clone()
    _set(tracer, func, operands, out, known)


def same(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """The same values, of another type or elsewhere; NaN survives casts between floating types only."""
    source = tracer.shadow(args[0])
    if isinstance(out, Tensor):
        tracer.set(out, Shadow(source.labels, source.known if out.is_floating_point() else None, source.constant))


def dropout(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Nothing in evaluation; where it acts all the same, it keeps zeros only."""
    source = tracer.shadow(args[0])
    acts = bool(argument(args, kwargs, 2, "training", "train", default=True))
    known = source.known
    if acts and known is not None:
        known = torch.where(known == 0, 0.0, math.nan)
    tracer.set(out, Shadow(source.labels, known))


def prelu(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """The slopes go along axis 1."""
    x, slope = args[0], argument(args, kwargs, 1, "weight")
    source = tracer.shadow(x)
    tracer.set(out, Shadow(source.labels))
    if slope.numel() > 1:
        labels = tracer.shadow(slope).labels.view(-1, *(1,) * (x.dim() - 2))
        tracer.slots.tie(labels.expand(x.shape), source.labels, "its PReLU has slopes that must stay")


def glu(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    source = tracer.shadow(args[0])
    dim = argument(args, kwargs, 1, "dim", default=-1)
    a, b = source.labels.chunk(2, dim)
    tracer.slots.tie(a, b, "it is one half of a gate")
    known = None
    if source.known is not None:
        value, gate = source.known.chunk(2, dim)
        known = torch.where(value == 0, 0.0, value * torch.sigmoid(gate))
    tracer.set(out, Shadow(torch.where(a == FREE, b, a), known))


def like(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """`torch.zeros_like(x)`: it follows the shape of x."""
    source = tracer.shadow(args[0] if args else kwargs["input"])
    fixed = name_of(func) in ("zeros_like", "ones_like", "full_like")
    tracer.set(out, Shadow(source.labels, out.detach().cpu().double() if fixed else None, constant=fixed))


def factory(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """A new tensor: of one value it fits any shape; how large it was made shows when the smaller model runs."""
    for tensor in tensors_in(out, 1):
        drawn = "rand" in name_of(func) or "empty" in name_of(func)
        uniform = not drawn and tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())
        labels = torch.full(tensor.shape, FREE if uniform else FIXED, dtype=torch.float64)
        tracer.set(tensor, Shadow(labels, None if drawn else tensor.detach().cpu().double(), constant=not drawn))


def setitem(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """`x[mask] = number` changes values alone; what else is written must keep its shape."""
    x, value = args[0], args[2]
    labels = tracer.shadow(x).labels
    if isinstance(value, Tensor) and value.numel() > 1:
        tracer.stay((x, value), f"'{tracer.where}' writes into a part of it")
    tracer.set(x, Shadow(labels))
