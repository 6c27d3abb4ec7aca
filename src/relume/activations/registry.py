"""What relume knows about one activation function, and how a new one is made known (`register_activation`).

The entries themselves are in `catalogue.py`; how their calls are recognised in a forward pass is in
`sites/recognise.py`.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

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
    """

    name: str
    formula: str
    function: Callable[[Tensor], Tensor]
    flat: Zone = field(default_factory=Zone)
    linear: Zone | None = None
    non_negative: bool = False
    reference: str = ""
    tops: float | None = None

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


_MODULES: dict[type[nn.Module], Activation] = {}
_FUNCTIONS: dict[Any, Activation] = {}
# Classes of libraries that may not be imported, by qualified name.
_LAZY_MODULES: dict[str, Activation] = {}
# What classes were found to be, until the next registration. Classes made in passing are let go.
_LOOKED_UP: weakref.WeakKeyDictionary[type[nn.Module], Activation | None] = weakref.WeakKeyDictionary()

T = TypeVar("T")


def registered_module(cls: type[nn.Module]) -> Activation | None:
    """The activation that a module class was registered as, itself or through a base class."""
    if cls not in _LOOKED_UP:
        entries = (_MODULES.get(b) or _LAZY_MODULES.get(f"{b.__module__}.{b.__qualname__}") for b in cls.__mro__)
        _LOOKED_UP[cls] = next((e for e in entries if e is not None), None)
    return _LOOKED_UP[cls]


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
        _MODULES[target] = activation
        _LOOKED_UP.clear()
        return target
    if _is_overridable(target):
        _FUNCTIONS[target] = activation
        return target

    @functools.wraps(target)
    def seen(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.overrides.has_torch_function((x,)):
            return torch.overrides.handle_torch_function(seen, (x,), x, *args, **kwargs)
        return target(x, *args, **kwargs)  # type: ignore[no-any-return]

    _FUNCTIONS[seen] = activation
    return seen


def _is_overridable(function: Any) -> bool:
    """Does torch itself announce calls of this function to function modes?"""
    return any(
        function in functions for functions in torch.overrides.get_overridable_functions().values()
    ) or not hasattr(function, "__code__")


def register_lazily(qualified_name: str, activation: Activation) -> None:
    """Register a module class of a library without importing it."""
    _LAZY_MODULES[qualified_name] = activation
    _LOOKED_UP.clear()
