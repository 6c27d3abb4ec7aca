"""`relume.functional.drelu`: the function, with its arguments checked."""

from __future__ import annotations

from torch import Tensor

from relume.activations import registry
from relume.activations.drelu import operator
from relume.activations.drelu.checks import check_alpha, check_channels, check_form, check_tau
from relume.activations.drelu.entry import entry


@registry.seen_as(entry())
def drelu(
    x: Tensor, tau: Tensor | float = 1.0, alpha: Tensor | float = 0.1, *, form: str = "rational", axis: int = 1
) -> Tensor:
    """x above zero; below, a slope that falls smoothly from 1 to α over a width τ.

    For x < 0, with u = |x|/τ: f(x) = αx + (1 − α) x / (1 + u) (rational), αx + (1 − α) τ (e^(−u) − 1) (exponential).
    Continuously differentiable, slope in [α, 1], f(cx; cτ) = c f(x; τ) for c > 0.

    Args:
        x: floating point, any shape.
        tau: > 0, in the units of x; a number, or a tensor with one value or one for each channel.
        alpha: in (0, 1); likewise. Values of tensors are not checked, which would make a GPU wait.
        form: "rational" or "exponential".
        axis: of the channels in x.

    Returns:
        Tensor of x's shape, dtype and strides. Gradients go to x, and to tau and alpha where they ask for it.

    Raises:
        TypeError: x isn't a floating-point tensor.
        ValueError: a number out of its range, an unknown form, or tensors that don't fit the channels.

    >>> import torch
    >>> drelu(torch.tensor([1.0, -1.0]))
    tensor([ 1.0000, -0.5500])
    >>> drelu(torch.tensor([[-1.0, -1.0]]), tau=torch.tensor([1.0, 3.0]))
    tensor([[-0.5500, -0.7750]])
    """
    if not x.is_floating_point():
        raise TypeError(f"drelu takes floating-point tensors, got {x.dtype}; convert it with x.float()")
    check_form(form)
    if isinstance(tau, Tensor):
        _check_values(x, tau, axis, "tau")
    else:
        check_tau(tau)
    if isinstance(alpha, Tensor):
        _check_values(x, alpha, axis, "alpha")
    else:
        check_alpha(alpha)
    return operator.drelu(x, tau, alpha, axis, form)


def _check_values(x: Tensor, values: Tensor, axis: int, name: str) -> None:
    if values.dim() > 1:
        raise ValueError(f"{name} must hold one value or one for each channel, not {tuple(values.shape)}")
    if values.numel() != 1:
        check_channels(x, values.numel(), axis, f"drelu's {name}")
