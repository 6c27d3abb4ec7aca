"""`Census` and `SiteCensus`: who is dead, saturated, linear or dormant, and how sure that is.

Both are derived from `Counts` alone; nothing here touches a model.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from relume.census.bounds import never_fired_bound
from relume.census.counts import Counts
from relume.errors import CensusMismatchError, missing_extra
from relume.sites import Site

if TYPE_CHECKING:
    import pandas as pd

Phase = Literal["train", "eval"]

#: One label per unit, in the order in which they are decided.
STATES = ("non-finite", "unknown", "dead", "stuck-at-top", "saturated", "linear", "alive")
(NONFINITE, UNKNOWN, DEAD, STUCK, SATURATED, LINEAR, ALIVE) = range(len(STATES))
DORMANT_TAU = 0.025


@dataclass(frozen=True)
class SiteCensus:
    """The census of one site. Per-unit results are CPU tensors of shape [units].

    Attributes:
        site: what and where it is.
        counts: what was counted.
        min_inputs: below it, a unit that never fired is unknown rather than dead.
    """

    site: Site
    counts: Counts
    min_inputs: int

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def units(self) -> int:
        return self.site.units

    @property
    def inputs(self) -> int:
        """Inputs seen. One that was seen twice counts twice."""
        return self.counts.inputs

    @property
    def samples(self) -> int:
        """Samples seen per unit: positions or tokens of all inputs."""
        return self.counts.samples

    @property
    def reached(self) -> bool:
        """Did any forward pass come here?"""
        return self.counts.samples > 0

    @property
    def fired(self) -> Tensor:
        """int64: on how many inputs each unit fired."""
        return self.counts.fired

    @property
    def firing_rate(self) -> Tensor:
        """float64: share of inputs on which each unit fired; NaN when none was seen."""
        return self.counts.fired.double() / (self.counts.inputs or math.nan)

    @property
    def mean(self) -> Tensor:
        """float64: mean pre-activation over finite samples; NaN when there were none."""
        return torch.where(self.counts.finite > 0, self.counts.mean, math.nan)

    @property
    def std(self) -> Tensor:
        """float64: standard deviation (population) of the pre-activation; NaN when nothing was seen."""
        n = self.counts.finite.double()
        return torch.where(n > 0, (self.counts.m2 / n.clamp(min=1)).sqrt(), math.nan)

    @property
    def min(self) -> Tensor:
        """float64: smallest finite pre-activation; NaN when nothing was seen."""
        return torch.where(self.counts.finite > 0, self.counts.min, math.nan)

    @property
    def max(self) -> Tensor:
        """float64: largest finite pre-activation; NaN when nothing was seen."""
        return torch.where(self.counts.finite > 0, self.counts.max, math.nan)

    @property
    def mean_output(self) -> Tensor:
        """float64: mean |output| over samples; NaN when nothing was seen."""
        return self.counts.output / (self.counts.samples or math.nan)

    @property
    def nonfinite(self) -> Tensor:
        """int64: samples whose pre-activation was NaN or infinite."""
        return self.counts.nonfinite

    @functools.cached_property
    def _codes(self) -> Tensor:
        """uint8: index into STATES."""
        c, zones = self.counts, self.site.zones
        never = (c.fired == 0) & self.site.can_die
        seen = torch.tensor(c.samples > 0)
        enough = torch.tensor(c.inputs >= self.min_inputs)
        codes = torch.full((self.units,), ALIVE, dtype=torch.uint8)
        codes[zones.linear.covers(c.min, c.max) & seen & enough] = LINEAR
        codes[self._saturated_samples & seen & enough] = SATURATED
        codes[never & enough] = DEAD
        if zones.top is not None:
            codes[never & enough & (c.min >= zones.top)] = STUCK
        codes[never & ~enough] = UNKNOWN
        if not self.reached:
            codes[:] = UNKNOWN
        codes[c.nonfinite > 0] = NONFINITE
        return codes

    @property
    def _saturated_samples(self) -> Tensor:
        """bool: was every sample in the saturated zone?"""
        c, zones = self.counts, self.site.zones
        if zones.counts_responsive or zones.flat:
            return c.samples_fired == 0
        return zones.saturated.covers(c.min, c.max)

    @property
    def state(self) -> list[str]:
        """One label per unit, out of `STATES`. The first that holds:

        non-finite: NaN or infinity among its pre-activations. unknown: too few inputs to tell. dead: never fired.
        stuck-at-top: never fired because every sample was at the ceiling (ReLU6 at 6). saturated: |f'| < 0.01 on
        every sample. linear: never in the flat zone or curved part. alive: anything else.
        """
        return [STATES[i] for i in self._codes.tolist()]

    @property
    def dead(self) -> Tensor:
        """bool: fired on no input, out of at least `min_inputs`, with finite pre-activations. Includes stuck at top."""
        return (self._codes == DEAD) | (self._codes == STUCK)

    @property
    def unknown(self) -> Tensor:
        """bool: never fired, on too few inputs to be called dead; or no input came this way at all."""
        return self._codes == UNKNOWN

    @property
    def stuck_at_top(self) -> Tensor:
        """bool: dead because every sample was at the activation's ceiling."""
        return self._codes == STUCK

    @property
    def saturated(self) -> Tensor:
        """bool: |f'(x)| < 0.01 on every sample. Dead units are saturated too."""
        return self._judged & self._saturated_samples

    @property
    def linear(self) -> Tensor:
        """bool: every sample in one affine piece of the activation, outside its flat zone ("always on")."""
        return self._judged & self.site.zones.linear.covers(self.counts.min, self.counts.max)

    @property
    def _judged(self) -> Tensor:
        enough = self.counts.samples > 0 and self.counts.inputs >= self.min_inputs
        return (self.counts.nonfinite == 0) & torch.tensor(enough)

    def score(self) -> Tensor:
        """float64: mean |output| divided by the layer's mean of it; NaN when nothing was seen.

        Source: Sokar et al. 2023, equation 1; 1e-9 is added to the divisor as in the reference code.
        """
        output = self.mean_output
        return output / (output.mean() + 1e-9)

    def dormant(self, tau: float = DORMANT_TAU) -> Tensor:
        """bool: score ≤ tau. Defined for every activation; a dead ReLU is dormant at any tau.

        Raises:
            ValueError: tau is negative.
        """
        if tau < 0:
            raise ValueError(f"tau must not be negative: {tau}")
        return self.score() <= tau

    def death_bound(self, confidence: float = 0.95, *, simultaneous: bool = False) -> Tensor:
        """float64: upper confidence bound for the chance that a unit which never fired fires on a fresh input.

        NaN for units that did fire. Assumes independent inputs; repeats make it too small.

        Args:
            confidence: of each bound.
            simultaneous: hold for all of the site's silent units at once (Bonferroni).

        Source: Clopper and Pearson 1934.
        """
        silent = self.counts.fired == 0
        if simultaneous:
            confidence = 1 - (1 - confidence) / max(int(silent.sum()), 1)
        return torch.where(silent, never_fired_bound(self.inputs, confidence), math.nan)

    def tally(self) -> dict[str, int]:
        """How many units have each state."""
        numbers = torch.bincount(self._codes.long(), minlength=len(STATES)).tolist()
        return dict(zip(STATES, numbers, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; NaN is None."""

        def listed(t: Tensor) -> list[Any]:
            return [None if isinstance(v, float) and not math.isfinite(v) else v for v in t.tolist()]

        return {
            "site": self.site.to_dict(),
            "inputs": self.inputs,
            "samples": self.samples,
            "reached": self.reached,
            "tally": self.tally(),
            "state": self.state,
            "death_bound": listed(self.death_bound()),
            **{
                n: listed(getattr(self, n))
                for n in ("fired", "firing_rate", "mean", "std", "min", "max", "mean_output", "nonfinite")
            },
        }

    def __repr__(self) -> str:
        return f"SiteCensus({self.name!r}, {self.units} units, {int(self.dead.sum())} dead, {self.inputs} inputs)"


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
        """Dead units among those judged (not unknown), over all sites; NaN when none could be judged."""
        judged = self.units - self.unknown
        return self.dead / judged if judged else math.nan

    @property
    def inputs(self) -> int:
        """Inputs seen, by the site that saw most."""
        return max((m.inputs for m in self.sites), default=0)

    @property
    def silent_sites(self) -> tuple[str, ...]:
        """Sites all of whose units are dead: the signal is cut there."""
        return tuple(m.name for m in self.sites if bool(m.dead.all()))

    def dormant(self, tau: float = DORMANT_TAU) -> float:
        """Share of units with score ≤ tau, over all reached sites (Sokar et al. 2023); NaN when none was reached."""
        reached = [m for m in self.sites if m.reached]
        units = sum(m.units for m in reached)
        return sum(int(m.dormant(tau).sum()) for m in reached) / units if units else math.nan

    def check_matches(self, model: torch.nn.Module) -> None:
        """Raise CensusMismatchError unless every site's module exists in `model`.

        A census is about one model; used with another it would name the wrong units.
        """
        modules = {name for name, _ in model.named_modules()}
        missing = [m.name for m in self.sites if m.site.module not in modules]
        if missing:
            raise CensusMismatchError(
                f"this census is of another model ({self.model or 'unnamed'}): {type(model).__name__} has no module for "
                f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}"
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
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def to_pandas(self) -> pd.DataFrame:
        """One row per unit: site, unit, state, fired, inputs, firing_rate, death_bound, mean, std, min, max, mean_output.

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
                n: getattr(m, n).numpy()
                for n in ("fired", "firing_rate", "mean", "std", "min", "max", "mean_output", "nonfinite")
            }
            parts.append(
                pd.DataFrame(
                    {
                        "site": m.name,
                        "unit": range(m.units),
                        "state": m.state,
                        "dead": m.dead.numpy(),
                        "inputs": m.inputs,
                        "death_bound": m.death_bound().numpy(),
                        **columns,
                    }
                )
            )
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def __rich__(self) -> Table:
        return _table(self)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=80, color_system=None, legacy_windows=False)
        console.print(_table(self))
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.rstrip().splitlines())

    def __repr__(self) -> str:
        return f"Census({len(self.sites)} sites, {self.dead} of {self.units} units dead, {self.phase})"


class CensusKeyError(CensusMismatchError, KeyError):
    """A site name that the census does not hold."""

    def __str__(self) -> str:
        return str(self.args[0])


def percent(share: float) -> str:
    """A share as a reader wants it: "0 %", "< 0.1 %", "3.4 %", "51 %"; "–" when it is not known."""
    if math.isnan(share):
        return "–"
    if share == 0 or share >= 0.1:
        return f"{share * 100:.0f} %"
    return "< 0.1 %" if share < 0.001 else f"{share * 100:.1f} %"


def _table(census: Census) -> Table:
    """At most 80 columns wide: long names are cut in the middle by rich, numbers never."""
    span = "" if census.last_step is None else f", steps {census.first_step}–{census.last_step}"
    head = f"{census.dead} of {census.units} units dead ({percent(census.dead_fraction)})"
    partial = "" if census.complete else ", window not complete"
    table = Table(
        title=Text(f"{head} · {census.phase}{span}{partial}", style="bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        width=80,
        header_style="dim",
    )
    table.add_column("site", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("activation", overflow="ellipsis", no_wrap=True, max_width=11)
    for name in ("units", "dead", "fires on", "p fires <"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("also", overflow="ellipsis", no_wrap=True, max_width=18)
    for m in census.sites:
        tally = m.tally()
        dead = tally["dead"] + tally["stuck-at-top"]
        also = [f"{tally[s]} {s}" for s in ("non-finite", "unknown", "stuck-at-top", "saturated", "linear") if tally[s]]
        if not m.reached:
            also = ["not reached"]
        silent = bool(m.dead.all())
        table.add_row(
            Text(m.name),
            m.site.activation,
            str(m.units),
            Text(str(dead) + (" !" if silent else ""), style="bold red" if silent else "red" if dead else ""),
            percent(float(m.firing_rate.mean())) if m.reached else "–",
            f"{never_fired_bound(m.inputs):.2g}" if dead else "",
            Text(", ".join(also), style="dim"),
        )
    foot = f"{census.inputs} inputs seen"
    if any(bool(m.dead.any()) for m in census.sites):
        foot += ". “p fires <”: 95 % bound for a dead unit firing on a new input"
    if census.silent_sites:
        foot += ". “!”: whole site dead, the signal is cut"
    table.caption = Text(foot, style="dim")
    table.caption_justify = "left"
    return table
