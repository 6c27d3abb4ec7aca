"""Forward passes over batches for an initializer: run without a trace, looked into by hooks on the layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relume.census import Phase
from relume.errors import BatchError, EmptyCensusError, RelumeError
from relume.init.layers import Layer
from relume.sites import Found, Tracker
from relume.sites.flow import tensors_in
from relume.watch import compiled
from relume.watch.aside import aside
from relume.watch.passes import as_it_was, batches_in, call_with

# Called with a layer, its arguments and its output; what it returns, if anything, takes the output's place.
Look = Callable[[Layer, tuple[Any, ...], dict[str, Any], Any], Any]


@dataclass(frozen=True)
class Call:
    """The arguments of one forward pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def calls(model: nn.Module, batches: Any) -> list[Call]:
    """What the model's forward is called with, for each batch; a single tensor is one batch.

    Raises:
        EmptyCensusError: there is no batch.
        BatchError: one does not fit the model's forward, is empty, or holds NaN.
    """
    found = [Call(*call_with(model, b)) for b in ([batches] if isinstance(batches, Tensor) else batches_in(batches))]
    if not found:
        raise EmptyCensusError("there is nothing to go by: the batches yielded nothing")
    for i, call in enumerate(found):
        tensors = list(tensors_in((call.args, call.kwargs)))
        if tensors and not any(t.numel() for t in tensors):
            raise BatchError(f"batch {i} is empty")
        if any(t.is_floating_point() and bool(t.isnan().any()) for t in tensors):
            raise BatchError(f"batch {i} holds NaN: no statistic of it says anything. Clean the data first")
    return found


@contextlib.contextmanager
def in_phase(model: nn.Module, phase: Phase) -> Iterator[None]:
    """Passes in a mode, without gradients; mode, buffers and random state are put back."""
    if phase not in ("train", "eval"):
        raise ValueError(f"phase is 'train' or 'eval', not {phase!r}")
    with as_it_was(model, phase):
        yield


@contextlib.contextmanager
def with_gradients(model: nn.Module, phase: Phase) -> Iterator[None]:
    """The same with gradients recorded; those of the parameters are not touched by `torch.autograd.grad`."""
    with in_phase(model, phase), aside(model, grad=True), torch.enable_grad():
        yield


def run(model: nn.Module, call: Call, layers: list[Layer] = [], look: Look | None = None) -> Any:  # noqa: B006
    """One forward pass; `look` is called at each of the layers' calls."""
    handles = []
    try:
        for layer in layers if look is not None else ():

            def hook(_: nn.Module, args: Any, kwargs: Any, output: Any, layer: Layer = layer) -> Any:
                assert look is not None
                return look(layer, args, kwargs, output)

            handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
        with compiled.eager():
            return model(*call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()


def seen(model: nn.Module, call: Call, meter: Callable[[Found, Tensor], Any]) -> tuple[Tracker, Any]:
    """One forward pass under a tracker: `meter` is called before each application of an activation.

    Returns:
        The tracker, which knows the sites, and the model's output.
    """
    tracker = Tracker(model, meter, keep_fast_path=False)
    output = None
    while True:
        handle = model.register_forward_pre_hook(lambda _, a, k: tracker.begin(a, k), with_kwargs=True)
        try:
            with compiled.eager():
                output = model(*call.args, **call.kwargs)
        finally:
            handle.remove()
            tracker.end(output)
        if not tracker.restarted:
            tracker.sites()  # fills in the consumers
            return tracker, output
        tracker.forget()


def output_of(layer: Layer, output: Any) -> Tensor:
    """The tensor of a layer's output that its last weight scales."""
    tensor = next(tensors_in(output), None)
    if tensor is None:
        raise RelumeError(f"layer '{layer.shown}' gave {type(output).__name__}, in which there is no tensor")
    return tensor


@dataclass
class ChannelMoments:
    """Count, mean and summed squared deviation per channel, added up over batches (Chan et al. 1979)."""

    n: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, output: Tensor, axis: int) -> ChannelMoments:
        flat = output.detach().double().movedim(axis, -1).reshape(-1, output.shape[axis])
        mean = flat.mean(0)
        return cls(len(flat), mean, (flat - mean).square().sum(0))

    def add(self, other: ChannelMoments) -> ChannelMoments:
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        return ChannelMoments(n, mean, self.m2 + other.m2 + delta.square() * (self.n * other.n / n))

    @property
    def std(self) -> Tensor:
        """Per channel, over samples."""
        return (self.m2 / self.n).sqrt()

    @property
    def variance(self) -> float:
        """Over samples and channels together."""
        return float((self.m2 / self.n).mean() + self.mean.var(unbiased=False))


Fit = Callable[[Layer, ChannelMoments], bool]
"""Changes a layer by the moments of its output; False when that is as it should be and nothing was changed."""


def fit_in_order(
    model: nn.Module, layers: list[Layer], batches: list[Call], fit: Fit, max_iterations: int
) -> dict[str, int]:
    """Fit each layer to its output, in the order of the forward pass, so that each sees what the ones before became.

    With one batch that takes one pass: a layer is fitted, and run again, in the midst of it. With several, a layer's
    output is gathered from all of them, by passes that end there.

    Returns:
        How often each layer was changed, by name; those that no pass reached are missing.
    """
    changed: dict[str, int] = {}
    if len(batches) == 1:

        def look(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if layer.name in changed:  # a module used again has its scale from its first use
                return None
            changed[layer.name] = 0
            while changed[layer.name] < max_iterations and fit(layer, _moments(layer, output)):
                changed[layer.name] += 1
                output = layer.module.forward(*args, **kwargs)
            return output

        run(model, batches[0], layers, look)
        return changed
    order: dict[str, Layer] = {}
    run(model, batches[0], layers, lambda layer, a, k, o: order.setdefault(layer.name, layer) and None)
    for layer in order.values():
        changed[layer.name] = 0
        while changed[layer.name] < max_iterations and fit(layer, _gathered(model, layer, batches)):
            changed[layer.name] += 1
    return changed


def measure(model: nn.Module, layers: list[Layer], batches: list[Call]) -> dict[str, ChannelMoments]:
    """The moments of each layer's output over all batches and uses."""
    found: dict[str, ChannelMoments] = {}

    def look(layer: Layer, args: Any, kwargs: Any, output: Any) -> None:
        now = _moments(layer, output)
        found[layer.name] = found[layer.name].add(now) if layer.name in found else now

    for call in batches:
        run(model, call, layers, look)
    return found


class _Enough(Exception):  # noqa: N818 - no error: ends a pass at the layer it was for
    """The pass has come as far as it was to go."""


def _gathered(model: nn.Module, layer: Layer, batches: list[Call]) -> ChannelMoments:
    parts: list[ChannelMoments] = []

    def look(layer: Layer, args: Any, kwargs: Any, output: Any) -> None:
        parts.append(_moments(layer, output))
        raise _Enough

    for call in batches:
        with contextlib.suppress(_Enough):
            run(model, call, [layer], look)
    total = parts[0]
    for part in parts[1:]:
        total = total.add(part)
    return total


def _moments(layer: Layer, output: Any) -> ChannelMoments:
    tensor = output_of(layer, output)
    found = ChannelMoments.of(tensor, layer.channel_axis(tensor))
    if not bool(torch.isfinite(found.mean).all() and torch.isfinite(found.m2).all()):
        raise RelumeError(
            f"layer '{layer.shown}' gives NaN or infinite values on these batches; nothing was changed. Look at the "
            "inputs' scale, and at what lies before the layer"
        )
    return found
