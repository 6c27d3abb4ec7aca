"""What stands in the way of a revival, said before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from torch import nn
from torch.nn.parameter import is_lazy

from relume.census import Census
from relume.errors import CensusMismatchError, NoSitesError, RelumeError
from relume.treat.revive.context import Patient
from relume.treat.surgery import Anatomy, Cut


def check_sites(anatomy: Anatomy, census: Census | None, chosen: Mapping[str, Sequence[int]]) -> None:
    kind = type(anatomy.model).__name__
    if not anatomy.sites:
        raise NoSitesError(f"{kind} applied no activation that relume knows")
    for name, numbers in chosen.items():
        seen = anatomy.sites.get(name)
        if seen is None:
            known = ", ".join(list(anatomy.sites)[:20])
            raise CensusMismatchError(
                f"this {kind} has no site '{name}'; it has: {known}. Is the census of this model?"
            )
        if census is not None and census[name].units != seen.site.units:
            raise CensusMismatchError(
                f"site '{name}' has {seen.site.units} units in this {kind} and {census[name].units} in the census, "
                "which is of another model"
            )
        wrong = [n for n in numbers if not 0 <= n < seen.site.units]
        if wrong:
            raise ValueError(f"site '{name}' has units 0 to {seen.site.units - 1}; {wrong[0]} is none")


def check_numbers(model: nn.Module) -> None:
    """Raise unless the model's tensors hold finite numbers, all of them in this process."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise RelumeError(f"'{name}' holds no numbers yet (lazy, or on the meta device): run the model first")
        if any(cls.__name__ == "DTensor" for cls in type(tensor).__mro__):
            raise RelumeError(
                f"'{name}' is a DTensor, of which this process holds a part: relume.revive can't write single units of "
                "sharded models (FSDP2, tensor parallel). Revive the whole model from a checkpoint"
            )
    tensors = chain(model.named_parameters(), model.named_buffers())
    bad = [n for n, t in tensors if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise RelumeError(
            f"'{bad[0]}' holds numbers that are not finite ({len(bad)} such tensors): the model has diverged, which no "
            "revival mends. Go back to a checkpoint"
        )


def check_made(patient: Patient) -> None:
    for unit in patient.units:
        if unit.weights or unit.scales or unit.shifts:
            continue
        if unit.note:
            raise RelumeError(
                f"unit {unit.number} of '{unit.site}' can't be rewritten with the function kept: {unit.note}, and that "
                "is nothing. Leave it out with units=, or pass preserve=False"
            )
        site = patient.anatomy.sites[unit.site].site
        producers = ", ".join(site.producers) or "unknown"
        raise RelumeError(
            f"unit {unit.number} of '{unit.site}' can't be rewritten: its incoming weights (of {producers}) could not "
            "be followed to entries of a parameter. They may be computed (parametrized, weight norm, LoRA merged on "
            "the fly), or inside a fused kernel"
        )


def check_constant(anatomy: Anatomy, chosen: Mapping[str, Sequence[int]]) -> None:
    for name, numbers in chosen.items():
        firing = anatomy.sites[name].firing(numbers)
        if firing and not anatomy.made_up:
            raise RelumeError(
                f"unit {firing[0]} of '{name}' says different things for different inputs of these batches, so that "
                "the function can't be kept without it (dormant units of a threshold above 0 are such). Nothing was "
                "changed. Leave it out with units=, or pass preserve=False"
            )


def used_again(patient: Patient) -> list[str]:
    """Other calls than those that make the units, of the same weights."""
    own = {call for u in patient.units for call, _ in u.made.rows}
    weights = {name for u in patient.units for name in u.weights}
    again = [p for n, p in patient.anatomy.trace.products.items() if p.weight.name in weights and n not in own]
    return [f"'{p.weight.name}' is used again{f' in {p.where!r}' if p.where else ''} (tied or reused)" for p in again]


def refusal(cut: Cut, mixing: Sequence[str]) -> str:
    shown = "; ".join(cut.problems[:4]) + (f"; and {len(cut.problems) - 4} more" if len(cut.problems) > 4 else "")
    on_the_way = f". On the way, {'; '.join(mixing[:4])}" if mixing else ""
    return (
        f"the units can't be revived with the function kept: {shown}{on_the_way}. Nothing was changed. Leave those "
        "units out with units=, or pass preserve=False"
    )
