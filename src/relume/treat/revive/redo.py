"""`redo`: incoming weights drawn anew (ReDo; Sokar, Agarwal, Castro and Evci 2023, arXiv 2302.12902).

As in the reference code (google/dopamine, labs/redo/weight_recyclers.py): bias 0, outgoing weights 0, first moments of
these entries 0, step counts kept. The code has second moments at 0 too; ours begin at those of other entries (see
`surgery/optimizers.py`). It draws Glorot-uniform; here the layer's own initializer is the default, as the paper says
("the original weight distribution"), and `init="xavier"` is the code's. The paper's networks have no batch norm: here
scale and shift of the units' channels go back to 1 and 0, without which no weight could revive a unit whose shift has
sunk below its scale, and the running statistics of those channels are taken from the batches.
"""

from __future__ import annotations

import torch

from relume.treat.revive.context import Patient, Write
from relume.treat.revive.draws import fresh
from relume.treat.revive.recentre import recentred
from relume.treat.surgery.anatomy import merged


def redo(patient: Patient, *, init: str = "own") -> list[Write]:
    """New values of all entries that make the units.

    Args:
        patient: the units.
        init: "own", "xavier" or "he"; see `draws.fresh`.
    """
    model = patient.anatomy.owner
    writes = []
    weights = merged(u.weights for u in patient.units)
    fan_in = {name: n.numel() for u in patient.units for name, n in u.weights.items()}
    for name in sorted(weights):
        numbers = weights[name].cpu()
        value = fresh(model, name, patient.generator, init=init, fan_in=fan_in[name])
        writes.append(Write(name, numbers, value[torch.unravel_index(numbers, value.shape)]))
    for name, numbers in merged(u.biases for u in patient.units).items():
        writes.append(Write(name, numbers, torch.zeros(numbers.numel())))
    writes += norms_as_new(patient)
    # Where the weights can't be rewritten, as a norm mixes the units, the norm's shift alone lets a unit fire.
    bound = [u for u in patient.units if not u.weights and u.shifts and patient.data_known]
    own = {
        name: {n for u in bound for s, n in u.shifts[-1:] if s == name}
        for name in {s for u in bound for s, _ in u.shifts}
    }
    return [*_without(writes, own), *recentred(patient, bound, 0.5)] if bound else writes


def _without(writes: list[Write], entries: dict[str, set[int]]) -> list[Write]:
    kept = []
    for w in writes:
        keep = torch.tensor([int(n) not in entries.get(w.name, ()) for n in w.numbers], dtype=torch.bool)
        kept.append(Write(w.name, w.numbers[keep], w.values[keep]))
    return kept


def norms_as_new(patient: Patient) -> list[Write]:
    """Scale 1 and shift 0 for the units' channels."""
    writes = []
    for attribute, start in (("scales", 1.0), ("shifts", 0.0)):
        entries = {entry for u in patient.units for entry in getattr(u, attribute)}
        for name in sorted({name for name, _ in entries}):
            numbers = torch.tensor(sorted(i for n, i in entries if n == name))
            writes.append(Write(name, numbers, torch.full((numbers.numel(),), start)))
    return writes
