"""Functions of single elements: activations and the like, by their curves; choices by a condition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relume.prove.certify import curves
from relume.prove.certify.bound import Bound
from relume.prove.certify.curves import Curve
from relume.prove.certify.rounding import ELEMENTARY, OWN, UNIT, gamma
from relume.prove.certify.rules.call import Call


def _number(call: Call, value: float) -> float:
    """A parameter as the model's arithmetic sees it."""
    return float(torch.tensor(value, dtype=call.dtype))


def _clamp(call: Call) -> Curve:
    low, high = call.arg(1, "min"), call.arg(2, "max")
    return curves.hardtanh(*_limits(call, -math.inf if low is None else low, math.inf if high is None else high))


def _limits(call: Call, low: float, high: float) -> tuple[float, float]:
    return _number(call, low), _number(call, high)


def _hardtanh(call: Call) -> Curve:
    return curves.hardtanh(*_limits(call, call.arg(1, "min_val", -1.0), call.arg(2, "max_val", 1.0)))


def _pow(call: Call) -> Curve:
    exponent = call.arg(1, "exponent")
    if exponent == 1:
        return curves.hardtanh(-math.inf, math.inf)
    if exponent == 2:
        return curves.SQUARE
    if isinstance(exponent, int | float) and exponent == int(exponent) and exponent > 0:
        n = int(exponent)
        return Curve(lambda x: x**n, (0.0,), (0.0,) if n % 2 == 0 else (), "relative")
    raise call.unsupported(f"the power {exponent} is not bounded; only whole positive ones are")


def _elu(call: Call) -> Curve:
    alpha, scale, inner = call.arg(1, "alpha", 1.0), call.arg(2, "scale", 1.0), call.arg(3, "input_scale", 1.0)
    return curves.elu(float(alpha), float(scale), float(inner))


def _celu(call: Call) -> Curve:
    alpha = float(call.arg(1, "alpha", 1.0))
    return curves.elu(alpha, 1.0, 1 / alpha)


def _rrelu(call: Call) -> Curve:
    low, high, training = call.arg(2, "lower", 1 / 8), call.arg(3, "upper", 1 / 3), call.arg(4, "training", False)
    if training:
        raise call.unsupported("it draws its slope in this mode, so nothing holds for certain")
    return curves.leaky((low + high) / 2)


def _prelu(call: Call) -> Curve:
    return curves.leaky(call.args[1])


CURVES: dict[str, Callable[[Call], Curve]] = {
    "relu": lambda call: curves.RELU,
    "relu6": lambda call: curves.hardtanh(0.0, 6.0),
    "clamp": _clamp,
    "clamp_min": lambda call: curves.hardtanh(_number(call, call.args[1]), math.inf),
    "clamp_max": lambda call: curves.hardtanh(-math.inf, _number(call, call.args[1])),
    "hardtanh": _hardtanh,
    "leaky_relu": lambda call: curves.leaky(float(call.arg(1, "negative_slope", 0.01))),
    "rrelu_with_noise": _rrelu,
    "_prelu_kernel": _prelu,
    "elu": _elu,
    "celu": _celu,
    "selu": lambda call: curves.elu(1.6732632423543772, 1.0507009873554805),
    "gelu": lambda call: curves.gelu(call.arg(1, "approximate", "none")),
    "silu": lambda call: curves.silu(),
    "mish": lambda call: curves.mish(),
    "softplus": lambda call: curves.softplus(float(call.arg(1, "beta", 1)), float(call.arg(2, "threshold", 20))),
    "sigmoid": lambda call: curves.SIGMOID,
    "tanh": lambda call: curves.TANH,
    "log_sigmoid_forward": lambda call: curves.LOGSIGMOID,
    "hardswish": lambda call: curves.HARDSWISH,
    "hardsigmoid": lambda call: curves.HARDSIGMOID,
    "threshold": lambda call: curves.threshold(*(_number(call, call.args[k]) for k in (1, 2))),
    "softshrink": lambda call: curves.softshrink(_number(call, float(call.arg(1, "lambd", 0.5)))),
    "hardshrink": lambda call: curves.hardshrink(_number(call, float(call.arg(1, "lambd", 0.5)))),
    "abs": lambda call: curves.ABS,
    "exp": lambda call: curves.EXP,
    "expm1": lambda call: curves.EXPM1,
    "erf": lambda call: curves.ERF,
    "square": lambda call: curves.SQUARE,
    "pow": _pow,
}


def curve(call: Call) -> Any:
    """An activation by its operation."""
    if any(isinstance(v, Bound) for v in call.args[1:]) and call.step.name not in ("rrelu_with_noise",):
        return _moving(call)
    found = CURVES[call.step.name](call).bound(call.tracked[0], call.dtype, lines=call.lines)
    return [found, None] if len(call.step.outputs) == 2 else found


def _moving(call: Call) -> Bound:
    """A clamp whose limits follow from the input too: it grows with all three."""
    if call.step.name not in ("clamp", "clamp_min", "clamp_max"):
        raise call.unsupported("its parameters follow from the model's input, which is not bounded")
    function = call.step.function
    lower, upper = ([getattr(b, end) for b in call.tracked] for end in ("lower", "upper"))
    return Bound(call.with_tracked(function, lower), call.with_tracked(function, upper))


def clamp(call: Call) -> Any:
    if any(isinstance(v, Tensor) for v in (*call.args[1:], *call.kwargs.values())):
        return _moving(call)  # limits that are tensors
    return curve(call)


def site(call: Call) -> Bound:
    """A whole activation as the catalogue states it, beside what followed from the operations that it was made of."""
    x, composed, known = call.args
    if known is None:
        return Bound(composed.lower, composed.upper, None, call.affine(lambda x, y: y * 1.0))
    found: Bound = known.bound(x, call.dtype, lines=call.lines)
    found.meet(composed.lower, composed.upper)
    return found


# Defined on half of the line, or with poles: bounds alone.
_HALVES: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "sqrt": (torch.sqrt, 1),
    "rsqrt": (torch.rsqrt, -1),
    "log": (torch.log, 1),
    "log1p": (torch.log1p, 1),
}


def half(call: Call) -> Bound:
    """Monotone where it is defined; where the input may leave that, unbounded."""
    (x,) = call.tracked
    function, sign = _HALVES[call.step.name]
    ends = (function(x.lower), function(x.upper))
    lower, upper = ends if sign > 0 else ends[::-1]
    size = torch.maximum(lower.abs(), upper.abs()) + (1.0 if "log" in call.step.name else 0.0)
    error = (gamma(ELEMENTARY, UNIT[call.dtype]) + gamma(ELEMENTARY, OWN)) * size
    return Bound(lower, upper, error)


def reciprocal(call: Call) -> Bound:
    (x,) = call.tracked
    across = (x.lower <= 0) & (x.upper >= 0)
    lower = torch.where(across, -math.inf, 1 / x.upper)
    upper = torch.where(across, math.inf, 1 / x.lower)
    return Bound(lower, upper, 4 * UNIT[call.dtype] * torch.maximum(lower.abs(), upper.abs()))


def wave(call: Call) -> Bound:
    """Sine and cosine: within [−1, 1], and within what the middle allows at slope 1."""
    (x,) = call.tracked
    center = (torch.sin if call.step.name == "sin" else torch.cos)(x.middle)
    error = gamma(ELEMENTARY, UNIT[call.dtype]) * (1 + x.magnitude)
    lower, upper = (center - x.radius).clamp(min=-1.0), (center + x.radius).clamp(max=1.0)
    return Bound(lower, upper, error)


def compare(call: Call) -> Bound:
    """`x > c` and its like, as 0 and 1."""
    (a_low, a_high), (b_low, b_high) = (_ends(call, v) for v in call.args[:2])
    if call.step.name in ("lt", "le"):
        a_low, a_high, b_low, b_high = b_low, b_high, a_low, a_high
    above = torch.gt if call.step.name in ("gt", "lt") else torch.ge
    out = call.outputs[0]
    assert out is not None
    return Bound(above(a_low, b_high).double().expand(out.shape), above(a_high, b_low).double().expand(out.shape))


def _ends(call: Call, value: Any) -> tuple[Tensor, Tensor]:
    """Of a bound or a constant; a number may be taken as it is or as rounded to the model's dtype."""
    if isinstance(value, Bound):
        return value.lower, value.upper
    device = call.tracked[0].lower.device
    if isinstance(value, Tensor):
        tensor = value.to(device, torch.float64)
        return tensor, tensor
    both = (float(value), _number(call, float(value)))
    low, high = (torch.tensor(v, dtype=torch.float64, device=device) for v in (min(both), max(both)))
    return low, high


def logical_not(call: Call) -> Bound:
    (x,) = call.tracked
    return Bound(1 - x.upper, 1 - x.lower)


def where(call: Call) -> Bound:
    condition, a, b = call.args
    return _chosen(call, condition, a, b)


def masked_fill(call: Call) -> Bound:
    x, mask, value = call.args
    return _chosen(call, mask, value, x)


def index_put(call: Call) -> Bound:
    """`x[mask] = value` with a mask of x's shape, and `x[constant indices] = values`."""
    x, indices, values = call.args[:3]
    mask = indices[0]
    if len(indices) == 1 and isinstance(mask, Bound) and mask.shape == x.shape and not isinstance(values, Bound):
        if values.numel() != 1:
            raise call.unsupported("only one number can be put where a mask that follows from the input says")
        return _chosen(call, mask, values.reshape(()), x)
    if any(isinstance(i, Bound) for i in indices):
        raise call.unsupported("where it writes follows from the input")
    if call.arg(3, "accumulate", False):
        raise call.unsupported("it adds up at indices; use index_add outside of the model")
    function = call.step.function
    lower, upper = ([getattr(b, end) for b in call.tracked] for end in ("lower", "upper"))
    affine = call.affine(lambda *v: call.with_tracked(function, v))
    return Bound(call.with_tracked(function, lower), call.with_tracked(function, upper), None, affine)


def _chosen(call: Call, condition: Any, a: Any, b: Any) -> Bound:
    """a where the condition holds, else b."""

    (a_low, a_high), (b_low, b_high) = _ends(call, a), _ends(call, b)
    if not isinstance(condition, Bound):
        slots = [v for v in (a, b) if isinstance(v, Bound)]

        def function(*values: Tensor) -> Tensor:
            rest = dict(zip(map(id, slots), values, strict=True))
            first, second = (rest[id(v)] if isinstance(v, Bound) else _ends(call, v)[0] for v in (a, b))
            return torch.where(condition, first, second)

        # A number that rounding may change has two ends, which no one affine function has.
        exact = all(isinstance(v, Bound | Tensor) or float(v) == _number(call, float(v)) for v in (a, b))
        affine = call.affine(function) if exact else None
        if affine is not None:
            affine.inputs = tuple(s.index for s in slots)
        return Bound(torch.where(condition, a_low, b_low), torch.where(condition, a_high, b_high), None, affine)
    never, always = condition.upper == 0, condition.lower == 1
    lower = torch.where(always, a_low, torch.where(never, b_low, torch.minimum(a_low, b_low)))
    upper = torch.where(always, a_high, torch.where(never, b_high, torch.maximum(a_high, b_high)))
    return Bound(lower, upper)


def fill(call: Call) -> Bound:
    """A number everywhere."""
    x, value = call.args[0], (0.0 if call.step.name == "zero" else call.args[1])
    if isinstance(value, Bound):
        return Bound(value.lower.expand(x.shape), value.upper.expand(x.shape))
    low, high = _ends(call, value)
    return Bound(low.expand(x.shape), high.expand(x.shape))


def copy(call: Call) -> Bound:
    """`x.copy_(y)`, `x[...] = y`: y, broadcast."""
    target, source = call.args[:2]
    out = call.outputs[0]
    assert out is not None
    if not isinstance(source, Bound):
        filled = source.double().expand(out.shape).clone()
        return Bound(filled, filled.clone())
    del target
    affine = call.affine(lambda *v: v[-1].expand(out.shape))
    return Bound(source.lower.expand(out.shape), source.upper.expand(out.shape), None, affine)


def merge(call: Call) -> Bound:
    """A view after another view of the same memory was written to: taken from either."""
    old, _, place = call.args
    kept = place < 0
    at = place.clamp(min=0)

    def function(*values: Tensor) -> Tensor:
        before, written = values if isinstance(old, Bound) else (old, *values)
        return torch.where(kept, before, written.reshape(-1)[at])

    lower = function(*(b.lower for b in call.tracked))
    upper = function(*(b.upper for b in call.tracked))
    return Bound(lower, upper, None, call.affine(function))
