"""`census(model, batches)`: the one-off census of a trained model, leaving the model as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from relume.census import Census, Counts, Phase, SiteCensus
from relume.errors import EmptyCensusError, NoSitesError, RelumeError
from relume.sites import Found, Tracker
from relume.sites.flow import tensors_in
from relume.watch import arguments, compiled
from relume.watch.meters import Meter, collect
from relume.watch.passes import as_it_was, batches_in, call_with


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
        BatchError: a batch can't be passed to the model's forward.
        RelumeError: the model holds no numbers: it is on the meta device, or its lazy layers have seen no batch yet.

    Source: dead as in Lu et al. 2019, section 2; bound by Clopper and Pearson 1934.

    >>> import torch
    >>> census(nn.Sequential(nn.Linear(2, 4), nn.ReLU()), [torch.randn(512, 2)])["1"].dead.shape
    torch.Size([4])
    """
    model = compiled.original(arguments.module(model, "census"))
    if phase not in ("train", "eval"):
        raise ValueError(f"phase is 'train' or 'eval', not {phase!r}")
    arguments.positive("min_inputs", min_inputs)
    arguments.axes(axis, input_axis)
    _check_weights(model)
    meters: dict[Any, Meter] = {}

    def meter(found: Found, x: Tensor) -> Any:
        if found.key not in meters:
            meters[found.key] = Meter(found.plan.n_units, x.device)
        return meters[found.key].observe(x, found.plan, found.activation, 0)

    tracker = Tracker(
        model,
        meter,
        include=arguments.patterns("include", include),
        exclude=arguments.patterns("exclude", exclude),
        axis=axis,
        input_axis=input_axis,
        keep_fast_path=False,
    )
    passes, empty = 0, True
    with as_it_was(model, phase):
        for batch in [batches] if isinstance(batches, Tensor) else batches_in(batches):
            args, kwargs = call_with(model, batch)
            sizes = [t.numel() for t in tensors_in((args, kwargs))]
            empty = empty and bool(sizes) and not any(sizes)
            while True:
                _run(model, tracker, args, kwargs)
                if not tracker.restarted:
                    break
                tracker.forget()
                meters.clear()
            passes += 1
    if not passes or empty:
        raise EmptyCensusError(
            f"there is nothing to count: the batches yielded {'only empty tensors' if passes else 'nothing'}"
        )
    sites = tracker.sites()
    if not sites:
        kinds = sorted({type(m).__name__ for m in model.modules() if not list(m.children())})
        raise NoSitesError(
            f"{type(model).__name__} applied no activation that relume knows (it is made of: {', '.join(kinds[:12])}). "
            "Make an activation of your own known with relume.register_activation"
        )
    used = [key for key, m in meters.items() if m.samples]
    counted = dict(zip(used, collect([meters[k] for k in used]), strict=True))
    members = tuple(
        SiteCensus(found.site, counted.get(key) or Counts.empty(found.site.units), min_inputs)
        for key, found in tracker.found.items()
        if tracker.wanted(found.site.name)
    )
    return Census(members, phase=phase, notes=tuple(tracker.notes), model=type(model).__name__)


def _run(model: nn.Module, tracker: Tracker, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """One forward pass under the tracker. The pass begins inside the root's own pre-hooks, as in training."""

    def begin(module: nn.Module, a: Any, k: Any) -> None:
        tracker.begin(a, k)

    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    output = None
    try:
        with compiled.eager():
            output = model(*args, **kwargs)
    finally:
        handle.remove()
        tracker.end(output)


def _check_weights(model: nn.Module) -> None:
    if any(is_lazy(t) for t in chain(model.parameters(), model.buffers())):
        raise RelumeError(
            f"{type(model).__name__} has lazy layers, whose weights the first batch draws: pass it one before a census"
        )
    if any(t.is_meta for t in chain(model.parameters(), model.buffers())):
        raise RelumeError(
            f"{type(model).__name__} is on the meta device, where tensors hold no numbers: move it to a real one"
        )
