"""What relume knows about one activation function, and how a new one is made known (`register_activation`).

The entries themselves are in `catalogue.py`; how their calls are recognised in a forward pass is in
`sites/recognise.py`.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor, nn

from relume.activations.gains import Moments, moments, moments_of_two
from relume.activations.zones import Zone, where

# |f'(x)| below this on every sample makes a unit saturated; the same width around slope 1 makes it linear.
SLOPE_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class Activation:
    """One activation function, with its parameters filled in (LeakyReLU with slope 0.2 is one, with slope 0 another).

    Attributes:
        name: the field's name for it, lower case ("relu", "hardtanh").
        formula: as a person writes it.
        function: float64 tensor to float64 tensor, element by element.
        flat: where the derivative is exactly zero.
        linear: where the function is affine and not flat; for smooth functions, where its slope is within 0.01 of 1.
        non_negative: the output is never below zero, so that |output| needs no absolute value.
        reference: the paper.
        tops: the upper flat interval's lower edge when the function has a ceiling (6 for ReLU6), else None.
        aliases: other names under which `relume.activations.activation` finds it.
    """

    name: str
    formula: str
    function: Callable[[Tensor], Tensor]
    flat: Zone = field(default_factory=Zone)
    linear: Zone | None = None
    non_negative: bool = False
    reference: str = ""
    tops: float | None = None
    aliases: tuple[str, ...] = ()

    def derivative(self, x: Tensor) -> Tensor:
        """f'(x), element by element, by automatic differentiation; same shape as x.

        Zero throughout the flat zone, where autograd's choice at a kink may differ.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().double().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.function(leaf).sum(), leaf)
        return torch.where(self.flat.contains(leaf.detach()), 0.0, slope)

    @functools.cached_property
    def saturated(self) -> Zone:
        """Where |f'(x)| < 0.01. Includes the flat zone."""
        return where(lambda x: self.derivative(x).abs() < SLOPE_TOLERANCE)

    @functools.cached_property
    def linear_zone(self) -> Zone:
        """`linear` when the catalogue states it, else the right tail on which the slope stays within 0.01 of 1."""
        if self.linear is not None:
            return self.linear
        near_one = where(lambda x: (self.derivative(x) - 1).abs() < SLOPE_TOLERANCE)
        return Zone(tuple(i for i in near_one.intervals if i[1] == float("inf")))

    @functools.cached_property
    def kinks(self) -> tuple[float, ...]:
        """The finite ends of its zones, and zero: where it may fail to be smooth."""
        zones = (*self.flat.intervals, *(self.linear.intervals if self.linear is not None else ()))
        return tuple(sorted({0.0, *(e for i in zones for e in i if abs(e) < float("inf"))}))

    @functools.cached_property
    def moments(self) -> Moments:
        """Mean, second moment and the slope's second moment under N(0, 1), to 1e-9 or better."""
        with torch._C.DisableTorchFunction():  # a watch must not take this for the model's calls
            return moments(self.function, self.derivative, self.kinks)

    @property
    def gain(self) -> float:
        """1 / sqrt(E f(z)²), z ~ N(0, 1): weights of variance gain² / fan_in keep the pre-activations' scale.

        With it a standard normal pre-activation is followed by one of variance 1. √2 for ReLU (He et al. 2015).
        """
        return self.moments.gain

    @property
    def backward_gain(self) -> float:
        """1 / sqrt(E f'(z)²): weights of variance backward_gain² / fan_out keep the gradients' scale."""
        return self.moments.backward_gain

    @property
    def mean(self) -> float:
        """E f(z), z ~ N(0, 1): the bias shift (Clevert et al. 2015)."""
        return self.moments.mean

    @property
    def variance(self) -> float:
        """Var f(z), z ~ N(0, 1)."""
        return self.moments.variance

    @property
    def is_relu(self) -> bool:
        """Is it max(0, x) exactly?"""
        return self.function is torch.relu

    @functools.cached_property
    def bounded(self) -> bool:
        """Does it turn an infinite pre-activation into a finite output other than zero?"""
        ends = self.function(torch.tensor([float("inf"), -float("inf")], dtype=torch.float64))
        return bool((torch.isfinite(ends) & (ends != 0)).any())

    @functools.cached_property
    def counted_zone(self) -> Zone:
        """The zone a meter counts the samples outside of: flat where there is one, else a two-sided saturated zone.

        A one-sided saturated zone (GELU's far left) is decided by the unit's extremes alone and needs no count.
        """
        if self.flat:
            return self.flat
        return self.saturated if self.counts_responsive else Zone()

    @functools.cached_property
    def counts_responsive(self) -> bool:
        """True for sigmoid, tanh and the like: saturated at both ends, flat at none."""
        return not self.flat and len([i for i in self.saturated.intervals if float("inf") in map(abs, i)]) == 2


@dataclass(frozen=True, eq=False)
class TwoInputs(Activation):
    """An activation of two pre-activations, such as a gate and what it lets through.

    `function` and the zones are those of the first input alone, which is what a site sees; moments and gains are of
    the whole, with both inputs independent and N(0, 1).

    Attributes:
        both: float64 tensors of both inputs to the output, element by element.
    """

    both: Callable[[Tensor, Tensor], Tensor] = torch.mul

    @functools.cached_property
    def moments(self) -> Moments:
        with torch._C.DisableTorchFunction():
            return moments_of_two(self.both, self.kinks)


@dataclass(frozen=True, eq=False)
class InputDependent(Activation):
    """An activation whose shape another part of the network sets anew for each input.

    `function` is its shape at rest, from which moments and gains are computed; no zone can be stated beforehand.
    """

    @functools.cached_property
    def saturated(self) -> Zone:
        return Zone()


_MODULES: dict[type[nn.Module], Activation] = {}
_FUNCTIONS: dict[Any, Activation] = {}
# Classes of libraries that may not be imported, by qualified name.
_LAZY_MODULES: dict[str, Activation] = {}
# What classes were found to be, until the next registration. Classes made in passing are let go.
_LOOKED_UP: weakref.WeakKeyDictionary[type[nn.Module], Activation | None] = weakref.WeakKeyDictionary()

T = TypeVar("T")
P = ParamSpec("P")


def registered_module(cls: type[nn.Module]) -> Activation | None:
    """The activation that a module class was registered as, itself or through a base class."""
    if cls not in _LOOKED_UP:
        entries = (registered_as(b) for b in cls.__mro__)
        _LOOKED_UP[cls] = next((e for e in entries if e is not None), None)
    return _LOOKED_UP[cls]


def registrations() -> int:
    """How many module classes have been registered: while it stays the same, what classes are does too."""
    return len(_MODULES) + len(_LAZY_MODULES)


def registered_as(cls: type[nn.Module]) -> Activation | None:
    """The activation that this very class was registered as."""
    return _MODULES.get(cls) or _LAZY_MODULES.get(f"{cls.__module__}.{cls.__qualname__}")


def registered() -> list[Activation]:
    """What has been made known by `register_activation`, oldest first, modules before functions."""
    return list(dict.fromkeys((*_MODULES.values(), *_FUNCTIONS.values())))


def registered_functions() -> dict[Any, Activation]:
    """Functions registered by the user, by the callable that torch's function modes report."""
    return _FUNCTIONS


@overload
def register_activation(
    target: T,
    *,
    name: str | None = ...,
    flat: Iterable[tuple[float, float]] = ...,
    linear: Iterable[tuple[float, float]] | None = ...,
    function: Callable[[Tensor], Tensor] | None = ...,
    formula: str = ...,
    reference: str = ...,
) -> T: ...
@overload
def register_activation(
    target: None = None,
    *,
    name: str | None = ...,
    flat: Iterable[tuple[float, float]] = ...,
    linear: Iterable[tuple[float, float]] | None = ...,
    function: Callable[[Tensor], Tensor] | None = ...,
    formula: str = ...,
    reference: str = ...,
) -> Callable[[T], T]: ...
def register_activation(
    target: Any = None,
    *,
    name: str | None = None,
    flat: Iterable[tuple[float, float]] = (),
    linear: Iterable[tuple[float, float]] | None = None,
    function: Callable[[Tensor], Tensor] | None = None,
    formula: str = "",
    reference: str = "",
) -> Any:
    """Make an activation of your own known, so that each application of it is a site.

    Works as a call or a decorator, on an `nn.Module` subclass (its calls become sites, and what it applies
    inside does not), on a torch function that relume does not take for an activation, or on a plain Python
    function of one tensor. For a plain function use the returned one: it computes the same and lets relume see it.

    Args:
        target: the module class or the function.
        name: how reports call it; default: the target's own name, lower case.
        flat: closed intervals of the pre-activation on which the derivative is exactly zero,
            e.g. `[(-math.inf, 0)]`. Empty: units of it never die, but may be dormant or saturated.
        linear: closed intervals on which it is affine; default: found from the function.
        function: element-wise float64 implementation, used for derivative and saturation.
            Default: the target itself, or a new instance of the module class made without arguments.
        formula, reference: for tables and reports.

    Returns:
        The module class unchanged, or the function to use.

    Raises:
        TypeError: the target is neither a module class nor callable.
        ValueError: an interval has its ends in the wrong order, no `function` is given for a module class that
            can't be made without arguments, or the function can't be evaluated and differentiated.

    >>> import math
    >>> @register_activation(flat=[(-math.inf, 0.0)])
    ... def squared_relu(x):
    ...     return torch.relu(x) ** 2
    >>> squared_relu(torch.tensor([-1.0, 3.0]))
    tensor([0., 9.])
    """
    if target is None:
        return lambda t: register_activation(
            t, name=name, flat=flat, linear=linear, function=function, formula=formula, reference=reference
        )
    is_module = isinstance(target, type) and issubclass(target, nn.Module)
    if not is_module and not callable(target):
        raise TypeError(f"register_activation takes a Module class or a function, not {target!r}")
    for low, high in (*flat, *(linear or ())):
        if not low <= high:
            raise ValueError(f"the interval ({low}, {high}) has its ends in the wrong order")
    if is_module and function is None:
        try:
            function = target().double()
        except TypeError as error:
            raise ValueError(
                f"{target.__name__} can't be made without arguments; pass function=, an element-wise implementation"
            ) from error
    label = name or getattr(target, "__name__", type(target).__name__).lower()
    activation = Activation(
        name=label,
        formula=formula or f"{label}(x)",
        function=function if function is not None else target,
        flat=Zone(tuple(sorted((float(a), float(b)) for a, b in flat))),
        linear=None if linear is None else Zone(tuple(sorted((float(a), float(b)) for a, b in linear))),
        reference=reference,
    )
    try:
        # Evaluated now, not in the midst of a forward pass, where its calls would be taken for the model's.
        _ = activation.saturated, activation.linear_zone
    except Exception as error:
        raise ValueError(
            f"{label} can't be evaluated and differentiated on a float64 tensor of one axis ({error}); "
            "pass function=, an element-wise implementation"
        ) from error
    if is_module:
        register_module(target, activation)
        return target
    if _is_overridable(target):
        _FUNCTIONS[target] = activation
        return target
    return seen_as(activation)(target)


def register_module(cls: type[nn.Module], activation: Activation) -> None:
    """Make the calls of a module class sites of an entry, whatever it applies inside."""
    _MODULES[cls] = activation
    _LOOKED_UP.clear()


def seen_as(activation: Activation) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Decorates a function so that function modes see its calls, which makes them sites of an entry."""

    def decorate(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
        name = next(iter(inspect.signature(function).parameters))

        @functools.wraps(function)
        def seen(*args: Any, **kwargs: Any) -> Tensor:
            x = args[0] if args else kwargs[name]
            if torch.overrides.has_torch_function((x,)):
                kwargs.pop(name, None)  # the pre-activation comes first, where it is looked for
                return torch.overrides.handle_torch_function(seen, (x,), x, *args[1:], **kwargs)
            return function(*args, **kwargs)

        _FUNCTIONS[seen] = activation
        return seen

    return decorate


def _is_overridable(function: Any) -> bool:
    """Does torch itself announce calls of this function to function modes?"""
    return any(
        function in functions for functions in torch.overrides.get_overridable_functions().values()
    ) or not hasattr(function, "__code__")


def register_lazily(qualified_name: str, activation: Activation) -> None:
    """Register a module class of a library without importing it."""
    _LAZY_MODULES[qualified_name] = activation
    _LOOKED_UP.clear()
