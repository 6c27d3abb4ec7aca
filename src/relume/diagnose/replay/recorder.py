"""`Recorder`: the hooks by which a training is put on tape, and when a segment ends and the next begins.

Between the model's forward passes and the optimizers' steps the tape lies at the bottom of torch's stack of function
modes; during them it is off, as they are done again as a whole.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.diagnose.replay.events import Forward
from relume.diagnose.replay.inside import Inside
from relume.diagnose.replay.reel import Reel, Segment
from relume.diagnose.replay.snapshot import Snapshot, State
from relume.diagnose.replay.stack import is_on, put_below, take_out
from relume.diagnose.replay.tape import Tape, plain
from relume.watch import compiled
from relume.watch.calls import Calls, Hook

# A segment that has come to this share of the limit ends, so that older ones can be let go of piece by piece.
SHARE = 8


class Recorder:
    """Puts a training on a reel, from `open` to `close`.

    Args:
        model: that the loop calls.
        optimizers: that train it; steps of the first are counted, or training passes where there is none.
        limit: bytes that all of it may take.
        window: steps of a segment.

    Attributes:
        reel: what is kept.
        refused: why nothing is, or "".
        steps: made so far.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], limit: int, window: int) -> None:
        self.model, self.optimizers = model, tuple(optimizers)
        self.reel = Reel(limit, window)
        self.refused = self._refusal()
        self.steps = 0
        self.opened = False
        devices = {p.device for p in model.parameters()}
        self.cuda = tuple(sorted({d.index or 0 for d in devices if d.type == "cuda"}))
        self.tape = Tape(tuple({"cpu", *(d.type for d in devices)} - {"meta"}), self.cuda)
        self._state: State | None = None
        self._start: Snapshot | None = None
        self._first = 0
        self._calls = Calls()
        self._forward: Forward | None = None
        self._closed_over: list[dict[str, Any]] | None = None  # settings of the step in progress, which has a closure
        self._hopeless = ""  # why nothing of this training will ever be replayed
        self._pass_open = False  # a training pass has been made, and no optimizer will tell of its step
        self._inside: Inside | None = None
        self._copies_arguments = False  # the model writes to what it is given
        self._handles: list[Any] = []
        self._last: Any = None

    def _refusal(self) -> str:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return "a training that is spread over several processes can't be replayed by one of them"
        if compiled.in_place(self.model) or compiled.any_compiled(self.model.modules()):
            return "the model is compiled, and compiled code rounds otherwise than what a replay could run"
        return ""

    # Life cycle

    def open(self) -> None:
        """Hang the hooks and begin."""
        if self.refused:
            return
        hook = Hook(self._before_forward, self._compiling)
        self._handles = [
            self.model.register_forward_pre_hook(hook, with_kwargs=True, prepend=True),
            self.model.register_forward_pre_hook(Hook(self._after_other_hooks), with_kwargs=True),
            self.model.register_forward_hook(Hook(self._after_forward), with_kwargs=True, always_call=True),
        ]
        self._last = self._handles[-1]
        for number, optimizer in enumerate(self.optimizers):
            self._handles.append(optimizer.register_step_pre_hook(Hook(self._step_of(number, before=True))))
            self._handles.append(optimizer.register_step_post_hook(Hook(self._step_of(number, before=False))))
        self.opened = True
        self._begin()
        self._put_on()

    def close(self) -> None:
        """Take the hooks off and end the segment in progress. Idempotent."""
        if not self.opened:
            return
        self.opened = False
        for handle in self._handles:
            handle.remove()
        self._handles = []
        take_out(self.tape)
        self._leave_inside()
        if self._hopeless:
            self._give_up(self._hopeless)
            return
        self.steps += self._pass_open
        self.cut()
        if self.reel.segments and self._start is not None:
            self.reel.segments[-1].end = self._start.values
        self.tape.start(())
        self._start = None

    def _give_up(self, why: str) -> None:
        self.refused = self.refused or why
        self.opened = False
        for handle in self._handles:
            handle.remove()
        self._handles = []
        take_out(self.tape)
        self.reel.segments.clear()
        self.tape.start(())
        self._start = None

    def _put_on(self) -> None:
        if self.opened and not is_on(self.tape):
            self.tape.thread = threading.get_ident()
            put_below(self.tape)

    # Segments

    @property
    def nbytes(self) -> int:
        """Bytes that all of it takes now."""
        return self.reel.nbytes + self.tape.nbytes + (0 if self._start is None else self._start.nbytes)

    def cut(self) -> None:
        """End the segment in progress here, and begin the next; one without a step goes on."""
        if self._start is not None and self.steps == self._first:
            return
        segment = self._ended()
        before = None if self._state is None else self._state.names
        if self.refused:
            return
        self._begin()
        if self._start is None:
            return
        if segment is not None:
            if self._start.names != before:
                segment.trouble = segment.trouble or "parameters came or went"
            self.reel.add(segment, self._start.nbytes)

    def _ended(self) -> Segment | None:
        if self._start is None:
            return None
        tape = self.tape
        tape.end_step()
        nbytes = tape.nbytes + self._start.nbytes
        return Segment(self._start, self._first, self.steps, tape.events, nbytes, tape.trouble, tuple(tape.hints))

    def _begin(self) -> None:
        state = State.of(self.model, self.optimizers)
        self._start, self._first = None, self.steps
        if state.lazy:  # once the first batch has given it its numbers
            self.tape.start(())
            return
        self._state = state
        self._start = Snapshot.take(state, self.optimizers, self.cuda)
        self.tape.start(state.tensors)
        if 2 * self._start.nbytes > self.reel.limit:
            self._give_up(
                f"one snapshot takes {self._start.nbytes / 2**20:.0f} MiB, and two are needed, of "
                f"{self.reel.limit / 2**20:.0f} MiB: relume.watch(..., replay=BYTES) allows more"
            )

    def settle(self) -> None:
        """End the segment in progress, unless a step is under way."""
        if self.opened and self._start is not None:
            self.tape.prune()
            if self.tape.settled:
                self.cut()

    def end_of(self, segment: Segment) -> tuple[Tensor, ...] | None:
        """What its tensors were at its end; None where that is not kept."""
        following = [s.start for s in self.reel.segments if s.first == segment.last]
        if self._start is not None and self._first == segment.last:
            following.append(self._start)
        return following[0].values if following else segment.end

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Nothing of what is done here goes on the tape."""
        on = take_out(self.tape)
        try:
            yield
        finally:
            if on:
                self._put_on()

    def _step_made(self) -> None:
        self.steps += 1
        self.tape.end_step()
        whole = self.steps % self.reel.window == 0
        if whole or self._start is None or self.tape.nbytes > self.reel.limit // SHARE or self.tape.trouble:
            self.cut()

    # Hooks

    def _compiling(self) -> None:
        self._give_up("the model is compiled, and compiled code rounds otherwise than what a replay could run")

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before all other hooks: what the loop gives."""
        if self.tape.inside or not self.opened:
            return
        if self._calls.left_behind():
            self._forward = None
            self._leave_inside()
        call = self._calls.begin(module, sys._getframe(2))
        if call is None:
            return
        take_out(self.tape)
        if self._hopeless:
            self._give_up(self._hopeless)
        if call.training and self._pass_open:  # without an optimizer a step ends where the next pass begins
            self._pass_open = False
            self._step_made()
        if self._start is None and self.steps == self._first and not self.refused:
            self._begin()
        if self._start is None or self._state is None:
            return
        modes = tuple(m.training for m in self._state.modules)
        self._forward = self.tape.guarded(
            self.tape.begin_forward, args, kwargs, modes, call.training, self._copies_arguments
        )
        if call.training and self.tape.looks_inside:
            self._inside = Inside()
            put_below(self._inside)

    def _after_other_hooks(self, *given: Any) -> None:
        """After them: see to it that the hook for the end is the last of its kind, too."""
        hooks = self.model._forward_hooks
        if self.opened and self._last.id in hooks:
            hooks.move_to_end(self._last.id)  # type: ignore[attr-defined]

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.tape.inside or not self.opened:
            return
        call = self._calls.end(module)
        if call is None:
            return
        event, self._forward = self._forward, None
        inside = self._leave_inside()
        if event is not None and not call.failed:
            unharmed = self.tape.guarded(self.tape.end_forward, event, output, inside)
            if unharmed is False:
                self._copies_arguments = True
                self.tape.trouble = "the model wrote to its input"
        elif event is not None and event.random is not None:
            self.tape.hints["a forward pass failed"] = None
        self._pass_open = not self.optimizers and call.training and not call.failed
        self._put_on()

    def _leave_inside(self) -> Inside | None:
        inside, self._inside = self._inside, None
        if inside is not None:
            take_out(inside)
        return inside

    def _step_of(self, number: int, before: bool) -> Any:
        def begins(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if self.opened:
                self._before_step(number, optimizer, args, kwargs)

        def ends(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if self.opened:
                self._after_step(number, optimizer)

        return begins if before else ends

    def _before_step(self, number: int, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        tape = self.tape
        if tape.inside:
            tape.trouble = self._hopeless = "the optimizer steps inside of the backward pass"
            return
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is not None and self._start is not None:
            tape.begin_closure()  # the tape stays on, to hear it
            self._closed_over = [plain(group) for group in optimizer.param_groups]
            return
        take_out(tape)
        if self._start is not None:
            skipped = bool(getattr(optimizer, "found_inf", False))
            tape.step(number, [plain(group) for group in optimizer.param_groups], number == 0 and not skipped)

    def _after_step(self, number: int, optimizer: Optimizer) -> None:
        if self.tape.inside:
            return
        settings, self._closed_over = self._closed_over, None
        if settings is not None:
            take_out(self.tape)
            self.tape.end_closure()
            self.tape.step(number, settings, number == 0)
        if number == 0 and not bool(getattr(optimizer, "found_inf", False)):
            self._step_made()
        self._put_on()
