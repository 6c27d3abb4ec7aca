"""`Meter`: adds up, on the device and without synchronising, what one site's units do.

State is 48 bytes per unit for float32 samples of one to an input, 52 for several, whatever the number of steps: counts
stay exact (they take 32 bits until 64 are needed), and moments are float64 about a pivot, so that a mean far from zero
costs no precision. `collect` turns states into `Counts`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from relume.activations import Activation
from relume.activations.zones import Zone
from relume.census.counts import Counts, same_for_all
from relume.sites import Plan
from relume.watch import kernels
from relume.watch.kernels import ROOM, State

_FEW = 16  # inputs that a window's pivot is taken from
# As many ones float32 adds up exactly, in whatever order.
_EXACT_IN_FLOAT32 = 1 << 24
# Bytes that are brought from a device at once.
_TRANSFER = 64 * 2**20


class Meter:
    """What one site's units did since the last `reset`, in one phase.

    Args:
        units: how many.
        device: where the site computes.
        look: may it read values back from the device? That spares work where all samples are finite, but synchronises
            a GPU with the program; None: on the CPU alone. Counts are the same either way.
        fused: may it use a one-pass kernel, where there is one? Counts and extremes are the same either way.

    Attributes:
        state: what has been counted; None until there is something.
        inputs, samples: how many were seen.
    """

    def __init__(self, units: int, device: torch.device, *, look: bool | None = None, fused: bool = True) -> None:
        self.units = units
        self.device = _home(device)
        self.state: State | None = None
        self._bytes = 0
        self.inputs = 0
        self.samples = 0
        self._look = look
        self._fused = fused and look is not False
        self._ready: _Ready | None = None
        # The pivot in the dtype and shape of the samples, kept until the next window.
        self._pivot: tuple[torch.dtype, Plan, Tensor] | None = None

    def reset(self) -> None:
        """Start a new window. Its state is made when there is something to count."""
        self._bytes = self.state_bytes
        self.state = self._ready = self._pivot = None
        self.inputs = self.samples = 0

    def renew(self) -> None:
        """Make the state of the next window now, not when there is something to count."""
        if self.state is None:
            self.state = State.blank(self.units, self.device)

    @property
    def state_bytes(self) -> int:
        """Bytes that the state takes, or took when there last was one."""
        return self._bytes if self.state is None else self.state.nbytes

    def to(self, device: torch.device) -> None:
        """Follow a model that was moved."""
        if self.device != _home(device):
            self.device = _home(device)
            self.state = self.state and self.state.moved(self.device)
            self._pivot = self._ready = None

    def observe(
        self, x: Tensor, plan: Plan, activation: Activation, step: int, moments: Moments | None = None
    ) -> Callable[[Tensor], None]:
        """Count one application: its pre-activation now, its output when the returned function is called with it.

        Runs apart from autograd, autocast and every torch function mode; reads x, never writes it. Where a kernel can,
        it also writes `moments` of this application by itself.
        """
        ready = self._ready
        if (
            ready is not None
            and 0 < self.samples <= ready.room
            and ready.fits(x, plan, activation)
            and ready.add(x, step, moments)
        ):
            self.inputs += plan.n_inputs
            self.samples += plan.n_samples
            return ready.output
        self.to(x.device)
        look = x.device.type == "cpu" if self._look is None else self._look
        good: Tensor | None = None
        with torch._C.DisableTorchFunction(), torch.no_grad(), _without_autocast(x):
            seen = _view(x, plan)
            state = self._state_for(seen, plan, activation, step)
            if not self.samples:
                self._aim(state, seen, plan)
            ready = self._prepared(x, seen, plan, activation, state)
            # A copy in another dtype is counted like any other, but the next such tensor needs its own.
            self._ready = ready if seen.data_ptr() == x.data_ptr() else None
            fused = ready is not None and ready.add(seen, step, moments)
            if not fused:
                good = self._pre_activation(state, seen, plan, activation, step, look)
        self.inputs += plan.n_inputs
        self.samples += plan.n_samples
        if fused and ready is not None:
            return ready.output
        return self._output(plan, activation, good, look)

    def _state_for(self, x: Tensor, plan: Plan, activation: Activation, step: int) -> State:
        """The state, with room for samples like these."""
        state = self.state
        if state is None:
            state = self.state = State.blank(self.units, self.device)
        if not state.wide_counts and (self.samples + plan.n_samples > ROOM or step > ROOM):
            state.widen_counts()
        if not state.wide_extremes and x.dtype != torch.float32:
            state.widen_extremes()
        # With one sample to an input, and where what counts is what fires, the two numbers are the same.
        apart = plan.n_samples != plan.n_inputs or bool(activation.counted_zone and not activation.flat)
        if apart and state.samples_fired is None:
            state.tell_samples_apart()
        return state

    def _output(self, plan: Plan, activation: Activation, good: Tensor | None, look: bool) -> Callable[[Tensor], None]:
        def output(y: Tensor) -> None:
            with torch._C.DisableTorchFunction(), torch.no_grad(), _without_autocast(y):
                if self.state is not None:
                    _add(self.state.output, _total_output(_view(y, plan), good, plan, activation, look))

        return output

    def _prepared(self, x: Tensor, seen: Tensor, plan: Plan, activation: Activation, state: State) -> _Ready | None:
        """All that a kernel needs to count samples like these, or None where there is none for them."""
        edges = activation.counted_zone.edges
        sizes = _arranged(seen, plan)
        # A kernel that sifts samples sees no outputs: those of infinity must then be zero or infinite.
        told_apart = not (kernels.sifts(seen) and activation.bounded)
        if not (self._fused and plan.inputs_known and told_apart) or edges is None or sizes is None:
            return None
        zone, flat = activation.counted_zone, activation.flat
        how = kernels.Counting(sizes, edges, relu=activation.is_relu, counted=bool(zone), flat=bool(flat))
        run = kernels.prepared(seen, how, state)
        if run is None:
            return None
        output = counted_already if activation.is_relu else self._output(plan, activation, None, seen.is_cpu)
        room = math.inf if state.wide_counts else ROOM - plan.n_samples
        writes = not kernels.sifts(seen)
        return _Ready(x.dtype, x.device, tuple(x.shape), x.stride(), room, plan, activation, run, output, writes)

    def _aim(self, state: State, x: Tensor, plan: Plan) -> None:
        """Set the pivot: the mean of a window's first few inputs, in float32, so that it is the same in every dtype."""
        for axis in plan.inputs[:1]:
            x = x.narrow(axis, 0, min(x.shape[axis], _FEW))
        finite = torch.where(torch.isfinite(x), x, torch.nan)
        mean = finite.nanmean(plan.inputs + plan.others).reshape(-1)
        state.pivot.copy_(mean.float().nan_to_num_(0.0, 0.0, 0.0))

    def _pivot_for(self, state: State, x: Tensor, plan: Plan) -> Tensor:
        """The pivot in the dtype and shape of the samples."""
        if self._pivot is None or self._pivot[0] != x.dtype or self._pivot[1] is not plan:
            shape = [s if i in plan.units else 1 for i, s in enumerate(x.shape)]
            self._pivot = (x.dtype, plan, state.pivot.to(x.dtype).to(x.device).reshape(shape))
        return self._pivot[2]

    def _pre_activation(
        self, state: State, x: Tensor, plan: Plan, activation: Activation, step: int, look: bool
    ) -> Tensor | None:
        """Returns which samples are finite, or None when all are known to be."""
        over, pivot = plan.inputs + plan.others, self._pivot_for(state, x, plan)
        good: Tensor | None = None
        deviation = x - pivot
        if look:
            first = deviation.sum(over)
            second = deviation.square_().sum(over)
        # Squares can't cancel out: their sum is finite only if all samples are, and if float32 held it.
        if look and math.isfinite(float(second.sum())):
            high, low = x.amax(over), x.amin(over)
        else:
            good = torch.isfinite(x)
            high = torch.where(good, x, -torch.inf).amax(over)
            low = torch.where(good, x, torch.inf).amin(over)
            # float64 holds what float32 does not, but unasked it would cost a GPU time and twice the memory.
            deviation = torch.where(good, x.double() - pivot if look else deviation, 0.0)
            first = deviation.sum(over).nan_to_num_()
            second = deviation.square_().sum(over).nan_to_num_()
            _add(state.expect_nonfinite(), plan.n_samples - _samples(deviation.copy_(good), plan))
        fired, samples_fired = _fired(x, good, deviation, plan, activation)
        _add(state.fired, fired)
        if state.samples_fired is not None:
            _add(state.samples_fired, samples_fired)
        _add(state.sum, first)
        _add(state.squares, second)
        self._mark(state, fired, step)
        torch.maximum(state.max, high.reshape(-1).to(state.max), out=state.max)
        torch.minimum(state.min, low.reshape(-1).to(state.min), out=state.min)
        return good

    def _mark(self, state: State, fired: Tensor | int, step: int) -> None:
        """Note the step for the units that fired."""
        first, last = state.first, state.last
        if isinstance(fired, Tensor):
            fires = fired.reshape(-1).to(first.device) > 0
            last.masked_fill_(fires, step)
            first.masked_fill_(fires.logical_and_(first < 0), step)
        else:
            last.fill_(step)
            first.masked_fill_(first < 0, step)


class Moments:
    """Where a meter also writes mean, standard deviation, maximum and minimum of one application.

    Attributes:
        row: float64 [4, units]; for a meter to write to, on the CPU and contiguous.
        written: has it done so? Only kernels that read each sample once anyway do.
    """

    __slots__ = ("address", "row", "written")

    def __init__(self, row: Tensor) -> None:
        self.row = row
        self.address = row.data_ptr()
        self.written = False


class _Ready(NamedTuple):
    """A kernel made ready for samples of one kind, so that the next of that kind need no torch call at all."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    room: float  # samples that may have been counted before, so that these do not overflow the state
    plan: Plan
    activation: Activation
    run: Callable[[Tensor, int, int | None], bool]
    output: Callable[[Tensor], None]
    writes: bool  # moments

    def fits(self, x: Tensor, plan: Plan, activation: Activation) -> bool:
        return (
            plan is self.plan
            and activation is self.activation
            and type(x) in kernels.PLAIN
            and x.dtype is self.dtype
            and x.device == self.device
            and x.shape == self.shape
            and x.stride() == self.stride
            and not x.is_neg()
        )

    def add(self, x: Tensor, step: int, moments: Moments | None) -> bool:
        """False, and nothing counted, when a sample is not finite."""
        if moments is None or not self.writes:
            return self.run(x, step, None)
        moments.written = self.run(x, step, moments.address)
        return moments.written


def _add(row: Tensor, value: Tensor | int) -> None:
    row.add_(value.reshape(-1).to(row) if isinstance(value, Tensor) else value)


def counted_already(y: Tensor) -> None:
    """The output of a ReLU whose pre-activation went through a kernel."""


def _home(device: torch.device) -> torch.device:
    """Where the state is kept: with the samples, but for Apple's GPUs on the CPU, as they have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _view(x: Tensor, plan: Plan) -> Tensor:
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return x if plan.shape is None else x.reshape(plan.shape)


def _arranged(x: Tensor, plan: Plan) -> tuple[int, int, int, int] | None:
    """Sizes of the samples as they lie in memory, [inputs, rows, units, inner], or None where they lie otherwise."""
    if plan.channels_second and x.is_contiguous(memory_format=torch.channels_last):
        n, c, h, w = x.shape
        return n, h * w, c, 1
    return plan.grouped(tuple(x.shape)) if x.is_contiguous() else None


def _fired(
    x: Tensor, good: Tensor | None, scratch: Tensor, plan: Plan, activation: Activation
) -> tuple[Tensor | int, Tensor | int]:
    """Inputs fired and finite samples outside the counted zone, per unit; numbers where they are the same for all."""
    zone = activation.counted_zone
    if not zone and good is None:
        return plan.n_inputs, plan.n_samples
    fired, samples_fired = _tally(_outside(zone, x, good, scratch), plan)
    if activation.flat or not zone:
        return fired, samples_fired
    # Nowhere flat: it fires wherever it is finite, in the saturated zone too.
    return (plan.n_inputs if good is None else _tally(scratch.copy_(good), plan)[0]), samples_fired


def _outside(zone: Zone, x: Tensor, good: Tensor | None, scratch: Tensor) -> Tensor:
    """1.0 where a sample is finite and outside the zone, else 0.0; overwrites `scratch`."""
    edge = zone.left_edge
    # Comparing into a float tensor is several times faster than adding up a bool one.
    outside = scratch.copy_(zone.contains(x).logical_not_()) if edge is None else torch.gt(x, edge, out=scratch)
    return outside if good is None else outside.mul_(good)


def _samples(ones: Tensor, plan: Plan) -> Tensor:
    """How many samples of each unit are one; exact. `ones` holds zeros and ones."""
    over = plan.inputs + plan.others
    exact = ones.dtype == torch.float64 or plan.n_samples <= _EXACT_IN_FLOAT32
    return ones.sum(over) if exact else (ones > 0).sum(over)


def _tally(ones: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Per unit: inputs with a one among their samples, and samples that are one."""
    samples = _samples(ones, plan)
    if not plan.inputs_known:
        return samples.clamp(max=plan.n_inputs), samples
    if not plan.others:
        return samples, samples
    hit = ones.amax(plan.others, keepdim=True)
    over = plan.inputs + plan.others
    exact = ones.dtype == torch.float64 or plan.n_inputs <= _EXACT_IN_FLOAT32
    return (hit if exact else hit > 0).sum(over), samples


def _total_output(y: Tensor, good: Tensor | None, plan: Plan, activation: Activation, look: bool) -> Tensor:
    """Sum of |output| per unit, over samples that are finite before and after the activation."""
    over = plan.inputs + plan.others
    size = y if activation.non_negative else y.abs()
    if look and good is None:
        total = size.sum(over)
        if math.isfinite(float(total.sum())):
            return total
    size = size.nan_to_num(0.0, 0.0, 0.0)
    if good is not None:
        size.mul_(good)
    return (size.double() if look else size).sum(over).nan_to_num_()


def counts(state: State, inputs: int, samples: int) -> Counts:
    """What a state on the CPU says. Its rows become those of the result, so it can't be counted into any more."""
    nonfinite = same_for_all(0, len(state.fired)) if state.nonfinite is None else state.nonfinite
    # float32 samples are summed up to a few units of float32's last place: no sum of theirs needs to be kept longer.
    brief = (lambda total: total) if state.wide_extremes else _brief
    total = max(samples, 1) if state.nonfinite is None else (samples - nonfinite).clamp(min=1)
    mean = state.sum.div_(total)
    m2 = state.squares.addcmul_(mean, mean * total, value=-1).clamp_(min=0)
    return Counts(
        inputs=inputs,
        samples=samples,
        fired=state.fired,
        samples_fired=state.fired if state.samples_fired is None else state.samples_fired,
        mean=mean.add_(state.pivot),
        m2=brief(m2),
        max=state.max,
        min=state.min,
        output=brief(state.output),
        nonfinite=nonfinite,
        first_fired=state.first,
        last_fired=state.last,
    )


def _brief(totals: Tensor) -> Tensor:
    """In float32, if they fit in."""
    short = totals.float()
    return short if not len(totals) or math.isfinite(float(short.amax())) else totals


def collect(meters: list[Meter], *, reset: bool = True) -> list[Counts]:
    """Read all meters, with one transfer per device unless that were a large one, and start them anew.

    Args:
        reset: False: let them go on, and leave their states as they are.
    """
    result: dict[int, Counts] = {}
    with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.no_grad():
        for members in _batches(meters):
            states = [s for i in members if (s := meters[i].state) is not None]
            here = states[0].device.type == "cpu"
            if not (here and reset):
                states = [s.copied() for s in states] if here else _brought(states)
            for i, state in zip(members, states, strict=True):
                meter = meters[i]
                result[i] = counts(state, meter.inputs, meter.samples)
                if reset:
                    meter.reset()
    return [result[i] if i in result else Counts.empty(m.units) for i, m in enumerate(meters)]


def _batches(meters: Sequence[Meter]) -> Iterator[list[int]]:
    """Those that have counted something, by device, so many at a time as are brought from it at once."""
    by_device: dict[torch.device, list[int]] = {}
    for i, meter in enumerate(meters):
        if meter.state is not None:
            by_device.setdefault(meter.device, []).append(i)
    for members in by_device.values():
        batch: list[int] = []
        size = 0
        for i in members:
            if batch and size + meters[i].state_bytes > _TRANSFER:
                yield batch
                batch, size = [], 0
            batch.append(i)
            size += meters[i].state_bytes
        yield batch


def _brought(states: Sequence[State]) -> list[State]:
    """The states on the CPU, by one transfer; each row in memory of its own."""
    rows = [(i, name, row) for i, state in enumerate(states) for name, row in state.rows().items()]
    rows.sort(key=lambda r: -r[2].element_size())  # so that each begins where its dtype may
    whole = torch.cat([row.view(torch.uint8) for *_, row in rows]).cpu()
    parts = whole.split([row.nbytes for *_, row in rows])
    found: list[dict[str, Tensor]] = [{} for _ in states]
    for (i, name, row), part in zip(rows, parts, strict=True):
        found[i][name] = part.view(row.dtype).clone()
    return [replace(state, **theirs) for state, theirs in zip(states, found, strict=True)]
