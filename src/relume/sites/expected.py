"""`Expected`: what a forward pass did, call by call, to check off the next one alike instead of following it anew.

To follow a call is to find its rule and derive the nodes of its outputs. Where a pass makes the same call, in the same
module, on tensors with the same nodes, all of that is known already, and a comparison per argument tells. A call that
differs in anything is followed as if nothing were known of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from relume.sites.flow import Flow, Node

if TYPE_CHECKING:
    from relume.sites.tracker import Found, Key

_CONSTANTS = (
    int, float, str, bool, type(None), torch.dtype, torch.device, torch.memory_format, type(Ellipsis), torch.Size,
)  # fmt: skip


class Unknown(NamedTuple):
    """A tensor without a node, of this shape."""

    shape: torch.Size


class Several(NamedTuple):
    """A tuple or list of what the parts are."""

    kind: type
    parts: tuple[Any, ...]


class KnownSite(NamedTuple):
    """The site that a call is, and what its key was made of.

    Attributes:
        found: the site.
        plan, activation: of this call.
        module: running when it was called.
        caller: place in the user's code.
        place: the key without the number of its use; `use` is that number.
        inputs: of the pass, as known when it was called.
        wanted: it is to be metered.
    """

    found: Found
    plan: Any
    activation: Any
    module: nn.Module
    caller: tuple[int, int] | None
    place: Key
    use: int
    inputs: int | None
    wanted: bool


class Step:
    """One call of a pass.

    Attributes:
        func: called.
        running: the module that called it.
        args, kwargs: what each argument was: a node, `Unknown`, `Several`, or the constant itself. None: it doesn't
            matter, as the call has no outputs to follow.
        outs: shape and node of each output; None where the call must be followed each time.
        single: the output is one tensor and not several.
        site: when it is one.
        learns: it may yet be put right when a call differs.
        missed: how often it was.
    """

    __slots__ = ("args", "func", "kwargs", "learns", "missed", "outs", "running", "single", "site")

    def __init__(
        self,
        func: Any,
        running: nn.Module | None = None,
        given: tuple[Any, Any] | None = None,
        outs: tuple[tuple[torch.Size, Node | None], ...] | None = None,
        single: bool = False,
        site: KnownSite | None = None,
    ) -> None:
        self.func, self.running, self.outs, self.single, self.site = func, running, outs, single, site
        self.args: Any
        self.kwargs: Any
        self.args, self.kwargs = given if given is not None else (None, None)
        self.learns, self.missed = outs is not None, 0

    def fits(self, flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Are the arguments, and the module that calls, what they were?"""
        if self.args is None:
            return True
        if flow.running is not self.running or len(args) != len(self.args) or len(kwargs) != len(self.kwargs):
            return False
        if not _alike(flow, self.args, args):
            return False
        return not kwargs or (
            kwargs.keys() == self.kwargs.keys() and _alike(flow, self.kwargs.values(), map(kwargs.get, self.kwargs))
        )

    def give(self, flow: Flow, out: Any) -> bool:
        """Give the outputs the nodes that they had; False where they differ in kind or shape."""
        assert self.outs is not None
        if self.single:
            shape, node = self.outs[0]
            if not isinstance(out, Tensor) or out.shape != shape:
                return False
            if node is not None:
                flow.set(out, node)
            return True
        if not self.outs:
            return True
        if not isinstance(out, tuple | list) or len(out) != len(self.outs):
            return False
        if any(t.shape != shape for t, (shape, _) in zip(out, self.outs, strict=True)):
            return False
        for tensor, (_, node) in zip(out, self.outs, strict=True):
            if node is not None:
                flow.set(tensor, node)
        return True


def _alike(flow: Flow, expected: Any, values: Any) -> bool:
    nodes, weights = flow._nodes, flow._weights
    for was, value in zip(expected, values):  # noqa: B905 - of one length
        kind = was.__class__
        if kind is Node:
            held = nodes.get(id(value))
            if held is not None and held[0]() is value:
                if held[1] is not was:
                    return False
            else:
                kept = weights.get(id(value))
                if kept is None or kept[1] is not was or kept[0] != value.shape:
                    return False
        elif kind is Unknown:
            if not isinstance(value, Tensor) or value.shape != was.shape or flow.node(value) is not None:
                return False
        elif kind is Several:
            if value.__class__ is not was.kind or len(value) != len(was.parts) or not _alike(flow, was.parts, value):
                return False
        elif was is not value and (value.__class__ is not kind or was != value):
            return False
    return True


def given(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """What the arguments are, to compare later ones with; None where that can't be said."""
    try:
        return tuple([_what(flow, a) for a in args]), {k: _what(flow, v) for k, v in kwargs.items()}
    except _Unlike:
        return None


class _Unlike(Exception):  # noqa: N818 - no error: it ends the making of a step
    pass


def _what(flow: Flow, value: Any) -> Any:
    if isinstance(value, Tensor):
        if is_lazy(value) or value.is_nested:
            raise _Unlike
        node = flow.node(value)
        if node is not None and node.mask is not None:
            raise _Unlike  # it speaks of one tensor, in this pass
        return node if node is not None else Unknown(value.shape)
    if isinstance(value, _CONSTANTS):
        return value
    if type(value) in (tuple, list):
        return Several(type(value), tuple([_what(flow, v) for v in value]))
    raise _Unlike


# After so many differences a call, or a whole pass, is followed each time.
_MISSES = 4
_PARTINGS = 8


class Expected:
    """The calls of one kind of pass, in order, checked off one by one in the next of that kind."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._partings = 0

    @property
    def holds(self) -> bool:
        """Do passes of this kind go one way, or may they yet?"""
        return self._partings < _PARTINGS

    def step(self, at: int, func: Any) -> Step | None:
        """What the call after `at` others is known to do, if it calls `func`; where it doesn't, passes part here."""
        if at >= len(self._steps):
            return None
        step = self._steps[at]
        if func is step.func or func == step.func:
            return step
        del self._steps[at:]
        self._partings += 1
        return None

    def put(self, at: int, step: Step) -> None:
        """Keep what a call did that was not known, or did something else than before."""
        if at < len(self._steps):
            step.missed = self._steps[at].missed + 1
            if step.missed > _MISSES:
                step = Step(step.func)
            self._steps[at] = step
        elif at == len(self._steps):
            self._steps.append(step)
