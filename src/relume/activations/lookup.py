"""Finds the entry of an activation: by a name that a person writes, or from a module with its parameters filled in."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from relume.activations import catalogue as of
from relume.activations.registry import Activation, registered, registered_as
from relume.errors import UnknownActivationError


def activation(name: str, **parameters: Any) -> Activation:
    """The entry of an activation, by name or alias.

    Args:
        name: case, `-`, `_` and blanks don't matter: "leaky_relu", "LeakyReLU" and "leaky-relu" are one. Parameters may
            follow in brackets: "leaky_relu(0.2)", "hardtanh(min_val=-2, max_val=2)".
        parameters: as torch names them (`negative_slope`, `alpha`, `min_val`); those left out have torch's defaults.

    Returns:
        The entry: formula, zones, derivative, gains. Equal parameters give the same object.

    Raises:
        UnknownActivationError: no activation has that name; the message says which come close.
        ValueError: the activation has no parameter of such a name, or one is missing or no number.

    >>> activation("LeakyReLU", negative_slope=0.2).formula
    'x if x > 0 else 0.2 x'
    >>> round(activation("relu").gain ** 2, 9), activation("swish").name
    (2.0, 'silu')
    """
    written = re.fullmatch(r"([^()]*)\(([^()]*)\)\s*", name)
    positional: list[Any] = []
    if written:
        name, positional, named = written[1], *arguments_in(written[2], name)
        parameters = {**named, **parameters}
    key = plain_name(name)
    factory = _factories().get(key)
    if factory is None:
        own = next((a for a in registered() if plain_name(a.name) == key), None)
        if own is None:
            raise UnknownActivationError(_unknown(name))
        if positional or parameters:
            raise ValueError(f"{own.name} was registered as it is and takes no parameters")
        return own
    try:
        bound = inspect.signature(factory).bind(*positional, **parameters)
    except TypeError as error:
        taken = ", ".join(
            p.name if p.default is p.empty else f"{p.name}={p.default}"
            for p in inspect.signature(factory).parameters.values()
        )
        raise ValueError(f"{name.strip()}: {error}; its parameters: {taken or 'none'}") from None
    return factory(*bound.args, **bound.kwargs)


def activation_of(module: nn.Module) -> Activation | None:
    """The activation that a module applies, with the parameters that it has now.

    Where there is one value per channel (a PReLU's slope, a DReLU's τ and α) the entry has their mean; an RReLU's has
    its middle slope.

    Args:
        module: of torch, of relume, or of a class made known by `register_activation`; a subclass of these counts.

    Returns:
        The entry, or None when the module is no activation that relume knows.

    >>> activation_of(nn.LeakyReLU(0.2)) is activation("leaky_relu", negative_slope=0.2)
    True
    >>> activation_of(nn.Linear(2, 2))
    """
    for cls in type(module).__mro__:
        described = _DESCRIBED.get(cls) or _DESCRIBED_LAZILY.get(f"{cls.__module__}.{cls.__qualname__}")
        if described is not None:
            return described(module)
        if issubclass(cls, nn.Module) and (own := registered_as(cls)) is not None:
            return own
    return None


def all_activations(*, own: bool = True) -> Iterator[Activation]:
    """Every entry of the catalogue with its default parameters, in the order of the tables, then the user's own.

    Args:
        own: also what was made known by `register_activation`.
    """
    listed = [factory() for factory in of.FACTORIES.values() if not _required(factory)]
    yield from listed
    if own:
        yield from (a for a in registered() if a not in listed)


_DESCRIBED: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda m: of.relu(),
    nn.LeakyReLU: lambda m: of.leaky_relu(float(m.negative_slope)),
    nn.PReLU: lambda m: of.prelu(_mean(m.weight)),
    nn.RReLU: lambda m: of.rrelu(float(m.lower), float(m.upper)),
    nn.ELU: lambda m: of.elu(float(m.alpha)),
    nn.SELU: lambda m: of.selu(),
    nn.CELU: lambda m: of.celu(float(m.alpha)),
    nn.GELU: lambda m: of.gelu(m.approximate),
    nn.SiLU: lambda m: of.silu(),
    nn.Mish: lambda m: of.mish(),
    nn.Softplus: lambda m: of.softplus(float(m.beta), float(m.threshold)),
    nn.Sigmoid: lambda m: of.sigmoid(),
    nn.Tanh: lambda m: of.tanh(),
    nn.Hardtanh: lambda m: of.hardtanh(float(m.min_val), float(m.max_val)),
    nn.Hardswish: lambda m: of.hardswish(),
    nn.Hardsigmoid: lambda m: of.hardsigmoid(),
    nn.Softsign: lambda m: of.softsign(),
    nn.Tanhshrink: lambda m: of.tanhshrink(),
    nn.LogSigmoid: lambda m: of.logsigmoid(),
    nn.Softshrink: lambda m: of.softshrink(float(m.lambd)),
    nn.Hardshrink: lambda m: of.hardshrink(float(m.lambd)),
    nn.Threshold: lambda m: of.threshold(float(m.threshold), float(m.value)),
    nn.GLU: lambda m: of.glu(),
}
# By qualified name: their modules import this one's neighbours.
_DESCRIBED_LAZILY: dict[str, Callable[[Any], Activation]] = {
    "relume.activations.drelu.module.DReLU": lambda m: of.drelu(_mean(m.tau), _mean(m.alpha), m.form),
}


def _mean(value: Tensor | float) -> float:
    return float(value.detach().double().mean()) if isinstance(value, Tensor) else value


def plain_name(name: str) -> str:
    """A name without hyphens, underscores, spaces and case: "LeakyReLU" and "leaky-relu" are one."""
    return re.sub(r"[-_\s]", "", name).casefold()


def _required(factory: Callable[..., Activation]) -> bool:
    return any(p.default is p.empty for p in inspect.signature(factory).parameters.values())


@functools.cache
def _factories() -> dict[str, Callable[..., Activation]]:
    """By plain name and alias."""
    found = {plain_name(name): factory for name, factory in of.FACTORIES.items()}
    for factory in of.FACTORIES.values():
        if not _required(factory):
            for alias in factory().aliases:
                found.setdefault(plain_name(alias), factory)
    return found


def _unknown(name: str) -> str:
    names = [*of.FACTORIES, *(alias for a in all_activations() for alias in a.aliases), *(a.name for a in registered())]
    by_plain = {plain_name(n): n for n in names}
    close = [by_plain[p] for p in difflib.get_close_matches(plain_name(name), by_plain, 3, 0.6)]
    hint = f"close to it: {', '.join(close)}" if close else "`relume activations` lists them"
    return f"no activation is called {name.strip()!r}; {hint}"


def arguments_in(text: str, whole: str) -> tuple[list[Any], dict[str, Any]]:
    """What stands in the brackets of "leaky_relu(0.2)"."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = (p.strip() for p in part.rpartition("="))
        try:
            number = float(value)
        except ValueError:
            if not equals:
                raise ValueError(f"{whole.strip()}: {part!r} is no number") from None
            named[key] = value.strip("'\"")
            continue
        if equals:
            named[key] = number
        else:
            positional.append(number)
    return positional, named
