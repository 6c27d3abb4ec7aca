"""`as_batch`: what a model was called with, as one batch that it can be called with again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from relume.errors import RelumeError

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def as_batch(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Positional arguments as a tuple, those by name as a dict; both at once as a dict, by the names in `forward`.

    Raises:
        RelumeError: some are by name, and some can't be.
    """
    if not kwargs:
        return args
    if not args:
        return dict(kwargs)
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif kind in _BY_NAME:
            named[name] = value
        else:
            raise RelumeError(
                f"{type(model).__name__} is called with some arguments by name and '{name}' by position alone, which "
                "can't be done again as one batch: call it with all by name"
            )
    return named
