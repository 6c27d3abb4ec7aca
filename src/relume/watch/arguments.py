"""What a watch or a census is given, checked: the model, its optimizers, whole numbers, patterns, axes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from relume.errors import RelumeError, RelumeWarning


def positive(name: str, value: Any, or_else: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        word = f" or {or_else!r}" if or_else else ""
        raise ValueError(f"{name} must be a whole number of at least 1{word}, not {value!r}")
    return value


def number(name: str, value: Any) -> float:
    """As a float, also of a tensor of one element."""
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is a number, or a tensor of one element, not {value!r}") from error


def share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{name} must be a share between 0 and 1, not {value!r}")
    return float(value)


def patterns(name: str, given: str | Iterable[str]) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    for pattern in found:
        if not isinstance(pattern, str):
            raise TypeError(f"{name} takes shell patterns on site names, such as 'features.*', not {pattern!r}")
    return found


def axes(axis: int | Mapping[str, int] | None, input_axis: int | None) -> None:
    """Raise TypeError unless both are axes."""

    def is_axis(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    by_pattern = isinstance(axis, Mapping) and all(isinstance(k, str) and is_axis(v) for k, v in axis.items())
    if axis is not None and not is_axis(axis) and not by_pattern:
        raise TypeError(f"axis is a number, or a dict from shell patterns on site names to numbers, not {axis!r}")
    if input_axis is not None and not is_axis(input_axis):
        raise TypeError(f"input_axis is the number of an axis, not {input_axis!r}")


def module(given: Any, doing: str) -> nn.Module:
    if not isinstance(given, nn.Module):
        raise TypeError(f"relume.{doing} takes a torch.nn.Module, not {type(given).__name__}")
    if isinstance(given, torch.jit.ScriptModule):
        raise RelumeError(f"relume can't see inside a torch.jit.ScriptModule: {doing} the model that was scripted")
    return given


def optimizers(model: nn.Module, given: Optimizer | Sequence[Optimizer] | None) -> tuple[Optimizer, ...]:
    found = () if given is None else tuple(given) if isinstance(given, Iterable) else (given,)
    found = tuple(map(_unwrapped, found))
    for optimizer in found:
        if not hasattr(optimizer, "register_step_post_hook"):
            raise TypeError(
                f"{type(optimizer).__name__} is no torch.optim.Optimizer: pass one, or a list of them, or None"
            )
    own = {id(p) for p in model.parameters()}
    if found and not any(id(p) in own for o in found for g in o.param_groups for p in g["params"]):
        warnings.warn(
            f"the optimizer holds no parameter of {type(model).__name__}: its steps are counted, but they don't train "
            "this model",
            RelumeWarning,
            stacklevel=4,
        )
    return found


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer in a wrapper that only looks like one (accelerate's), whose own hooks are never called."""
    while not hasattr(optimizer, "_optimizer_step_post_hooks") and isinstance(
        getattr(optimizer, "optimizer", None), Optimizer
    ):
        optimizer = optimizer.optimizer
    return optimizer


def settings(found: tuple[Optimizer, ...]) -> dict[str, Any]:
    """The optimizers' plain settings per parameter group, as they are now."""
    groups = []
    for optimizer in found:
        for group in optimizer.param_groups:
            plain = {k: _plain(v) for k, v in group.items() if k != "params"}
            groups.append({"optimizer": type(optimizer).__name__, **{k: v for k, v in plain.items() if v is not None}})
    return {"groups": groups} if groups else {}


def _plain(value: Any) -> Any:
    """A number, string, or list of them that JSON can hold; None for anything else."""
    if isinstance(value, torch.Tensor):  # a learning rate may be one
        return value.item() if value.numel() == 1 else None
    if isinstance(value, tuple | list):
        items = [_plain(v) for v in value]
        return None if None in items else items
    return value if isinstance(value, bool | int | float | str) else None
