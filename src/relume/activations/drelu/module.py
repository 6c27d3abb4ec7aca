"""`relume.nn.DReLU`: the module, with τ running, learned or fixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from relume.activations.drelu import formula, statistics
from relume.activations.drelu.checks import check_alpha, check_channels, check_form, check_tau
from relume.activations.drelu.entry import entry
from relume.activations.drelu.kernels import PLAIN, cpu
from relume.activations.drelu.operator import drelu, held, must_be_seen_through, with_statistics
from relume.activations.registry import register_module

# Learned values are held between these, which a diverging optimizer can't leave.
LEAST_ALPHA = 1e-4
LOG_TAU = 30.0
_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


class DReLU(nn.Module):
    """An activation with slope 1 above zero and, below, one that falls smoothly from 1 to α and never to 0.

    For x ≥ 0, f(x) = x. For x < 0, with u = |x|/τ,

        rational      f(x) = αx + (1 − α) x / (1 + u)
        exponential   f(x) = αx + (1 − α) τ (e^(−u) − 1)

    τ > 0 is the width of the transition, in the units of the pre-activation; 0 < α < 1 is the slope far below zero.
    With `tau="running"` τ follows the negative inputs: a running mean of |x| over them, which training updates,
    evaluation leaves, and the state dict holds. Each forward pass in training uses τ as it was before its batch, so
    that one pass over the input computes the output and the batch's statistics; then τ moves. The first batch of a
    channel sets its τ, before that it is 1. A channel that a batch gives no negative input, or a NaN or −inf, keeps its
    τ. Run again by activation checkpointing, a forward pass uses the τ that it used, and moves nothing.

    Args:
        channels: 1 for one τ and one α for all; or the number of channels along `axis`.
        axis: of the channels, counted from the end if negative.
        tau: "running", "learned", or the value if fixed.
        alpha: the slope far below zero; where it starts if learned.
        learn_alpha: learn α, one per channel.
        form: "rational", or "exponential" for comparison, which is slower.
        momentum: weight of a batch in the running mean; None for the mean of all batches.
        sync: add up the statistics of all processes of torch.distributed in each training step, so that every rank
            has the same τ; otherwise each rank has its own, or rank 0's, which DistributedDataParallel copies to all
            where it has `broadcast_buffers`.
        device: of buffers and parameters.
        dtype: of learned parameters. A running τ is kept in float32 whatever the model is cast to, or float64.

    Shape:
        any, with `channels` entries on `axis` unless `channels` is 1; the output has x's shape, dtype and strides.

    Attributes:
        tau: in use: float [channels], the running mean or what `log_tau` stands for; or the fixed float.
        alpha: in use: a float; or float [channels], what `logit_alpha` stands for.
        running_tau: buffer, float [channels].
        batches: buffer, int64 [channels], how many batches the running mean is of.
        log_tau: learned τ is e^log_tau, with log_tau cut off at ±30.
        logit_alpha: learned α is 0.0001 + 0.9998 σ(logit_alpha).

    Raises:
        ValueError: a parameter is out of its range, or the input hasn't the channels.
        TypeError: the input isn't a floating-point tensor.

    >>> act = DReLU(tau=1.0)
    >>> act(torch.tensor([2.0, 0.0, -1.0, -100.0]))
    tensor([  2.0000,   0.0000,  -0.5500, -10.8911])
    >>> act = DReLU(8)
    >>> _ = act(-3 * torch.ones(4, 8)); act.tau[0]
    tensor(3.)
    """

    __jit_unused_properties__ = ["tau", "alpha"]  # noqa: RUF012  read by TorchScript, as are constants
    __constants__ = [  # noqa: RUF012
        "channels", "axis", "form", "momentum", "running", "learns_tau", "learns_alpha", "fixed_tau", "fixed_alpha",
    ]  # fmt: skip

    if TYPE_CHECKING:  # TorchScript can't read them
        running_tau: Tensor
        batches: Tensor
        log_tau: Tensor
        logit_alpha: Tensor

    def __init__(
        self,
        channels: int = 1,
        *,
        axis: int = 1,
        tau: str | float = "running",
        alpha: float = 0.1,
        learn_alpha: bool = False,
        form: str = "rational",
        momentum: float | None = 0.1,
        sync: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(channels, axis, tau, alpha, learn_alpha, form, momentum)
        self.channels, self.axis, self.form, self.sync = channels, axis, form, bool(sync)
        self.momentum = -1.0 if momentum is None else float(momentum)
        self.running, self.learns_tau, self.learns_alpha = tau == "running", tau == "learned", bool(learn_alpha)
        self.fixed_tau = 1.0 if isinstance(tau, str) else float(tau)
        self.fixed_alpha = float(alpha)
        if self.running:
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            self.register_buffer("running_tau", torch.ones(channels, device=device, dtype=wide))
            self.register_buffer("batches", torch.zeros(channels, device=device, dtype=torch.int64))
        if self.learns_tau:
            self.log_tau = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        if self.learns_alpha:
            start = (alpha - LEAST_ALPHA) / (1 - 2 * LEAST_ALPHA)
            self.logit_alpha = nn.Parameter(
                torch.full((channels,), math.log(start / (1 - start)), device=device, dtype=dtype)
            )
        self._used: Tensor | None = None  # τ of the latest forward pass in training

    @property
    def tau(self) -> Tensor | float:
        if self.running:
            return self.running_tau
        return torch.exp(self.log_tau.clamp(-LOG_TAU, LOG_TAU)) if self.learns_tau else self.fixed_tau

    @property
    def alpha(self) -> Tensor | float:
        if not self.learns_alpha:
            return self.fixed_alpha
        return LEAST_ALPHA + (1 - 2 * LEAST_ALPHA) * torch.sigmoid(self.logit_alpha)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._scripted(x)
        return self._eager(x)

    @torch.jit.unused
    def _eager(self, x: Tensor) -> Tensor:
        if type(x) not in PLAIN and isinstance(x, torch.fx.Proxy):
            return cast(Tensor, self._leaf(x))
        if not x.is_floating_point():
            raise TypeError(f"DReLU takes floating-point tensors, got {x.dtype}; convert it with x.float()")
        if self.channels != 1:
            self._check_shape(x)
        if not (self.running and self.training):
            return drelu(x, self.tau, self.alpha, self.axis, self.form)
        if must_be_seen_through(x):
            tau = self.running_tau  # copied, since it will move
            used = held(tau) if torch.compiler.is_compiling() and not _exporting() else tau.clone()
            y = drelu(x, used, self.alpha, self.axis, self.form)
            self._follow(statistics.of_batch(x, self.channels, self.axis), seen_through=True)
            return y
        if self._used is not None and torch._C._current_graph_task_id() != -1:
            # Run again inside a backward pass, by checkpointing: τ is what it was, and the batch has been counted.
            return drelu(x, self._used, self.alpha, self.axis, self.form)
        used = self.__dict__["_used"] = self.running_tau.clone()
        y, batch = with_statistics(x, used, self.alpha, self.axis, self.form)
        self._follow(batch)
        return y

    def _leaf(self, x: torch.fx.Proxy) -> torch.fx.Proxy:
        """Stay whole in a graph traced by torch.fx, as torch's own activations do."""
        return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})  # type: ignore[attr-defined]

    def _follow(self, batch: Tensor, seen_through: bool = False) -> None:
        """Move τ by a batch's statistics."""
        tau, batches = self.running_tau, self.batches
        if self.sync:
            batch = statistics.summed_over_ranks(batch)
        if seen_through or not cpu.move(tau, batches, batch, self.momentum, statistics.LEAST):
            new_tau, new_batches = statistics.moved(tau, batches, batch, self.momentum)
            tau.copy_(new_tau)
            batches.copy_(new_batches)

    def _scripted(self, x: Tensor) -> Tensor:
        assert self.channels == 1 or x.size(self.axis) == self.channels, "DReLU: wrong number of channels"
        if self.running:
            tau = self.running_tau.clone()
        elif self.learns_tau:
            tau = torch.exp(self.log_tau.clamp(-30.0, 30.0))
        else:
            tau = torch.full([1], self.fixed_tau, device=x.device)
        if self.learns_alpha:
            alpha = 1e-4 + (1 - 2e-4) * torch.sigmoid(self.logit_alpha)
        else:
            alpha = torch.full([1], self.fixed_alpha, device=x.device)
        if x.dtype == torch.float64:
            tau, alpha = tau.double(), alpha.double()
        else:
            tau, alpha = tau.float(), alpha.float()
        tau = formula.per_channel(tau, x.dim(), self.axis)
        y = formula.output(x, tau, formula.per_channel(alpha, x.dim(), self.axis), self.form)
        if self.running and self.training:
            batch = statistics.of_batch(x, self.channels, self.axis)
            new_tau, new_batches = statistics.moved(self.running_tau, self.batches, batch, self.momentum)
            self.running_tau.copy_(new_tau)
            self.batches.copy_(new_batches)
        return y

    @torch.jit.unused
    def _check_shape(self, x: Tensor) -> None:
        check_channels(x, self.channels, self.axis, "DReLU")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DReLU:
        """Casts the model, but for a running τ, which in half precision would hardly move."""
        before = self.running_tau if self.running else None
        super()._apply(fn, recurse)
        if before is not None and self.running_tau.dtype in (torch.float16, torch.bfloat16):
            self.running_tau = before.to(self.running_tau.device)
        self._used = None
        return self

    def extra_repr(self) -> str:
        tau = "running" if self.running else "learned" if self.learns_tau else f"{self.fixed_tau:g}"
        parts = [f"{self.channels}", f"tau={tau}", f"alpha={self.fixed_alpha:g}"]
        if self.channels != 1:
            parts.insert(1, f"axis={self.axis}")
        if self.learns_alpha:
            parts.append("learn_alpha=True")
        if self.form != "rational":
            parts.append(f"form={self.form}")
        if self.running and self.momentum != 0.1:
            parts.append(f"momentum={self.momentum if self.momentum >= 0 else None}")
        if self.sync:
            parts.append("sync=True")
        return ", ".join(parts)


def _check(
    channels: int, axis: int, tau: str | float, alpha: float, learn_alpha: bool, form: str, momentum: float | None
) -> None:
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(f"channels must be 1, for all alike, or the number of channels, not {channels!r}")
    if not isinstance(axis, int):
        raise ValueError(f"axis must be an integer, not {axis!r}")
    check_form(form)
    if isinstance(tau, str) and tau not in ("running", "learned"):
        raise ValueError(f"tau must be 'running', 'learned' or a number above 0, not {tau!r}")
    if not isinstance(tau, str):
        check_tau(tau)
    check_alpha(alpha)
    if learn_alpha and not LEAST_ALPHA < alpha < 1 - LEAST_ALPHA:
        raise ValueError(
            f"a learned alpha stays between {LEAST_ALPHA} and {1 - LEAST_ALPHA}; it can't start at {alpha}"
        )
    if momentum is not None and not 0 < momentum <= 1:
        raise ValueError(f"momentum must lie in (0, 1], or be None for the mean of all batches, not {momentum}")


register_module(DReLU, entry())
