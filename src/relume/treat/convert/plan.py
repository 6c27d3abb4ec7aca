"""Decides what becomes of each site: which step converts it, or why none does."""

from __future__ import annotations

import itertools
import keyword
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from relume.activations import Activation, activation
from relume.activations.registry import TwoInputs
from relume.errors import UnknownActivationError
from relume.sites import Site
from relume.treat.convert.capture import Application, in_own_slots
from relume.treat.convert.conversion import CANT, CONVERTED, LEFT, Converted
from relume.treat.convert.normalize import CantNormalizeError, norm_for
from relume.treat.convert.rewrite import Edit, MethodEdits, digest, merged, original_class
from relume.treat.convert.source import Method, _functions
from relume.treat.convert.steps import Make, Put, Rewrite, Step
from relume.treat.convert.targets import Target, Wanted

# What a hidden unit applies; the others (sigmoid, tanh, softplus, …) are as often gates, scores and outputs, which
# another function would break. They are converted where `where` asks for them.
HIDDEN = frozenset({
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "gelu_tanh", "quick_gelu", "silu",
    "mish", "hardswish", "drelu", "drelu_exponential", "displaced_relu", "relu_squared", "dynamic_relu", "blend",
})  # fmt: skip
_FUSED = (nn.RNNBase, nn.RNNCellBase)
_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm")


@dataclass(frozen=True)
class Asked:
    """What the call of convert asks of every site; `overwriting` has the ids of modules whose input is read again."""

    target: Target
    selected: Callable[[Application], bool]
    named: bool
    preserve: bool
    norm: str | None
    overwriting: frozenset[int] = frozenset()


@dataclass
class Plan:
    """The steps, and what becomes of each site by its number.

    Attributes:
        paths: of those converted, the slot's path, the number of the module in it, and which use of that module it is.
    """

    steps: list[Step]
    rows: dict[int, Converted]
    paths: dict[int, tuple[str, int, int]]


class _Planner:
    def __init__(
        self, model: nn.Module, found: list[Application], slots: dict[int, tuple[nn.Module, str]], asked: Asked
    ) -> None:
        self.model, self.found, self.asked = model, found, asked
        self.names = {id(m): name for name, m in model.named_modules()}
        self.slots, self.registered = slots, in_own_slots(model)
        self.puts: list[Put] = []
        self.edits: dict[tuple[str, str], tuple[Method, nn.Module, list[Edit]]] = {}
        self.rows: dict[int, Converted] = {}
        self.paths: dict[int, tuple[str, int, int]] = {}
        self.taken: dict[int, set[str]] = {}

    # Each site by itself

    def verdict(self, i: int) -> tuple[str, str] | None:
        """Why a site is not to be converted, if so."""
        a, asked = self.found[i], self.asked
        if not asked.selected(a):
            why = "not selected" if asked.named else f"{a.activation.name} is often no hidden unit's; name it by where="
            return LEFT, why
        if a.is_module and asked.target.is_already(a.running) and asked.norm is None:
            return LEFT, f"it is {asked.target.name} already"
        if isinstance(a.running, _FUSED):
            return CANT, f"it runs inside torch's fused kernel of {type(a.running).__name__}: use another layer"
        if isinstance(a.activation, TwoInputs):
            return CANT, f"{a.activation.name} has two inputs, {asked.target.name} one"
        return None

    def group(self, i: int) -> Any:
        """Sites that share a module, a flag or a place in the code are decided together."""
        a = self.found[i]
        if a.is_module and id(a.running) in self.registered:
            return ("slot", self.slots.get(i, id(a.running)))
        if isinstance(a.running, _LAYERS) and not a.is_module:
            return ("layer", id(a.running))
        return ("place", a.place.key) if a.place is not None else ("none", i)

    def plan(self) -> Plan:
        groups: dict[Any, list[int]] = {}
        for i in range(len(self.found)):
            groups.setdefault(self.group(i), []).append(i)
        for (kind, _), uses in groups.items():
            chosen = []
            for i in uses:
                verdict = self.verdict(i)
                if verdict is None:
                    chosen.append(i)
                else:
                    self.row(i, *verdict)
            if not chosen:
                continue
            if kind == "none":
                self.row(chosen[0], CANT, self.found[chosen[0]].why_not or "no batch showed where it is called")
            elif kind == "place":
                self.place(uses, chosen)
            else:
                self.slot(uses, chosen)
        steps: list[Step] = list(self.puts)
        methods: dict[str, tuple[MethodEdits, ...]] = {}
        for (path, name), (method, owner, edits) in self.edits.items():
            text = digest(_original(owner, method))
            more = (MethodEdits(name, text, tuple(edits)),)
            methods[path] = merged(methods.get(path, ()), more)
        steps += [Rewrite(path, edits) for path, edits in methods.items()]
        return Plan(steps, self.rows, self.paths)

    # A module in its slot

    def slot(self, uses: list[int], chosen: list[int]) -> None:
        first = self.found[uses[0]]
        layer = isinstance(first.running, _LAYERS) and not first.is_module
        if layer:
            at = [(first.running, "activation")]
        else:
            apart = self.slots.get(uses[0])
            at = [apart] if apart is not None else self.registered[id(first.running)]
        (parent, key), *others = at
        also = tuple((self.names[id(p)], k) for p, k in others)
        one = len(uses) == 1 and not others
        if len(chosen) == len(uses) and (one or (not self.asked.target.stateful and self.asked.norm is None)):
            self.put(parent, key, chosen, also, fast_path=isinstance(parent, _LAYERS))
            return
        why = self.why_not_apart(uses)
        if why is None and not others:
            # One of several uses takes the slot where all are chosen; else the old module stays for the others.
            rest = list(chosen)
            if len(chosen) == len(uses):
                self.put(parent, key, [rest.pop(0)])
            for i in rest:
                self.new_child(i, key)
        elif len(chosen) == len(uses):
            reason = f"one module for {len(uses)} uses: {why or 'it is registered in several places'}"
            self.put(parent, key, chosen, also, reason=reason if len(uses) > 1 else "", shared=True)
        else:
            for i in chosen:
                self.row(
                    i, CANT, f"its module is used {len(uses)} times, not all selected, and {why or 'not told apart'}"
                )

    def why_not_apart(self, uses: list[int]) -> str | None:
        """Why the uses of one module can't each call a module of their own."""
        places = [self.found[i].place for i in uses]
        if None in places:
            return (
                next(self.found[i].why_not for i in uses if self.found[i].place is None) or "no batch showed its calls"
            )
        if len({p.key for p in places if p is not None}) < len(places):
            return "one call in the code makes several of them"
        return None

    # A function in its place

    def place(self, uses: list[int], chosen: list[int]) -> None:
        target = self.asked.target
        if len(uses) == 1:
            self.new_child(uses[0])
            return
        runs = {p.run for i in uses if (p := self.found[i].place) is not None}
        if len(chosen) == len(uses) and not target.stateful and self.asked.norm is None:
            self.new_child(chosen[0], also=chosen)
        elif len(runs) == 1:  # a loop, or a comprehension, in one run of the method
            makes = []
            for i in uses:
                make = self.make(i) if i in chosen else None
                if i not in chosen:
                    old = spec_of(self.found[i].activation)
                    if old is None:
                        for c in chosen:
                            self.row(c, CANT, f"its call also makes {self.found[i].site.name}, which can't be kept")
                        return
                    make = (Make(old), "")
                if make is None:
                    return
                makes.append(make)
            self.new_child(uses[0], makes=makes, numbered={i: n for n, i in enumerate(uses) if i in chosen})
        elif len(chosen) == len(uses):
            self.new_child(
                chosen[0], also=chosen, shared=f"one module for {len(uses)} uses: its module runs that often"
            )
        else:
            for i in chosen:
                self.row(
                    i, CANT, f"its call is used {len(uses)} times, not all selected, in runs that can't be told apart"
                )

    def new_child(
        self,
        i: int,
        stem: str = "activation",
        *,
        also: list[int] | None = None,
        shared: str = "",
        makes: list[tuple[Make, str]] | None = None,
        numbered: dict[int, int] | None = None,
    ) -> None:
        """A new child of the module whose method makes the call, called in its place."""
        place = self.found[i].place
        assert place is not None
        made = makes or [m for m in [self.make(i, bool(shared))] if m is not None]
        if not made:
            return
        owner = place.owner
        key = self.free_name(owner, stem if stem.isidentifier() and not keyword.iskeyword(stem) else "activation")
        path = self.names[id(owner)]
        edits = self.edits.setdefault((path, place.method.name), (place.method, owner, []))[2]
        edits.append(Edit(place.position, place.argument, key, len(made) > 1))
        put = Put(path, key, tuple(m[0] for m in made))
        self.puts.append(put)
        for use, n in (numbered or dict.fromkeys(also or [i], 0)).items():
            turn = also.index(use) if also is not None else 0
            self.converted(use, put, n, "; ".join(filter(None, (shared, made[n][1]))), turn)

    def free_name(self, owner: nn.Module, stem: str) -> str:
        taken = self.taken.setdefault(id(owner), set())
        for n in itertools.count():
            name = f"{stem}_{n}" if n else stem
            if name not in taken and not hasattr(owner, name):
                taken.add(name)
                return name
        raise AssertionError

    # What is made

    def put(
        self,
        parent: nn.Module,
        key: str,
        uses: list[int],
        also: tuple[tuple[str, str], ...] = (),
        *,
        reason: str = "",
        shared: bool = False,
        fast_path: bool = False,
    ) -> None:
        made = self.make(uses[0], shared or len(uses) > 1, in_slot=True)
        if made is None:
            return
        put = Put(self.names[id(parent)], key, (made[0],), also, fast_path)
        self.puts.append(put)
        for turn, i in enumerate(uses):
            self.converted(i, put, 0, "; ".join(filter(None, (reason, made[1]))), turn)

    def make(self, i: int, shared: bool = False, *, in_slot: bool = False) -> tuple[Make, str] | None:
        """How a site's module is made, and what is to be said of it; None, with a row that says so, if it can't be."""
        a, asked = self.found[i], self.asked
        site = a.site
        known = site.axis_known and isinstance(site.axis, int) and site.units > 0 and not shared
        reasons = []
        axis = site.axis if isinstance(site.axis, int) else 1
        channels = site.units if known else 1
        make = Make(asked.target.spec, channels, axis, a.dims)
        wanted = Wanted(channels, axis, a.dims)
        if asked.target.name == "prelu" and known and not wanted.torchs_axis:
            reasons.append(f"one slope for all: torch's PReLU has channels on axis 1, here they are on {axis}")
        if asked.norm is not None:
            try:
                if not known or a.dims is None:
                    raise CantNormalizeError("its units are not known: give batches=" if not shared else "it is shared")
                norm_for(asked.norm, site.units, wanted)
                between = [n for n in site.between if self.is_norm(n, site)]
                if between:
                    raise CantNormalizeError(f"{between[-1]} is there already")
                make = replace(make, norm=asked.norm, units=site.units)
                reasons.append(f"{asked.norm} norm before it")
            except CantNormalizeError as error:
                reasons.append(f"no norm: {error}")
        if asked.preserve and not (asked.target.name == "prelu" and slope_of(a.activation) is not None):
            keeps = in_slot and a.is_module
            old = None if keeps else spec_of(a.activation)
            if old is None and not keeps:
                self.row(i, CANT, f"preserve=True needs a module of {a.activation.formula}, and there is none")
                return None
            make = replace(make, blend=True, old=old)
            reasons.append("blended in")
        if a.is_module and id(a.running) in asked.overwriting:
            make = replace(make, overwrites=True)
            reasons.append("overwrites its input as before, which the model reads later")
        return make, "; ".join(reasons)

    def is_norm(self, leaf: str, site: Site) -> bool:
        """Is what lies between producer and site, by the last part of its name, a normalization?"""
        modules = dict(self.model.named_modules())
        for name in (site.module, *site.producers):
            while name:
                name = name.rpartition(".")[0]
                beside = modules.get(f"{name}.{leaf}" if name else leaf)
                if beside is not None:
                    return any(n in type(beside).__name__ for n in _NORMS)
        return "norm" in leaf

    # Rows

    def row(self, i: int, outcome: str, reason: str) -> None:
        site = self.found[i].site
        self.rows[i] = Converted(
            site.name, site.activation, outcome, reason, site.name, "", (), site.units or None,
            site.axis if site.units else None,
        )  # fmt: skip

    def converted(self, i: int, put: Put, use: int, reason: str, turn: int = 0) -> None:
        self.row(i, CONVERTED, reason)
        self.paths[i] = (put.path, use, turn)


def planned(model: nn.Module, found: list[Application], slots: dict[int, tuple[nn.Module, str]], asked: Asked) -> Plan:
    """What is to be done, and what becomes of each site.

    Args:
        found: the sites.
        slots: by number of the site, the place of a module that has several (see `told_apart`).
    """
    return _Planner(model, found, slots, asked).plan()


def spec_of(entry: Activation) -> str | None:
    """The name with parameters by which an activation is made, or None; what has state can't be made again."""
    if entry.name in ("prelu", "drelu", "drelu_exponential", "dynamic_relu", "blend"):
        return None
    try:
        if activation(entry.name) is entry or activation(entry.name).formula == entry.formula:
            return entry.name
    except (UnknownActivationError, ValueError):
        pass
    slope = slope_of(entry)
    return f"leaky_relu({slope!r})" if entry.name == "leaky_relu" and slope is not None else None


def slope_of(entry: Activation) -> float | None:
    """The slope below zero of ReLU and its straight relatives, None of any other."""
    if entry.name == "relu":
        return 0.0
    if entry.name in ("leaky_relu", "prelu"):
        import torch

        with torch._C.DisableTorchFunction():
            return -float(entry.function(torch.tensor([-1.0], dtype=torch.float64)))
    return None


def _original(owner: nn.Module, method: Method) -> Any:
    """The function that a method was before any rewriting."""
    cls = original_class(type(owner))
    if cls is type(owner):
        return method.function
    held = next(vars(c)[method.name] for c in cls.__mro__ if method.name in vars(c))
    name = method.function.__code__.co_name
    return next((f for f in _functions(held) if f.__code__.co_name == name), method.function)
