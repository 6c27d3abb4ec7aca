"""Batches as a person has them, made into calls of a model, in a mode that leaves the model as it was."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from relume.census import Phase
from relume.errors import BatchError
from relume.watch.aside import aside


def batches_in(batches: Any) -> Iterator[Any]:
    """The batches one by one; BatchError where there is no such thing as one."""
    if isinstance(batches, Mapping) and not isinstance(batches, torch.utils.data.Dataset):
        raise BatchError("batches is one dict; for a single batch of keyword arguments pass [batch]")
    try:
        iterator: Iterator[Any] = iter(batches)
    except TypeError as error:
        raise BatchError(
            f"batches must be a tensor, an iterable of batches or a DataLoader, not {type(batches).__name__}"
        ) from error
    return iterator


def call_with(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What of a batch the model's forward takes, on the model's device; BatchError where they do not fit."""
    first = next(model.parameters(), next(model.buffers(), None))
    device = first.device if first is not None else torch.device("cpu")

    def moved(value: Any) -> Any:
        if callable(getattr(value, "to", None)):  # before tuples: a PackedSequence is one
            return value.to(device)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(moved, value))
        if isinstance(value, tuple | list):
            return type(value)(map(moved, value))
        return {k: moved(v) for k, v in value.items()} if isinstance(value, dict) else value

    signature = inspect.signature(model.forward)
    parameters = list(signature.parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = {str(k) for k in batch.keys()}  # noqa: SIM118 - mapping-like objects
        kwargs = {k: moved(batch[k]) for k in batch.keys() if everything or k in taken}  # noqa: SIM118
        if not kwargs and len([p for p in positional if p.default is p.empty]) == 1:
            args = (moved(batch),)  # the model takes the dict as it is
        given = f"a dict of {', '.join(sorted(names)) or 'nothing'}"
    elif isinstance(batch, tuple | list) and not hasattr(batch, "to"):
        everything = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        args = tuple(map(moved, batch if everything else batch[: len(positional)]))
        given = f"{len(batch)} positional arguments"
    elif hasattr(batch, "to"):
        args, given = (moved(batch),), "one argument"
    else:
        raise BatchError(
            f"a batch of type {type(batch).__name__} can't be passed to {type(model).__name__}: "
            "give a tensor, a tuple of positional arguments, or a dict of keyword arguments"
        )
    if not model._forward_pre_hooks:  # which may change the arguments
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BatchError(
                f"a batch does not fit {type(model).__name__}.forward{signature}: it is {given}, and {error}. A tensor "
                "is passed as the one argument, a tuple as positional and a dict as keyword arguments"
            ) from error
    return args, kwargs


@contextlib.contextmanager
def as_it_was(model: nn.Module, phase: Phase) -> Iterator[None]:
    """Run a model in a mode, without gradients, and put back everything that running it can change."""
    modes = [(m, m.training) for m in model.modules()]
    with aside(model):
        try:
            # `train` may do more than set the flag (fold weights, keep a part frozen), so it is called only if need be.
            if any(training != (phase == "train") for _, training in modes):
                model.train(phase == "train")
            yield
        finally:
            if model.training != modes[0][1]:
                model.train(modes[0][1])
            for module, training in modes:
                module.training = training
