"""`Meter`: adds up, on the device and without synchronising, what one site's units do.

State is twelve float64 numbers per unit (96 bytes), whatever the number of steps: counts stay exact up to 2**53, and
moments are kept about a pivot, so that a mean far from zero costs no precision. `counts` turns a state into `Counts`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from relume.activations import Activation
from relume.activations.zones import Zone
from relume.census.counts import Counts
from relume.sites import Plan

FIRED, SAMPLES_FIRED, SUM, SQUARES, OUTPUT, NONFINITE, MAX, MIN, FIRST, LAST, PIVOT = range(11)
ROWS = 11
BYTES_PER_UNIT = 8 * ROWS
NEVER = -1.0

# Above this many samples of a unit in one step, float32 can't add up ones exactly.
_EXACT_IN_FLOAT32 = 1 << 23


class Meter:
    """What one site's units did since the last `reset`, in one phase.

    Args:
        units: how many.
        device: where the site computes.
    """

    def __init__(self, units: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            # Apple's GPUs have no float64.
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self.state = torch.zeros((ROWS, units), dtype=dtype, device=device)
        self.inputs = 0
        self.samples = 0
        self._has_pivot = False
        # The pivot in the dtype and shape of the samples, kept until the next window.
        self._pivot: tuple[torch.dtype, Plan, Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Start a new window; the last mean becomes the pivot of the next moments."""
        with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.no_grad():
            state = self.state
            if self.samples:
                finite = (self.samples - state[NONFINITE]).clamp_(min=1)
                state[PIVOT].add_(state[SUM] / finite)
            state[:MAX].zero_()
            state[MAX].fill_(-torch.inf)
            state[MIN].fill_(torch.inf)
            state[FIRST:PIVOT].fill_(NEVER)
        self.inputs = self.samples = 0
        self._pivot = None

    def to(self, device: torch.device) -> None:
        """Follow a model that was moved."""
        if self.state.device != device:
            self.state = self.state.to(device)
            self._pivot = None

    def observe(self, x: Tensor, plan: Plan, activation: Activation, step: int) -> Callable[[Tensor], None]:
        """Count one application: its pre-activation now, its output when the returned function is called with it.

        Runs apart from autograd, autocast and every torch function mode; reads x, never writes it.
        """
        self.to(x.device)
        with torch._C.DisableTorchFunction(), torch.no_grad(), _without_autocast(x):
            sifted = self._pre_activation(_view(x, plan), plan, activation, step)
        self.inputs += plan.n_inputs
        self.samples += plan.n_samples

        def output(y: Tensor) -> None:
            with torch._C.DisableTorchFunction(), torch.no_grad(), _without_autocast(y):
                y = _view(y, plan)
                if sifted:
                    y = y.nan_to_num(0.0, 0.0, 0.0)
                total = (y if activation.non_negative else y.abs()).sum(plan.inputs + plan.others)
                self.state[OUTPUT].add_(total.reshape(-1))

        return output

    def _pivot_for(self, x: Tensor, plan: Plan) -> Tensor:
        if self._pivot is None or self._pivot[0] != x.dtype or self._pivot[1] is not plan:
            row = self.state[PIVOT]
            if not self._has_pivot:
                middle = x.mean(plan.inputs + plan.others).reshape(-1)
                row.copy_(torch.where(torch.isfinite(middle), middle, 0.0))
                self._has_pivot = True
            shape = [s if i in plan.units else 1 for i, s in enumerate(x.shape)]
            self._pivot = (x.dtype, plan, row.to(x.dtype).reshape(shape))
        return self._pivot[2]

    def _pre_activation(self, x: Tensor, plan: Plan, activation: Activation, step: int) -> bool:
        """Returns whether samples were sifted for NaN and infinity."""
        state, over = self.state, plan.inputs + plan.others
        high, low = x.amax(over), x.amin(over)
        deviation = x - self._pivot_for(x, plan)
        first = deviation.sum(over)
        good: Tensor | None = None
        # Looking costs a synchronisation on a GPU, so there the samples are always sifted.
        if x.device.type != "cpu" or not math.isfinite(float(first.sum())):
            good = torch.isfinite(x)
            state[NONFINITE].add_((~good).sum(over).reshape(-1))
            high = torch.where(good, x, -torch.inf).amax(over)
            low = torch.where(good, x, torch.inf).amin(over)
            deviation = torch.where(good, deviation, 0.0)
            first = deviation.sum(over, dtype=state.dtype)
            if state.dtype == torch.float64:
                deviation = deviation.double()
        second = deviation.square_().sum(over)
        fired, samples_fired = self._fired(x, good, deviation, plan, activation)
        if isinstance(fired, Tensor):
            fires = fired.reshape(-1) > 0
            state[LAST].masked_fill_(fires, step)
            state[FIRST].masked_fill_(fires.logical_and_(state[FIRST] < 0), step)
        else:
            state[LAST].fill_(step)
            state[FIRST].masked_fill_(state[FIRST] < 0, step)
        for row, value in ((FIRED, fired), (SAMPLES_FIRED, samples_fired), (SUM, first), (SQUARES, second)):
            state[row].add_(value.reshape(-1) if isinstance(value, Tensor) else value)
        torch.maximum(state[MAX], high.reshape(-1), out=state[MAX])
        torch.minimum(state[MIN], low.reshape(-1), out=state[MIN])
        return good is not None

    def _fired(
        self, x: Tensor, good: Tensor | None, scratch: Tensor, plan: Plan, activation: Activation
    ) -> tuple[Tensor | int, Tensor | int]:
        """Inputs fired and samples outside the counted zone, per unit; plain numbers where they are the same for all."""
        zone = activation.counted_zone
        if not zone:
            return plan.n_inputs, plan.n_samples
        over = plan.inputs + plan.others
        outside = _outside(zone, x, good, scratch)
        exact = plan.n_samples < _EXACT_IN_FLOAT32
        samples_fired = outside.sum(over) if exact else (outside > 0).sum(over)
        if not activation.flat:
            return plan.n_inputs, samples_fired
        if not plan.inputs_known:
            return samples_fired.clamp(max=plan.n_inputs), samples_fired
        if not plan.others:
            return samples_fired, samples_fired
        return outside.amax(plan.others, keepdim=True).sum(over), samples_fired


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _view(x: Tensor, plan: Plan) -> Tensor:
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return x if plan.shape is None else x.reshape(plan.shape)


def _outside(zone: Zone, x: Tensor, good: Tensor | None, scratch: Tensor) -> Tensor:
    """1.0 where a sample is finite and outside the zone, else 0.0; overwrites `scratch`."""
    edge = zone.left_edge
    if edge is not None:
        # Comparing into a float tensor is several times faster than adding up a bool one.
        outside = torch.gt(x, edge, out=scratch)
    else:
        outside = zone.contains(x).logical_not_().to(scratch.dtype)
    return outside if good is None else outside.mul_(good)


def counts(state: Tensor, inputs: int, samples: int) -> Counts:
    """Turn a meter's state, moved to the CPU as float64 of shape [11, units], into `Counts`."""
    total = (samples - state[NONFINITE]).clamp(min=1)
    whole = {
        "fired": FIRED,
        "samples_fired": SAMPLES_FIRED,
        "nonfinite": NONFINITE,
        "first_fired": FIRST,
        "last_fired": LAST,
    }
    return Counts(
        inputs=inputs,
        samples=samples,
        mean=state[PIVOT] + state[SUM] / total,
        m2=(state[SQUARES] - state[SUM].square() / total).clamp(min=0),
        max=state[MAX].clone(),
        min=state[MIN].clone(),
        output=state[OUTPUT].clone(),
        **{name: state[row].to(torch.int64) for name, row in whole.items()},
    )


def collect(meters: list[Meter], *, reset: bool = True) -> list[Counts]:
    """Read all meters with one transfer per device and, unless told otherwise, start them anew."""
    by_device: dict[torch.device, list[int]] = {}
    for i, meter in enumerate(meters):
        by_device.setdefault(meter.state.device, []).append(i)
    result: list[Counts | None] = [None] * len(meters)
    with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.no_grad():
        for members in by_device.values():
            flat = torch.cat([meters[i].state.reshape(-1) for i in members]).cpu().double()
            at = 0
            for i in members:
                size = meters[i].state.numel()
                state = flat[at : at + size].reshape(ROWS, -1)
                result[i] = counts(state, meters[i].inputs, meters[i].samples)
                if reset:
                    meters[i].reset()
                at += size
    return [c for c in result if c is not None]
