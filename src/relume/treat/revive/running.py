"""Running statistics of batch norms on the way of revived units, as the new weights make them on the batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relume.treat.revive.context import Patient
from relume.treat.surgery import Edits
from relume.treat.surgery.anatomy import Anatomy
from relume.treat.surgery.trace import Norm, Trace


def running_statistics(patient: Patient, edits: Edits, *, rewritten: bool) -> None:
    """Write mean and variance over all batches of channels that make or read the units.

    Behind a dead unit they are those of its constant: left, they would blow its new values up in evaluation. Where the
    batches are made up, mean 0 and variance 1 are written instead, before the units.

    Args:
        patient: the units.
        edits: to write by.
        rewritten: have the units' weights changed? If not, what is before them has not either.
    """
    if patient.anatomy.made_up:
        for unit in patient.units:
            for name, number in unit.statistics if rewritten else ():
                start = 1.0 if name.endswith("var") else 0.0
                edits.write(patient.anatomy.parameter(name), torch.tensor([number]), start)
        return
    calls: dict[int, set[int]] = {}
    for unit in patient.units:
        for call, entry in unit.made.norms if rewritten else ():
            calls.setdefault(call, set()).add(entry)
    for site in {u.site for u in patient.units}:
        mine = {u.number for u in patient.units if u.site == site}
        for call, entries, units in patient.anatomy.norms_after(site):
            found = {e for e, u in zip(entries.tolist(), units.tolist(), strict=True) if u in mine}
            calls.setdefault(call, set()).update(found)
    norms = patient.anatomy.trace.norms
    calls = {c: e for c, e in calls.items() if e and norms[c].mean is not None and norms[c].var is not None}
    if not calls:
        return
    chosen = {call: torch.tensor(sorted(entries)) for call, entries in calls.items()}
    taken: dict[int, _Sums] = {}
    for batch in range(len(patient.anatomy.calls)):
        patient.anatomy.run(batch, _Taking(patient.anatomy, chosen, taken))
    for call, sums in taken.items():  # afterwards, as a run puts back the buffers that it finds changed
        norm = patient.anatomy.trace.norms[call]
        assert norm.mean is not None
        assert norm.var is not None
        edits.write(patient.anatomy.parameter(norm.mean.name), sums.numbers, sums.mean)
        edits.write(patient.anatomy.parameter(norm.var.name), sums.numbers, sums.var)


@dataclass
class _Sums:
    """Of chosen channels over samples, float64."""

    numbers: Tensor
    n: float
    total: Tensor
    squares: Tensor

    @property
    def mean(self) -> Tensor:
        return self.total / self.n

    @property
    def var(self) -> Tensor:
        """Unbiased, as torch keeps it."""
        return (self.squares / self.n - self.mean.square()).clamp(min=0) * self.n / max(self.n - 1, 1)


class _Taking(Trace):
    def __init__(self, anatomy: Anatomy, chosen: dict[int, Tensor], taken: dict[int, _Sums]) -> None:
        super().__init__(anatomy.aliases, str)
        self.chosen, self.taken = chosen, taken

    def before_norm(self, norm: Norm, x: Tensor) -> None:
        entries = self.chosen.get(norm.number)
        if entries is None:
            return
        own = norm.weight or norm.bias or norm.mean
        numbers = own.index.flatten().cpu() if own is not None else torch.arange(norm.channels)
        at = torch.isin(numbers, entries)
        values = norm.per_channel(x.detach())[at.to(x.device)].double().cpu()
        was = self.taken.get(norm.number)
        sums = _Sums(numbers[at], values.shape[1], values.sum(1), values.square().sum(1))
        if was is not None:
            sums = _Sums(sums.numbers, was.n + sums.n, was.total + sums.total, was.squares + sums.squares)
        self.taken[norm.number] = sums
