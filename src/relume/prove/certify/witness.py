"""The search for inputs of the box on which open units fire, and with it the test of every bound on samples.

First random points, corners and the middle; then, for each unit that has not fired, gradient ascent from the best of
them. A certified unit that fires, or a pre-activation outside of its bounds, ends all with an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from relume.activations import Zone
from relume.errors import RelumeError, UnsupportedOperationError
from relume.prove.certify.passes import Passes
from relume.sites import Found, Plan

_BATCH = 128
_STEPS = 24
_CHECKED = 64  # samples when no witness is asked for


@dataclass
class Claim:
    """What is claimed of a site, and what has been found for it.

    Attributes:
        found: as it was traced.
        lower, upper: float64 [units].
        dead, wanted: bool [units]: certified not to fire; asked for a witness.
        score: how far outside of the flat zone the best sample of a unit was; at most 0: it did not fire.
        best: input with that score, for each unit; the same tensor where it is the same input.
    """

    found: Found
    lower: Tensor
    upper: Tensor
    dead: Tensor
    wanted: Tensor
    score: Tensor
    best: list[Tensor]

    @property
    def fires(self) -> Tensor:
        return self.score > 0


class _Seen(NamedTuple):
    """A site's tensor in one pass: per input and unit, score, least and largest."""

    score: Tensor
    least: Tensor
    largest: Tensor


def scores(x: Tensor, flat: Zone) -> Tensor:
    """How far each value lies outside of the zone: positive exactly where it fires."""
    result = torch.full_like(x, torch.inf)
    for low, high in flat.intervals:
        result = torch.minimum(result, torch.maximum(low - x, x - high))
    return result


def _per_unit(x: Tensor, plan: Plan, found: Found) -> _Seen | None:
    """[inputs, units] of each; None where inputs can't be told apart."""
    if not plan.inputs_known or not plan.inputs:
        return None
    z = x if plan.shape is None else x.reshape(plan.shape)
    order = (*plan.inputs, *plan.units, *plan.others)
    z = z.permute(order).reshape(plan.n_inputs, plan.n_units, -1)
    outside = scores(z, found.activation.flat)
    return _Seen(outside.amax(-1), z.detach().amin(-1), z.detach().amax(-1))


class Search:
    """The search over one box.

    Args:
        passes: of the model.
        lower, upper: the box, of one input's shape, in the model's dtype.
        claims: by site name.
        seed: of the samples.
    """

    def __init__(self, passes: Passes, lower: Tensor, upper: Tensor, claims: dict[str, Claim], seed: int) -> None:
        self.passes, self.lower, self.upper, self.claims = passes, lower, upper, claims
        # On the CPU, so that a device does not change the samples.
        self.generator = torch.Generator().manual_seed(seed)
        self.unseen: set[str] = set()
        self.not_climbed: set[str] = set()

    def samples(self, n: int) -> Tensor:
        """The middle, corners and uniform points of the box, as many of each of the latter."""
        shape = (n, *self.lower.shape)
        share = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        corners = (torch.rand(shape, generator=self.generator) < 0.5).double()
        share[1::2] = corners[1::2]
        share[0] = 0.5
        low, high = self.lower.double().cpu(), self.upper.double().cpu()
        return self.within((low + share * (high - low)).to(self.lower))

    def within(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.lower, self.upper)

    def check(self, n: int = _CHECKED) -> None:
        """Hold all claims against n samples, and remember what fired."""
        for start in range(0, n, _BATCH):
            self._look(self.samples(min(_BATCH, n - start)))

    def independent(self) -> None:
        """See that what the model gives for the middle of the box does not depend on what else is in the batch.

        Raises:
            UnsupportedOperationError: it does.
        """
        x = self.samples(8)
        alone, among = self._pass(x[:1].expand(x.shape).contiguous()), self._pass(x)
        for name in alone.keys() & among.keys():
            for a, b in zip(alone[name], among[name], strict=True):
                apart = (a[0] - b[0]).abs()
                if bool((apart > 1e-3 * (a[0].abs().nan_to_num(0.0, 0.0, 0.0).max() + 1e-6)).any()):
                    raise UnsupportedOperationError(
                        f"site '{name}': what the model gives for an input depends on the others of its batch (the "
                        f"same one alone and among others differs by {float(apart.max()):.3g}), of which a box "
                        "says nothing"
                    )

    def climb(self) -> None:
        """Gradient ascent for each open unit that has not fired."""
        for name, claim in self.claims.items():
            open_units = torch.nonzero(claim.wanted & ~claim.fires).flatten()
            for units in open_units.split(_BATCH) if len(open_units) else ():
                self._climb(name, claim, units)

    def _climb(self, name: str, claim: Claim, units: Tensor) -> None:
        x = torch.stack([claim.best[u] for u in units.tolist()]).to(self.lower)
        size = (self.upper - self.lower).to(x)
        for k in range(_STEPS):
            with self.passes.with_gradients():
                leaf = x.clone().requires_grad_()
                seen = self._pass(leaf.clone())
                if name not in seen:
                    return
                rows = torch.arange(len(units))
                goal = seen[name].score[rows, units.to(leaf.device)].clamp(max=1e30).sum()
                if not goal.requires_grad:
                    return
                try:
                    (slope,) = torch.autograd.grad(goal, leaf, allow_unused=True)
                except RuntimeError:  # an operation of the model has no derivative
                    self.not_climbed.add(name)
                    return
            if slope is None:
                return
            self._note({n: _Seen(*(t.detach() for t in s)) for n, s in seen.items()}, x)
            if bool(claim.fires[units].all()):
                return
            x = self.within(x + torch.sign(slope) * size * 0.5 * 0.85**k)
        self._look(x)

    def _look(self, x: Tensor) -> None:
        self._note(self._pass(x), x)

    def _pass(self, x: Tensor) -> dict[str, _Seen]:
        found: dict[str, _Seen] = {}

        def meter(site: Found, z: Tensor) -> None:
            seen = _per_unit(z, site.plan, site)
            if seen is None or seen.score.shape != (len(x) if self.passes.input_axis == 0 else -1, site.plan.n_units):
                self.unseen.add(site.site.name)
            else:
                found[site.site.name] = seen

        axis = self.passes.input_axis
        self.passes.run(x if axis == 0 else x.movedim(0, axis), meter)
        return found

    def _note(self, seen: dict[str, _Seen], x: Tensor) -> None:
        for name, claim in self.claims.items():
            if name not in seen:
                continue
            score, least, largest = (t.detach().double().cpu() for t in seen[name])
            outside = (least.amin(0) < claim.lower) | (largest.amax(0) > claim.upper)
            fired = claim.dead & (score.amax(0) > 0)
            if bool((outside | fired).any()):
                unit = int(torch.nonzero(outside | fired)[0])
                raise RelumeError(
                    f"site '{name}', unit {unit}: an input of the box gives pre-activations from "
                    f"{float(least[:, unit].min()):.9g} to {float(largest[:, unit].max()):.9g}, outside of the bounds "
                    f"[{float(claim.lower[unit]):.9g}, {float(claim.upper[unit]):.9g}] found for it. Either the "
                    f"model does "
                    "something else with other inputs (a branch, a cache), or relume is wrong; nothing is certified"
                )
            top, at = score.max(0)
            # Once a unit fires, only a much better input takes the first one's place, so that few are held.
            better = (top > claim.score) & ~((claim.score > 0) & (top < 4 * claim.score))
            claim.score = torch.where(better, top, claim.score)
            rows: dict[int, Tensor] = {}
            for unit in torch.nonzero(better).flatten().tolist():
                row = int(at[unit])
                claim.best[unit] = rows.setdefault(row, x[row].detach().cpu().clone())
