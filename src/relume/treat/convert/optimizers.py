"""New parameters join a running optimizer, and those that left the model leave it; its state of all others is kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from relume.errors import RelumeError
from relume.treat.convert.changes import Changes

# What torch's schedulers keep a list of, one entry for each group.
_PER_GROUP = ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs", "max_lrs", "base_momentums", "max_momentums")


def held_by(optimizer: Any) -> set[int]:
    """The ids of an optimizer's parameters."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def check(model: nn.Module, optimizer: Any) -> None:
    """Raise unless it is an optimizer that holds parameters of the model."""
    if not isinstance(optimizer, Optimizer) and not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer= is a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if not held_by(optimizer) & {id(p) for p in model.parameters()}:
        raise RelumeError(
            f"the optimizer ({type(optimizer).__name__}) holds no parameter of this {type(model).__name__}: new ones "
            "can't join it. Pass the optimizer that trains this model"
        )


def check_schedulers(optimizer: Any, schedulers: tuple[Any, ...] | None) -> None:
    """A scheduler keeps one number per group, so that it must hear of a new one."""
    if schedulers is None and any("initial_lr" in g for g in optimizer.param_groups):
        raise RelumeError(
            "a learning-rate scheduler drives this optimizer, and would not fit one with a group more: pass "
            "scheduler= as well (or scheduler=() if none is in use any more)"
        )


def join(
    changes: Changes,
    optimizer: Any,
    schedulers: tuple[Any, ...] | None,
    parameters: list[tuple[nn.Parameter, list[nn.Parameter]]],
) -> list[int]:
    """Put parameters into an optimizer, each with the settings of the group of its neighbours, but no weight decay.

    A slope or a scale that decays is drawn to a value that means something (He et al. 2015, section 2.1, for PReLU).

    Args:
        parameters: each new one with those that lie next to it, nearest first.

    Returns:
        The number of the group that each is in.
    """
    at = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    without_decay: dict[int, int] = {}
    numbers = []
    for new, neighbours in parameters:
        source = next((at[id(p)] for p in neighbours if id(p) in at), 0)
        if not optimizer.param_groups[source].get("weight_decay"):
            number = source
        elif source in without_decay:
            number = without_decay[source]
        else:
            check_schedulers(optimizer, schedulers)
            number = without_decay[source] = _new_group(changes, optimizer, schedulers or (), source)
        _append(changes, optimizer, number, new)
        numbers.append(number)
    return numbers


def leave(changes: Changes, optimizer: Any, gone: Iterable[nn.Parameter]) -> None:
    """Take parameters out of an optimizer, with their state."""
    for parameter in gone:
        for number, group in enumerate(optimizer.param_groups):
            at = next((i for i, p in enumerate(group["params"]) if p is parameter), None)
            if at is None:
                continue
            group["params"].pop(at)
            state = optimizer.state.pop(parameter, None)

            def undo(
                number: int = number, at: int = at, parameter: nn.Parameter = parameter, state: Any = state
            ) -> None:
                optimizer.param_groups[number]["params"].insert(at, parameter)
                if state is not None:
                    optimizer.state[parameter] = state

            changes.do("the optimizer's parameters", undo)


def _append(changes: Changes, optimizer: Any, number: int, new: nn.Parameter) -> None:
    # By number: an optimizer that loads a state dict has other dictionaries in its groups' places.
    optimizer.param_groups[number]["params"].append(new)

    def undo() -> None:
        for group in optimizer.param_groups:
            group["params"][:] = [p for p in group["params"] if p is not new]
        optimizer.state.pop(new, None)

    changes.do("the optimizer's parameters", undo)


def _new_group(changes: Changes, optimizer: Any, schedulers: tuple[Any, ...], source: int) -> int:
    beside = optimizer.param_groups[source]
    group = {k: v for k, v in beside.items() if k not in ("params", "name", "param_names")}
    optimizer.param_groups.append({**group, "params": [], "weight_decay": type(beside["weight_decay"])(0)})
    number = len(optimizer.param_groups) - 1

    def undo() -> None:
        del optimizer.param_groups[number]

    changes.do("the optimizer's groups", undo)
    for scheduler in _all(schedulers):
        for name in _PER_GROUP:
            values = getattr(scheduler, name, None)
            if isinstance(values, list) and len(values) == number:
                values.append(values[source])

                def shorten(scheduler: Any = scheduler, name: str = name) -> None:
                    del getattr(scheduler, name)[number:]

                changes.do("a scheduler's lists", shorten)
    return number


def _all(schedulers: Iterable[Any]) -> Iterable[Any]:
    """Schedulers, and those that they run one after another."""
    for scheduler in schedulers:
        yield scheduler
        yield from _all(getattr(scheduler, "_schedulers", ()))
