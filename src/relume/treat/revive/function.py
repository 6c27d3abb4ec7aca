"""`relume.revive`: finds what makes the units and what reads them, writes, measures, and takes it back if it must."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from relume.census import Census
from relume.census.site_census import DORMANT_TAU
from relume.errors import RelumeError
from relume.treat.revive import chains, checks, measure
from relume.treat.revive.context import Patient, Write, unit_of
from relume.treat.revive.continual import Continual
from relume.treat.revive.recentre import recentre
from relume.treat.revive.redo import redo
from relume.treat.revive.resample import resample
from relume.treat.revive.rescale import rescale
from relume.treat.revive.revival import Act, Outgoing, Revival
from relume.treat.revive.running import running_statistics
from relume.treat.surgery import Anatomy, Cut, Edits, OptimizerStates, find_cut, mixers
from relume.treat.surgery.anatomy import merged
from relume.treat.surgery.optimizers import as_list
from relume.watch import arguments, compiled

METHODS: dict[str, Callable[..., list[Write]]] = {
    "redo": redo,
    "recentre": recentre,
    "rescale": rescale,
    "resample": resample,
}


def revive(
    model: nn.Module,
    census: Census | None,
    optimizer: Any = None,
    method: str | Continual = "redo",
    units: str | Mapping[str, Sequence[int] | Tensor] | None = None,
    preserve: bool = True,
    batches: Iterable[Any] | None = None,
    *,
    tau: float = DORMANT_TAU,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    tolerance: float | None = None,
    axis: int | Mapping[str, int] | None = None,
    input_axis: int | None = None,
    second_moments: str = "mean",
    **options: Any,
) -> Revival:
    """Bring dead units back to life in a live model, in place, while what the model computes stays as it is.

    A unit's incoming weights get new values; what reads it is cut off, so that it re-enters slowly, by training; what
    the optimizer remembers of just these entries is forgotten. Call it between `optimizer.step()` and the next forward
    pass. Every rank of a distributed training has to make the same call with the same seed.

    Args:
        model: any module; a compiled one is written in place and need not be compiled again.
        census: says which units are dead, from `relume.census` or `watch.census()`. None only with `units` as a dict.
        optimizer: one or a list; None leaves moments as they are.
        method: "redo" (new weights; option `init`), "recentre" (bias moved; `share`), "rescale" (spread put around
            zero; `std`), "resample" (towards inputs of high loss; `loss`, `norm`, `decoder`), or a `Continual`.
        units: "dead" (the default), "dormant" (score ≤ tau), or a dict from site names to unit numbers.
        preserve: keep the function. False writes even where it changes.
        batches: as for `relume.census`; the first shows the structure, all are used to measure. A unit that the census
            has as dead and that fires on the first is left alone, as `Revival.notes` then says. Left out, only units
            between neighbours in an `nn.Sequential` can be revived.
        tau: threshold of "dormant".
        seed, generator: of all that is drawn; the global random state stays as it is. Default: seed 0.
        tolerance: largest change of the output allowed, by its largest value; default 1e-6 in float32, in other types
            8 units in the last place.
        axis, input_axis: as for `relume.census`.
        second_moments: what the optimizer's running means of squared gradients (Adam, RMSprop) are for the entries
            written: "mean", of the parameter's other entries; or "zero", as in published code, with which the next
            steps of these entries are up to 6.6 times as large as others (Adam).
        options: of the method.

    Returns:
        Revival, with one `Act` for each unit; `undo()` takes it back bit by bit.

    Raises:
        RelumeError: the function can't be kept (names what stands in the way); the optimizer does not hold what would
            be written; parameters are frozen, tied, parametrized or not finite. The model is as it was.
        CensusMismatchError: the census is not of this model.
        ValueError: an unknown method, or units that don't exist.

    >>> import torch, relume
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with torch.no_grad():
    ...     _ = model[0].bias[3].fill_(-100)
    >>> x = torch.randn(512, 4)
    >>> print(relume.revive(model, relume.census(model, [x]), batches=[x]).units)
    {'1': [3]}
    >>> relume.census(model, [x]).dead
    0
    """
    model = compiled.original(arguments.module(model, "revive"))
    if isinstance(method, Continual):
        if preserve or batches is None or units is not None or options:
            raise ValueError(
                "method=Continual(…) chooses its own units, among them such as fire, so that the function changes: "
                "pass preserve=False and batches=[batch], and neither units= nor options"
            )
        return method.step(model, next(iter([batches] if isinstance(batches, Tensor) else batches)), optimizer)
    if method == "continual":
        raise ValueError(
            "continual replacement keeps ages and utilities between calls: make a relume.treat.revive.Continual() once "
            "and pass it as method=, or call its step"
        )
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; there are: {', '.join(METHODS)}")
    chosen = _chosen(census, units, tau)
    if not any(chosen.values()):
        return Revival(method, preserve, (), notes=("the census has no such units",))
    states = OptimizerStates(model, as_list(optimizer), second_moments)
    checks.check_numbers(model)
    if generator is None:
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
    drawn = generator.get_state()
    edits = Edits()
    done: list[_Done] = []
    left: list[str] = []
    try:
        if batches is not None:
            anatomy = Anatomy(model, batches, axis=axis, input_axis=input_axis)
            checks.check_sites(anatomy, census, chosen)
            if preserve and units in (None, "dead"):
                chosen, left = _silent(anatomy, chosen)
                if not any(chosen.values()):
                    return Revival(method, preserve, (), notes=tuple(left))
            shown: Iterable[tuple[Anatomy, dict[str, list[int]]]] = [(anatomy, chosen)]
        else:
            shown = list(chains.anatomies(model, census, chosen, generator))
        for anatomy, own in shown:
            units_here = [
                unit_of(anatomy, site, n, private=preserve) for site in anatomy.sites if site in own for n in own[site]
            ]
            patient = Patient(anatomy, census, units_here, generator)
            done.append(_treat(patient, own, method, options, preserve, tolerance, states, edits))
    except BaseException:
        edits.undo()
        generator.set_state(drawn)
        raise
    measured = [d for d in done if d.change is not None]
    return Revival(
        method,
        preserve,
        tuple(a for d in done for a in d.acts),
        tuple(o for d in done for o in d.outgoing),
        tuple(dict.fromkeys(r for d in done for r in d.reset)),
        max((d.change or 0.0 for d in measured), default=None),
        max((d.relative or 0.0 for d in measured), default=None),
        (*left, *(n for d in done for n in d.notes)),
        edits,
    )


@dataclass
class _Done:
    acts: tuple[Act, ...]
    outgoing: tuple[Outgoing, ...]
    reset: list[str]
    change: float | None
    relative: float | None
    notes: list[str]


def _treat(
    patient: Patient,
    chosen: Mapping[str, Sequence[int]],
    method: str,
    options: Mapping[str, Any],
    preserve: bool,
    tolerance: float | None,
    states: OptimizerStates,
    edits: Edits,
) -> _Done:
    """Units of one anatomy: find what reads them, write, measure."""
    anatomy = patient.anatomy
    before = anatomy.outputs_now(hold=True)
    checks.check_made(patient)
    if preserve:
        checks.check_constant(anatomy, chosen)
    written = merged({k: v.cpu() for k, v in u.written.items()} for u in patient.units)
    cut = find_cut(anatomy, written, chosen, exclusive=not preserve)
    if preserve and cut.problems:
        raise RelumeError(checks.refusal(cut, [*checks.used_again(patient), *mixers(anatomy, written, chosen)]))
    reset = _write(patient, cut, METHODS[method], options, edits, states)
    change, relative = measure.change(before, anatomy.outputs_now())
    if preserve and not relative <= measure.tolerance(before, tolerance):
        raise RelumeError(
            f"the output would move by {change:.3g} ({relative:.1e} of its size), which is more than rounding: the "
            "units are not constant on these batches, or something reads them that relume did not see. Nothing "
            "was changed. preserve=False revives them all the same"
        )
    after = {} if anatomy.made_up else measure.statistics(anatomy, chosen)
    acts = tuple(
        Act(
            u.site,
            u.number,
            method,
            tuple(u.written),
            measure.before(patient.census, u),
            after.get((u.site, u.number), {}),
            u.note,
        )
        for u in patient.units
    )
    notes = [] if preserve else [f"not kept: {p}" for p in cut.problems]
    if anatomy.made_up:
        return _Done(
            acts, _outgoing(cut), reset, None, None, [*notes, "kept by structure; no batches to measure it on"]
        )
    return _Done(acts, _outgoing(cut), reset, change, relative, notes)


def _chosen(census: Census | None, units: Any, tau: float) -> dict[str, list[int]]:
    if units is None or isinstance(units, str):
        if units not in (None, "dead", "dormant"):
            raise ValueError(f"units is 'dead', 'dormant' or a dict from site names to unit numbers, not {units!r}")
        if not isinstance(census, Census):
            raise TypeError(f"relume.revive takes a Census, not {type(census).__name__}; or units= as a dict")
        masks = {s.name: s.dormant(tau) if units == "dormant" else s.dead for s in census.sites if s.reached}
        return {name: mask.nonzero().flatten().tolist() for name, mask in masks.items() if mask.any()}
    chosen = {}
    for name, given in units.items():
        t = torch.as_tensor(given)
        numbers = t.nonzero().flatten().tolist() if t.dtype == torch.bool else [int(i) for i in t.flatten().tolist()]
        if census is not None:
            name = census[name].name
        chosen[name] = sorted(set(numbers))
    return {k: v for k, v in chosen.items() if v}


def _silent(anatomy: Anatomy, chosen: Mapping[str, list[int]]) -> tuple[dict[str, list[int]], list[str]]:
    """Without the units that fire on these batches: a census of other inputs, or of earlier weights, misses them."""
    kept, left = {}, []
    for name, numbers in chosen.items():
        firing = anatomy.sites[name].firing(numbers)
        kept[name] = [n for n in numbers if n not in firing]
        n = len(firing)
        if n:
            left.append(
                f"{n} of the {len(numbers)} units of '{name}' that the census has as dead fire on these batches; "
                "left alone"
            )
    return kept, left


def _write(
    patient: Patient,
    cut: Cut,
    method: Callable[..., list[Write]],
    options: Mapping[str, Any],
    edits: Edits,
    states: OptimizerStates,
) -> list[str]:
    """Cut the units off, give them new weights site by site, and reset what optimizers remember of these entries."""
    anatomy = patient.anatomy
    parameters = dict(anatomy.owner.named_parameters())
    written: dict[str, list[Tensor]] = {}
    copies: dict[str, dict[int, set[str]]] = {}

    def write(name: str, numbers: Tensor, values: Tensor | float, *, forget: bool = True) -> None:
        parameter = parameters.get(name)
        if parameter is not None:
            if not parameter.requires_grad:
                raise RelumeError(
                    f"'{name}' would be rewritten and is frozen (requires_grad=False): unfreeze it, or leave its units "
                    "out with units=. Nothing was changed"
                )
            states.check(parameter)
            copies.setdefault(name, states.copies(parameter))
            if forget:
                written.setdefault(name, []).append(numbers.cpu())
        edits.write(anatomy.parameter(name), numbers, values)

    for consumer in cut.consumers:
        if consumer.at is not None and consumer.correction is not None:
            bias = anatomy.parameter(consumer.bias)
            was = bias.detach()[torch.unravel_index(consumer.at.to(bias.device), bias.shape)]
            write(consumer.bias, consumer.at, was + consumer.correction.to(was), forget=False)
        write(consumer.parameter, consumer.zeroed, 0.0)
    # In the order of the forward pass: what a site is given depends on the sites before it.
    for site in dict.fromkeys(u.site for u in patient.units):
        own = replace(patient, units=[u for u in patient.units if u.site == site])
        names: set[str] = set()
        for w in method(own, **options):
            write(w.name, w.numbers, w.values)
            names.add(w.name)
        running_statistics(own, edits, rewritten=any(not names.isdisjoint(u.weights) for u in own.units))
    for unit in patient.units:
        for name, numbers in unit.written.items():
            if name in parameters and parameters[name].requires_grad and states.holds(parameters[name]):
                written.setdefault(name, []).append(numbers.cpu())
    done: list[str] = []
    for name, parts in written.items():
        done += states.reset(edits, parameters[name], torch.unique(torch.cat(parts)), copies.get(name))
    return list(dict.fromkeys(done))


def _outgoing(cut: Cut) -> tuple[Outgoing, ...]:
    return tuple(
        Outgoing(
            c.parameter,
            c.zeroed.numel(),
            c.bias,
            float(c.correction.abs().max()) if c.correction is not None else 0.0,
        )
        for c in cut.consumers
    )
