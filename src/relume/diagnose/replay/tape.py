"""`Tape`: hears every torch call that a training makes with its parameters, gradients and outputs, so that it can be
made again.

The loop is the user's own, so the loss is not known; but whatever leads from the model's output to a gradient, and from
there to a step, is calls of torch, and those are heard by a torch function mode. What does not depend on the model
(data, labels, constants) is held as it is.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode

from relume.diagnose.replay.calls import Kind, kind_of
from relume.diagnose.replay.events import Event, Forward, Import, Slot, Step, bytes_of, held_in, needed
from relume.diagnose.replay.held import Held, Holdings
from relume.diagnose.replay.inside import Inside
from relume.diagnose.replay.surroundings import Ambient, RandomState, ambient
from relume.diagnose.replay.values import mapped, tensors_of

# So many training passes are looked into, to see whether the loss uses what they do not return.
LOOKED_INTO = 3
_PLAIN = (int, float, bool, str, type(None))


class Tape(TorchFunctionMode):
    """Of one training, from one snapshot to the next.

    Args:
        devices: types of the devices that autocast may be on for.
        cuda: indices of CUDA devices whose random state matters.

    Attributes:
        events: what happened since `start`, in order.
        nbytes: bytes that they take, with what they hold.
        trouble: why what is on it cannot be played, or "".
        hints: what may be why a replay goes astray.
    """

    def __init__(self, devices: tuple[str, ...], cuda: tuple[int, ...]) -> None:
        super().__init__()
        self.devices, self.cuda = devices, cuda
        self.events: list[Event] = []
        self.nbytes = 0
        self.trouble = ""
        self.hints: dict[str, None] = {}
        self.inside = 0  # calls of torch now running
        self.thread = threading.get_ident()  # whose calls are heard
        self._state: list[weakref.ref[Tensor]] = []
        self._slots: dict[int, tuple[Callable[[], Tensor | None], int]] = {}
        self._next = 0
        self._holdings = Holdings()
        self._known: dict[Any, Held] = {}
        self._counted: dict[int, Held] = {}  # by `id`, which is theirs as long as they stand here
        self._settled: set[int] = set()  # of these, what events hold that are not looked through again
        self._kinds: dict[Any, Kind] = {}
        self._outputs: set[int] = set()  # slots of what the model returned
        self._hidden: set[int] = set()  # and of what it made on the way
        self._uses_inside = False
        self._passes = 0
        self._pruned = 0  # events before this one have been looked through
        self._closure = 0  # within an optimizer's step, one more than the number of events before it
        self._stepped = False  # in that step, weights or the optimizer's state have been written to

        def traced() -> None:
            self.hints["compiled code ran between the model's passes"] = None

        # As torch.compiler.assume_constant_result does, which would import the compiler.
        traced._dynamo_marked_constant = True  # type: ignore[attr-defined]
        self.traced = traced

    def start(self, state: Sequence[Tensor]) -> None:
        """Begin anew at a snapshot of these tensors, which take the first slots."""
        self.events, self.nbytes, self.trouble, self.hints = [], 0, "", {}
        self._known, self._counted, self._settled, self._pruned = {}, {}, set(), 0
        self._state = [weakref.ref(t) for t in state]
        self._slots = {id(t): (ref, i) for i, (t, ref) in enumerate(zip(state, self._state, strict=True))}
        self._next, self._outputs, self._hidden = len(state), set(), set()

    # Calls of torch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if is_dynamo_compiling():
            self.traced()
            return func(*args, **given)
        if threading.get_ident() != self.thread or (self._closure and self._of_optimizer(func, sys._getframe(1))):
            return func(*args, **given)
        event = self.guarded(self._before, func, args, given)
        self.inside += 1
        try:
            out = func(*args, **given)
        finally:
            self.inside -= 1
        if event is not None:
            self.guarded(self._after, event, args, given, out)
        return out

    def guarded(self, act: Callable[..., Any], *args: Any) -> Any:
        """An error of the tape must not end a training; it ends the tape."""
        try:
            return act(*args)
        except Exception as error:
            self.trouble = self.trouble or f"relume failed in following the training ({type(error).__name__}: {error})"
            return None

    def _kind(self, func: Any) -> Kind:
        kind = self._kinds.get(func)
        if kind is None:
            if len(self._kinds) > 4096:
                self._kinds.clear()
            kind = self._kinds[func] = kind_of(func)
        return kind

    def _before(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Event | None:
        kind = self._kind(func)
        if kind.ignored or self.trouble:
            return None
        if not (self._any_tracked(args) or (kwargs and self._any_tracked(tuple(kwargs.values())))):
            if kind.writes or kwargs.get("out") is not None:
                for tensor in tensors_of((args[:1] if kind.own else args, kwargs.get("out"))):
                    self._holdings.protect(tensor)
            elif kind.backward:
                return Event(func, None, None, (), (False, ()))  # to see afterwards whether it concerns us
            return None
        written: tuple[Tensor, ...] = ()
        if kind.writes:
            written = tuple(tensors_of(args[:1] if kind.own else (args, kwargs)))
        elif kwargs and kwargs.get("out") is not None:
            written = tuple(tensors_of(kwargs["out"]))
        elif kwargs and kwargs.get("inplace"):
            written = tuple(tensors_of(args[:1]))
        for tensor in written:
            self._holdings.protect(tensor)
        around = ambient(self.devices)
        own_args, own_kwargs, reads = self.encoded(args, kwargs, written, around)
        random = RandomState.now(self.cuda) if kind.random else None
        effect = kind.effect or bool(written)
        return Event(func, own_args, own_kwargs, reads, around, random=random, effect=effect)

    def _after(self, event: Event, args: Any, kwargs: Any, out: Any) -> None:
        if event.args is None:  # a backward of what the tape does not know
            self._unknown_backward()
            return
        results = list(tensors_of(out))
        if not results and not event.effect:
            return
        if event.random is not None and not event.effect and event.random.same(RandomState.now(self.cuda)):
            event.random = None
        event.outs = tuple(self._slot(t) for t in results)
        self._add(event)

    def _unknown_backward(self) -> None:
        """Did it give a parameter a gradient? Then something between model and loss was not heard."""
        # Gradients that the tape has seen being made or set are those of slots it knows.
        self.hints["backward was called on a loss whose making relume did not hear (compiled code, a loss computed "
                   "inside of the model and not returned)"] = None  # fmt: skip

    def _any_tracked(self, values: Any) -> bool:
        slots = self._slots
        for value in values:
            if isinstance(value, Tensor):
                known = slots.get(id(value))
                if known is not None and known[0]() is value:
                    return True
            elif type(value) in (tuple, list):
                if self._any_tracked(value):
                    return True
            elif type(value) is dict and self._any_tracked(tuple(value.values())):
                return True
        return False

    # A step that is given a closure: what the closure does is heard, what the optimizer does is not.

    def begin_closure(self) -> None:
        """An optimizer is about to make a step, in which it calls a closure that computes the loss."""
        self._closure, self._stepped = len(self.events) + 1, False

    def end_closure(self) -> None:
        """It has."""
        since, self._closure = self._closure - 1, 0
        state = range(len(self._state))
        if any(isinstance(e.args, tuple) and e.effect and self._writes(e, state) for e in self.events[since:]):
            why = "the optimizer is given a closure, and its own calls can't be told from those of the closure"
            self.trouble = self.trouble or why

    def _writes(self, event: Event, state: range) -> bool:
        first = event.args[0] if event.args else None
        written = first if isinstance(first, list | tuple) else [first]
        in_place = self._kind(event.func).writes and self._kind(event.func).name != "grad"
        return in_place and any(isinstance(w, Slot) and w.index in state for w in written)

    def _of_optimizer(self, func: Any, caller: FrameType) -> bool:
        inside = str(caller.f_globals.get("__name__", "")).startswith("torch.optim")
        if not inside or caller.f_code.co_name == "zero_grad":
            if self._stepped and self._kind(func).backward:
                self.trouble = self.trouble or "the optimizer calls its closure several times in one step"
            return False
        self._stepped = self._stepped or self._kind(func).writes
        return True

    # References

    def encoded(
        self, args: Any, kwargs: Any, written: Sequence[Tensor], around: Ambient, copied: bool = False
    ) -> tuple[Any, Any, tuple[int, ...]]:
        """Arguments with references in place of tensors, and the slots among them.

        Args:
            written: tensors that are about to be written to.
            copied: hold copies of tensors, as they may be written to where no mode hears of it.
        """
        reads: list[int] = []
        ids = {id(t) for t in written}

        def one(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            known = self._slots.get(id(value))
            if known is None or known[0]() is not value:
                leaf = value.requires_grad and value.grad_fn is None
                if id(value) not in ids and not leaf:
                    if value.grad_fn is not None:
                        self._uses_inside = True
                        self.hints["a tensor with a gradient that is neither the model's output nor made from it was "
                                   "used"] = None  # fmt: skip
                    return self._hold(value, copied)
                index = self._adopt(value, around)
            else:
                index = known[1]
                self._uses_inside = self._uses_inside or index in self._hidden
                known_gradient = index in self._outputs or index in self._hidden
                if isinstance(value.grad_fn, BackwardCFunction) and not known_gradient:
                    self.trouble = self.trouble or (
                        f"the gradient of {type(value.grad_fn).__name__.removesuffix('Backward')}, a "
                        "torch.autograd.Function outside of the model, can't be heard"
                    )
            reads.append(index)
            return Slot(index)

        return mapped(args, one), mapped(kwargs, one), tuple(reads)

    def _hold(self, tensor: Tensor, copied: bool) -> Held:
        held = self._holdings.hold(tensor, {} if copied else self._known)
        if copied:
            held.copy()
        if id(held) not in self._counted:
            self._counted[id(held)] = held
            self.nbytes += held.nbytes
        return held

    def _adopt(self, tensor: Tensor, around: Ambient) -> int:
        """A tensor from elsewhere is from now on one that a replay keeps itself."""
        held = Held(tensor)
        held.copy()
        self._counted[id(held)] = held
        self.nbytes += held.nbytes
        index = self._slot(tensor)
        self._add(Import(None, (held, tensor.requires_grad), None, (), around, (index,)))
        return index

    def _slot(self, tensor: Tensor) -> int:
        known = self._slots.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        index = self._next
        self._next += 1
        self._slots[id(tensor)] = (weakref.ref(tensor), index)
        return index

    # What the hooks tell

    def begin_forward(
        self, args: Any, kwargs: Any, modes: tuple[bool, ...], training: bool, copied: bool
    ) -> Forward | None:
        """A call of the model begins; the tape is off the stack until it has ended."""
        if self.trouble:
            return None
        if not training:
            self.prune()
        around = ambient(self.devices)
        own_args, own_kwargs, reads = self.encoded(args, kwargs, (), around, copied)
        random = RandomState.now(self.cuda)
        return Forward(None, own_args, own_kwargs, reads, around, (), random, training, modes, training)

    @property
    def looks_inside(self) -> bool:
        """Should the next pass be looked into? At first all are, then those of a training that has use for it."""
        return self._uses_inside or self._passes < LOOKED_INTO

    def end_forward(self, event: Forward, output: Any, inside: Inside | None) -> bool:
        """It has ended; False when it has written to its arguments, so that they are lost."""
        self._passes += event.training
        for place, ref in enumerate(inside.made if inside is not None else ()):
            tensor = ref()
            if tensor is not None:
                event.inside[place] = slot = self._slot(tensor)
                self._hidden.add(slot)
        if event.random is not None and event.random.same(RandomState.now(self.cuda)):
            event.random = None
        event.outs = tuple(self._slot(t) for t in tensors_of(output))
        self._outputs.update(event.outs)
        self._hidden.difference_update(event.outs)
        self._add(event)
        return not any(held.changed for held in held_in((event.args, event.kwargs)))

    def step(self, optimizer: int, settings: Sequence[dict[str, Any]], counts: bool) -> None:
        """An optimizer is about to make a step."""
        event = Step(None, None, None, (), (True, ()), effect=True)
        event.optimizer, event.settings, event.counts = optimizer, settings, counts
        self._add(event)

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self.nbytes += bytes_of(event)

    def prune(self) -> None:
        """Let go of what had no effect since the last step."""
        tail = self.events[self._pruned :]
        kept = needed(tail, self._alive())
        if len(kept) == len(tail):
            return
        self.events[self._pruned :] = kept
        self.nbytes -= sum(map(bytes_of, tail)) - sum(map(bytes_of, kept))
        still = {id(held) for event in kept for held in held_in((event.args, event.kwargs))}
        for event in tail:
            for held in held_in((event.args, event.kwargs)):
                if (
                    id(held) not in still
                    and id(held) not in self._settled
                    and self._counted.pop(id(held), None) is not None
                ):
                    self.nbytes -= held.nbytes
                    self._known.pop(held.key, None)

    def end_step(self) -> None:
        """A step has been made: what happened before it is not looked through again."""
        self.prune()
        tail = self.events[self._pruned :]
        read = {slot for event in tail for slot in event.reads}
        for event in tail:
            if isinstance(event, Forward):
                event.inside = {place: slot for place, slot in event.inside.items() if slot in read}
        self._settled |= {id(held) for event in tail for held in held_in((event.args, event.kwargs))}
        self._pruned = len(self.events)

    @property
    def settled(self) -> bool:
        """Has nothing happened since the last step?"""
        return self._pruned == len(self.events)

    def _alive(self) -> set[int]:
        gone = [key for key, (ref, _) in self._slots.items() if ref() is None]
        for key in gone:
            del self._slots[key]
        return {index for _, index in self._slots.values()}


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a parameter group, all but its parameters, as it is now."""
    return {
        key: value if isinstance(value, _PLAIN) else mapped(value, lambda v: v.clone() if isinstance(v, Tensor) else v)
        for key, value in settings.items()
        if key != "params"
    }
