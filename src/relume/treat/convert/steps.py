"""The steps of a conversion, as plain data: what is put where. Done to a model at once, or read from a checkpoint and
done to a fresh one."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from relume.errors import RelumeError
from relume.treat.convert.blend import Blend
from relume.treat.convert.changes import Changes
from relume.treat.convert.in_place import Overwrites
from relume.treat.convert.normalize import norm_for
from relume.treat.convert.rewrite import (
    MethodEdits,
    PerUse,
    edits_of,
    merged,
    methods_from,
    original_class,
    rewritten,
)
from relume.treat.convert.schedule import HOOKS
from relume.treat.convert.source import CantRewriteError
from relume.treat.convert.targets import Target, Wanted, beside

# Of the root's buffer with the recipe. Its name is what torch says to who loads the state dict of a converted model
# into one that is not: "Unexpected key(s) in state_dict".
KEY = "converted_by_relume_convert"


@dataclass(frozen=True)
class Make:
    """How the module for a site is made.

    Attributes:
        to: the activation's name with parameters; None: of the user's own, which no recipe can hold.
        channels, axis, dims: see `Wanted`.
        norm: put before it, for so many `units`.
        blend: start as the old activation: `old` by name, or None for the module in the slot.
        overwrites: the model reads later what its in-place activation made of the input.
    """

    to: str | None
    channels: int = 1
    axis: int = 1
    dims: int | None = None
    norm: str | None = None
    units: int = 0
    blend: bool = False
    old: str | None = None
    overwrites: bool = False


@dataclass(frozen=True)
class Put:
    """Modules put in a slot, new or taken; several where a place is run several times in a call.

    Attributes:
        at: dotted name of the parent.
        key: of the slot.
        makes: one, or one for each use.
        also: other slots that get the same module.
        fast_path: the parent is torch's transformer layer, whose flags for its fused path go with its activation.
    """

    at: str
    key: str
    makes: tuple[Make, ...]
    also: tuple[tuple[str, str], ...] = ()
    fast_path: bool = False

    @property
    def path(self) -> str:
        return f"{self.at}.{self.key}" if self.at else self.key


@dataclass(frozen=True)
class Rewrite:
    """Methods of the module `at` rewritten to call its children."""

    at: str
    methods: tuple[MethodEdits, ...]


Step = Put | Rewrite


@dataclass
class Done:
    """What doing the steps gave.

    Attributes:
        made: by path of the slot, the module for each use: those of the activations themselves.
        blends: with their slots; only blends that are the slot's own module or a use's.
        gone: modules that lost their last place.
    """

    changes: Changes
    made: dict[str, list[nn.Module]] = field(default_factory=dict)
    blends: list[tuple[nn.Module, str, Blend]] = field(default_factory=list)
    gone: list[nn.Module] = field(default_factory=list)


def do(model: nn.Module, steps: Iterable[Step], target: Target | None, done: Done) -> None:
    """Do the steps to a model, each noted in `done.changes`; an error leaves what was done, to be rolled back."""
    for step in steps:
        parent = model.get_submodule(step.at)
        if isinstance(step, Rewrite):
            cls = type(parent)
            try:
                new = rewritten(original_class(cls), merged(edits_of(cls), step.methods))
            except CantRewriteError as error:
                raise RelumeError(f"'{step.at or type(parent).__name__}': {error}") from None
            done.changes.put_class(parent, new, f"the class of '{step.at}'")
        else:
            _put(model, parent, step, target, done)


def _put(model: nn.Module, parent: nn.Module, step: Put, target: Target | None, done: Done) -> None:
    old = parent._modules.get(step.key)
    built = [_build(model, parent, m, old, target) for m in step.makes]
    module = built[0][0] if len(built) == 1 else PerUse([b[0] for b in built])
    if old is not None:
        _take_over(old, module)
        done.gone.append(old)
    else:
        module.train(parent.training)
    done.changes.put_child(parent, step.key, module, f"'{step.path}'")
    for path, key in step.also:
        done.changes.put_child(model.get_submodule(path), key, module, f"'{path}.{key}'")
    done.made[step.path] = [b[1] for b in built]
    for i, (outer, _) in enumerate(built):
        if isinstance(outer, Overwrites):
            if isinstance(outer.activation, Blend):
                done.blends.append((outer, "activation", outer.activation))
        elif isinstance(outer, Blend):
            done.blends.append((module, str(i), outer) if len(built) > 1 else (parent, step.key, outer))
            done.blends += [(model.get_submodule(p), k, outer) for p, k in step.also]
    if step.fast_path:
        _turn_off_fast_path(model, parent, module, done.changes)


def _build(
    model: nn.Module, parent: nn.Module, make: Make, old: nn.Module | None, target: Target | None
) -> tuple[nn.Module, nn.Module]:
    """The module for the slot, and the activation in it."""
    module, activation = _activation(model, parent, make, old, target)
    return (Overwrites(module) if make.overwrites else module), activation


def _activation(
    model: nn.Module, parent: nn.Module, make: Make, old: nn.Module | None, target: Target | None
) -> tuple[nn.Module, nn.Module]:
    if make.to is None and target is None:
        raise RelumeError(
            "the model was converted to a module of your own making, which a checkpoint does not hold: repeat the call "
            "of relume.convert instead"
        )
    device, dtype = beside(model, parent)
    wanted = Wanted(make.channels, make.axis, make.dims, device, dtype)
    maker = target if target is not None and make.to == target.spec else Target(make.to)
    activation = maker.make(wanted)
    if make.norm is not None:
        norm = norm_for(make.norm, make.units, wanted)
        return nn.Sequential(OrderedDict(norm=norm, activation=activation)), activation
    if make.blend:
        if make.old is not None:
            was = Target(make.old).make(Wanted(device=device, dtype=dtype))
        else:
            assert old is not None
            was = copy.copy(old)
            for name in HOOKS:
                if isinstance(was.__dict__.get(name), dict):
                    was.__dict__[name] = OrderedDict()
        if getattr(was, "inplace", False):
            was = copy.copy(was)
            was.inplace = False  # type: ignore[assignment]
        return Blend(was, activation), activation
    return activation, activation


def _take_over(old: nn.Module, new: nn.Module) -> None:
    """Mode and hooks. The hooks' dictionaries are shared, so that the handles that the user holds still remove them."""
    new.train(old.training)
    for name in HOOKS:
        if name in old.__dict__:
            new.__dict__[name] = old.__dict__[name]


def _turn_off_fast_path(model: nn.Module, layer: nn.Module, activation: nn.Module, changes: Changes) -> None:
    """torch's fused path of a transformer layer in evaluation knows ReLU and GELU only, and asks these flags."""
    kind = (
        1
        if type(activation) is nn.ReLU
        else 2
        if type(activation) is nn.GELU and activation.approximate == "none"
        else 0
    )
    if "activation_relu_or_gelu" in layer.__dict__:
        changes.put_attribute(layer, "activation_relu_or_gelu", kind, "a transformer layer's flag")
    if kind:
        return
    for encoder in model.modules():
        if (
            isinstance(encoder, nn.TransformerEncoder)
            and any(m is layer for m in encoder.layers)
            and (encoder.use_nested_tensor)
        ):
            changes.put_attribute(encoder, "use_nested_tensor", False, "a transformer encoder's flag")


# The recipe in the state dict


def note_in(model: nn.Module, steps: list[Step], changes: Changes, *, anew: bool = False) -> None:
    """Keep the steps in a buffer of the root, after those of earlier conversions, or anew in place of all."""
    before = None if anew else model._buffers.get(KEY)
    all_steps = [*(read(before) if before is not None else []), *steps]
    text = json.dumps([_plain(s) for s in all_steps], separators=(",", ":"), ensure_ascii=True)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    changes.put_buffer(model, KEY, torch.tensor(list(text.encode()), dtype=torch.uint8, device=device), "the recipe")


def without_blends(model: nn.Module, changes: Changes) -> None:
    """The recipe after the old activations have been let go."""
    steps: list[Step] = []
    for s in read(model._buffers[KEY]):
        if isinstance(s, Put):
            s = replace(s, makes=tuple(replace(m, blend=False, old=None) for m in s.makes))
        steps.append(s)
    note_in(model, steps, changes, anew=True)


def recipe_in(state: Mapping[str, Any]) -> tuple[str, list[Step]]:
    """The recipe in a state dict, and the prefix of the module that it belongs to.

    Raises:
        RelumeError: there is none.
    """
    found = [k for k in state if isinstance(k, str) and k.rpartition(".")[2] == KEY]
    if len(found) != 1 or not isinstance(state[found[0]], Tensor):
        raise RelumeError(
            f"the state dict has no key '{KEY}': it is not that of a model converted by relume"
            if not found
            else f"the state dict has {len(found)} keys '{KEY}': convert each part of the model from its part of it"
        )
    return found[0].rpartition(".")[0], read(state[found[0]])


def read(buffer: Any) -> list[Step]:
    """The steps in such a buffer; RelumeError where it is something else."""
    try:
        plain = json.loads(bytes(buffer.cpu().tolist()).decode())
        return [_step(p) for p in plain]
    except (ValueError, TypeError, KeyError) as error:
        raise RelumeError(f"'{KEY}' in the state dict can't be read as a recipe: {error}") from None


def _plain(step: Step) -> dict[str, Any]:
    if isinstance(step, Rewrite):
        return {"at": step.at, "methods": [(m.name, m.digest, m.edits) for m in step.methods]}
    return asdict(step)


def _step(plain: dict[str, Any]) -> Step:
    if "methods" in plain:
        return Rewrite(plain["at"], methods_from(plain["methods"]))
    makes = tuple(Make(**m) for m in plain["makes"])
    return Put(plain["at"], plain["key"], makes, tuple((p, k) for p, k in plain["also"]), bool(plain["fast_path"]))
