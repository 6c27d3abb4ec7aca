"""A penalty that keeps each unit firing on a chosen share of inputs: `liveness_penalty` of one pre-activation.

For a whole model see `LivenessPenalty` in `model_penalty.py`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from relume.activations.lookup import activation as by_name
from relume.activations.registry import Activation


def liveness_penalty(
    pre_activation: Tensor,
    share: float = 0.05,
    *,
    axis: int | None = None,
    activation: Activation | str = "relu",
    margin: float = 0.0,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """How far each unit is from firing on `share` of the inputs: zero for those that do.

    The k = ⌈share · N⌉ inputs nearest to making a unit fire should make it fire. For each that doesn't, the penalty is
    how deep it lies in the flat zone, in units of the pre-activation's root mean square distance from the zone's edge;
    averaged over the k. So it lies in [0, 1 + margin], doesn't change when the pre-activation is scaled, and its
    gradient reaches units that fire on no input at all, where the loss has none. A unit that fires often enough has
    exactly no penalty and no gradient.

    The scale is taken as a constant: the gradient moves the k inputs' pre-activations towards the edge, each by
    1 / (k · scale) per unit, whatever their depth.

    Args:
        pre_activation: [N, …], before the activation; axis 0 counts inputs. An input makes a unit fire when any of its
            positions does.
        share: of inputs, above 0 and at most 1. A batch of N shows no share below 1 / N: one input is then asked for.
        axis: the unit axis. Default: 1 for [N, units] and for four or more axes; with three axes it has to be said (1
            after a convolution, −1 after a linear layer).
        activation: what follows, by name or entry; its flat zone must be on one side or both.
        margin: how far past the edge the k inputs should lie, in the same units.
        reduction: over units; "none" gives a tensor of shape [units].

    Returns:
        A scalar, or [units]; zero for an empty tensor. Where no unit falls short on the CPU, nothing is handed back in
        backward, not even zeros: `torch.autograd.grad` of it alone needs `allow_unused=True`.

    Raises:
        ValueError: a share outside (0, 1], an axis that is missing or counts inputs, fewer than two axes, a negative
            margin, or an activation that is never flat or is flat in the middle.

    >>> z = torch.tensor([[-3.0, 1.0], [-1.0, -1.0]], requires_grad=True)   # unit 0 fires on none of the two inputs
    >>> liveness_penalty(z, 0.5, reduction="none")
    tensor([0.4472, 0.0000], grad_fn=<IndexAddBackward0>)
    """
    z, axis = pre_activation, _unit_axis(pre_activation, axis)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")
    if margin < 0:
        raise ValueError(f"margin must not be negative, not {margin}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
    low, high = _edges(activation)
    if not z.numel():
        empty = z.sum() * 0 + z.new_zeros(z.shape[axis])
        return empty if reduction == "none" else empty.sum()
    z = z.movedim(axis, 1)
    if z.dim() > 2:
        z = z.flatten(2)
    if _may_look(z):
        short = _short(z, share, low, high, margin)
        some = _of_units(z.index_select(1, short), share, low, high, margin) if len(short) else None
        penalty = _NoGradient.apply(z) if some is None else some.new_zeros(z.shape[1]).index_add(0, short, some)
    else:
        penalty = _of_units(z, share, low, high, margin)
    return penalty if reduction == "none" else penalty.sum() if reduction == "sum" else penalty.mean()


def _of_units(z: Tensor, share: float, low: float, high: float, margin: float) -> Tensor:
    """The penalty of each unit, from z of shape [N, units] or [N, units, positions]."""
    depth, scale = (_one_sided if math.isinf(low) or math.isinf(high) else _two_sided)(z, low, high)
    nearest = depth.t().topk(_asked(share, len(z)), 1, largest=False, sorted=False).values
    scale = scale[:, None]
    short = nearest + margin * scale
    return torch.where(short >= 0, short / scale, 0).mean(1)


def _asked(share: float, inputs: int) -> int:
    """How many of so many inputs should make a unit fire."""
    return max(1, math.ceil(share * inputs - 1e-9))


def _may_look(z: Tensor) -> bool:
    """May values decide what is computed? Where it costs no wait for a device and no tracer is at work."""
    return (
        z.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._is_tracing()
    )


@torch.no_grad()
def _short(z: Tensor, share: float, low: float, high: float, margin: float) -> Tensor:
    """Indices of the units that fire on too few inputs: in a healthy network few, and only they need sorting."""
    if margin:
        depth, scale = (_one_sided if math.isinf(low) or math.isinf(high) else _two_sided)(z, low, high)
        fires = depth < -margin * scale
    elif math.isinf(high):
        fires = (z.amax(2) if z.dim() > 2 else z) > low
    else:
        fires = ((z > low) & (z < high)).flatten(2).any(2) if z.dim() > 2 else (z > low) & (z < high)
    return torch.nonzero(fires.sum(0) < _asked(share, len(z))).flatten()


class _NoGradient(torch.autograd.Function):
    """Zero for each unit, part of the graph, with no gradient to compute."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.new_zeros(z.shape[1], dtype=torch.float32 if z.itemsize < 4 else z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> None:
        return None


def _one_sided(z: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Depth in the flat zone [N, units] and scale [units] where the zone is z <= low, or z >= high.

    Nothing of z itself is kept for backward, so that an activation may overwrite it, and no copy of it is made.
    """
    edge, sign = (low, -1.0) if math.isinf(high) else (high, 1.0)
    with torch.no_grad():
        shifted = z - edge if edge else z
        axes = [i for i in range(z.dim()) if i != 1]
        scale = torch.linalg.vector_norm(shifted, dim=axes, dtype=torch.float32 if z.itemsize < 4 else None)
        scale = scale / math.sqrt(z.numel() / z.shape[1])
    if z.dim() > 2:
        z = z.max(2).values if sign < 0 else z.min(2).values
    return (z - edge) * sign, _usable(scale)


def _two_sided(z: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The same where the zone is z <= low or z >= high."""
    depth = torch.maximum(low - z, z - high)
    axes = [i for i in range(z.dim()) if i != 1]
    with torch.no_grad():
        scale = depth.float().square().mean(axes).sqrt()
    return depth.amin(2) if z.dim() > 2 else depth, _usable(scale)


def _usable(scale: Tensor) -> Tensor:
    """1 where every sample lies on the very edge: any scale would do."""
    return torch.where(scale > 0, scale, 1)


def _unit_axis(z: Tensor, axis: int | None) -> int:
    if z.dim() < 2:
        raise ValueError(f"a pre-activation has at least two axes, inputs and units; this has shape {tuple(z.shape)}")
    if axis is None:
        if z.dim() == 3:
            raise ValueError(
                f"which axis of {tuple(z.shape)} carries the units? Say axis=1 after a convolution, axis=-1 after a "
                "linear layer"
            )
        return 1
    if not -z.dim() <= axis < z.dim() or axis % z.dim() == 0:
        raise ValueError(f"axis={axis} of {tuple(z.shape)} carries no units: axis 0 counts inputs")
    return axis % z.dim()


def _edges(activation: Activation | str) -> tuple[float, float]:
    """(low, high): the activation is flat up to low and from high."""
    return _edges_by_name(activation) if isinstance(activation, str) else _edges_of(activation)


def _edges_by_name(name: str) -> tuple[float, float]:
    return _edges_of(by_name(name))


# As torch.compiler.assume_constant_result does, which would import the compiler.
_edges_by_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _edges_of(entry: Activation) -> tuple[float, float]:
    edges = entry.flat.edges
    if edges is None:
        raise ValueError(f"{entry.name} is flat for {entry.flat}: liveness_penalty takes zones at the ends only")
    if edges == (-math.inf, math.inf):
        raise ValueError(f"{entry.name} is flat nowhere, so its units can't die: there is nothing to penalize")
    return edges
