"""`census(model, batches)`: the one-off census of a trained model, leaving the model as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relume.census import Census, Counts, Phase, SiteCensus
from relume.errors import BatchError, EmptyCensusError, NoSitesError, RelumeError
from relume.sites import Found, Tracker
from relume.watch.meters import Meter, collect
from relume.watch.watch import _patterns, _positive


def census(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    phase: Phase = "eval",
    min_inputs: int = 256,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    axis: int | Mapping[str, int] | None = None,
    input_axis: int | None = None,
) -> Census:
    """Count, for every unit of every activation site, on how many inputs it fires.

    Runs `model` over `batches` once, without gradients, and leaves it as it was: mode, buffers, hooks, random state.

    Args:
        model: any module; activations may be modules, functions or methods.
        batches: an iterable of batches or a DataLoader; a single tensor is one batch. A batch is a tensor, a tuple or
            list of positional arguments, or a dict of keyword arguments. What the model's forward does not take
            (labels) is left out. Tensors are moved to the model's device.
        phase: mode the model is run in; batch norm and dropout differ.
        min_inputs: below it a unit that never fired is `unknown`, not `dead`.
        include, exclude: shell patterns on site names.
        axis: unit axis, for all sites or by pattern.
        input_axis: axis of the first tensor that counts inputs; default 0, or 1 where the model hands that input to a
            recurrent or attention module with `batch_first=False`.

    Returns:
        Census, one SiteCensus per site in forward order; `site.dead` is bool of shape [units].

    Raises:
        EmptyCensusError: `batches` yields nothing, or only empty tensors.
        NoSitesError: the forward pass applied no known activation; names what the model is made of.
        BatchError: a batch can't be passed to the model.

    Source: dead as in Lu et al. 2019, section 2; bound by Clopper and Pearson 1934.

    >>> census(nn.Sequential(nn.Linear(2, 4), nn.ReLU()), [torch.randn(512, 2)])["1"].dead.shape
    torch.Size([4])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"relume.census takes a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise RelumeError("relume can't see inside a torch.jit.ScriptModule: take the census of the original model")
    if phase not in ("train", "eval"):
        raise ValueError(f"phase is 'train' or 'eval', not {phase!r}")
    _positive("min_inputs", min_inputs)
    meters: dict[Any, Meter] = {}

    def meter(found: Found, x: Tensor) -> Any:
        if found.key not in meters:
            meters[found.key] = Meter(found.plan.n_units, x.device)
        return meters[found.key].observe(x, found.plan, found.activation, 0)

    tracker = Tracker(
        model,
        meter,
        include=_patterns(include if isinstance(include, str) else tuple(include)),
        exclude=_patterns(exclude if isinstance(exclude, str) else tuple(exclude)),
        axis=axis,
        input_axis=input_axis,
        keep_fast_path=False,
    )
    passes = 0
    with _as_it_was(model, phase):
        for batch in [batches] if isinstance(batches, Tensor) else _iterate(batches):
            args, kwargs = _arguments(model, batch)
            while True:
                _run(model, tracker, args, kwargs)
                if not tracker.restarted:
                    break
                tracker.forget()
                meters.clear()
            passes += 1
    if not passes:
        raise EmptyCensusError("there is nothing to count: the batches yielded nothing")
    sites = tracker.sites()
    if not sites:
        kinds = sorted({type(m).__name__ for m in model.modules() if not list(m.children())})
        raise NoSitesError(
            f"{type(model).__name__} applied no activation that relume knows (it is made of: {', '.join(kinds[:12])}). "
            "Make an activation of your own known with relume.register_activation; if the batches are empty, there is "
            "nothing to see"
        )
    used = [key for key, m in meters.items() if m.samples]
    counted = dict(zip(used, collect([meters[k] for k in used]), strict=True))
    members = tuple(
        SiteCensus(found.site, counted.get(key) or Counts.empty(found.site.units), min_inputs)
        for key, found in tracker.found.items()
        if tracker._wanted(found.site.name)
    )
    return Census(members, phase=phase, notes=tuple(tracker.notes), model=type(model).__name__)


def _run(model: nn.Module, tracker: Tracker, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """One forward pass under the tracker. The pass begins inside the root's own pre-hooks, as in training."""

    def begin(module: nn.Module, a: Any, k: Any) -> None:
        tracker.begin(a, k)

    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    output = None
    try:
        output = model(*args, **kwargs)
    except (TypeError, KeyError) as error:
        if tracker.active:
            raise
        raise BatchError(
            f"a batch does not fit {type(model).__name__}.forward: {error}. A tensor is passed as the one argument, a "
            "tuple as positional and a dict as keyword arguments"
        ) from error
    finally:
        handle.remove()
        tracker.end(output)


def _iterate(batches: Any) -> Iterator[Any]:
    try:
        iterator = iter(batches)
    except TypeError as error:
        raise BatchError(
            f"batches must be a tensor, an iterable of batches or a DataLoader, not {type(batches).__name__}"
        ) from error
    if isinstance(batches, Mapping):
        raise BatchError("batches is one dict; for a single batch of keyword arguments pass [batch]")
    return iterator


def _arguments(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What of a batch the model's forward takes, on the model's device."""
    first = next(model.parameters(), next(model.buffers(), None))
    device = first.device if first is not None else torch.device("cpu")

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(moved, value))
        if isinstance(value, tuple | list):
            return type(value)(map(moved, value))
        if isinstance(value, dict):
            return {k: moved(v) for k, v in value.items()}
        return value.to(device) if hasattr(value, "to") and callable(value.to) else value

    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        named = {str(k): batch[k] for k in batch.keys()}  # noqa: SIM118 - mapping-like objects
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return (), {k: moved(v) for k, v in named.items()}
        taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        kwargs = {k: moved(v) for k, v in named.items() if k in taken}
        required = [p for p in positional if p.default is p.empty]
        if not kwargs and len(required) == 1:
            return (moved(dict(named)),), {}
        return (), kwargs
    if isinstance(batch, tuple | list):
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return tuple(map(moved, batch)), {}
        return tuple(map(moved, batch[: len(positional)])), {}
    if isinstance(batch, Tensor) or hasattr(batch, "to"):
        return (moved(batch),), {}
    raise BatchError(
        f"a batch of type {type(batch).__name__} can't be passed to {type(model).__name__}: "
        "give a tensor, a tuple of positional arguments, or a dict of keyword arguments"
    )


class _as_it_was:
    """Run a model in a mode, and put back everything that running it can change."""

    def __init__(self, model: nn.Module, phase: Phase) -> None:
        self.model, self.phase = model, phase

    def __enter__(self) -> None:
        self.modes = [(m, m.training) for m in self.model.modules()]
        # In place on exit, so that views and references of the buffers stay valid.
        self.buffers = [(b, b.detach().clone()) for b in self.model.buffers()]
        self.attributes = [(m, dict(m._buffers)) for m in self.model.modules()]
        self.random = torch.random.fork_rng(devices=_devices(self.model))
        self.no_grad = torch.no_grad()
        self.random.__enter__()
        self.no_grad.__enter__()
        if any(training != (self.phase == "train") for _, training in self.modes):
            self.model.train(self.phase == "train")

    def __exit__(self, *exc: Any) -> None:
        self.no_grad.__exit__(*exc)
        self.random.__exit__(*exc)
        for module, training in self.modes:
            module.training = training
        for module, buffers in self.attributes:
            for name, buffer in buffers.items():
                module._buffers[name] = buffer
        with torch.no_grad():
            for buffer, saved in self.buffers:
                if buffer.shape == saved.shape and not torch.equal(buffer, saved):
                    buffer.copy_(saved)


def _devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})
