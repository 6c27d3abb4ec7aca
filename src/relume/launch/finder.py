"""`Finder`: finds the models that a script trains, and the optimizers that train them, through torch's global hooks.

A model is the outermost module of a call in training mode with gradients. It is watched from that call on, so that step
0 is seen, and kept if an optimizer steps that holds parameters of it; from then on steps are that optimizer's. While
such a call runs the hook on modules is off: inner modules cost nothing and a compiler sees none. Soon after the last
find it is off for good, until an optimizer steps that was not known. What remains is a counter per optimizer step.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from relume.launch import keras
from relume.launch.names import name_of
from relume.launch.script_watch import ScriptWatch
from relume.launch.scripting import without_hooks
from relume.watch.calls import Hook
from relume.watch.compiled import original

# Optimizer steps without a find after which the search ends.
_PATIENCE = 16
# Steps of a second optimizer, of other parameters of the same model, after which it sets the pace as well.
_SILENCE = 10


@dataclass
class Root:
    """An outermost module that was called for training."""

    module: nn.Module
    name: str
    watch: ScriptWatch
    steppers: list[Stepper] = field(default_factory=list)
    silent: int = 0  # steps of others since one that sets the pace

    @property
    def adopted(self) -> bool:
        return bool(self.steppers)

    def parameters(self) -> set[int]:
        return {id(p) for p in self.module.parameters()}


@dataclass
class Stepper:
    """An optimizer: how often it has stepped, and the models of which it sets the pace, or trains a part."""

    steps: int = 0
    last: int = 0  # when it last stepped, by the finder's clock
    parameters: set[int] = field(default_factory=set)
    paced: list[Root] = field(default_factory=list)
    others: list[Root] = field(default_factory=list)
    waiting: list[Root] = field(default_factory=list)  # hold parameters of it; it has not stepped since they came up


@dataclass
class Seen:
    """What went by, to say in the end why nothing was watched."""

    untrained: dict[str, None] = field(default_factory=dict)  # models called, but never for training
    idle: dict[str, None] = field(default_factory=dict)  # for training, but no optimizer stepped that holds them
    without_sites: dict[str, None] = field(default_factory=dict)


class Finder:
    """Finds models from the moment it is made until `close`.

    Args:
        settings: for each `Watch`.
        found: called with a root once an optimizer trains it and it has a site.
        trouble: called with what the finder was doing and the error it met; the script goes on.
    """

    def __init__(
        self, settings: dict[str, Any], found: Callable[[Root], None], trouble: Callable[[str, Exception], None]
    ) -> None:
        self.settings = settings
        self.roots: list[Root] = []
        self.seen = Seen()
        self._found = found
        self._trouble = trouble
        self._announced: dict[int, Root] = {}
        self._steppers: weakref.WeakKeyDictionary[Any, Stepper] = weakref.WeakKeyDictionary()
        self._idle_steps = 0
        self._lock = threading.RLock()
        self._open_calls = 0
        self._calls = _Calls()
        self._running = _Running()
        self._clock = 0
        self._marks: dict[int, Any] = {}  # the hook by which a root says that its call has ended
        self._search: Any = None
        self._searching = False
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        self._end_aside = without_hooks()
        self._begin_search()

    def close(self) -> None:
        """Take all hooks of the finder off, and decide on the roots still in doubt; watches stay open."""
        for handle in self._handles:
            handle.remove()
        self._end_aside()
        with self._safely("ending the search for models"):
            self._end_search()

    @contextlib.contextmanager
    def _safely(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._trouble(doing, error)

    # Searching

    def _begin_search(self) -> None:
        self._searching, self._idle_steps, self._open_calls = True, 0, 0
        self._calls = _Calls()
        self._hook(True)

    def _end_search(self) -> None:
        """The hooks on modules go, and with them the roots that nothing trains or that have no site."""
        self._searching = False
        self._hook(False)
        for mark in self._marks.values():
            mark.remove()
        self._marks.clear()
        for root in list(self.roots):
            if not root.adopted:
                self._drop(root, self.seen.idle)
            elif not root.watch.sites:
                self._drop(root, self.seen.without_sites)
            else:
                self._announce(root)

    def _hook(self, wanted: bool) -> None:
        if wanted and self._search is None:
            self._search = register_module_forward_pre_hook(self._before_call)
        elif not wanted and self._search is not None:
            self._search.remove()
            self._search = None

    def _drop(self, root: Root, because: dict[str, None] | None = None) -> None:
        """Watch it no longer; what has been recorded of it stands."""
        if id(root) in self._announced:
            root.watch.close()
        else:
            root.watch.drop()
        self.roots.remove(root)
        for stepper in root.steppers:
            stepper.paced = [r for r in stepper.paced if r is not root]
            stepper.others = [r for r in stepper.others if r is not root]
        for stepper in self._steppers.values():
            stepper.waiting = [r for r in stepper.waiting if r is not root]
        if because is not None:
            because[_called(root.name, root.module)] = None

    def _announce(self, root: Root) -> None:
        """Once, when a step has been made with it: all that the script calls in a step has been called."""
        if id(root) not in self._announced:
            self._announced[id(root)] = root  # kept, so that no other gets its id
            self._found(root)

    # Modules

    def _before_call(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not self._searching or self._inside():
            return
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks, and nothing inside it can be seen
            return
        with self._lock, self._safely(f"looking at a call of {type(module).__name__}"):
            self._open(module)
            frame = sys._getframe(1)
            kwargs = frame.f_locals.get("kwargs", {})
            watch = self._new(module, frame.f_back) if _is_real(module, args, kwargs) else None
            if watch is not None and original(module) is watch.model:  # else a wrapper, whose inside is hooked by now
                # torch calls no hook that is added during the call. From right here: a watch notes whose call it is in.
                watch._before_forward(module, args, kwargs)

    def _inside(self) -> bool:
        """Is this call part of another? Asked where other threads keep the hook on, or an interrupt left a call."""
        if self._calls.outermost is None:
            return False
        if any(frame is self._calls.frame for frame in _outwards(sys._getframe(2))):
            return True
        self._call_ended()
        return False

    def _open(self, module: nn.Module) -> None:
        """An outermost call begins: no hook until it ends, of which a hook on this module tells."""
        if id(module) not in self._marks:
            self._marks[id(module)] = module.register_forward_hook(Hook(self._after_call), always_call=True)
        self._calls.outermost, self._calls.frame = module, sys._getframe(2)
        self._open_calls += 1
        if threading.active_count() == 1:  # another thread may be about to call a model of its own
            self._hook(False)

    def _after_call(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or self._calls.outermost is not module:
            return
        with self._lock:
            self._call_ended()

    def _call_ended(self) -> None:
        self._calls.outermost = self._calls.frame = None
        self._open_calls -= 1
        if self._searching and self._open_calls <= 0:
            self._open_calls = 0
            self._hook(True)

    def _new(self, module: nn.Module, caller: Any) -> ScriptWatch | None:
        """A watch for a module that is called for training, unless it is known, or belongs to one that is."""
        if any(r.module is module for r in self.roots):
            return None
        if not module.training or not torch.is_grad_enabled():
            self.seen.untrained[type(module).__name__] = None
            return None
        if not any(p.requires_grad for p in module.parameters()):
            return None
        parts = {id(m) for m in module.modules()}
        if any(id(module) in {id(m) for m in r.module.modules()} for r in self.roots):
            return None
        for root in [r for r in self.roots if id(r.module) in parts]:
            self._drop(root)
        keras.count_steps(self.stepped)
        root = Root(module, name_of(module, caller), ScriptWatch(module, **self.settings))
        self.roots.append(root)
        own = root.parameters()
        holders = [(o, s) for o, s in self._steppers.items() if s.parameters & own]
        if holders:
            latest, stepper = max(holders, key=lambda held: held[1].last)
            self._join(root, latest, stepper, own)
            for _, other in holders:
                if other is not stepper:
                    other.waiting.append(root)
        return root.watch

    # Optimizers

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        frame = sys._getframe(1)
        if self._running.steps:  # it is part of another step, or that one was left by an exception
            stack = set(_outwards(frame))
            self._running.steps = [f for f in self._running.steps if f in stack]
        self._running.steps.append(frame)

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        frame, running = sys._getframe(1), self._running.steps
        if frame in running:
            del running[running.index(frame) :]
        if not running:  # an optimizer that another one uses, or its base class, makes no step of its own
            with self._safely(f"counting a step of {type(optimizer).__name__}"):
                self.stepped(optimizer)

    def stepped(self, optimizer: Any) -> None:
        """An optimizer has made a step."""
        stepper = self._steppers.get(optimizer)
        if stepper is None:
            with self._lock:
                stepper = self._meet(optimizer)
        self._clock += 1
        stepper.last = self._clock
        for root in stepper.waiting:
            self._join(root, optimizer, stepper, root.parameters())
        stepper.waiting.clear()
        stepper.steps += 1
        for root in stepper.paced:
            root.silent = 0
            if root.watch.sites:
                self._announce(root)
            root.watch.optimizer_stepped(optimizer)
        for root in list(stepper.others):
            root.silent += 1
            if root.silent >= _SILENCE:
                stepper.others.remove(root)
                stepper.paced.append(root)
        if self._searching:
            with self._lock:
                self._search_on()

    def _search_on(self) -> None:
        """After a step: an interrupt may have left a call open; patience runs out."""
        if self._calls.outermost is not None:
            self._call_ended()
        self._idle_steps += 1
        if self._idle_steps >= _PATIENCE:
            self._end_search()

    def _meet(self, optimizer: Any) -> Stepper:
        if not self._searching:
            self._begin_search()
        self._idle_steps = 0
        stepper = self._steppers[optimizer] = Stepper(
            parameters={id(p) for group in optimizer.param_groups for p in group["params"]}
        )
        for root in self.roots:
            own = root.parameters()
            if stepper.parameters & own:
                self._join(root, optimizer, stepper, own)
        return stepper

    def _join(self, root: Root, optimizer: Any, stepper: Stepper, own: set[int]) -> None:
        """This optimizer trains this root. The first one sets the pace, and any that trains the same parameters."""
        self._idle_steps = 0
        paces = not root.adopted or any(stepper.parameters & s.parameters & own for s in root.steppers)
        (stepper.paced if paces else stepper.others).append(root)
        root.steppers.append(stepper)
        root.watch.adopt(optimizer, stepper.steps)


class _Calls(threading.local):
    """The outermost call now running in this thread, and torch's frame that makes it."""

    def __init__(self) -> None:
        self.outermost: nn.Module | None = None
        self.frame: FrameType | None = None


class _Running(threading.local):
    """The optimizer steps now running in this thread, by torch's frames, outer ones first."""

    def __init__(self) -> None:
        self.steps: list[FrameType] = []


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _called(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return kind if name == kind else f"{name} ({kind})"


def _is_real(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Not a model without its parameters yet, nor a call that only asks for shapes."""
    given = (*args, *kwargs.values())
    return keras.is_built(module) and not any(
        x.is_meta if isinstance(x, Tensor) else keras.is_symbolic(x) for x in given
    )
