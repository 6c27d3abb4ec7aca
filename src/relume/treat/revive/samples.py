"""What the units' pre-activations are on the batches: for each input the highest, and mean and spread over samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relume.sites import Found
from relume.sites.plan import Plan
from relume.treat.surgery.anatomy import Anatomy
from relume.treat.surgery.trace import Trace


@dataclass(frozen=True)
class Samples:
    """Of one site, float64 on the CPU.

    Attributes:
        highest: [inputs, units], over an input's samples.
        mean, std: [units], over all samples.
        typical: median std of the units that vary; 1 where none does.
    """

    highest: Tensor
    mean: Tensor
    std: Tensor
    typical: float


def samples(anatomy: Anatomy, sites: set[str]) -> dict[str, Samples]:
    """Run the batches and gather what the sites' units are given."""
    highest: dict[str, list[Tensor]] = {name: [] for name in sites}
    sums: dict[str, list[Tensor]] = {}

    def look(found: Found, x: Tensor) -> None:
        name = anatomy.site_name(found)
        if name not in sites:
            return
        z = by_input(found.plan, x)
        highest[name].append(z.amax(1).cpu())
        flat = z.flatten(0, 1).cpu()
        part = [torch.tensor(float(len(flat))), flat.sum(0), flat.square().sum(0)]
        held = sums.get(name)
        sums[name] = part if held is None else [a + b for a, b in zip(held, part, strict=True)]

    for batch in range(len(anatomy.calls)):
        anatomy.run(batch, Trace(anatomy.aliases, str), look)
    found = {}
    for name in sites:
        n, total, squares = sums[name]
        mean = total / n
        std = (squares / n - mean.square()).clamp(min=0).sqrt()
        # What rounding leaves of a constant is no spread.
        std = torch.where(std <= 1e-6 * mean.abs(), 0.0, std)
        varying = std[std > 0]
        found[name] = Samples(torch.cat(highest[name]), mean, std, float(varying.median()) if len(varying) else 1.0)
    return found


def by_input(plan: Plan, x: Tensor) -> Tensor:
    """A site's tensor as [inputs, samples of each, units], float64."""
    view = x.detach().double().reshape(plan.shape if plan.shape is not None else x.shape)
    inputs = plan.inputs if plan.inputs else plan.others
    others = plan.others if plan.inputs else ()
    flat = view.permute(*inputs, *others, *plan.units)
    n = 1
    for i in inputs:
        n *= view.shape[i]
    return flat.reshape(n, -1, plan.n_units)
