"""What several ranks counted, as one: `add_up` for counts of the same span, `Agreement` for the sites they speak of.

Nothing here knows of processes; `sync` hands in how a tensor is reduced over them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relume.census import Counts
from relume.census.counts import MOST_IN_32_BITS
from relume.sites import Site

# What `add_up` reduces for each unit: five sums, four maxima, a sum of squares, of eight bytes each.
BYTES_PER_UNIT = 80
# Units that are added up at once, of more than one site: what that takes of memory.
_AT_ONCE = 2**20


def add_up(
    own: Mapping[str, Counts], sites: Sequence[Site], all_reduce: Callable[[Tensor, bool], None]
) -> dict[str, Counts]:
    """Counts of all ranks over the same span together; moments as by Chan et al. 1979.

    Args:
        own: this rank's, by agreed name.
        sites: all agreed sites, the same on every rank.
        all_reduce: called with a float64 tensor, to be replaced by the sum over ranks, or by the maximum if True.

    Returns:
        Counts by name, the same bits on every rank; sites that no rank reached are left out.
    """
    result: dict[str, Counts] = {}
    for some in _batches(sites):
        result |= _add_up(own, some, all_reduce)
    return result


def _batches(sites: Sequence[Site]) -> Iterator[list[Site]]:
    """At least one, as all ranks must make the same calls whatever they have."""
    batch: list[Site] = []
    for site in sites:
        if batch and sum(s.units for s in batch) + site.units > _AT_ONCE:
            yield batch
            batch = []
        batch.append(site)
    yield batch


def _add_up(
    own: Mapping[str, Counts], sites: Sequence[Site], all_reduce: Callable[[Tensor, bool], None]
) -> dict[str, Counts]:
    parts, units = [], 0
    for site in sites:
        parts.append(slice(units, units + site.units))
        units += site.units
    sums = torch.zeros(5 * units + 2 * len(sites), dtype=torch.float64)
    totals, sizes = sums[: 5 * units].view(5, units), sums[5 * units :].view(2, len(sites))
    extremes = torch.full((4, units), -torch.inf, dtype=torch.float64)
    for i, (site, part) in enumerate(zip(sites, parts, strict=True)):
        c = own.get(site.name)
        if c is not None:
            fired = c.kept("last_fired") >= 0
            rows = [c.kept(name) for name in ("fired", "samples_fired", "nonfinite", "output")]
            for total, row in zip(totals[:, part], (*rows, c.finite * c.mean), strict=True):
                total.copy_(row)
            sizes[0, i], sizes[1, i] = c.inputs, c.samples
            for most, row in zip(extremes[:2, part], (c.kept("max"), -c.kept("min")), strict=True):
                most.copy_(row)
            for step, row in zip(extremes[2:, part], (-c.kept("first_fired"), c.kept("last_fired")), strict=True):
                step.copy_(row).masked_fill_(~fired, -torch.inf)
    all_reduce(sums, False)
    all_reduce(extremes, True)
    finite = torch.cat([sizes[1, i] - totals[2, part] for i, part in enumerate(parts)]) if parts else totals[0]
    mean = totals[4] / finite.clamp(min=1)
    squares = torch.zeros(units, dtype=torch.float64)
    for site, part in zip(sites, parts, strict=True):
        c = own.get(site.name)
        if c is not None:
            squares[part] = c.m2 + c.finite * (c.mean - mean[part]).square()
    all_reduce(squares, False)
    never = extremes[3] < 0
    first, last = (row.masked_fill(never, -1) for row in (-extremes[2], extremes[3]))
    fired, samples_fired, nonfinite, first, last = (_whole(row) for row in (*totals[:3], first, last))
    return {
        site.name: Counts(
            inputs=int(sizes[0, i]),
            samples=int(sizes[1, i]),
            fired=fired[part].clone(),
            samples_fired=samples_fired[part].clone(),
            mean=mean[part].clone(),
            m2=squares[part].clone(),
            max=extremes[0, part].clone(),
            min=-extremes[1, part],
            output=totals[3, part].clone(),
            nonfinite=nonfinite[part].clone(),
            first_fired=first[part].clone(),
            last_fired=last[part].clone(),
        )
        for i, (site, part) in enumerate(zip(sites, parts, strict=True))
        if sizes[1, i] > 0
    }


def _whole(row: Tensor) -> Tensor:
    return row.int() if not len(row) or float(row.max()) <= MOST_IN_32_BITS else row.long()


class Agreement:
    """The union of the sites of all ranks.

    Ranks may find sites in another order, and sites of one place are numbered in the order of first sight ("relu",
    "relu#1"): the same name may be another site elsewhere. So sites are matched by what they are, too.
    """

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self._alike: dict[tuple[Any, ...], list[str]] = {}

    def learn(self, sites: Iterable[Site]) -> dict[str, str]:
        """Take in one rank's list; returns the agreed name of each name in it."""
        names: dict[str, str] = {}
        taken: set[str] = set()
        for site in sites:
            alike = self._alike.setdefault(_kind(site), [])
            free = [name for name in alike if name not in taken]
            if free:
                name = site.name if site.name in free else free[0]
                known = self.sites[name]
                self.sites[name] = known.with_consumers(tuple(dict.fromkeys([*known.consumers, *site.consumers])))
            else:
                name = self._unused(site.name)
                number = name[len(_family(name)) :]
                alias = site.alias if name == site.name else _family(site.alias) + number
                self.sites[name] = replace(site, name=name, alias=alias)
                alike.append(name)
            names[site.name] = name
            taken.add(name)
        return names

    def _unused(self, name: str) -> str:
        number, unused = 0, name
        while unused in self.sites:
            number += 1
            unused = f"{_family(name)}#{number}"
        return unused


def _family(name: str) -> str:
    return re.sub(r"#\d+$", "", name)


def _kind(site: Site) -> tuple[Any, ...]:
    """What is the same of one site on all ranks, its number apart."""
    return _family(site.name), site.activation, site.formula, site.units, site.producers
