"""Layer, group, instance and RMS norm, softmax and GLU: bounds by intervals; linear bounds end here.

A sample norm divides d = x − mean by √(variance + ε). Of n values with deviation d of one of them, the variance is at
least d² / (n − 1) (Samuelson 1968), so d / √(max(v, d² / (n − 1)) + ε) is an upper bound that grows with d.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from relume.prove.certify.bound import Bound
from relume.prove.certify.rounding import ELEMENTARY, OWN, UNIT, gamma, margin
from relume.prove.certify.rules.call import Call
from relume.prove.certify.trace import Ref, Step


def layer_norm(call: Call) -> Any:
    x, shape, weight, bias, eps = (*call.args, 1e-5)[:5]
    axes = tuple(range(-len(shape), 0))
    low, high = _normalized(x.lower, x.upper, axes, float(eps), call)
    return [_affine(call, low, high, weight, bias), None, None]


def group_norm(call: Call) -> Any:
    x, weight, bias, n, _, _, groups, eps = call.args
    shape = x.shape
    split = (n, groups, -1)
    low, high = _normalized(x.lower.reshape(split), x.upper.reshape(split), (-1,), float(eps), call)
    per_channel = (1, -1, *(1 for _ in shape[2:]))
    weight, bias = (v if v is None else v.reshape(per_channel) for v in (weight, bias))
    return [_affine(call, low.reshape(shape), high.reshape(shape), weight, bias), None, None]


def instance_norm(call: Call, x: Bound, weight: Any, bias: Any, eps: float) -> Bound:
    """As torch computes it: batch norm of [1, inputs × channels, …] by its own statistics."""
    axes = (0, *range(2, x.lower.dim()))
    low, high = _normalized(x.lower, x.upper, axes, float(eps), call)
    per_channel = (1, -1, *(1 for _ in x.shape[2:]))
    weight, bias = (v if v is None else v.reshape(per_channel) for v in (weight, bias))
    return _affine(call, low, high, weight, bias)


def _normalized(low: Tensor, high: Tensor, axes: tuple[int, ...], eps: float, call: Call) -> tuple[Tensor, Tensor]:
    n = math.prod(low.shape[a] for a in axes)
    magnitude = torch.maximum(low.abs(), high.abs())
    mean_low, mean_high = low.mean(axes, keepdim=True), high.mean(axes, keepdim=True)
    # Deviation of each from the mean, of which it is itself a part.
    down = low * (1 - 1 / n) - (mean_high - high / n)
    up = high * (1 - 1 / n) - (mean_low - low / n)
    # Mean and variance are sums of n terms, computed in one pass or two; the variance may be off by a share c of
    # mean(x²) = variance + mean² (Chan, Golub & LeVeque 1983, for all of the usual ways).
    relative = gamma(n + 10, UNIT[call.dtype]) + gamma(4 * n + 64, OWN)
    slack = 2 * relative * magnitude.amax(axes, keepdim=True)
    down, up = down - slack, up + slack
    c = 4 * relative
    noise = c * torch.maximum(mean_low.abs(), mean_high.abs()).square() * (1 + c)
    least = torch.where((down < 0) & (up > 0), 0.0, torch.minimum(down.abs(), up.abs()))
    least = (least - slack).clamp(min=0.0).square().mean(axes, keepdim=True) * (1 - c)
    most = torch.maximum(down.abs(), up.abs()).square().mean(axes, keepdim=True) * (1 + c) + noise
    share = (1 - c) / (n - 1) if n > 1 else 0.0

    def away(d: Tensor) -> Tensor:
        """The largest quotient for deviations in [0, d], by the least variance that goes with each. It grows with the
        deviation; but where rounding may be more than ε it falls again once the deviation's own part outweighs that."""
        if share:
            d = torch.where(noise < eps, d, torch.minimum(d, torch.sqrt(torch.maximum(noise, least) / share)))
        variance = torch.maximum(share * d.square(), least) - noise
        return d / torch.sqrt(variance.clamp(min=0.0) + eps)

    away_up, away_down = away(up.clamp(min=0.0)), -away((-down).clamp(min=0.0))
    towards = torch.sqrt(most + eps)
    result_high = torch.where(up > 0, away_up, up / towards)
    result_low = torch.where(down < 0, away_down, down / towards)
    more = (gamma(ELEMENTARY, UNIT[call.dtype]) + gamma(ELEMENTARY, OWN)) * torch.maximum(
        result_low.abs(), result_high.abs()
    )
    bad = torch.isnan(more) | torch.isinf(magnitude.amax(axes, keepdim=True))
    return torch.where(bad, -math.inf, result_low - more), torch.where(bad, math.inf, result_high + more)


def _affine(call: Call, low: Tensor, high: Tensor, weight: Any, bias: Any) -> Bound:
    if weight is not None:
        ends = torch.stack([low * weight, high * weight])
        low, high = ends.amin(0), ends.amax(0)
    scale = torch.maximum(low.abs(), high.abs())
    if bias is not None:
        low, high, scale = low + bias, high + bias, scale + bias.abs()
    return Bound(low, high, margin(4, scale, call.dtype))


def rms(x: Bound, axes: tuple[int, ...], eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x / √(mean(x²) + ε): grows with x, falls with what the others add."""
    n = math.prod(x.shape[a] for a in axes)
    across = (x.lower < 0) & (x.upper > 0)
    least = torch.where(across, 0.0, torch.minimum(x.lower.abs(), x.upper.abs())).square()
    most = x.magnitude.square()
    rest_least = (least.sum(axes, keepdim=True) * (1 - 1e-12) - least).clamp(min=0.0)
    rest_most = most.sum(axes, keepdim=True) * (1 + 1e-12) - most

    def value(end: Tensor, away: Tensor) -> Tensor:
        return end / torch.sqrt((end.square() + torch.where(away >= 0, rest_least, rest_most)) / n + eps)

    high, low = value(x.upper, x.upper), value(x.lower, -x.lower)
    error = (gamma(n + 64, UNIT[dtype]) + gamma(4 * n + 64, OWN)) * torch.maximum(low.abs(), high.abs())
    return torch.nan_to_num(low - error, -math.inf), torch.nan_to_num(high + error, math.inf)


def softmax(call: Call) -> Bound:
    """y_i is largest where x_i is at its upper end and all others at their lower ones."""
    x, axis = call.args[:2]
    top = x.upper.amax(axis, keepdim=True)
    top = torch.where(torch.isfinite(top), top, 0.0)
    low, high = torch.exp(x.lower - top), torch.exp(x.upper - top)
    own_noise = 1e-12
    others_low = ((1 - own_noise) * low.sum(axis, keepdim=True) - low).clamp(min=0.0)
    others_high = (1 + own_noise) * high.sum(axis, keepdim=True) - high
    upper = torch.nan_to_num(high / (high + others_low), nan=1.0)
    lower = torch.nan_to_num(low / (low + others_high), nan=0.0)
    n = x.shape[axis]
    # x − max is rounded by a share of itself, at most 128 of which matters: beyond, the exponential vanishes.
    spread = 128.0 if call.dtype is torch.float32 else 1024.0
    relative = gamma(n + 64, UNIT[call.dtype]) + 4 * UNIT[call.dtype] * spread
    error = math.expm1(relative) * upper + torch.finfo(call.dtype).tiny
    result = Bound(lower, upper, error)
    result.meet(torch.zeros_like(lower), torch.full_like(upper, 1 + 1e-6 * n))
    unbounded = (x.upper == math.inf).any(axis, keepdim=True)
    result.upper = torch.where(unbounded, math.inf, result.upper)
    return result


def glu(call: Call) -> Bound:
    """a σ(b), of two halves that are bounded apart."""
    x, axis = call.args[0], call.arg(1, "dim", -1)
    (a_low, g_low), (a_high, g_high) = (v.chunk(2, axis) for v in (x.lower, x.upper))
    noise = gamma(ELEMENTARY, UNIT[call.dtype])
    g_low, g_high = (torch.sigmoid(g_low) - noise).clamp(min=0.0), (torch.sigmoid(g_high) + noise).clamp(max=1.0)
    products = torch.stack([a * g for a in (a_low, a_high) for g in (g_low, g_high)])
    lower, upper = products.amin(0), products.amax(0)
    return Bound(lower, upper, margin(2, torch.maximum(lower.abs(), upper.abs()), call.dtype))


def rms_written_out(step: Step, producers: dict[int, Step], bounds: list[Bound | None], dtype: torch.dtype) -> Any:
    """Bounds of `x * rsqrt(mean(x²) + ε)`, however it is spelled, at its product; None for any other."""
    reads = step.reads
    if step.name != "mul" or len(reads) != 2:
        return None
    for x, factor in (reads, reads[::-1]):
        root = producers.get(factor)
        if root is None or root.name != "rsqrt":
            continue
        added = producers.get(root.reads[0])
        if added is None or added.name != "add" or len(added.reads) != 1:
            continue
        eps = next((a for a in added.args if isinstance(a, int | float)), None)
        mean = producers.get(added.reads[0])
        if eps is None or mean is None or mean.name != "mean" or not (len(mean.args) > 2 and mean.args[2]):
            continue
        square = producers.get(mean.reads[0])
        squared = (
            square is not None
            and set(square.reads) == {x}
            and (
                square.name == "square"
                or (square.name == "pow" and square.args[1] == 2)
                or (square.name == "mul" and all(isinstance(a, Ref) for a in square.args))
            )
        )
        bound = bounds[x]
        if squared and bound is not None:
            return rms(bound, tuple(mean.args[1]), float(eps), dtype)
    return None
