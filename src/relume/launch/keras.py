"""Keras on torch: its models are torch modules, but its optimizers are not torch's and call none of torch's hooks."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn


def is_built(module: nn.Module) -> bool:
    """False for a Keras layer without its variables: to ask for its parameters would change it."""
    return not hasattr(type(module), "torch_params") or "_torch_params" in module.__dict__["_modules"]


def is_symbolic(value: Any) -> bool:
    """One of the placeholders on which Keras calls layers to learn their shapes."""
    return type(value).__name__ == "KerasTensor"


def count_steps(stepped: Callable[[Any], None]) -> None:
    """Once Keras is loaded: call `stepped` after each step of any of its optimizers, with a stand-in for it."""
    module = sys.modules.get("keras.src.optimizers.base_optimizer")
    kind = getattr(module, "BaseOptimizer", None)
    if kind is None or hasattr(kind.apply, "__wrapped__"):
        return
    apply = kind.apply
    known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    @functools.wraps(apply)
    def counted(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        result = apply(optimizer, *args, **kwargs)
        if optimizer not in known:
            known[optimizer] = type(type(optimizer).__name__, (_StandIn,), {})(optimizer)
        stepped(known[optimizer])
        return result

    kind.apply = counted


class _StandIn:
    """A Keras optimizer as a watch reads optimizers: by its parameter groups."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = weakref.ref(optimizer)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        optimizer = self._optimizer()
        if optimizer is None:
            return []
        parameters = [v.value for v in optimizer._trainable_variables]
        return [{"params": parameters, "lr": float(optimizer.learning_rate)}]
