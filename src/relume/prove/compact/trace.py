"""`Trace`: one forward pass followed element by element: which slot each element goes with, and what is constant.

Beside every tensor of the pass goes a `Shadow` of its shape, moved and combined as the tensor is. What each torch
function does to shadows is in `rules/`; a function without a rule makes all slots that it reads stay.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from relume.errors import RelumeError
from relume.prove.compact.slots import FIRST, FIXED, FREE, Slots
from relume.sites import Found, Tracker, tracker
from relume.sites.flow import tensors_in


@dataclass(frozen=True)
class Shadow:
    """What is known of one tensor, element by element.

    Attributes:
        labels: float64, of the tensor's shape: the slot that each element goes with, FREE or FIXED.
        known: float64: the value, where it is the same whatever the model is given, else NaN; None: nowhere.
        constant: the tensor is a parameter, buffer or constant, no data.
    """

    labels: Tensor
    known: Tensor | None = None
    constant: bool = False


@dataclass(frozen=True)
class Read:
    """One operation with weights that sums over an axis: what it reads, entry by entry of that axis.

    Attributes:
        where: module in which it runs.
        weight: name of the parameter.
        axis: of the weight, that is summed over.
        labels: float64 [entries].
        known: float64 [entries]: the constant that is read, NaN where it is none.
        bias: name of the parameter that is added; None: there is none.
        folds: a constant other than 0 adds the same to every sample of an output, so that a bias can take its place.
        why_not: otherwise.
    """

    where: str
    weight: str
    axis: int
    labels: Tensor
    known: Tensor
    bias: str | None
    folds: bool
    why_not: str = ""


@dataclass(frozen=True)
class Step:
    """One call of the pass: the labels of its outputs, and of all that it read."""

    what: str
    where: str
    outs: tuple[Tensor, ...]
    ins: tuple[Tensor, ...]


@dataclass
class Marks:
    """Where the units of one site went.

    Attributes:
        labels: float64 [units]; FREE or FIXED for one that can't be removed.
        why_not: for those.
    """

    labels: Tensor
    why_not: str = ""


@dataclass
class Trace:
    """What one pass showed."""

    slots: Slots
    steps: list[Step] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    sites: dict[str, Marks] = field(default_factory=dict)
    biases: dict[str, set[str]] = field(default_factory=dict)  # by parameter: the weights that it is added after


class FollowingError(RelumeError):
    """A rule is wrong: raised in relume's own tests, where users get all units that may be concerned left in place."""


Rule = Callable[["Tracer", Any, tuple[Any, ...], dict[str, Any], Any], None]


class Tracer(TorchFunctionMode):
    """Above relume's own mode for one pass: sees every call, and carries the shadows along.

    Args:
        model: that runs.
        slots: to label its weights with.
        constants: float64 [units] by site: the constant output of each unit that is taken to be one, NaN elsewhere.
        input_axis: of the model's first input, that counts inputs; None: as the model shows.
    """

    def __init__(
        self, model: nn.Module, slots: Slots, constants: dict[str, Tensor], input_axis: int | None = None
    ) -> None:
        super().__init__()
        self.trace = Trace(slots)
        self.slots, self.constants = slots, constants
        self.tracker = Tracker(model, self._meter, keep_fast_path=False, input_axis=input_axis)
        self._shadows: dict[int, tuple[weakref.ref[Tensor], Shadow]] = {}
        self._own = {id(t) for t in _attributes(model)}
        self._reached: list[tuple[Found, Tensor]] = []
        self._calling = False

    @property
    def where(self) -> str:
        return self.tracker.flow.where

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin: what the model is given goes with no slot."""
        for tensor in tensors_in((args, kwargs)):
            self.set(tensor, Shadow(torch.full(tensor.shape, FIXED, dtype=torch.float64)))

    def end(self, output: Any) -> None:
        """The pass is over: what the model returns must keep its shape."""
        for tensor in tensors_in(output):
            held = self._held(tensor)
            if held is not None:
                self.slots.stay(held.labels, "the model returns it")
        self._shadows.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        from relume.prove.compact.rules import rule_for

        given = kwargs or {}
        rule = rule_for(func)
        if rule is None:
            return func(*args, **given)
        what = getattr(func, "__name__", str(func))
        ins = tuple(s.labels for t in tensors_in((args, given)) if (s := self._held(t)) is not None)
        self.trace.steps.append(Step(what, self.where, (), ins))  # found here if the call fails
        self._calling = True
        try:
            out = func(*args, **given)
        finally:
            self._calling = False
        with torch.no_grad(), torch._C.DisableTorchFunction():  # the tracker beneath must not see what is done here
            self._apply(rule, func, args, given, out)
            overwritten = next((t for t in tensors_in(args, 1) if t is out), None) is not None or what == "__setitem__"
            if overwritten:
                self._forget_what_shares(out if isinstance(out, Tensor) else args[0])
            for found, tensor in self._reached:
                self._mark(found, tensor)
            self._reached.clear()
        outs = tuple(s.labels for t in tensors_in(out, 2) if (s := self._held(t)) is not None)
        self.trace.steps[-1] = Step(what, self.where, outs, ins)
        return out

    def _apply(self, rule: Rule, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        try:
            rule(self, func, args, kwargs, out)
        except Exception as error:
            if tracker.STRICT:
                raise FollowingError(f"following {func}: {type(error).__name__}: {error}") from error
            self.slots.all_stay(f"relume failed to follow a call in '{self.where}' ({type(error).__name__}: {error})")
            for tensor in tensors_in(out, 3):
                self.set(tensor, Shadow(torch.full(tensor.shape, FIXED, dtype=torch.float64)))

    # Shadows

    def set(self, tensor: Tensor, shadow: Shadow) -> None:
        self._shadows[id(tensor)] = (weakref.ref(tensor), shadow)

    def _held(self, tensor: Tensor) -> Shadow | None:
        held = self._shadows.get(id(tensor))
        return held[1] if held is not None and held[0]() is tensor else None

    def shadow(self, tensor: Tensor) -> Shadow:
        """Of any tensor that a call was given."""
        held = self._held(tensor)
        if held is not None:
            return held
        name = self.slots.name(tensor)
        if name is not None:
            return self._of_parameter(tensor, name)
        plain = tensor.detach().cpu()
        uniform = plain.numel() > 0 and bool((plain == plain.flatten()[0]).all())
        if id(tensor) not in self._own:
            self.slots.all_stay(
                f"an operation in '{self.where}' can't be seen, or a tensor there is none of the model's"
            )
            return Shadow(torch.full(tensor.shape, FIXED, dtype=torch.float64))
        labels = torch.full(tensor.shape, FREE if uniform else FIXED, dtype=torch.float64)
        return Shadow(labels, plain.double(), constant=True)

    def value(self, tensor: Tensor) -> tuple[Tensor | None, bool]:
        """What is known of a tensor's values, and whether it is no data; says nothing of how it is used."""
        if self._held(tensor) is None and self.slots.name(tensor) is not None:
            return tensor.detach().cpu().double(), True
        shadow = self.shadow(tensor)
        return shadow.known, shadow.constant

    def _of_parameter(self, tensor: Tensor, name: str) -> Shadow:
        """A parameter or buffer in some operation: labelled along its one axis, and as it is if it has several."""
        wide = [a for a, size in enumerate(tensor.shape) if size > 1 or (name, a) in self.slots.of]
        labels = torch.full(tensor.shape, FREE, dtype=torch.float64)
        if len(wide) == 1:
            labels += self.slots.along(name, wide[0], tensor.shape[wide[0]]).view(
                [-1 if a == wide[0] else 1 for a in range(tensor.dim())]
            )
        elif wide:
            self.fix(tensor, name)
            labels.fill_(FIXED)
        return Shadow(labels, tensor.detach().cpu().double(), constant=True)

    def fix(self, tensor: Tensor, name: str, but: int | None = None) -> None:
        """A parameter's axes stay as they are, all or all but one."""
        for axis, size in enumerate(tensor.shape):
            if axis != but:
                self.slots.stay(self.slots.along(name, axis, size), f"{name} is used in other ways too")

    def stay(self, values: Any, why: str) -> None:
        """All slots that these tensors carry stay, for this reason."""
        for tensor in tensors_in(values):
            self.slots.stay(self.shadow(tensor).labels, why)

    def _forget_what_shares(self, tensor: Tensor) -> None:
        """After a write: other views of the same memory are known no more."""
        storage = tensor.untyped_storage().data_ptr()
        for key, (ref, shadow) in list(self._shadows.items()):
            other = ref()
            if other is None:
                del self._shadows[key]
            elif other is not tensor and shadow.known is not None and other.untyped_storage().data_ptr() == storage:
                self._shadows[key] = (ref, Shadow(shadow.labels, None, shadow.constant))

    # Sites

    def _meter(self, found: Found, x: Tensor) -> Any:
        def finish(out: Tensor) -> None:
            if self._calling:  # the call's own rule comes first
                self._reached.append((found, out))
            else:
                self._mark(found, out)

        return finish

    def _mark(self, found: Found, out: Tensor) -> None:
        """The output of a site: where its units are, and what its dead ones give out."""
        held = self._held(out)
        plan, name = found.plan, found.site.name
        shape = plan.shape or tuple(out.shape)
        if held is None or math.prod(shape) != out.numel():
            why = "its output can't be followed"
            self.trace.sites[name] = Marks(torch.full((found.site.units,), FIXED, dtype=torch.float64), why)
            return
        rest = [a for a in range(len(shape)) if a not in plan.units]
        labels = held.labels.reshape(shape).permute(*plan.units, *rest).reshape(plan.n_units, -1)
        same = bool((labels == labels[:, :1]).all())
        first = labels[:, 0].clone() if same else torch.full((plan.n_units,), FIXED, dtype=torch.float64)
        self.trace.sites[name] = Marks(first, "" if same else "one unit lies in several places of its tensor")
        constants = self.constants.get(name)
        if constants is not None:
            places = [s if a in plan.units else 1 for a, s in enumerate(shape)]
            values = constants.reshape(places).expand(shape).reshape(out.shape)
            known = values if held.known is None else torch.where(values.isnan(), held.known, values)
            self.set(out, Shadow(held.labels, known))


def follow(tracer: Tracer, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """Run one pass of a model under a tracer; whatever the model raises is raised."""
    entered = False

    def begin(module: nn.Module, a: Any, k: Any) -> None:
        nonlocal entered
        tracer.tracker.begin(a, k)
        tracer.start(a, k)
        tracer.__enter__()
        entered = True

    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    output = None
    try:
        output = model(*args, **kwargs)
    finally:
        handle.remove()
        if entered:
            tracer.__exit__(None, None, None)
        tracer.tracker.end(output)
    tracer.end(output)
    return tracer.trace


def survivors(labels: Tensor, removed: Tensor) -> Tensor | None:
    """What is left of a tensor of labels when some are removed; None where it is not whole rows of one axis that go.

    Args:
        labels: float64.
        removed: bool, by label: those that go.
    """
    rows = rows_left(labels, removed)
    return None if rows is None else labels.index_select(*rows) if len(rows) else labels


def rows_left(labels: Tensor, removed: Tensor) -> tuple[int, Tensor] | tuple[()] | None:
    """The axis from which rows go and the numbers of those left; () where none goes; None as above."""
    gone = removed[labels.long()]
    if not gone.any():
        return ()
    may_go = gone | (labels == FREE)  # what pads a row goes with it
    for axis in range(labels.dim()):
        rows = gone.movedim(axis, 0).flatten(1).any(1)
        if bool(may_go.movedim(axis, 0)[rows].all()):
            return axis, torch.nonzero(~rows).flatten()
    return None


def carries_slots(labels: Tensor) -> bool:
    return bool((labels >= FIRST).any())


def _attributes(model: nn.Module) -> list[Tensor]:
    """Tensors that the modules keep as plain attributes."""
    return [t for m in model.modules() for v in vars(m).values() for t in tensors_in(v, 2)]
