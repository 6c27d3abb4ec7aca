"""The copy from which units are taken, and what the plan is held against: the same pass of the smaller model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from relume.errors import RelumeError
from relume.prove.compact.evidence import Call
from relume.prove.compact.measure import allowed, deviation, output
from relume.prove.compact.plan import Plan
from relume.prove.compact.recipe import Recipe, tensors_of
from relume.prove.compact.rules import rule_for
from relume.prove.compact.slots import FIRST
from relume.prove.compact.trace import FollowingError, Step, Trace, Tracer, follow, rows_left, survivors
from relume.sites.flow import tensors_in
from relume.watch.passes import as_it_was


def copied(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model.

    Raises:
        RelumeError: it can't be copied.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise RelumeError(
            f"{type(model).__name__} can't be copied ({type(error).__name__}: {error}): compact leaves the model as it "
            "is and works on a deep copy, which must be possible"
        ) from error
    for module in twin.modules():  # module.compile()'s, which would run the original's code
        module.__dict__.pop("_compiled_call_impl", None)
    return twin


def operated(model: nn.Module, plan: Plan) -> tuple[nn.Module, Recipe]:
    """A smaller copy, with constants folded into biases, and how to make a fresh model as small."""
    twin = copied(model)
    tensors = tensors_of(twin)
    removed: dict[str, dict[int, tuple[int, ...]]] = {}
    for (name, axis), gone in plan.removed.items():
        removed.setdefault(name, {})[axis] = tuple(gone)
    shapes = {name: tuple(tensors[name].shape) for name in removed if name in tensors}  # the others are added
    owners = tuple(dict.fromkeys(f.owner for f in plan.folds if f.bias not in tensors))
    recipe = Recipe(type(model).__name__, shapes, removed, owners)
    recipe.add_biases(twin)
    tensors = tensors_of(twin)
    with torch.no_grad():
        for fold in plan.folds:
            weight = tensors[fold.weight].detach().cpu()
            entries = torch.tensor(list(fold.values))
            values = torch.tensor(list(fold.values.values()), dtype=torch.float64)
            columns = weight.double().index_select(fold.axis, entries).movedim(fold.axis, 1)
            added = columns.reshape(*columns.shape[:2], -1).sum(2) @ values
            bias = tensors[fold.bias]
            bias.copy_(bias.cpu().double() + added)
    recipe.cut(twin)
    return twin, recipe


def conflict(trace: Trace, plan: Plan, small: nn.Module, call: Call) -> tuple[Tensor, str] | None:
    """Run the smaller model on the same call, and compare, call by call, which slots are where.

    Returns:
        None if all is as planned; else labels of slots that must stay, and why.
    """
    tracer: Tracer | None = None
    try:
        with as_it_was(small, "eval"):  # which puts other buffers in place
            tracer = Tracer(small, trace.slots.smaller(small, plan.removed), {})
            now = follow(tracer, small, *call)
    except FollowingError:
        raise
    except Exception as error:
        done = tracer.trace.steps if tracer is not None else []
        earlier = _first_difference(trace, done[:-1], plan)
        if earlier is not None:
            return earlier
        step = trace.steps[len(done) - 1] if 0 < len(done) <= len(trace.steps) else None
        message = (str(error).splitlines() or [""])[0][:120]
        where = f"'{step.what}' in '{step.where}'" if step is not None else "the model's own code"
        return _involved(step, plan), f"{where} or the code after it counts on a fixed number of units ({message})"
    found = _first_difference(trace, now.steps, plan)
    if found is None and len(trace.steps) != len(now.steps):
        return plan.labels, "the model takes another way when units are removed"
    return found


def _first_difference(trace: Trace, steps: list[Step], plan: Plan) -> tuple[Tensor, str] | None:
    table = torch.zeros(trace.slots.count, dtype=torch.bool)
    table[plan.labels.long()] = True
    for before, after in zip(trace.steps, steps, strict=False):
        if not _agrees(before, after, table):
            return _involved(
                before, plan
            ), f"'{before.what}' in '{before.where}' takes units by their position or number"
    return None


def unequal(model: nn.Module, trace: Trace, plan: Plan, small: nn.Module, call: Call) -> tuple[Tensor, str] | None:
    """Where the outputs differ by more than rounding, the first call of the pass that does: some code computes with the
    number of units. None where they don't, or where none is found."""
    want = output(model, call)
    limit = allowed(want, None)
    if max([0.0, *map(deviation, want, output(small, call))]) <= limit:
        return None
    before, after = _Values(), _Values()
    for seen, one in ((before, model), (after, small)):
        with as_it_was(one, "eval"), seen:
            one(*call[0], **call[1])
    table = torch.zeros(trace.slots.count, dtype=torch.bool)
    table[plan.labels.long()] = True
    for step, was, now in zip(trace.steps, before.found, after.found, strict=False):
        for labels, a, b in zip(step.outs, was, now, strict=False):
            rows = rows_left(labels, table)
            left = a.index_select(rows[0], rows[1].to(a.device)) if rows else a
            if deviation(left, b) > limit:
                return _involved(step, plan), f"'{step.what}' in '{step.where}' computes with the number of units"
    return None


class _Values(TorchFunctionMode):
    """The outputs of every call that a trace has a step for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if rule_for(func) is not None:
            with torch._C.DisableTorchFunction():
                self.found.append(tuple(t.detach().clone() for t in tensors_in(out, 2)))
        return out


def _agrees(before: Step, after: Step, removed: Tensor) -> bool:
    if (before.what, before.where, len(before.outs)) != (after.what, after.where, len(after.outs)):
        return False
    for was, now in zip(before.outs, after.outs, strict=True):
        left = survivors(was, removed)
        if left is None or left.shape != now.shape or not bool((left == now).all()):
            return False
    return True


def _involved(step: Step | None, plan: Plan) -> Tensor:
    """Labels to be removed that a step has to do with; all, if there are none."""
    seen: list[Any] = [] if step is None else [t.flatten() for t in (*step.ins, *step.outs)]
    if seen:
        labels = torch.unique(torch.cat(seen))
        found: Tensor = labels[(labels >= FIRST) & torch.isin(labels, plan.labels)]
        if len(found):
            return found
    return plan.labels
