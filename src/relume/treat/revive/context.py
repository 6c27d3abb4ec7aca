"""`Patient`: the units that are to be revived, with all that a method may ask about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from relume.census import Census
from relume.treat.surgery.anatomy import Anatomy, Made, Numbers


@dataclass
class Unit:
    """One unit: entries of the weights and biases that make it, and of the norms on the way.

    Attributes:
        scale, shift: entry (name, number) of the last norm's scale and shift; None where there is none.
        statistics: entries of running mean and variance of all norms on the way.
        note: what is particular about it.
    """

    site: str
    number: int
    made: Made
    weights: Numbers
    biases: Numbers
    scales: list[tuple[str, int]] = field(default_factory=list)
    shifts: list[tuple[str, int]] = field(default_factory=list)
    statistics: list[tuple[str, int]] = field(default_factory=list)
    note: str = ""

    @property
    def written(self) -> Numbers:
        """All entries that a method may write."""
        found = {**self.weights}
        for name, numbers in self.biases.items():
            found[name] = torch.cat([found[name], numbers]) if name in found else numbers
        for name, number in (*self.scales, *self.shifts, *self.statistics):
            one = torch.tensor([number])
            found[name] = torch.cat([found[name].cpu(), one]) if name in found else one
        return found


@dataclass(frozen=True)
class Write:
    """New values of some entries of a parameter or buffer."""

    name: str
    numbers: Tensor
    values: Tensor


@dataclass
class Patient:
    """What a method works on.

    Attributes:
        anatomy: of the model.
        census: where there is one.
        units: to revive.
        generator: of all that is drawn.
    """

    anatomy: Anatomy
    census: Census | None
    units: list[Unit]
    generator: torch.Generator

    @property
    def data_known(self) -> bool:
        """Are the anatomy's batches data, not made up to show the structure?"""
        return not self.anatomy.made_up

    def of(self, name: str, numbers: Tensor) -> Tensor:
        """The present values of entries, float64 on the CPU."""
        flat = self.anatomy.parameter(name).detach()
        return flat[torch.unravel_index(numbers.to(flat.device), flat.shape)].double().cpu()


def unit_of(anatomy: Anatomy, site: str, number: int, *, private: bool) -> Unit:
    """The entries that make a unit.

    Args:
        anatomy: of the model.
        site, number: which unit.
        private: only entries that make no other: behind a norm that mixes units (LayerNorm, GroupNorm), the norm's own.
    """
    made = anatomy.sites[site].made[number]
    weights, biases, _ = anatomy.rows(made)
    norms = [anatomy.trace.norms[call] for call, _ in made.norms]
    mixing = max((i for i, norm in enumerate(norms) if norm.mixes), default=None)
    unit = Unit(site, number, made, weights, biases)
    if private and mixing is not None:
        own = norms[mixing].weight or norms[mixing].bias
        unit.note = (
            f"'{norms[mixing].where}' mixes the units before it, so that only what comes from there on is written"
        )
        unit.weights, unit.biases = {}, {}
        if own is None and mixing == len(norms) - 1:
            return unit
    for i, (norm, (_, entry)) in enumerate(zip(norms, made.norms, strict=True)):
        if private and mixing is not None and i < mixing:
            continue
        if norm.weight is not None:
            unit.scales.append((norm.weight.name, entry))
        if norm.bias is not None:
            unit.shifts.append((norm.bias.name, entry))
        unit.statistics += [(a.name, entry) for a in (norm.mean, norm.var) if a is not None]
    return unit
