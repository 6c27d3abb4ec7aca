"""`Evidence`: which units are taken to be dead, by a census or a certificate, and what they give out on some data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from relume.census import Census
from relume.errors import CensusMismatchError, EmptyCensusError, RelumeError
from relume.sites import Found, Tracker
from relume.sites.flow import tensors_in
from relume.watch.passes import batches_in, call_with

Call = tuple[tuple[Any, ...], dict[str, Any]]
CENSUS, CERTIFICATE = "census", "certificate"
_DRAWN = 256  # points of a certificate's box that are tried where no batches are given


class Calls:
    """Batches as calls of a model, as often as they are asked for; what can be read only once is kept.

    Args:
        model: that is called.
        batches: as `relume.census` takes them.
    """

    def __init__(self, model: nn.Module, batches: Any) -> None:
        self.model = model
        if isinstance(batches, Tensor):
            self.batches: Any = [batches]
        else:
            once = batches_in(batches)
            self.batches = list(once) if once is batches else batches

    def __iter__(self) -> Iterator[Call]:
        for batch in self.batches:
            yield call_with(self.model, batch)

    def first(self) -> Call:
        found = next(iter(self), None)
        if found is None or not any(t.numel() for t in tensors_in(found)):
            raise EmptyCensusError("the batches yielded nothing: compact needs them to prove that nothing changes")
        return found


def inputs_in(call: Call) -> int:
    """How many inputs a call holds: axis 0 of its first tensor."""
    first = next((t for t in tensors_in(call) if t.dim()), None)
    return int(first.shape[0]) if first is not None else 1


def few(call: Call, inputs: int = 2) -> Call:
    """A call with its first inputs only, where every tensor counts them on axis 0; else the call as it is."""
    count = inputs_in(call)
    tensors = list(tensors_in(call))
    if count <= inputs or any(not t.dim() or t.shape[0] != count for t in tensors):
        return call

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[:inputs]
        if type(value) in (tuple, list):
            return type(value)(map(cut, value))
        return {k: cut(v) for k, v in value.items()} if type(value) is dict else copy.copy(value)

    args, kwargs = call
    return cut(args), cut(kwargs)


def points_of(certificate: Any) -> Tensor:
    """Random points of a certificate's box, and of its corners, as one batch of the model's input."""
    lower, upper = (torch.as_tensor(getattr(certificate, name)) for name in ("lower", "upper"))
    lower, upper = torch.broadcast_tensors(lower, upper)
    generator = torch.Generator().manual_seed(0)
    share = torch.rand((_DRAWN, *lower.shape), generator=generator).to(lower)
    share[_DRAWN // 2 :] = share[_DRAWN // 2 :].round()
    points: Tensor = lower + share * (upper - lower)
    return points


@dataclass(frozen=True)
class Evidence:
    """What is claimed of the model's units.

    Attributes:
        kind: "census" or "certificate".
        dead: bool [units] by site.
        values: float64 [units] by site: the constant that a dead unit gives out; NaN: as seen on the data.
        bounds: by site, the largest 95 % death bound of its dead units; of a certificate: 0.
        inputs: that the census saw.
    """

    kind: str
    dead: dict[str, Tensor]
    values: dict[str, Tensor]
    bounds: dict[str, float]
    inputs: int

    @classmethod
    def of(cls, given: Any, sites: dict[str, int], include: tuple[str, ...], exclude: tuple[str, ...]) -> Evidence:
        """From a census or a certificate of the model whose sites have these numbers of units.

        Raises:
            CensusMismatchError: it speaks of another model.
            RelumeError: a census of training mode.
            TypeError: it is neither.
        """
        wanted = [
            n
            for n in sites
            if (not include or any(fnmatchcase(n, p) for p in include)) and not any(fnmatchcase(n, p) for p in exclude)
        ]
        if isinstance(given, Census):
            return cls._of_census(given, sites, wanted)
        if not all(hasattr(given, name) for name in ("__getitem__", "lower", "upper")):
            raise TypeError(f"relume.compact takes a Census or a Certificate, not {type(given).__name__}")
        return cls._of_certificate(given, sites, wanted)

    @classmethod
    def _of_census(cls, census: Census, sites: dict[str, int], wanted: list[str]) -> Evidence:
        if census.phase != "eval":
            raise RelumeError(
                "this census is of training mode, where dropout and batch norm make other units die than in "
                "evaluation, for which a compacted model is proven: take one by relume.census(model, batches)"
            )
        missing = [m.name for m in census.sites if m.reached and _own_name(m.name, sites) is None]
        if missing:
            raise CensusMismatchError(
                f"this census is of another model ({census.model or 'unnamed'}), or of other data: on these batches "
                f"there is no site {', '.join(missing[:5])}; there are: {', '.join(list(sites)[:10]) or 'none'}"
            )
        dead, bounds = {}, {}
        for member in census.sites:
            name = _own_name(member.name, sites)
            if name is None or name not in wanted:
                continue
            if member.units != sites[name]:
                raise CensusMismatchError(
                    f"this census is of another model: '{name}' has {sites[name]} units, in the census {member.units}"
                )
            dead[name] = member.dead
            if bool(member.dead.any()):
                bounds[name] = float(member.death_bound()[member.dead].max())
        nothing = {n: torch.full((sites[n],), math.nan, dtype=torch.float64) for n in dead}
        return cls(CENSUS, dead, nothing, bounds, census.inputs)

    @classmethod
    def _of_certificate(cls, certificate: Any, sites: dict[str, int], wanted: list[str]) -> Evidence:
        dead, values = {}, {}
        for name in wanted:
            try:
                one = certificate[name]
            except KeyError:
                continue
            dead[name], values[name] = torch.as_tensor(one.dead).cpu(), torch.as_tensor(one.value).double().cpu()
            if len(dead[name]) != sites[name]:
                raise CensusMismatchError(
                    f"this certificate is of another model: '{name}' has {sites[name]} units, in the certificate "
                    f"{len(dead[name])}"
                )
        if wanted and not dead:
            raise CensusMismatchError(
                f"this certificate is of another model: it has none of the sites {', '.join(wanted[:5])}"
            )
        return cls(CERTIFICATE, dead, values, {n: 0.0 for n, d in dead.items() if bool(d.any())}, 0)


def _own_name(name: str, sites: Iterable[str]) -> str | None:
    """A site's name in this model, that of a census of its DataParallel wrapper included."""
    known = set(sites)
    return next((n for n in (name, name.removeprefix("module.")) if n in known), None)


@dataclass(frozen=True)
class Outputs:
    """What the units of every site gave out on some data.

    Attributes:
        units: by site.
        low, high: float64 [units] by site.
        inputs: seen.
    """

    units: dict[str, int]
    low: dict[str, Tensor]
    high: dict[str, Tensor]
    inputs: int

    def constants(self, evidence: Evidence) -> tuple[dict[str, Tensor], dict[tuple[str, int], str]]:
        """By site the one value that each dead unit gives out, NaN for all others; and why some dead ones have none."""
        constants: dict[str, Tensor] = {}
        kept: dict[tuple[str, int], str] = {}
        for name, dead in evidence.dead.items():
            if not bool(dead.any()):
                continue
            found = torch.full((self.units[name],), math.nan, dtype=torch.float64)
            for unit in torch.nonzero(dead).flatten().tolist():
                low, high, stated = (float(t[name][unit]) for t in (self.low, self.high, evidence.values))
                if not low <= high:
                    kept[name, unit] = "these batches do not reach it, or make it NaN"
                elif low != high:
                    kept[name, unit] = "its output is not constant on these batches"
                elif math.isnan(stated):
                    found[unit] = low
                elif abs(low - stated) > 1e-5 * max(1.0, abs(stated)):
                    kept[name, unit] = f"its output is {low:g} where the certificate says {stated:g}"
                else:
                    found[unit] = stated
            constants[name] = found
        return constants, kept


def outputs(model: nn.Module, calls: Iterable[Call]) -> Outputs:
    """Run the model, and see the lowest and the highest output of every unit. The model's mode is as it is."""
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    units: dict[str, int] = {}

    def meter(found: Found, x: Tensor) -> Any:
        name, plan = found.site.name, found.plan
        units[name] = plan.n_units

        def finish(out: Tensor) -> None:
            rows = out.detach().reshape(plan.shape or tuple(out.shape))
            rest = [a for a in range(rows.dim()) if a not in plan.units]
            rows = rows.permute(*plan.units, *rest).reshape(plan.n_units, -1)
            least, most = rows.amin(1).double().cpu(), rows.amax(1).double().cpu()
            low[name] = torch.minimum(low[name], least) if name in low else least
            high[name] = torch.maximum(high[name], most) if name in high else most

        return finish

    tracker, inputs = Tracker(model, meter, keep_fast_path=False), 0
    for call in calls:
        inputs += inputs_in(call)
        while True:
            handle = model.register_forward_pre_hook(lambda _, a, k: tracker.begin(a, k), with_kwargs=True)
            result = None
            try:
                result = model(*call[0], **call[1])
            finally:
                handle.remove()
                tracker.end(result)
            if not tracker.restarted:
                break
            for seen in (low, high, units):
                seen.clear()
            tracker.forget()
    missing = {n: torch.full((c,), math.nan, dtype=torch.float64) for n, c in units.items() if n not in low}
    return Outputs(units, low | missing, high | missing, inputs)
