"""What the smaller model is held against the original by: the outputs, parameters, arithmetic and time."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from relume.errors import RelumeError
from relume.prove.compact.evidence import Call, inputs_in
from relume.sites.flow import tensors_in
from relume.watch.passes import as_it_was


class CompactionError(RelumeError):
    """The smaller model does not compute what the original does; none was returned."""


def output(model: nn.Module, call: Call) -> list[Tensor]:
    """All tensors that a call in evaluation gives, with one random state."""
    with as_it_was(model, "eval"), torch.random.fork_rng():
        torch.manual_seed(0)
        return [t.detach() for t in tensors_in(model(*call[0], **call[1]))]


def deviation(a: Tensor, b: Tensor) -> float:
    """max |a − b| / max |a|; 0 for equal ones, NaN and infinities in the same places included."""
    if a.shape != b.shape:
        return math.inf
    if not a.numel() or torch.equal(a, b):
        return 0.0
    x, y = a.cpu().double(), b.cpu().double()
    finite = x.isfinite()
    if not bool((finite == y.isfinite()).all()):
        return math.inf
    if not bool(((x == y) | (x.isnan() & y.isnan()))[~finite].all()):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    scale = float(x[finite].abs().max())
    return float((x - y)[finite].abs().max()) / (scale or 1.0)


def allowed(tensors: Iterable[Tensor], tolerance: float | None) -> float:
    """The deviation up to which two outputs count as the same but for rounding: 100 units in the last place of the
    coarsest type among them."""
    if tolerance is not None:
        return tolerance
    return max([1e-12, *(100 * torch.finfo(t.dtype).eps for t in tensors if t.is_floating_point())])


def difference(model: nn.Module, small: nn.Module, calls: Iterable[Call], tolerance: float | None) -> float:
    """The largest deviation of any output tensor on any call.

    Raises:
        CompactionError: it is more than rounding; names the first layer where.
    """
    worst = 0.0
    for call in calls:
        before, after = output(model, call), output(small, call)
        limit = allowed(before, tolerance)
        same = len(before) == len(after)
        found = max([0.0, *map(deviation, before, after)]) if same else math.inf
        if found > limit:
            raise CompactionError(
                f"the compacted model's output differs by {found:.3g} of its largest value (allowed: {limit:.3g}), "
                f"first in {_first_layer(model, small, call, limit)}; nothing was returned. Leave sites out by exclude="
            )
        worst = max(worst, found)
    return worst


def _first_layer(model: nn.Module, small: nn.Module, call: Call, limit: float) -> str:
    """The first module whose output is of the same shape in both models, and differs."""
    seen = [_layers(m, call) for m in (model, small)]
    for (name, a), (other, b) in zip(*seen, strict=False):
        if name != other:
            break
        if a.shape == b.shape and deviation(a, b) > limit:
            return f"'{name}'" if name else "the model's own code"
    return "the model's own code"


def _layers(model: nn.Module, call: Call) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    handles = []
    for name, module in model.named_modules():

        def hook(_: nn.Module, args: Any, out: Any, name: str = name) -> None:
            found.extend((name, t.detach().clone()) for t in tensors_in(out))

        handles.append(module.register_forward_hook(hook))
    try:
        output(model, call)
    finally:
        for handle in handles:
            handle.remove()
    return found


def parameters(model: nn.Module) -> int:
    """Numbers in all parameters, those of a shared one counted once."""
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, call: Call) -> int:
    """Floating-point operations per input, of matrix products, convolutions and attention, as torch counts them: two
    for a multiplication and an addition."""
    counter = FlopCounterMode(display=False)
    with counter:
        output(model, call)
    return int(counter.get_total_flops()) // max(inputs_in(call), 1)


def latency(model: nn.Module, small: nn.Module, call: Call, rounds: int = 15) -> tuple[float, float]:
    """Seconds of one call in evaluation: medians of interleaved rounds, in an order drawn anew in each."""
    times: tuple[list[float], list[float]] = ([], [])
    draw = random.Random(0)
    with as_it_was(model, "eval"), as_it_was(small, "eval"):
        for i in range(rounds + 2):
            for which in draw.sample((0, 1), 2):
                start = time.perf_counter()
                (model, small)[which](*call[0], **call[1])
                _wait(call)
                if i >= 2:
                    times[which].append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def _wait(call: Call) -> None:
    if any(t.is_cuda for t in tensors_in(call)):
        torch.cuda.synchronize()
