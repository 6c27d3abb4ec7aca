"""DReLU as an operation: chooses between a fused kernel, the same in torch's operations, and the plain formula.

Kernel or not, one autograd node keeps one tensor of x's size: the output for the rational form, which in a network is
the next layer's input and kept anyway; the input for the exponential form. Whatever must see through an operation
(torch.compile and export, tracing, vmap, grad, jvp, tensor subclasses) gets the plain formula.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from relume.activations.drelu import formula, statistics
from relume.activations.drelu.kernels import PLAIN, kernels_for
from relume.activations.drelu.layout import layout_of


def drelu(x: Tensor, tau: Tensor | float, alpha: Tensor | float, axis: int, form: str) -> Tensor:
    """f(x); arguments have been checked."""
    if must_be_seen_through(x):
        return formula.output(x, *_broadcast(x, tau, alpha, axis), form)
    y: Tensor = _apply(x, tau, alpha, axis, form, None)
    return y


def with_statistics(x: Tensor, tau: Tensor, alpha: Tensor | float, axis: int, form: str) -> tuple[Tensor, Tensor]:
    """f(x), and what the batch says of τ, in the same pass: float [2, channels], see `statistics`.

    τ is kept for the backward pass, so it must not be the buffer that is then to move, but a copy. Not to be called
    where the operation `must_be_seen_through`.
    """
    batch: list[Tensor] = []
    y = _apply(x, tau, alpha, axis, form, batch)
    return y, batch[0]


def must_be_seen_through(x: Tensor) -> bool:
    """Is something at work that has to see the operations, rather than one opaque node?"""
    return (
        torch.compiler.is_compiling()
        or type(x) not in PLAIN
        or _transforming()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
    )


def _transforming() -> bool:
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


class _DReLU(torch.autograd.Function):
    """`batch`, a list, gets the batch's statistics where they are wanted."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tau: Tensor | float, alpha: Tensor | float, axis: int, form: str, batch: Any
    ) -> Tensor:
        kernel = kernels_for(x)
        if kernel is not None:
            acc = torch.float64 if x.dtype == torch.float64 else torch.float32
            t, a = _values(tau, acc, x), _values(alpha, acc, x)
            channels = max(t.numel(), a.numel())
            layout = layout_of(x, axis, channels)
            if layout is None:
                x = x.contiguous()
                layout = layout_of(x, axis, channels)
            y = torch.empty_like(x)
            seen = None
            if batch is not None:
                seen = torch.empty((2, channels), dtype=torch.float64, device=x.device)
                batch.append(seen)
            kernel.forward(x, y, layout, t, a, form, seen)
            ctx.fused = kernel, layout, t, a
        else:
            y = formula.output(x, *_broadcast(x, tau, alpha, axis), form)
            if batch is not None:
                batch.append(statistics.of_batch(x, tau.numel() if isinstance(tau, Tensor) else 1, axis))
            ctx.fused = None
        learnt = ctx.needs_input_grad[1:3]
        ctx.save_for_backward(y if form == "rational" else x, tau if learnt[0] else None, alpha if learnt[1] else None)
        # What no gradient is wanted of: numbers, and one per channel.
        ctx.rest = None if learnt[0] else tau, None if learnt[1] else alpha, axis, form
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        kept, tau, alpha = ctx.saved_tensors
        if ctx.fused is None or torch.is_grad_enabled() or must_be_seen_through(g) or _in_batch(g):
            return _backward(g, kept, tau, alpha, *ctx.rest)
        kernel, layout, t, a = ctx.fused
        if layout_of(kept, 0, 1) is None:  # the exponential form keeps the input
            kept = kept.contiguous()
        dx = torch.empty_like(kept)
        if g.stride() != kept.stride() or g.dtype != kept.dtype or g.is_neg():
            g = torch.empty_like(kept).copy_(g)
        if tau is None and alpha is None:
            kernel.backward(g, kept, dx, layout, t, a, ctx.rest[3], None)
            return dx, None, None, None, None, None
        sums = torch.empty((2, layout[1]), dtype=torch.float64, device=dx.device)
        kernel.backward(g, kept, dx, layout, t, a, ctx.rest[3], sums)
        return dx, _gathered(sums[0], tau), _gathered(sums[1], alpha), None, None, None


def _backward(
    g: Tensor, kept: Tensor, learnt_tau: Tensor | None, learnt_alpha: Tensor | None, tau: Any, alpha: Any,
    axis: int, form: str,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The same in torch's operations, which can be differentiated again and transformed."""
    tau = tau if learnt_tau is None else learnt_tau
    alpha = alpha if learnt_alpha is None else learnt_alpha
    t, a = _broadcast(kept, tau, alpha, axis)
    slope, u = formula.slope(kept, t, a, form)
    wide = formula.widened(g)
    dtau = dalpha = None
    if learnt_tau is not None or learnt_alpha is not None:
        by_tau, by_alpha = formula.partials(u, t, a, form)
        dtau = None if learnt_tau is None else _reduced(wide * by_tau, learnt_tau, axis)
        dalpha = None if learnt_alpha is None else _reduced(wide * by_alpha, learnt_alpha, axis)
    return (wide * slope).to(g.dtype), dtau, dalpha, None, None, None


_in_batch = torch._C._functorch.is_legacy_batchedtensor  # autograd.grad(is_grads_batched=True)
# Function.apply looks for functorch's transforms first, which has been done here.
_apply = super(torch.autograd.Function, _DReLU).apply


@torch.library.custom_op("relume::held", mutates_args=(), schema="(Tensor values) -> Tensor")
def held(values: Tensor) -> Tensor:
    """A copy for the backward pass of values that will change, in compiled code.

    Of a plain copy AOTAutograd keeps what was copied instead, and copies in the backward pass, when it has changed; of
    an operation that it doesn't know it keeps the result.
    """
    return values.clone()


@held.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


@functools.lru_cache(maxsize=256)
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([value], dtype=dtype, device=device)


def _values(v: Tensor | float, dtype: torch.dtype, x: Tensor) -> Tensor:
    """As a kernel takes them: contiguous, of the dtype that it computes in."""
    if not isinstance(v, Tensor):
        return _scalar(v, dtype, x.device)
    return v.to(x.device, dtype).contiguous()  # itself, where it is so already


def _broadcast(x: Tensor, tau: Tensor | float, alpha: Tensor | float, axis: int) -> tuple[Tensor, Tensor]:
    """Shaped to broadcast against x, in the dtype that it is computed in."""
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    t, a = (
        formula.per_channel(v.to(x.device, acc), x.dim(), axis)
        if isinstance(v, Tensor)
        else torch.full((), v, dtype=acc, device=x.device)
        for v in (tau, alpha)
    )
    return t, a


def _reduced(gradient: Tensor, values: Tensor, axis: int) -> Tensor:
    """A gradient per element, summed over those that share a value."""
    if values.numel() == 1:
        return gradient.sum().reshape(values.shape).to(values.dtype)
    others = [d for d in range(gradient.dim()) if d != axis % gradient.dim()]
    return (gradient.sum(others) if others else gradient).reshape(values.shape).to(values.dtype)


def _gathered(sums: Tensor, values: Tensor | None) -> Tensor | None:
    """Sums per channel as the gradient of values that may be shared by all channels."""
    if values is None:
        return None
    return (sums.sum() if values.numel() == 1 else sums).reshape(values.shape).to(values.dtype)
