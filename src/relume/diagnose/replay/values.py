"""Tensors inside of arguments and results: found in a fixed order, or put in the place of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def tensors_of(value: Any, depth: int = 6) -> Iterator[Tensor]:
    """The tensors that a value holds, in a fixed order: containers, data classes and plain objects are entered."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item, depth - 1)
    elif depth and dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name, None), depth - 1)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers with `change` applied to whatever is no container."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([mapped(v, change) for v in value])
    if kind is dict:
        return {k: mapped(v, change) for k, v in value.items()}
    if kind is slice:
        return slice(*(mapped(v, change) for v in (value.start, value.stop, value.step)))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*(mapped(v, change) for v in value))
    return change(value)
