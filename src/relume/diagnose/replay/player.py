"""`Player`: runs segments of a training again, on copies, with one thing changed or none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.census import Census
from relume.diagnose.causes import diagnose
from relume.diagnose.replay.change import Change
from relume.diagnose.replay.copies import Copies, isolated
from relume.diagnose.replay.events import Event, Forward, Import, Slot, Step
from relume.diagnose.replay.held import Held
from relume.diagnose.replay.inside import Inside
from relume.diagnose.replay.reel import Segment
from relume.diagnose.replay.snapshot import State
from relume.diagnose.replay.surroundings import RandomState, within
from relume.diagnose.replay.tape import plain
from relume.diagnose.replay.values import mapped, tensors_of
from relume.errors import RelumeError
from relume.watch import Watch


@dataclass
class Played:
    """What became of a replay.

    Attributes:
        census: of its last passes.
        passes: training passes that were run.
        apart: how far the parameters ended from where the training did, as a share of the way they had gone.
        codes: of what a diagnosis of it finds about the whole network, where it was asked for.
    """

    census: Census | None = None
    passes: int = 0
    apart: float = 0.0
    codes: frozenset[str] = frozenset()


class Player:
    """One replay.

    Args:
        watch: whose model and optimizers are copied.
        segments: without a gap.
        change: what is done otherwise.
        judge_from: step from which passes are counted.
        options: of the watch that counts them.
        diagnosed: watch all of it, and diagnose it too.

    Raises:
        RelumeError: why it can't be played.
    """

    def __init__(
        self,
        watch: Watch,
        segments: Sequence[Segment],
        change: Change,
        judge_from: int,
        options: dict[str, Any],
        diagnosed: bool = False,
    ) -> None:
        copies = Copies(watch.model, watch.optimizers, (watch, watch.record, watch.replay))
        self.model: nn.Module = copies.model
        self.optimizers: tuple[Optimizer, ...] = copies.optimizers
        self.state = copies.state
        self.memo = copies.memo
        self.segments, self.change = segments, change
        self.judge_from, self.options = judge_from, options
        self.step = segments[0].first
        self.played = Played()
        self._values: dict[int, Tensor] = {}
        self._watch: Watch | None = None
        if diagnosed:
            self._watch = Watch(
                self.model, self.optimizers, every=watch.every, window=watch.window, sync=False, **options
            )

    def play(self, end: Sequence[Tensor] | None) -> Played:
        """Run all of it.

        Args:
            end: what the tensors of the state were after the last segment.
        """
        start = self.segments[0].start
        if start.names != self.state.names:
            raise RelumeError("the model's parameters are not those it had then")
        start.restore(self.state, self.optimizers)
        start.random.restore()
        try:
            self.change.start(self)
            for segment in self.segments:
                self._play(segment)
        finally:
            if self._watch is not None:
                self._watch.close()
        if self._watch is not None and self._watch.windows:
            self.played.census = self._watch.census("all")
        self.state = State.of(self.model, self.optimizers)  # a model may put new tensors in the place of its buffers
        if end is not None:
            self.played.apart = _apart(start.values, self.state.tensors, end)
        if self._watch is not None and self._watch.record is not None and self._watch.windows:
            found = diagnose(self._watch, self._watch.record)
            self.played.codes = frozenset(f.code for f in found if not f.site)
        return self.played

    def _play(self, segment: Segment) -> None:
        if self.segments[0] is not segment:
            # Tensors that outlive a snapshot are held from there on as they were.
            self._values.clear()
        self.state = State.of(self.model, self.optimizers)
        self._values |= dict(enumerate(self.state.tensors))
        last: dict[int, int] = {}
        for i, event in enumerate(segment.events):
            last.update(dict.fromkeys(event.reads, i))
        steps = 0
        for i, event in enumerate(segment.events):
            if isinstance(event, Step):
                self._do_step(event)
                gone = [s for s in self._values if s >= len(self.state.tensors) and last.get(s, -1) <= i]
                for slot in gone:
                    del self._values[slot]
                steps += event.counts
            elif isinstance(event, Forward):
                self._do_forward(event, last)
            elif isinstance(event, Import):
                held, needs = event.args
                self._keep(event, last, [held.tensor.clone().requires_grad_(needs)])
            else:
                self._do(event, last)
        self.step = segment.last

    def _do(self, event: Event, last: dict[int, int]) -> None:
        if event.random is not None:
            event.random.restore()
        with within(event.ambient):
            out = event.func(*self._resolved(event.args), **self._resolved(event.kwargs))
        self._keep(event, last, list(tensors_of(out)))

    def _do_forward(self, event: Forward, last: dict[int, int]) -> None:
        if event.random is not None:
            event.random.restore()
        # Copies, as a model may write to what it is given.
        args, kwargs = self._resolved(event.args, copied=True), self._resolved(event.kwargs, copied=True)
        for module, training in zip(self.state.modules, event.modes, strict=True):
            module.training = training
        if event.training:
            self.played.passes += 1
            args, kwargs = self.change.arguments(self, args, kwargs)
            if self.step >= self.judge_from and self._watch is None:
                self._watch = Watch(self.model, None, every=1, window=10**9, sync=False, diagnose=False, **self.options)
        inside = Inside({place for place, slot in event.inside.items() if slot in last})
        with within(event.ambient), inside if inside.wanted else contextlib.nullcontext():
            out = self.model(*args, **kwargs)
        if len(inside.kept) < len(inside.wanted):
            raise RelumeError("the model made other tensors than it did then")
        self._values |= {event.inside[place]: tensor for place, tensor in inside.kept.items()}
        self._keep(event, last, list(tensors_of(out)))
        if event.training and not self.optimizers:
            self.step += 1

    def _do_step(self, event: Step) -> None:
        optimizer = self.optimizers[event.optimizer]
        for group, settings in zip(optimizer.param_groups, event.settings, strict=True):
            group.update(plain(settings))
        self.change.before_step(self, optimizer)
        optimizer.step()
        self.change.after_step(self)
        if event.counts:
            self.step += 1

    def _resolved(self, value: Any, copied: bool = False) -> Any:
        return mapped(value, lambda v: self._one(v, copied)) if value is not None else {}

    def _one(self, value: Any, copied: bool) -> Any:
        if isinstance(value, Slot):
            if value.index not in self._values:
                raise RelumeError("it needs a tensor that was made before the snapshot")
            return self._values[value.index]
        if isinstance(value, Held):
            if value.changed:
                raise RelumeError("a batch was overwritten before it could be copied")
            return value.tensor.clone() if copied else value.tensor
        return isolated(value, self.memo) if callable(value) else value

    def _keep(self, event: Event, last: dict[int, int], results: list[Tensor]) -> None:
        if len(results) != len(event.outs):
            raise RelumeError("the model returned other tensors than it did then")
        for slot, tensor in zip(event.outs, results, strict=True):
            if slot >= len(self.state.tensors) and slot in last:
                self._values[slot] = tensor

    @contextlib.contextmanager
    def fresh_random(self) -> Iterator[None]:
        """Draw from a seed of its own, and put the random state back."""
        before = RandomState.now(tuple(i for i, _ in self.segments[0].start.random.cuda))
        torch.manual_seed(0)
        try:
            yield
        finally:
            before.restore()


def _apart(start: Sequence[Tensor], now: Sequence[Tensor], then: Sequence[Tensor]) -> float:
    """Distance between two ends as a share of the way to the second; 0 where they are the same bits."""
    if all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(now, then, strict=True)):
        return 0.0
    off = way = 0.0
    for a, b, c in zip(start, now, then, strict=True):
        if c.is_floating_point():
            off += float((b.detach() - c).double().norm()) ** 2
            way += float((c - a).double().norm()) ** 2
    return (off / way) ** 0.5 if way > 0 else float("inf") if off > 0 else 0.0
