"""What a model does on some batches, application by application: where each stands in the code, in which module, on
what tensor."""

from __future__ import annotations

import ast
import copy
import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from relume.activations import Activation, activation_of
from relume.errors import EmptyCensusError
from relume.sites import Found, Site, Tracker, Zones
from relume.sites.flow import tensors_in
from relume.treat.convert.rewrite import operand
from relume.treat.convert.source import (
    CantRewriteError,
    Method,
    Position,
    check_runs,
    definition_of,
    method_of,
    node_at,
    only_passes_on,
    origin,
    position_in,
    within,
)
from relume.watch import compiled
from relume.watch.passes import as_it_was, batches_in, call_with

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """A call in a method of a module that can be made another.

    Attributes:
        owner: the module whose method it is.
        method: in which it stands.
        position: of the expression in the original text of the method.
        argument: see `Edit`.
        run: which run of the method it was.
    """

    owner: nn.Module
    method: Method
    position: Position
    argument: str | int
    run: int

    @property
    def key(self) -> tuple[int, str, Position]:
        return id(self.owner), self.method.name, self.position


@dataclass
class Application:
    """One site as a pass of a model showed it.

    Attributes:
        site, activation: what it is.
        running: the innermost module running: an activation module, or the one whose code calls a function.
        is_module: it is the former.
        dims: axes of the pre-activation; None where no pass showed it.
        in_place: it overwrites the pre-activation.
        place: the call, where it can be rewritten.
        why_not: otherwise.
    """

    site: Site
    activation: Activation
    running: nn.Module
    is_module: bool
    dims: int | None = None
    in_place: bool = False
    place: Place | None = None
    why_not: str = ""
    _frames: list[Frame] = field(default_factory=list, repr=False)
    _x: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Frame:
    """A frame of Python as it was at the time of a call: its code, where in it, and the module whose method it is."""

    code: CodeType
    names: dict[str, Any]
    position: Position | None
    why_no_position: str
    owner: nn.Module | None
    number: int
    is_torchs: bool


def calls_of(model: nn.Module, batches: Any) -> list[Call]:
    """What the model is called with, batch by batch; EmptyCensusError where there is none."""
    found = [call_with(model, b) for b in ([batches] if isinstance(batches, Tensor) else batches_in(batches))]
    if not found:
        raise EmptyCensusError("the batches yielded nothing: convert needs one to see where activations are applied")
    return found


def outputs_of(model: nn.Module, calls: list[Call]) -> list[Tensor]:
    """All tensors that the model gives in evaluation, on the CPU, with one random state."""
    found: list[Tensor] = []
    with as_it_was(model, "eval"):
        for args, kwargs in calls:
            with compiled.eager(), torch.random.fork_rng():
                torch.manual_seed(0)
                found += [t.detach().clone().cpu() for t in tensors_in(model(*args, **kwargs))]
    return found


def applications(model: nn.Module, calls: list[Call]) -> tuple[list[Application], tuple[str, ...]]:
    """The sites of a model on these calls, in the order of its forward pass, and what the tracker could not see.

    The model is left as it was.
    """
    found: dict[int, Application] = {}
    spy = _Spy()
    ids = {id(m) for m in model.modules()}
    numbers: dict[int, int] = {}
    count = itertools.count()
    kept: list[FrameType] = []  # so that no two frames of a pass have one id

    def meter(at: Found, x: Tensor) -> None:
        running = tracker.flow.running
        if at.number in found or running is None:
            return
        application = Application(at.site, at.activation, running, activation_of(running) is not None, x.dim(), _x=x)
        application._frames = list(_frames(application, ids, numbers, count, kept))
        found[at.number] = application
        if application.is_module:
            application.in_place = bool(getattr(running, "inplace", False))
            _set_place(application, 0, None)
        else:
            spy.waiting = application

    tracker = Tracker(model, meter, keep_fast_path=False)
    with as_it_was(model, "eval"):
        for args, kwargs in calls:
            while True:
                handle = model.register_forward_pre_hook(lambda _, a, k: tracker.begin(a, k), with_kwargs=True)
                output = None
                with compiled.eager(), spy:
                    try:
                        output = model(*args, **kwargs)
                    finally:
                        handle.remove()
                        tracker.end(output)  # before the spy leaves: modes are left in the order of a stack
                        kept.clear()
                        numbers.clear()
                if not tracker.restarted:
                    break
                tracker.forget()
                found.clear()
    for at in tracker.found.values():
        if at.number in found:
            found[at.number].site = at.site
    for application in found.values():
        application._x, application._frames = None, []
    return [found[n] for n in sorted(found)], tuple(tracker.notes)


class _Spy(TorchFunctionMode):
    """Beneath the tracker's mode: is handed the call that the meter was told of."""

    waiting: Application | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        application, self.waiting = self.waiting, None
        if application is not None:
            _look(application, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _look(application: Application, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    name = getattr(func, "__name__", "")
    in_place = (name.endswith("_") and not name.startswith("__")) or name in ("__imul__", "__setitem__")
    application.in_place = in_place or bool(kwargs.get("inplace"))
    index = next((i for i, a in enumerate(args) if a is application._x), None)
    keyword = next((k for k, a in kwargs.items() if a is application._x), None)
    method = name != "" and getattr(Tensor, name, None) is func
    _set_place(application, index if index is not None else keyword, len(args) + len(kwargs) if method else None)


def _set_place(application: Application, argument: int | str | None, method_arguments: int | None) -> None:
    try:
        application.place = _place(application, application._frames, argument, method_arguments)
    except CantRewriteError as error:
        application.why_not = str(error)


def _place(
    application: Application, frames: list[Frame], argument: int | str | None, method_arguments: int | None
) -> Place:
    """The call to rewrite: where the activation is called, or the helper that does nothing but call it.

    Args:
        frames: from the innermost that is not torch's outward.
        argument: which of the call's arguments the pre-activation is.
        method_arguments: how many arguments the function had with the tensor itself, if it is a method of tensors.
    """
    if argument is None:
        raise CantRewriteError("the pre-activation is not one of the call's arguments")
    owner_frame = next((f for f in frames if f.owner is not None), None)
    if owner_frame is None or owner_frame.owner is None:
        raise CantRewriteError("no module of the model calls it")
    owner = owner_frame.owner
    if owner_frame.is_torchs:
        raise CantRewriteError(f"it is called inside torch's own {type(owner).__name__}")
    method = None
    for i, frame in enumerate(frames):
        if frame.position is None:
            raise CantRewriteError(frame.why_no_position)
        if within(owner_frame.code, frame.code):
            method = method_of(owner, frame.code)
            break
        passed = only_passes_on(frame.code, frame.names, frame.position, argument if isinstance(argument, int) else 0)
        if passed is None or i + 1 >= len(frames):
            method_of(owner, frame.code)  # says why not
        assert passed is not None
        argument, method_arguments = passed, None
    assert method is not None
    if hasattr(owner, "parametrizations") and "parametrizations" in owner._modules:
        raise CantRewriteError(f"{type(owner).__name__} has parametrizations of its own, which change its class too")
    definition = definition_of(method.function)
    check_runs(method.function, definition)
    position = frame.position
    assert position is not None
    node = node_at(definition, _within_definition(position, definition.lineno), definition.lineno)
    if method_arguments is not None and isinstance(node, ast.Call):
        bound = len(node.args) + len(node.keywords) == method_arguments - 1
        if bound and isinstance(argument, int):
            argument = "self" if argument == 0 else argument - 1
    if isinstance(argument, int) and isinstance(node, ast.Call) and argument >= len(node.args):
        given = {k.arg for k in node.keywords}
        argument = next((k for k in (("input", "self", "x"), ("other", "input"), ("other",))[min(argument, 2)]
                         if k in given), argument)  # fmt: skip
    operand(node, argument)  # raises where it can't be told
    return Place(owner, method, origin(frame.code, position, definition), argument, owner_frame.number)


def _within_definition(position: Position, first: int) -> Position:
    """In lines of the definition, instead of the file."""
    return (position[0] - first, position[1], position[2] - first, position[3])


def _frames(
    application: Application, ids: set[int], numbers: dict[int, int], count: Iterator[int], kept: list[FrameType]
) -> Iterator[Frame]:
    """Frames from the call outward, up to the first that runs a method of a module of the model."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        first = frame.f_code.co_varnames[0] if frame.f_code.co_argcount else ""
        owner = frame.f_locals.get(first) if first else None
        is_torchs = name.startswith("torch.")
        inside = application.is_module and owner is application.running
        if isinstance(owner, nn.Module) and id(owner) in ids and not inside and name != "torch.nn.modules.module":
            own = owner
        else:
            own = None
        if own is not None or not name.startswith(("torch.", "relume.")):
            kept.append(frame)
            number = numbers.setdefault(id(frame), next(count))
            position: Position | None = None
            why = ""
            try:
                position = position_in(frame)
            except CantRewriteError as error:
                why = str(error)
            yield Frame(frame.f_code, frame.f_globals, position, why, own, number, is_torchs)
        if own is not None:
            return
        frame = frame.f_back


def module_applications(model: nn.Module, known: dict[str, Site]) -> list[Application]:
    """The activation modules of a model, without running it; what is known of a site by its name is taken over."""
    found = []
    for name, module in model.named_modules():
        entry = activation_of(module)
        if entry is not None and module is not model:
            site = (known.get(name) if f"{name}#1" not in known else None) or Site(
                name, name, name, entry.name, entry.formula, 0, -1, axis_known=False, zones=Zones.of(entry)
            )
            found.append(Application(site, entry, module, True))
    return found


def overwriting(model: nn.Module, calls: list[Call], found: list[Application], before: list[Tensor]) -> frozenset[int]:
    """The ids of in-place activation modules whose overwritten input the model reads again, so that outputs differ."""
    modules = {id(a.running): a.running for a in found if a.is_module and a.in_place}

    def matter(several: Iterable[nn.Module]) -> bool:
        several = list(several)
        try:
            for module in several:
                module.inplace = False  # type: ignore[assignment]
            after = outputs_of(model, calls)
        finally:
            for module in several:
                module.inplace = True  # type: ignore[assignment]
        return not all(bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in zip(before, after, strict=True))

    if not modules or not matter(modules.values()):
        return frozenset()
    return frozenset(key for key, module in modules.items() if matter([module])) or frozenset(modules)


def in_own_slots(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every place where a module is registered, by the module's id."""
    slots: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is not None:
                slots.setdefault(id(child), []).append((parent, key))
    return slots


def told_apart(model: nn.Module, calls: list[Call], found: list[Application]) -> dict[int, tuple[nn.Module, str]]:
    """For activation modules registered in several places: by the number of the application, the place that made it.

    Each place is given a copy of the module for one run, which the model is not left with.
    """
    slots = in_own_slots(model)
    several = {id(a.running): a.running for a in found if a.is_module and len(slots.get(id(a.running), ())) > 1}
    if not several:
        return {}
    copies: dict[int, tuple[int, tuple[nn.Module, str]]] = {}
    held = []
    try:
        for key, module in several.items():
            for parent, name in slots[key]:
                twin = copy.copy(module)
                held.append(twin)
                copies[id(twin)] = (key, (parent, name))
                parent._modules[name] = twin
        again, _ = applications(model, calls)
    finally:
        for key, module in several.items():
            for parent, name in slots[key]:
                parent._modules[name] = module
    in_order: dict[int, list[tuple[nn.Module, str]]] = {}
    for a in again:
        if id(a.running) in copies:
            key, slot = copies[id(a.running)]
            in_order.setdefault(key, []).append(slot)
    places: dict[int, tuple[nn.Module, str]] = {}
    for key in several:
        uses = [i for i, a in enumerate(found) if id(a.running) == key]
        if len(uses) == len(in_order.get(key, ())):
            places |= dict(zip(uses, in_order[key], strict=True))
    return places
