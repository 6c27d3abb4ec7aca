"""`Calls`: which call of the watched model is running in which thread, so that each is counted once and for what it is;
and `Hook`, by which a watch hears of them.

A model may call itself, be called by several threads at once, be run anew by a checkpoint during backward, raise, or
be left half-way by an interrupt, of which torch tells no hook.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling


class Hook:
    """A hook that a copy or a pickle of the model does not take along: there it does nothing.

    Args:
        target: called with what the hook is called with.
        compiling: called instead when torch.compile traces the hook, which leaves nothing of it in compiled code.
    """

    def __init__(self, target: Callable[..., None], compiling: Callable[[], None] | None = None) -> None:
        self.target = target

        def traced() -> None:
            if compiling is not None:
                compiling()

        # As torch.compiler.assume_constant_result does, which would import the compiler.
        traced._dynamo_marked_constant = True  # type: ignore[attr-defined]
        self.traced = traced

    def __call__(self, *args: Any) -> None:
        if is_dynamo_compiling():
            self.traced()
            return
        self.target(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        # A function that takes anything, does nothing, and needs no relume to be unpickled.
        return getattr, (contextlib.nullcontext(), "__exit__")


@dataclass
class Call:
    """One call of the model, from the root's pre-hook to its forward hook.

    Attributes:
        module: that was called: the model, or what torch.compile made of it.
        frame: of torch, on the stack for as long as the call runs.
        training: the model is in training mode and gradients are recorded.
        recomputed: a checkpoint runs anew, during backward, what has been run before.
        handled: the exception that the caller was handling when it began.
        depth: calls of the model by itself now inside it.
    """

    module: nn.Module
    frame: FrameType
    training: bool
    recomputed: bool
    handled: BaseException | None
    depth: int = 0

    @property
    def failed(self) -> bool:
        """Asked in the forward hook: is it called because the forward pass raised?"""
        return sys.exc_info()[1] is not self.handled


class Calls:
    """The calls of one model now running, at most one per thread.

    Attributes:
        total: calls begun.
        running: by thread; calls of which nothing need be known are not among them.
    """

    def __init__(self) -> None:
        self.total = 0
        self.running: dict[int, Call] = {}
        self._trained_outside_backward = False

    def begin(self, module: nn.Module, frame: FrameType) -> Call | None:
        """A call begins; None when it is part of one that is running already."""
        running = self.running.get(threading.get_ident())
        if running is not None:
            running.depth += 1
            return None
        self.total += 1
        training = module.training and torch.is_grad_enabled()
        backward = torch._C._current_graph_task_id() != -1
        # A reentrant checkpoint runs the model first without gradients: then the run in backward is the one to count.
        recomputed = training and backward and self._trained_outside_backward
        self._trained_outside_backward |= training and not backward
        call = self.running[threading.get_ident()] = Call(module, frame, training, recomputed, sys.exc_info()[1])
        return call

    def end(self, module: nn.Module) -> Call | None:
        """A call ends; None when it is part of another, or began before its model was watched."""
        running = self.running.get(threading.get_ident())
        if running is None:
            return None
        if running.depth:
            running.depth -= 1
            return None
        if running.module is not module:  # of which compiled code has run the beginning
            return None
        return self.running.pop(threading.get_ident())

    def left_behind(self) -> bool:
        """Has an interrupt ended this thread's call unnoticed? It is forgotten then."""
        running = self.running.get(threading.get_ident())
        if running is None or _on_stack(running.frame):
            return False
        del self.running[threading.get_ident()]
        return True


def alive(thread: int | None) -> bool:
    """Is it a thread that still runs Python?"""
    return thread in sys._current_frames()


def _on_stack(frame: FrameType) -> bool:
    at: FrameType | None = sys._getframe(1)
    while at is not None:
        if at is frame:
            return True
        at = at.f_back
    return False
