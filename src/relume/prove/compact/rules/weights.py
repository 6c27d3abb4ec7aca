"""Rules for operations with weights: what they read is noted, and their outputs get labels of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from relume.prove.compact.rules.common import Args, Kwargs, again, along, argument, known_of, name_of, opaque
from relume.prove.compact.rules.moves import matmul
from relume.prove.compact.slots import FIXED
from relume.prove.compact.trace import Read, Shadow, Tracer
from relume.sites.flow import tensors_in


def _computed(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    why = f"the weight that reads it in '{tracer.where}' is computed from others"
    tracer.stay((args, kwargs), why)
    for tensor in tensors_in(out, 1):
        tracer.set(tensor, Shadow(torch.full(tensor.shape, FIXED, dtype=torch.float64)))


def _product(
    tracer: Tracer,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    axes: tuple[int, int, int, int],
    folds: bool = True,
    why_not: str = "",
) -> bool:
    """Note what is read, and label the outputs.

    Args:
        axes: that is summed over, of x and of the weight; of the outputs, of the weight and of `out`.
        folds, why_not: see `Read`.

    Returns:
        Is all of x known?
    """
    name = tracer.slots.name(weight)
    assert name is not None
    summed, into, rows, to = axes
    source = tracer.shadow(x)
    labels, known = along(tracer, source, summed, f"several units share one weight of '{tracer.where}'")
    tracer.slots.tie(
        tracer.slots.along(name, into, weight.shape[into]), labels, f"'{tracer.where}' reads it with the model's input"
    )
    bias_name = tracer.slots.name(bias) if bias is not None else None
    tracer.trace.reads.append(Read(tracer.where, name, into, labels, known, bias_name, folds, why_not))
    made = tracer.slots.along(name, rows, weight.shape[rows])
    if bias is not None:
        if bias_name is None:
            tracer.slots.stay(made, f"the bias of '{tracer.where}' is computed")
        else:
            tracer.trace.biases.setdefault(bias_name, set()).add(name)
            tracer.slots.tie(made, tracer.slots.along(bias_name, 0, weight.shape[rows]), "")
    shape = [1] * out.dim()
    shape[to] = -1
    tracer.set(out, Shadow(made.reshape(shape).expand(out.shape).clone()))
    return not bool(known.isnan().any())


def linear(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    x, weight, bias = (argument(args, kwargs, i, n) for i, n in enumerate(("input", "weight", "bias")))
    if tracer.slots.name(weight) is None:
        _computed(tracer, args, kwargs, out)
        return
    if _product(tracer, x, weight, bias, out, (-1, 1, 0, -1)):
        _all_known(tracer, func, args, kwargs, out)


def _all_known(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """A layer that reads nothing but constants gives out constants."""
    values = known_of(tracer, list(tensors_in((args, kwargs), 3)))
    result = again(func, args, kwargs, values) if values is not None else None
    if isinstance(result, Tensor):
        tracer.set(out, Shadow(tracer.shadow(out).labels, result))


def conv(axes: int, transposed: bool = False) -> Any:
    def rule(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
        x, weight, bias = (argument(args, kwargs, i, n) for i, n in enumerate(("input", "weight", "bias")))
        if tracer.slots.name(weight) is None:
            _computed(tracer, args, kwargs, out)
            return
        groups = argument(args, kwargs, 6, "groups", default=1)
        channels = x.dim() - axes - 1
        padding = argument(args, kwargs, 4, "padding", default=0)
        padded = padding not in (0, "valid") and padding != [0] * axes and padding != (0,) * axes
        if groups == 1:
            into, rows = (0, 1) if transposed else (1, 0)
            why = "a transposed convolution spreads a constant unevenly" if transposed else (
                "the zeros around it make a constant uneven at the borders" if padded else "")  # fmt: skip
            if _product(tracer, x, weight, bias, out, (channels, into, rows, channels), not why, why):
                _all_known(tracer, func, args, kwargs, out)
        elif groups == x.shape[channels] and not transposed:
            _depthwise(tracer, func, args, kwargs, out, channels)
        else:
            tracer.fix(weight, str(tracer.slots.name(weight)))
            opaque("a grouped convolution needs as many channels in each group")(tracer, func, args, kwargs, out)

    return rule


def _depthwise(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor, channels: int) -> None:
    """Each channel by itself: the outputs of one go with it."""
    x, weight, bias = (argument(args, kwargs, i, n) for i, n in enumerate(("input", "weight", "bias")))
    name = str(tracer.slots.name(weight))
    source = tracer.shadow(x)
    labels, known = along(tracer, source, channels, f"several units share one channel of '{tracer.where}'")
    each = weight.shape[0] // x.shape[channels]
    made = tracer.slots.along(name, 0, weight.shape[0])
    tracer.slots.tie(made, labels.repeat_interleave(each), f"'{tracer.where}' reads it with the model's input")
    if bias is not None:
        bias_name = tracer.slots.name(bias)
        if bias_name is None:
            tracer.slots.stay(made, f"the bias of '{tracer.where}' is computed")
        else:
            tracer.slots.tie(made, tracer.slots.along(bias_name, 0, weight.shape[0]), "")
    shape = [1] * out.dim()
    shape[channels] = -1
    values = known_of(tracer, [t for t in (x, weight, bias) if t is not None])
    result = None
    if values is not None:
        values[id(x)] = values[id(x)].nan_to_num(0.0)
        result = again(func, args, kwargs, values)
        if isinstance(result, Tensor):
            unknown = known.isnan().repeat_interleave(each).reshape(shape)
            result = result.masked_fill(unknown, math.nan)
    tracer.set(out, Shadow(made.reshape(shape).expand(out.shape).clone(), result))


def embedding(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    given = tensors_in((args, kwargs), 3)
    tensors = [t for t in given if tracer.slots.name(t) is not None and t.dim() == 2 and t.is_floating_point()]
    first = next(tensors_in(out, 1))
    if not tensors:
        _computed(tracer, args, kwargs, out)
        return
    name = str(tracer.slots.name(tensors[0]))
    tracer.slots.stay(tracer.slots.along(name, 0, tensors[0].shape[0]), "rows of a table are looked up by number")
    for tensor in tensors_in(out, 1):
        tracer.set(tensor, Shadow(torch.full(tensor.shape, FIXED, dtype=torch.float64)))
    made = tracer.slots.along(name, 1, tensors[0].shape[1])
    tracer.set(first, Shadow(made.expand(first.shape).clone()))


def product(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """`x @ self.weight`, or a product of data."""
    x, weight = args[0], argument(args, kwargs, 1, "other", "mat2", "vec", "tensor")
    named = isinstance(weight, Tensor) and tracer.slots.name(weight) is not None
    if named and weight.dim() == 2 and x.dim() >= 2 and name_of(func) in ("matmul", "__matmul__", "mm"):
        if _product(tracer, x, weight, None, out, (-1, 0, 1, -1), False, "it is a product without a bias"):
            _all_known(tracer, func, args, kwargs, out)
    else:
        matmul(tracer, func, args, kwargs, out)


def addmm(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """`bias + x @ weight`, as GPT-2 writes its layers."""
    bias, x, weight = (argument(args, kwargs, i, n) for i, n in enumerate(("input", "mat1", "mat2")))
    plain = all(kwargs.get(factor, 1) == 1 for factor in ("alpha", "beta"))
    if plain and tracer.slots.name(weight) is not None and tracer.slots.name(bias) is not None and bias.dim() == 1:
        if _product(tracer, x, weight, bias, out, (-1, 0, 1, -1)):
            _all_known(tracer, func, args, kwargs, out)
    else:
        opaque("{} can't be followed")(tracer, func, args, kwargs, out)


def by_channel(training: int) -> Any:
    """Normalization of each channel by itself, with its own entries of statistics and affine parameters.

    Args:
        training: the position of the flag that says that statistics are of the batch; -1: they always are.
    """

    def rule(tracer: Tracer, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
        x = args[0] if args else kwargs["input"]
        source = tracer.shadow(x)
        if x.dim() < 2:
            opaque("{} of one axis can't be followed")(tracer, func, args, kwargs, out)
            return
        labels, known = along(tracer, source, 1, f"several units share one channel of '{tracer.where}'")
        others = [t for t in tensors_in((args[1:], kwargs), 3) if t is not x]
        for tensor in others:
            if tensor.dim() == 1:
                tracer.slots.tie(tracer.shadow(tensor).labels, labels, f"'{tracer.where}' normalizes it with others")
            else:
                tracer.stay(x, f"the parameters of '{tracer.where}' are computed")
        kept = Shadow(source.labels)
        if training >= 0 and not argument(args, kwargs, training, "training", default=False):
            values = known_of(tracer, [x, *others])
            result = again(func, args, kwargs, values) if values is not None else None
            if isinstance(result, Tensor):
                unknown = known.isnan().reshape(1, -1, *(1,) * (x.dim() - 2))
                kept = Shadow(source.labels, result.masked_fill(unknown, math.nan))
        tracer.set(out, kept)

    return rule
