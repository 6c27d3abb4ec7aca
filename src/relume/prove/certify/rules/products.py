"""Products and sums: matrix products, convolutions, batch norm in evaluation, element-wise arithmetic.

With c and r the middle and radius of the input, a product with constants W has middle W c and radius |W| r (Gowal et
al. 2018); one of two intervals has radius |a| r_b + r_a (|b| + r_b) (Rump 1999).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relume.prove.certify import curves
from relume.prove.certify.bound import Bound, magnitude, middle
from relume.prove.certify.rounding import TF32, UNIT, margin
from relume.prove.certify.rules.call import Call

Product = Callable[[Any, Any], Tensor]


def _bilinear(call: Call, a: Any, b: Any, bias: Any, product: Product, terms: int, *, tf32: bool = False) -> Bound:
    """product(a, b) + bias, each a bound or a constant."""
    both = isinstance(a, Bound) and isinstance(b, Bound)
    scale = product(magnitude(a), magnitude(b))
    value = product(middle(a), middle(b))
    if both:
        radius = product(abs(a.middle), b.radius) + product(a.radius, magnitude(b))
    elif isinstance(a, Bound):
        radius = product(a.radius, abs(b))
    elif isinstance(b, Bound):
        radius = product(abs(a), b.radius)
    else:
        radius = torch.zeros_like(value)
    if bias is not None:
        value, scale = value + middle(bias), scale + magnitude(bias)
        radius = radius + bias.radius if isinstance(bias, Bound) else radius
    # Twice the terms: middle and radius round too.
    error = margin(terms + 1, scale, call.dtype, extra=4 * TF32 if tf32 and call.dtype is torch.float32 else 0.0)
    affine = None
    if not both:
        slots = [v for v in (bias, a, b) if isinstance(v, Bound)]

        def function(*values: Tensor) -> Tensor:
            rest = dict(zip(map(id, slots), values, strict=True))
            x, y, z = (rest[id(v)] if isinstance(v, Bound) else v for v in (a, b, bias))
            out = product(x, y)
            return out if z is None else out + z

        affine = call.affine(function)
        if affine is not None:
            affine.inputs = tuple(s.index for s in slots)
    lower, upper = value - radius, value + radius
    return Bound(lower, upper, error, affine)


def _tf32(call: Call) -> bool:
    """May the GPU round the factors of this product to TF32?"""
    out = call.outputs[0]
    if out is None or not out.is_cuda:
        return False
    return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


def matmul(call: Call) -> Bound:
    """mm, bmm, mv, dot, matmul."""
    a, b = call.args
    return _bilinear(call, a, b, None, torch.matmul, a.shape[-1], tf32=_tf32(call))


def linear(call: Call) -> Bound:
    x, weight = call.args[:2]

    def product(x: Tensor, w: Tensor) -> Tensor:
        out: Tensor = torch.matmul(x, w.transpose(-1, -2))
        return out

    if isinstance(weight, Bound):
        raise call.unsupported("its weights follow from the model's input")
    return _bilinear(call, x, weight, call.arg(2, "bias"), product, x.shape[-1], tf32=_tf32(call))


def addmm(call: Call) -> Bound:
    """β bias + α a b, of matrices, batches of them, or a matrix and a vector."""
    bias, a, b = call.args
    beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
    if (beta, alpha) != (1, 1):
        raise call.unsupported("with alpha or beta other than 1 it is not followed; multiply apart")
    return _bilinear(call, a, b, bias, torch.matmul, a.shape[-1], tf32=_tf32(call))


def convolution(call: Call) -> Bound:
    """Convolutions and transposed ones, grouped, strided, dilated."""
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = call.args[:9]
    if isinstance(weight, Bound):
        raise call.unsupported("its weights follow from the model's input, of which products are not bounded here")
    terms = math.prod(weight.shape[1:]) if not transposed else weight.shape[0] // groups * math.prod(weight.shape[2:])

    def product(x: Tensor, w: Tensor) -> Tensor:
        return torch.convolution(x, w, None, stride, padding, dilation, transposed, output_padding, groups)

    shaped = None if bias is None else bias.reshape(-1, *(1 for _ in stride))
    return _bilinear(call, x, weight, shaped, product, terms, tf32=_tf32(call))


def batch_norm(call: Call) -> Any:
    """Batch norm by running statistics: a factor and an offset per channel. By its own: instance norm, see `norms`."""
    from relume.prove.certify.rules import norms

    x, weight, bias, mean, variance = call.args[:5]
    no_training = "no_training" in call.step.name
    training, eps = (False, call.args[6]) if no_training else (call.args[5], call.args[7])
    if training or mean is None:
        return [norms.instance_norm(call, x, weight, bias, eps), None, None]
    shape = (-1, *(1 for _ in x.shape[2:]))
    factor = (1 / torch.sqrt(variance + eps) * (1.0 if weight is None else weight)).reshape(shape)
    center, offset = mean.reshape(shape), 0.0 if bias is None else bias.reshape(shape)

    def function(v: Tensor) -> Tensor:
        out: Tensor = (v - center) * factor + offset
        return out

    ends = torch.stack([function(x.lower), function(x.upper)])
    scale = (x.magnitude + center.abs()) * factor.abs() + abs(offset)
    # Kernels fold the four operations, and the root, in different orders: ten roundings are more than any takes.
    error = margin(10, scale, call.dtype)
    return [Bound(ends.amin(0), ends.amax(0), error, call.affine(function)), None, None]


def add(call: Call) -> Bound:
    return _sum(call, call.args[0], call.args[1], call.arg(2, "alpha", 1))


def sub(call: Call) -> Bound:
    return _sum(call, call.args[0], call.args[1], -call.arg(2, "alpha", 1))


def rsub(call: Call) -> Bound:
    other, x = call.args[:2]
    return _sum(call, x, other, -call.arg(2, "alpha", 1))


def _sum(call: Call, a: Any, b: Any, alpha: float) -> Bound:
    def ends(value: Any, factor: float) -> tuple[Any, Any]:
        if not isinstance(value, Bound):
            return value * factor, value * factor
        low, high = value.lower * factor, value.upper * factor
        return (low, high) if factor >= 0 else (high, low)

    (a_low, a_high), (b_low, b_high) = ends(a, 1), ends(b, alpha)
    lower, upper = a_low + b_low, a_high + b_high
    scale = torch.maximum(lower.abs(), upper.abs())
    for value, factor in ((a, 1.0), (b, abs(alpha))):
        # A product is rounded, and so is a single number, which torch takes to the model's dtype.
        if factor != 1 or not isinstance(value, Bound | Tensor) or (isinstance(value, Tensor) and not value.dim()):
            scale = scale + factor * magnitude(value)
    _needs_float(call)
    order = [v for v in call.args[:2] if isinstance(v, Bound)]
    swapped = call.step.name == "rsub"

    def function(*values: Tensor) -> Tensor:
        rest = iter(values)
        first, second = (next(rest) if isinstance(v, Bound) else v for v in call.args[:2])
        out = second - first * -alpha if swapped else first + alpha * second
        return out if isinstance(out, Tensor) else torch.as_tensor(out)

    affine = call.affine(function)
    if affine is not None:
        affine.inputs = tuple(v.index for v in order)
    # A mask of −∞ stays what it is.
    error = torch.where((lower == upper) & torch.isinf(lower), 0.0, margin(2, scale, call.dtype))
    return Bound(lower, upper, error, affine)


def _needs_float(call: Call) -> None:
    out = call.outputs[0]
    if out is not None and not out.is_floating_point():
        raise call.unsupported("it counts in whole numbers or truth values that follow from the input")


def neg(call: Call) -> Bound:
    (x,) = call.tracked
    return Bound(-x.upper, -x.lower, None, call.affine(lambda v: -v))


def mul(call: Call) -> Bound:
    a, b = call.args[:2]
    if isinstance(a, Bound) and a is b:
        return curves.SQUARE.bound(a, call.dtype, lines=call.lines)
    _needs_float(call)
    if isinstance(a, Bound) and isinstance(b, Bound):
        products = [p * q for p in (a.lower, a.upper) for q in (b.lower, b.upper)]
        lower, upper = torch.stack(products).amin(0), torch.stack(products).amax(0)
        return Bound(lower, upper, margin(1, torch.maximum(lower.abs(), upper.abs()), call.dtype))
    x, factor = (a, b) if isinstance(a, Bound) else (b, a)
    return _scaled(call, x, lambda v: v * factor)


def div(call: Call) -> Bound:
    if call.kwargs.get("rounding_mode") is not None:
        raise call.unsupported("division with rounding is not followed")
    a, b = call.args[:2]
    _needs_float(call)
    if not isinstance(b, Bound):
        return _scaled(call, a, lambda v: v / b)
    across = (b.lower <= 0) & (b.upper >= 0)
    low, high = torch.where(across, 1.0, b.lower), torch.where(across, 1.0, b.upper)
    tops = (a.lower, a.upper) if isinstance(a, Bound) else (a, a)
    quotients = torch.stack([t / d for t in tops for d in (low, high)])
    lower = torch.where(across, -math.inf, quotients.amin(0))
    upper = torch.where(across, math.inf, quotients.amax(0))
    return Bound(lower, upper, margin(2, torch.maximum(lower.abs(), upper.abs()), call.dtype))


def _scaled(call: Call, x: Bound, function: Callable[[Tensor], Tensor]) -> Bound:
    ends = torch.stack([function(v) for v in (x.lower, x.upper)])
    lower, upper = ends.amin(0), ends.amax(0)
    # A number given in Python is itself rounded to the model's dtype: two roundings.
    error = margin(2, torch.maximum(lower.abs(), upper.abs()), call.dtype, extra=UNIT[call.dtype])
    return Bound(lower, upper, error, call.affine(function))
