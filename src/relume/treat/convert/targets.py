"""What to convert to: a name with parameters, a module class, an instance, a factory; and the module for a site."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from relume.activations import activation, activation_of
from relume.activations.lookup import arguments_in, plain_name
from relume.errors import RelumeError

Make = Callable[..., nn.Module]


@dataclass(frozen=True)
class Wanted:
    """What is known of the site that a module is made for.

    Attributes:
        channels: 1 where one value must serve all units.
        axis: of the channels.
        dims: axes of the pre-activation; None: unknown.
        device, dtype: of what the module's parameters lie beside.
    """

    channels: int = 1
    axis: int = 1
    dims: int | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    @property
    def torchs_axis(self) -> bool:
        """Are the channels where torch's PReLU has them, on axis 1?"""
        return self.axis == 1 or (self.dims is not None and self.axis == 1 - self.dims)


def _drelu(form: str = "rational") -> Callable[..., nn.Module]:
    def make(wanted: Wanted, tau: float | str = "running", alpha: float = 0.1, form: str = form) -> nn.Module:
        from relume.activations.drelu import DReLU

        at = {"device": wanted.device, "dtype": wanted.dtype}
        return DReLU(wanted.channels, axis=wanted.axis, tau=tau, alpha=alpha, form=form, **at)  # type: ignore[arg-type]

    return make


def _prelu(wanted: Wanted, slope: float = 0.25) -> nn.Module:
    channels = wanted.channels if wanted.torchs_axis else 1
    return nn.PReLU(channels, init=slope, device=wanted.device, dtype=wanted.dtype)


def _displaced(wanted: Wanted, delta: float = 0.05) -> nn.Module:
    from relume.activations.namesakes import DisplacedReLU

    return DisplacedReLU(delta)


def _own(name: str) -> Callable[[Wanted], nn.Module]:
    def make(wanted: Wanted) -> nn.Module:
        from relume.activations import namesakes

        return getattr(namesakes, name)()  # type: ignore[no-any-return]

    return make


def _plainly(cls: type[nn.Module], **fixed: Any) -> Callable[..., nn.Module]:
    return lambda wanted, *args, **kwargs: cls(*args, **fixed, **kwargs)


# By the registry's name. Those of two inputs, and those whose shape another network sets, are no drop-in.
_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "identity": lambda wanted: nn.Identity(),
    "relu": _plainly(nn.ReLU),
    "relu6": _plainly(nn.ReLU6),
    "leaky_relu": _plainly(nn.LeakyReLU),
    "prelu": _prelu,
    "rrelu": _plainly(nn.RReLU),
    "elu": _plainly(nn.ELU),
    "selu": _plainly(nn.SELU),
    "celu": _plainly(nn.CELU),
    "gelu": _plainly(nn.GELU),
    "gelu_tanh": _plainly(nn.GELU, approximate="tanh"),
    "quick_gelu": _own("QuickGELU"),
    "silu": _plainly(nn.SiLU),
    "mish": _plainly(nn.Mish),
    "softplus": _plainly(nn.Softplus),
    "drelu": _drelu(),
    "drelu_exponential": _drelu("exponential"),
    "displaced_relu": _displaced,
    "relu_squared": _own("SquaredReLU"),
    "sigmoid": _plainly(nn.Sigmoid),
    "tanh": _plainly(nn.Tanh),
    "hardtanh": _plainly(nn.Hardtanh),
    "hardswish": _plainly(nn.Hardswish),
    "hardsigmoid": _plainly(nn.Hardsigmoid),
    "softsign": _plainly(nn.Softsign),
    "tanhshrink": _plainly(nn.Tanhshrink),
    "logsigmoid": _plainly(nn.LogSigmoid),
    "softshrink": _plainly(nn.Softshrink),
    "hardshrink": _plainly(nn.Hardshrink),
    "threshold": _plainly(nn.Threshold),
}


class Target:
    """What sites are to apply.

    Attributes:
        name: as the registry calls it, or the class's own name.
        spec: by which it is made again elsewhere; None for a class, instance or factory of the user's own.
        given: what the user passed.
    """

    def __init__(self, to: Any) -> None:
        self.given = to
        self.spec: str | None = None
        own: type[Any] | None = to if isinstance(to, type) and issubclass(to, nn.Module) else None
        if own is not None and own.__name__ in ("DReLU", "PReLU") and own.__module__.startswith(("relume.", "torch.")):
            to = own.__name__
        if isinstance(to, str):
            self._make = self._named(to)
            self.spec = to
        elif isinstance(to, nn.Module):
            self._make = lambda wanted: copy.deepcopy(to).to(wanted.device)
        elif callable(to):
            self._make = lambda wanted: to(wanted) if _takes_one(to) else to()
        else:
            raise TypeError(
                "to= is the name of an activation such as 'drelu' or 'leaky_relu(0.2)', or a module, a module class or "
                f"a function that makes one, not {type(to).__name__}"
            )
        sample = self.make(Wanted())
        self.sample = sample
        self.stateful = any(True for _ in (*sample.parameters(), *sample.buffers()))
        entry = activation_of(sample)
        self.name = entry.name if entry is not None else type(sample).__name__

    def make(self, wanted: Wanted) -> nn.Module:
        """A module for a site.

        Raises:
            TypeError: the class or factory gave none, or can't be called so.
        """
        try:
            made = self._make(wanted)
        except TypeError as error:
            raise TypeError(
                f"to={self.given!r} can't make a module: {error}. Pass a function that makes one"
            ) from error
        if not isinstance(made, nn.Module):
            raise TypeError(f"to={self.given!r} made a {type(made).__name__}, not a torch.nn.Module")
        return made

    def is_already(self, module: nn.Module) -> bool:
        """Does a module apply this, with the same parameters?"""
        if self.stateful:
            return type(module) is type(self.sample)
        return type(module) is type(self.sample) and module.extra_repr().replace("inplace=True", "") == (
            self.sample.extra_repr().replace("inplace=True", "")
        )

    def _named(self, spec: str) -> Make:
        entry = activation(spec)  # checks the name and the parameters
        written = re.fullmatch(r"([^()]*)\(([^()]*)\)\s*", spec)
        name = written[1] if written else spec
        args, kwargs = arguments_in(written[2], name) if written else ([], {})
        key = next((k for k in _MAKERS if plain_name(k) == plain_name(name)), None)
        if key is None:
            key = entry.name if not written else activation(name).name
        if key not in _MAKERS:
            raise RelumeError(
                f"'{name.strip()}' can't take another activation's place: it has two inputs, or a network of its own. "
                f"Pass a module or a function that makes one; by name there are: {', '.join(_MAKERS)}"
            )
        maker = _MAKERS[key]
        if key in ("elu", "celu", "drelu", "drelu_exponential") or args or kwargs:
            return lambda wanted: maker(wanted, *args, **kwargs)
        return lambda wanted: maker(wanted)


def beside(model: nn.Module, owner: nn.Module) -> tuple[Any, Any]:
    """Device and dtype of the parameters that a module's are to lie beside."""
    for module in (owner, model):
        for p in module.parameters():
            if p.is_floating_point():
                return p.device, p.dtype
    return None, None


def _takes_one(factory: Any) -> bool:
    """Does it ask for what is known of the site?"""
    if isinstance(factory, type):
        return False
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return False
    return (
        len([p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)])
        == 1
    )
