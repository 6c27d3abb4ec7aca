"""`compact`: a smaller model without the units that are dead, proven on data to compute the same."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from relume.errors import RelumeError
from relume.prove.compact import measure
from relume.prove.compact.compaction import Compaction
from relume.prove.compact.evidence import Call, Calls, Evidence, Outputs, few, inputs_in, outputs, points_of
from relume.prove.compact.measure import CompactionError
from relume.prove.compact.plan import Plan, plan_for
from relume.prove.compact.recipe import Recipe
from relume.prove.compact.slots import Slots
from relume.prove.compact.surgery import conflict, copied, operated, unequal
from relume.prove.compact.trace import FollowingError, Trace, Tracer, follow
from relume.watch import arguments, compiled
from relume.watch.passes import as_it_was


def compact(
    model: nn.Module,
    evidence: Any,
    batches: Any = None,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    tolerance: float | None = None,
    latency: bool = False,
) -> Compaction:
    """Make a smaller model, without the units that are dead, that computes the same in evaluation.

    A dead unit gives out a constant. Its row in the layer that makes it, its entries in norms on the way, and its
    column in every layer that reads it go; what the constant added moves into those layers' biases. All slots that an
    operation ties together go together or stay; a unit for which that can't be done exactly stays, and is listed with
    the reason. The model given is not touched.

    Three checks must hold, else nothing is returned: on every batch each removed unit gives out one constant; the
    smaller model's pass, call by call, has every remaining unit in its place; its outputs on all batches are the
    original's, but for rounding.

    Args:
        model: any module; a compiled or DataParallel one is taken out of its wrapper.
        evidence: a Census of this model in evaluation, or a Certificate.
        batches: as for `relume.census`; the data of the proof. Needed with a census: give the data it was taken on.
            With a certificate the default is 256 random points and corners of its box.
        include, exclude: shell patterns on site names: where units may be removed.
        tolerance: largest max |Δ output| / max |output| that counts as rounding; default: 100 times the outputs'
            machine epsilon (1.2e-5 for float32).
        latency: measure the time of a call before and after, on the first batch.

    Returns:
        Compaction: the model, what was removed, what stays and why, and the figures of the proof.

    Raises:
        CensusMismatchError: the evidence is of another model.
        CompactionError: the outputs differ by more than rounding; names the layer.
        RelumeError: a census of training mode, or one without batches; a model with lazy layers, on the meta device,
            or that can't be copied.
        EmptyCensusError, BatchError: batches hold nothing, or do not fit the model.

    >>> import relume
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with torch.no_grad(): net[0].bias[:3] = -100
    >>> x = torch.randn(512, 4)
    >>> compaction = compact(net, relume.census(net, x), x)
    >>> compaction.removed, compaction.model[2]
    ({'1': (0, 1, 2)}, Linear(in_features=5, out_features=2, bias=True))
    """
    model = _unwrapped(arguments.module(model, "compact"))
    _check(model)
    patterns = arguments.patterns("include", include), arguments.patterns("exclude", exclude)
    if batches is None:
        if not all(hasattr(evidence, name) for name in ("lower", "upper")):
            raise RelumeError(
                "compact needs batches to prove on that nothing changes: pass the data that the census was taken on"
            )
        batches = points_of(evidence)
    calls = Calls(model, batches)
    first = calls.first()
    with compiled.eager():
        with as_it_was(model, "eval"):
            seen = outputs(model, calls)
            claims = Evidence.of(evidence, seen.units, *patterns)
            constants, kept = seen.constants(claims)
        small, recipe, plan = _smaller(model, first, constants)
        worst = measure.difference(model, small, calls, tolerance)
        counted = _flops(model, small, few(first))
        times = measure.latency(model, small, first) if latency else None
    sizes = measure.parameters(model), measure.parameters(small)
    return _result(small, recipe, plan, kept, claims, seen, worst, (sizes, counted, times))


def _unwrapped(model: nn.Module) -> nn.Module:
    model = compiled.original(model)
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = compiled.original(model.module)
    return model


def _check(model: nn.Module) -> None:
    tensors = list(chain(model.parameters(), model.buffers()))
    if any(is_lazy(t) for t in tensors):
        raise RelumeError(
            f"{type(model).__name__} has lazy layers, whose weights the first batch draws: pass it one before"
        )
    if any(t.is_meta for t in tensors):
        raise RelumeError(
            f"{type(model).__name__} is on the meta device, where tensors hold no numbers: move it to a real one"
        )


def _smaller(model: nn.Module, first: Call, constants: dict[str, Tensor]) -> tuple[nn.Module, Recipe, Plan]:
    """Plan, operate, hold against the original; what stands in the way stays, until nothing does."""
    if not any(bool((~c.isnan()).any()) for c in constants.values()):
        return copied(model), Recipe(type(model).__name__, {}, {}), Plan({}, torch.zeros(0), [], {}, {})
    call, trace = _traced(model, first, constants)
    while True:
        plan = plan_for(model, trace, constants)
        small, recipe = operated(model, plan)
        if not plan.removed:
            return small, recipe, plan
        found = conflict(trace, plan, small, call) or unequal(model, trace, plan, small, call)
        if found is None:
            return small, recipe, plan
        trace.slots.stay(*found)


def _traced(model: nn.Module, first: Call, constants: dict[str, Tensor]) -> tuple[Call, Trace]:
    """One pass followed; on two inputs, if the model runs on so few."""
    sample = few(first)
    with as_it_was(model, "eval"):
        try:
            return sample, _followed(model, sample, constants)
        except FollowingError:
            raise
        except Exception:
            if inputs_in(sample) == inputs_in(first):
                raise
            return first, _followed(model, first, constants)


def _followed(model: nn.Module, call: Call, constants: dict[str, Tensor]) -> Trace:
    tracer = Tracer(model, Slots(model), constants)
    trace = follow(tracer, model, *call)
    if not tracer.tracker.restarted:
        return trace
    return follow(Tracer(model, Slots(model), constants, tracer.tracker.input_axis), model, *call)


def _flops(model: nn.Module, small: nn.Module, call: Call) -> tuple[int, int] | None:
    try:
        return measure.flops(model, call), measure.flops(small, call)
    except Exception:  # a counter that does not know an operation is no reason to return nothing
        return None


def _result(
    small: nn.Module,
    recipe: Recipe,
    plan: Plan,
    kept: dict[tuple[str, int], str],
    claims: Evidence,
    seen: Outputs,
    worst: float,
    figures: tuple[Any, Any, Any],
) -> Compaction:
    why: dict[str, dict[int, str]] = {}
    for (name, unit), reason in sorted((kept | plan.kept).items()):
        if unit not in plan.units.get(name, ()):
            why.setdefault(name, {})[unit] = reason
    notes = []
    if not any(bool(d.any()) for d in claims.dead.values()):
        notes.append(f"the {claims.kind} names no dead unit at these sites")
    alive = {
        n: [u for u in units if n not in claims.dead or not bool(claims.dead[n][u])] for n, units in plan.units.items()
    }
    also = {n: len(units) for n, units in alive.items() if units}
    if also:
        named = ", ".join(f"{count} of {name}" for name, count in also.items())
        notes.append(f"units that were not dead, but read by nothing but dead ones, went too: {named}")
    if recipe.biases:
        notes.append(f"layers that were given a bias, for the constants: {', '.join(recipe.biases)}")
    sizes, counted, times = figures
    return Compaction(
        model=small, removed=plan.units, kept=why, units=seen.units, parameters=sizes, flops=counted, latency=times,
        difference=worst, inputs=seen.inputs, basis=claims.kind, death_bound=claims.bounds, notes=tuple(notes),
        recipe=recipe,
    )  # fmt: skip


__all__ = ["CompactionError", "compact"]
