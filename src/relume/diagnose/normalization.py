"""What a normalization does to the mean of each unit: mean z = γ r (mean y − c) + β, up to a remainder.

y goes in, z comes out; r is the mean of 1/σ and c the mean of the centres over samples. For batch norm σ and c are the
same for all samples of a unit and the equation is exact; for layer, group and RMS norm each sample has its own, and the
remainder is γ times the covariance of y − c with 1/σ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from relume.diagnose.means import var_mean, wide
from relume.diagnose.producer import Unknown

NORMS: tuple[type[nn.Module], ...] = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Norm:
    """One normalization at one moment; tensors are float64 of shape [units].

    Attributes:
        gamma, beta: its scale and shift; ones and zeros where it has none.
        inverse: mean over samples of 1/σ.
        centre: mean over samples of what is subtracted.
    """

    gamma: Tensor
    beta: Tensor
    inverse: Tensor
    centre: Tensor

    @classmethod
    def none(cls, like: Tensor) -> Norm:
        """Where there is no normalization."""
        one, zero = torch.ones_like(like), torch.zeros_like(like)
        return cls(one, zero, one, zero)

    def mean(self, y: Tensor) -> Tensor:
        """The mean that comes out where the mean y, [units], goes in, but for the remainder."""
        return self.gamma * self.inverse * (y - self.centre) + self.beta


def norm_of(module: nn.Module, y: Tensor, out: Tensor | None = None) -> Norm | Unknown:
    """What a normalization did with one batch.

    Args:
        module: BatchNorm, LayerNorm over the last axis, GroupNorm or RMSNorm over the last axis.
        y: its input; units on the last axis for LayerNorm and RMSNorm, else on axis 1.
        out: what it gave out, if autograd may be asked for the statistics that it kept of it.

    Returns:
        Norm, or why its effect on the mean of a unit can't be told.
    """
    kind = next((k for k in NORMS if isinstance(module, k)), None)
    if kind is None or type(module).forward is not kind.forward:
        return Unknown(f"unknown normalization: {type(module).__name__}")
    if not y.numel():
        return Unknown("unknown normalization: it was given no input")
    with torch.no_grad():
        if isinstance(module, _BatchNorm):
            return _batch(module, y.detach(), None if out is None else out.grad_fn)
        if isinstance(module, nn.GroupNorm):
            return _group(module, y.detach())
        if len(module.normalized_shape) != 1:  # type: ignore[arg-type]
            return Unknown(f"unknown normalization: {type(module).__name__} over several axes")
        return _last_axis(module, y.detach())


def _batch(module: Any, y: Tensor, made_by: Any) -> Norm:
    running = module.running_mean
    kept = _kept(made_by, y.shape[1]) if module.training or running is None else None
    if kept is not None:
        return _with_affine(module, kept[1], kept[0])
    if module.training or running is None:
        over = [i for i in range(y.dim()) if i != 1]
        variance, centre = var_mean(y, over)
    else:
        # A batch in evaluation: the statistics are those that were kept, whatever the batch holds.
        variance, centre = module.running_var.double(), running.double().clone()
    return _with_affine(module, (variance + module.eps).rsqrt(), centre)


def _kept(made_by: Any, units: int) -> tuple[Tensor, Tensor] | None:
    """Mean and 1/σ of a batch, as autograd has saved them for the way back; None where it has not, or not plainly."""
    if type(made_by).__name__ not in ("NativeBatchNormBackward0", "CudnnBatchNormBackward0"):
        return None
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return None  # to look would call a hook, by which a checkpoint would run the model again
    mean, inverse = made_by._saved_result1, made_by._saved_result2
    if not (isinstance(mean, Tensor) and isinstance(inverse, Tensor) and mean.shape == inverse.shape == (units,)):
        return None
    return mean.detach(), inverse.detach()


def _group(module: Any, y: Tensor) -> Norm:
    groups, units = module.num_groups, module.num_channels
    variance, mean = var_mean(y.reshape(y.shape[0], groups, -1), [2])
    inverse, centre = (variance + module.eps).rsqrt().mean(0), mean.mean(0)
    return _with_affine(module, *(t.repeat_interleave(units // groups) for t in (inverse, centre)))


def _last_axis(module: Any, y: Tensor) -> Norm:
    units = y.shape[-1]
    rows = wide(y).reshape(-1, units)
    if isinstance(module, nn.RMSNorm):
        eps = torch.finfo(y.dtype).eps if module.eps is None else module.eps
        inverse, centre = (rows.square().mean(1) + eps).rsqrt().mean(), rows.new_zeros(())
    else:
        variance, mean = var_mean(rows, [1])
        inverse, centre = (variance + module.eps).rsqrt().mean(), mean.mean()
    return _with_affine(module, inverse.expand(units), centre.expand(units))


def _with_affine(module: Any, inverse: Tensor, centre: Tensor) -> Norm:
    gamma, beta = getattr(module, "weight", None), getattr(module, "bias", None)
    return Norm(
        gamma=torch.ones_like(inverse, dtype=torch.float64) if gamma is None else gamma.detach().double().clone(),
        beta=torch.zeros_like(inverse, dtype=torch.float64) if beta is None else beta.detach().double().clone(),
        inverse=inverse.double(),
        centre=centre.double(),
    )
