"""`relume.convert`: other activations in a live model, in place, while its training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from relume.census import Census, SiteCensus
from relume.errors import CensusMismatchError, NoSitesError, RelumeError
from relume.sites import Site
from relume.treat.convert import optimizers
from relume.treat.convert.capture import (
    Application,
    applications,
    calls_of,
    module_applications,
    outputs_of,
    overwriting,
    told_apart,
)
from relume.treat.convert.changes import Changes
from relume.treat.convert.conversion import CONVERTED, Conversion, Converted
from relume.treat.convert.normalize import NORMS
from relume.treat.convert.plan import HIDDEN, Asked, planned, slope_of
from relume.treat.convert.schedule import Live
from relume.treat.convert.steps import Done, Put, Step, do, note_in, recipe_in, without_blends
from relume.treat.convert.targets import Target
from relume.watch import arguments, compiled


def convert(
    model: nn.Module,
    to: Any,
    where: Any = None,
    *,
    batches: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    preserve: bool = False,
    steps: int = 1000,
    norm: str | None = None,
) -> Conversion:
    """Make a model's sites apply another activation, in place, and say what became of each.

    A module is exchanged in its place, with its mode and its hooks. A function called in a method (`F.relu(x)`,
    `x.relu_()`, `clamp(min=0)`, `x * (x > 0)`, in a loop, in a lambda) becomes a child module: the one module that
    owns the call gets a subclass of its class in which the method calls `self.activation(x)` there. Only batches show
    such calls, how many units a site has and on which axis, and which uses a module has.

    Either all of it is done or, if anything raises, none.

    Args:
        model: on which training may go on. What `torch.compile` made is converted through its original, and compiled
            anew when next called.
        to: a name with parameters ("drelu", "gelu", "leaky_relu(0.2)", "drelu(alpha=0.2)"); or a module, of which each
            site gets a copy; a module class; a function that makes one, called without arguments or with what is
            known of the site (`.channels`, `.axis`, `.dims`, `.device`, `.dtype`); or the state dict of a converted
            model, to convert this one in the same way before it is loaded.
        where: shell patterns on site names; a function of the `Site`; a census, or sites, whose names are taken. None:
            all whose activation is one of hidden units (ReLU and its relatives, GELU, SiLU, …), not sigmoid, tanh and
            others that serve as gates and outputs.
        batches: as for `relume.census`; one batch will do where the forward pass does not depend on the data. Without
            them, only modules are seen, and new parameters are one for all channels.
        optimizer: that trains the model: new parameters join it, in the group of the layer before or beside, but
            without weight decay; those of modules exchanged leave it. All other state is kept.
        scheduler: of the optimizer, one or several: told where the optimizer gets a group more.
        preserve: keep the function at the switch. PReLU takes over the slope of a ReLU or LeakyReLU; all others start
            as a `Blend` that is the old activation exactly, and become the new one as `Conversion.step` or `.anneal`
            say.
        steps: of training, from the old activation to the new, when `Conversion.step()` is called after each.
        norm: put "batch", "layer", "group" or "rms" normalization before each converted site that has none yet; it
            changes the function.

    Returns:
        Conversion: the sites, each "converted", "left" or "can't" with the reason; `change`, the largest difference of
        the outputs on the batches; `undo()`.

    Raises:
        UnknownActivationError: no activation has that name; says which are close.
        CensusMismatchError: a pattern, or a site given, matches none; names those there are.
        NoSitesError: there is nothing to convert.
        RelumeError: the model is a ScriptModule, is wrapped in DDP or FSDP (convert, then wrap), or holds DTensors; the
            optimizer does not hold it; a scheduler would not fit; the state dict is of another model.
        TypeError, ValueError: an argument is none that convert takes.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> conversion = convert(model, "drelu", batches=torch.randn(16, 4))
    >>> model[1], conversion["1"].parameters
    (DReLU(8, axis=-1, tau=running, alpha=0.1), ())
    >>> conversion.undo(); model[1]
    ReLU()
    """
    model = _checked(model)
    arguments.positive("steps", steps)
    if norm is not None and norm not in NORMS:
        raise ValueError(f"norm is one of {', '.join(map(repr, NORMS))}, or None, not {norm!r}")
    if norm is not None and preserve:
        raise ValueError("a norm changes the function: preserve=True and norm= don't go together")
    if optimizer is not None:
        optimizer = arguments._unwrapped(optimizer)
        optimizers.check(model, optimizer)
    schedulers = None if scheduler is None else tuple(scheduler) if isinstance(scheduler, Iterable) else (scheduler,)
    changes = Changes()
    work = _Work(model, optimizer, schedulers, changes, steps)
    try:
        if isinstance(to, Mapping):
            if where is not None or batches is not None or preserve or norm is not None:
                raise ValueError(
                    "a state dict says itself what to convert: no where=, batches=, preserve= or norm= with it"
                )
            return work.by_recipe(to)
        target = Target(to)
        calls = None if batches is None else calls_of(model, batches)
        before = None if calls is None else outputs_of(model, calls)
        conversion = work.by_plan(target, where, calls, before, preserve, norm)
        if calls is None or before is None:
            return conversion
        moved = _distance(before, outputs_of(model, calls))
        return Conversion(conversion.to, conversion.sites, moved, conversion.notes, conversion._live)
    except BaseException:
        changes.roll_back()
        raise


class _Work:
    """One call of convert, after its arguments have been checked."""

    def __init__(
        self, model: nn.Module, optimizer: Any, schedulers: tuple[Any, ...] | None, changes: Changes, steps: int
    ) -> None:
        self.model, self.optimizer, self.schedulers = model, optimizer, schedulers
        self.changes, self.steps = changes, steps

    def by_plan(
        self, target: Target, where: Any, calls: Any, before: Any, preserve: bool, norm: str | None
    ) -> Conversion:
        model = self.model
        notes: tuple[str, ...] = ()
        read_again: frozenset[int] = frozenset()
        if calls is None:
            found, slots = module_applications(model, _known(where)), {}
            notes = ("without batches only modules are seen, not functions called in a forward pass",)
        else:
            found, notes = applications(model, calls)
            slots = told_apart(model, calls, found)
            read_again = overwriting(model, calls, found, before)
        if not found:
            raise NoSitesError(
                f"{type(model).__name__} applies no activation that relume knows"
                + ("; functions are seen only with batches=" if calls is None else "")
            )
        asked = Asked(target, _selection(where, found), where is not None, preserve, norm, read_again)
        plan = planned(model, found, slots, asked)
        done = Done(self.changes)
        do(model, plan.steps, target, done)
        rows = []
        made: list[tuple[nn.Module, Application]] = []
        for i, application in enumerate(found):
            row = plan.rows[i]
            if row.outcome == CONVERTED:
                path, use, turn = plan.paths[i]
                module = done.made[path][use]
                made.append((module, application))
                if target.name == "prelu" and preserve and (slope := slope_of(application.activation)) is not None:
                    _fill(module, slope)
                row = self._row(row, module, path, turn)
            rows.append(row)
        return self._finish(target.name, rows, plan.steps, done, made, notes)

    def by_recipe(self, state: Mapping[str, Any]) -> Conversion:
        """Do to this model what was done to the one whose state dict it is."""
        prefix, steps = recipe_in(state)
        done = Done(self.changes)
        try:
            do(self.model, steps, None, done)
        except AttributeError as error:  # of get_submodule
            raise RelumeError(
                f"the state dict is of a model built otherwise than this {type(self.model).__name__}: {error}"
                + (f". It belongs to the part '{prefix}': pass that part" if prefix else "")
            ) from error
        rows, made = [], []
        for step in steps:
            if isinstance(step, Put):
                for use, (make, module) in enumerate(zip(step.makes, done.made[step.path], strict=True)):
                    row = Converted(step.path, make.old or "", CONVERTED, "by the state dict")
                    rows.append(self._row(row, module, step.path if len(step.makes) == 1 else f"{step.path}.{use}"))
                    made.append((module, None))
        name = next((m.to for s in steps if isinstance(s, Put) for m in s.makes if m.to), "")
        return self._finish(name, rows, steps, done, made, ())

    def _row(self, row: Converted, module: nn.Module, path: str, turn: int = 0) -> Converted:
        name = next((n for n, m in self.model.named_modules() if m is module), path)
        own = tuple(f"{name}.{n}" for n, _ in module.named_parameters())
        after = f"{name}#{turn}" if turn else name
        new = str(module).replace("\n", " ")
        return Converted(row.name, row.activation, row.outcome, row.reason, after, new, own, row.units, row.axis)

    def _finish(
        self,
        to: str,
        rows: list[Converted],
        steps: list[Step],
        done: Done,
        made: list[tuple[nn.Module, Any]],
        notes: tuple[str, ...],
    ) -> Conversion:
        model, changes = self.model, self.changes
        if steps:
            note_in(model, steps, changes)
        kept = {id(p) for p in model.parameters()}
        known = optimizers.held_by(self.optimizer) if self.optimizer is not None else set()
        fresh = self._fresh(done, made, known)
        if self.optimizer is not None:
            gone = [p for m in done.gone for p in m.parameters() if id(p) not in kept]
            optimizers.leave(changes, self.optimizer, gone)
            optimizers.join(changes, self.optimizer, self.schedulers, fresh)
        elif fresh:
            notes = (
                *notes,
                f"{len(fresh)} new parameters are in no optimizer yet: pass optimizer= to have them trained",
            )
        if compiled.any_compiled(model.modules()) or compiled.wrappers_of(model):
            notes = (*notes, "the model is compiled: it will be compiled anew when next called")

        def finished(changes: Changes) -> None:
            without_blends(model, changes)
            if self.optimizer is not None:
                kept = {id(p) for p in model.parameters()}
                optimizers.leave(
                    changes, self.optimizer, [p for m in done.gone for p in m.parameters() if id(p) not in kept]
                )

        return Conversion(to, tuple(rows), None, notes, Live(changes, done.blends, self.steps, finished))

    def _fresh(
        self, done: Done, made: list[tuple[nn.Module, Any]], known: set[int]
    ) -> list[tuple[nn.Parameter, list[nn.Parameter]]]:
        """New parameters of the model, each with those beside it: of the producer, of the parents, of the model."""
        modules = dict(self.model.named_modules())
        names = {id(p): n for n, p in self.model.named_parameters()}
        owners = {id(m): a for m, a in made}
        found: dict[int, tuple[nn.Parameter, list[nn.Parameter]]] = {}
        for put, several in done.made.items():
            slot = modules.get(put)
            for p in slot.parameters() if slot is not None else ():
                if id(p) not in names or id(p) in known or id(p) in found or self._was_there(p, done):
                    continue
                beside: list[nn.Parameter] = []
                for module in several:
                    application = owners.get(id(module))
                    for producer in application.site.producers if application is not None else ():
                        if producer in modules:
                            beside += modules[producer].parameters()
                parent = put.rpartition(".")[0]
                while parent:
                    beside += modules[parent].parameters()
                    parent = parent.rpartition(".")[0]
                found[id(p)] = (p, [*beside, *self.model.parameters()])
        return list(found.values())

    @staticmethod
    def _was_there(parameter: nn.Parameter, done: Done) -> bool:
        """A blend keeps the old module's."""
        return any(parameter is p for m in done.gone for p in m.parameters())


def _checked(given: Any) -> nn.Module:
    model: nn.Module = compiled.original(arguments.module(given, "convert"))
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in ("DistributedDataParallel", "FullyShardedDataParallel"):
            raise RelumeError(
                f"'{name or kind}' is wrapped in {kind}, which learns of parameters when it wraps: convert the model "
                "inside, then wrap it anew"
            )
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor":
            raise RelumeError(f"'{name}' is a DTensor (FSDP2, tensor parallel): convert the model before it is sharded")
        if parameter.is_meta or isinstance(parameter, nn.parameter.UninitializedParameter):
            raise RelumeError(f"'{name}' holds no numbers yet (meta device, or a lazy layer): run the model once first")
    return model


def _known(where: Any) -> dict[str, Site]:
    """Sites that the user has handed over, by name."""
    if isinstance(where, Census):
        return {s.name: s.site for s in where.values()}
    if isinstance(where, Iterable) and not isinstance(where, str):
        sites = [s.site if isinstance(s, SiteCensus) else s for s in where]
        return {s.name: s for s in sites if isinstance(s, Site)}
    return {}


def _selection(where: Any, found: list[Application]) -> Callable[[Application], bool]:
    if where is None:
        return lambda a: a.activation.name in HIDDEN
    if callable(where):
        return lambda a: bool(where(a.site))
    known = _known(where)
    patterns: tuple[str, ...]
    if known:
        exact = frozenset(known)
        patterns = ()
    else:
        exact, patterns = frozenset(), arguments.patterns("where", where)
    hint = (
        "" if any(a.dims is not None for a in found) else ". Only batches= shows functions and several uses of a module"
    )
    for pattern in (*exact, *patterns):
        if not any(pattern == a.site.name or (not exact and _fits(a, pattern)) for a in found):
            raise CensusMismatchError(
                f"no site is called {pattern!r}; there are: {', '.join(a.site.name for a in found)}{hint}"
            )
    return lambda a: a.site.name in exact or any(_fits(a, p) for p in patterns)


def _fits(a: Application, pattern: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in (a.site.name, a.site.alias))


def _fill(module: nn.Module, slope: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(slope)


def _distance(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest difference of any entry; infinite where shapes differ."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return float("inf")
    differences = [(a.double() - b.double()).abs().max() for a, b in zip(before, after, strict=True) if a.numel()]
    return max((float(d) for d in differences), default=0.0)
