"""`Continual`: units of least use replaced a few at a time, all through training (continual backpropagation).

Dohare, Hernandez-Garcia, Lan, Rahman, Mahmood and Sutton 2024 (Nature 632, arXiv 2306.13812). As published: the utility
of a unit is a running mean of |output| · Σ |outgoing weights|; after each step a fraction of those units that are
mature, the least useful by bias-corrected utility, is replaced: incoming weights drawn anew, outgoing weights 0, what
they contributed on average moved into the bias of the layer that reads them, age and utility 0. Deviations: the mean
contribution is that of the batch given, not a running mean; outputs are those in evaluation; the optimizer's moments of
these entries are reset (the paper resets Adam's too); counts of steps stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relume.treat.surgery import Anatomy
from relume.treat.surgery.optimizers import known_start
from relume.watch import arguments

if TYPE_CHECKING:
    from relume.treat.revive.revival import Revival


class Continual:
    """Keeps the age and utility of every unit from call to call.

    Args:
        rate: fraction of mature units replaced in each step. The paper uses 1e-6 to 1e-4.
        maturity: steps for which a new unit is left alone. The paper uses 100 to 10,000.
        decay: of the running mean of the utility.
        adapt: divide the utility by Σ |incoming weights|: a unit that learns fast is worth more (arXiv version).
        second_moments: as for `relume.revive`, but "zero" unless said otherwise: the paper's are, and here new units
            are to learn fast (on permuted digits, 59.8 against 47.8 % right on late tasks).
        seed: of what is drawn.

    >>> import torch, relume
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> continual = Continual(rate=0.05, maturity=2)
    >>> sum(len(continual.step(model, torch.randn(32, 4))) for _ in range(9))
    2
    """

    def __init__(
        self,
        rate: float = 1e-4,
        maturity: int = 100,
        decay: float = 0.99,
        *,
        adapt: bool = False,
        second_moments: str = "zero",
        seed: int = 0,
    ) -> None:
        self.rate = arguments.share("rate", rate)
        self.maturity = arguments.positive("maturity", maturity)
        self.decay = arguments.share("decay", decay)
        self.adapt = adapt
        self.second_moments = known_start(second_moments)
        self._generator = torch.Generator().manual_seed(seed)
        self._utility: dict[str, Tensor] = {}
        self._age: dict[str, Tensor] = {}
        self._due: dict[str, float] = {}

    def step(self, model: nn.Module, batch: Any, optimizer: Any = None) -> Revival:
        """Call it after each optimizer step, with the batch of that step.

        Returns:
            Revival of the units replaced; empty in most steps.

        Raises:
            RelumeError: as `relume.revive` with preserve=False.
        """
        from relume.treat.revive.function import revive
        from relume.treat.revive.revival import Revival

        anatomy = Anatomy(model, [batch])
        chosen = {site: units for site in anatomy.sites if (units := self._update(anatomy, site))}
        if not chosen:
            return Revival("continual", False, ())
        revival = revive(
            model,
            None,
            optimizer,
            "redo",
            chosen,
            False,
            [batch],
            generator=self._generator,
            second_moments=self.second_moments,
        )
        for site, units in chosen.items():
            self._utility[site][units] = 0
            self._age[site][units] = 0
        return revival

    def utility(self, site: str) -> Tensor:
        """float64 [units]: bias-corrected; NaN for those of age 0."""
        return self._utility[site] / (1 - self.decay ** self._age[site].double())

    def state_dict(self) -> dict[str, Any]:
        """What is kept between calls, ready for torch.save."""
        return {
            "utility": {k: v.clone() for k, v in self._utility.items()},
            "age": {k: v.clone() for k, v in self._age.items()},
            "due": dict(self._due),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._utility = {k: v.clone() for k, v in state["utility"].items()}
        self._age = {k: v.clone() for k, v in state["age"].items()}
        self._due = dict(state["due"])
        self._generator.set_state(state["generator"])

    def _update(self, anatomy: Anatomy, site: str) -> list[int]:
        """Take this batch into account, and say which units of the site are to be replaced."""
        seen = anatomy.sites[site]
        outgoing, read = _outgoing(anatomy, site)
        if not len(seen.size):
            return []
        use = seen.size * outgoing
        if self.adapt:
            use = use / _incoming(anatomy, site).clamp(min=1e-30)
        utility = self._utility.setdefault(site, torch.zeros_like(use))
        age = self._age.setdefault(site, torch.zeros(len(use), dtype=torch.int64))
        utility.lerp_(use, 1 - self.decay)
        age += 1
        can = torch.tensor([bool(made.rows) for made in seen.made]) & read & (age > self.maturity)
        self._due[site] = self._due.get(site, 0.0) + self.rate * int(can.sum())
        n = min(int(self._due[site]), int(can.sum()))
        if n < 1:
            return []
        self._due[site] -= n
        worth = self.utility(site).masked_fill(~can, torch.inf)
        return sorted(worth.argsort()[:n].tolist())


def _outgoing(anatomy: Anatomy, site: str) -> tuple[Tensor, Tensor]:
    """float64 [units]: Σ |outgoing weights|; and bool: does anything read the unit?"""
    units = len(anatomy.sites[site].made)
    total, read = torch.zeros(units, dtype=torch.float64), torch.zeros(units, dtype=torch.bool)
    for call, columns, numbers in anatomy.columns(site):
        product = anatomy.trace.products[call]
        weight = anatomy.parameter(product.weight.name).detach().reshape(-1)[product.weight.index]
        sums = product.by_column(weight.double().abs()).flatten()[columns]
        total.index_add_(0, numbers.cpu(), sums.cpu())
        read[numbers.cpu()] = True
    return total, read


def _incoming(anatomy: Anatomy, site: str) -> Tensor:
    """float64 [units]: Σ |incoming weights|."""
    found = torch.zeros(len(anatomy.sites[site].made), dtype=torch.float64)
    for unit, made in enumerate(anatomy.sites[site].made):
        for name, numbers in anatomy.rows(made)[0].items():
            found[unit] += float(anatomy.parameter(name).detach().reshape(-1)[numbers].double().abs().sum())
    return found
