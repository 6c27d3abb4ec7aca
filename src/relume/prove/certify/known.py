"""Which activations of the catalogue have a `Curve`: where an activation is written out in several operations, its
bounds as a whole are tighter than those of its parts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from relume.activations import Activation
from relume.activations import catalogue as of
from relume.activations.drelu.formula import per_channel
from relume.activations.drelu.module import DReLU
from relume.prove.certify import curves
from relume.prove.certify.curves import Curve


def curve_of(activation: Activation, module: nn.Module | None, x: Tensor) -> Curve | None:
    """The curve of an application, or None where it can only be told from its operations.

    Entries that a user registered are not taken at their word, nor those whose parameters differ by channel.

    Args:
        activation: the entry.
        module: that now runs.
        x: the pre-activation.
    """
    if isinstance(module, DReLU):
        axis = getattr(module, "axis", 1)
        tau, alpha = (
            per_channel(v.detach().double(), x.dim(), axis) if isinstance(v, Tensor) else v
            for v in (module.tau, module.alpha)
        )
        return curves.drelu(tau, alpha, module.form)
    for entry, make in _KNOWN.items():
        if activation is entry:
            return make()
    return None


_KNOWN: dict[Activation, Callable[[], Curve]] = {
    of.relu(): lambda: curves.RELU,
    of.relu_squared(): lambda: curves.SQUARED_RELU,
    of.gelu(): curves.gelu,
    of.gelu("tanh"): lambda: curves.gelu("tanh"),
    of.quick_gelu(): lambda: curves.silu(1.702),
    of.silu(): curves.silu,
    of.mish(): curves.mish,
    of.softsign(): lambda: curves.SOFTSIGN,
    of.tanhshrink(): lambda: curves.TANHSHRINK,
    of.logsigmoid(): lambda: curves.LOGSIGMOID,
    of.sigmoid(): lambda: curves.SIGMOID,
    of.tanh(): lambda: curves.TANH,
    of.hardswish(): lambda: curves.HARDSWISH,
    of.hardsigmoid(): lambda: curves.HARDSIGMOID,
}
