"""`Census`: every site of a model over one span, to look up, print and hand on as data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.table import Table

from relume.census.site_census import DORMANT_TAU, NUMBERS, SiteCensus
from relume.census.table import plain_text, table
from relume.errors import CensusMismatchError, missing_extra

if TYPE_CHECKING:
    import pandas as pd

Phase = Literal["train", "eval"]


@dataclass(frozen=True, repr=False)
class Census(Mapping[str, SiteCensus]):
    """Every site of a model over one span: a mapping from site name to `SiteCensus`, in forward order.

    A name may also be the alias with the activation's name (":relu" for a clamp).

    Attributes:
        sites: the members.
        phase: "train" or "eval".
        first_step, last_step: the span, in optimizer steps made before it; None for a one-off census.
        complete: False for a window still in progress or cut short.
        notes: what could not be counted, and why.
        model: class name of the model.
    """

    sites: tuple[SiteCensus, ...]
    phase: Phase = "eval"
    first_step: int | None = None
    last_step: int | None = None
    complete: bool = True
    notes: tuple[str, ...] = ()
    model: str = ""
    _index: dict[str, SiteCensus] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        aliases: dict[str, list[SiteCensus]] = {}
        for member in self.sites:
            aliases.setdefault(member.site.alias, []).append(member)
        index = {alias: members[0] for alias, members in aliases.items() if len(members) == 1}
        index.update((member.name, member) for member in self.sites)
        object.__setattr__(self, "_index", index)

    def __getitem__(self, name: str) -> SiteCensus:
        try:
            return self._index[name]
        except KeyError:
            known = ", ".join(m.name for m in self.sites[:20]) or "none"
            more = f" and {len(self.sites) - 20} more" if len(self.sites) > 20 else ""
            raise CensusKeyError(f"there is no site {name!r} in this census; sites: {known}{more}") from None

    def __iter__(self) -> Iterator[str]:
        return (member.name for member in self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def units(self) -> int:
        """Units of all sites."""
        return sum(m.units for m in self.sites)

    @property
    def dead(self) -> int:
        """Dead units of all sites."""
        return sum(int(m.dead.sum()) for m in self.sites)

    @property
    def unknown(self) -> int:
        """Units that saw too few inputs to be judged."""
        return sum(int(m.unknown.sum()) for m in self.sites)

    @property
    def dead_fraction(self) -> float:
        """Dead units among those judged (neither unknown nor non-finite), over all sites; NaN when there are none."""
        judged = self.units - self.unknown - sum(m.tally()["non-finite"] for m in self.sites)
        return self.dead / judged if judged else math.nan

    @property
    def inputs(self) -> int:
        """Inputs seen, by the site that saw most."""
        return max((m.inputs for m in self.sites), default=0)

    @property
    def silent_sites(self) -> tuple[str, ...]:
        """Sites all of whose units are dead: the signal is cut there."""
        return tuple(m.name for m in self.sites if m.silent)

    def dormant(self, tau: float = DORMANT_TAU) -> float:
        """Share of units with score ≤ tau among those that have a score, over all sites; NaN when none has.

        Args:
            tau: threshold of Sokar et al. 2023.

        Raises:
            ValueError: tau is negative or NaN.
        """
        dormant = sum(int(m.dormant(tau).sum()) for m in self.sites)
        scored = sum(int((~m.score().isnan()).sum()) for m in self.sites)
        return dormant / scored if scored else math.nan

    def check_matches(self, model: torch.nn.Module) -> None:
        """Check that every site's module exists in a model: used with another, a census would name the wrong units.

        Args:
            model: the one that this census is about to be used with.

        Raises:
            CensusMismatchError: it lacks a module; names the sites that are without.
        """
        modules = {name for name, _ in model.named_modules()}
        missing = [m.name for m in self.sites if m.site.module not in modules]
        if missing:
            raise CensusMismatchError(
                f"this census is of another model ({self.model or 'unnamed'}): {type(model).__name__} has no module "
                f"for {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "model": self.model,
            "phase": self.phase,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "complete": self.complete,
            "units": self.units,
            "dead": self.dead,
            "unknown": self.unknown,
            "dead_fraction": None if math.isnan(self.dead_fraction) else self.dead_fraction,
            "silent_sites": list(self.silent_sites),
            "notes": list(self.notes),
            "sites": {m.name: m.to_dict() for m in self.sites},
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as JSON text.

        Args:
            indent: spaces per level; None writes one line.
        """
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def to_pandas(self) -> pd.DataFrame:
        """One row per unit: site, unit, state, dead, inputs, death_bound, and every per-unit number of `SiteCensus`.

        Raises:
            MissingExtraError: pandas is not installed (extra "pandas").
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_extra("pandas", "pandas", "to_pandas()") from error
        parts = []
        for m in self.sites:
            columns = {
                "site": m.name,
                "unit": range(m.units),
                "state": m.state,
                "dead": m.dead.numpy(),
                "inputs": m.inputs,
                "death_bound": m.death_bound().numpy(),
                **{n: getattr(m, n).numpy() for n in NUMBERS},
            }
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def __rich__(self) -> Table:
        return table(self)

    def __str__(self) -> str:
        return plain_text(table(self))

    def __repr__(self) -> str:
        return f"Census({len(self.sites)} sites, {self.dead} of {self.units} units dead, {self.phase})"


class CensusKeyError(CensusMismatchError, KeyError):
    """A site name that the census does not hold."""

    def __str__(self) -> str:
        return str(self.args[0])
