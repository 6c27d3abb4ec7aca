"""`Conversion`: what `relume.convert` did to each site, how to go on from there, and how to take it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from relume.errors import CensusMismatchError

if TYPE_CHECKING:
    from relume.treat.convert.schedule import Live

CONVERTED, LEFT, CANT = "converted", "left", "can't"


@dataclass(frozen=True)
class Converted:
    """What became of one site.

    Attributes:
        name: the site's, before.
        activation: that it applied.
        outcome: "converted", "left" or "can't".
        reason: why it was left, or why it can't be converted; for a converted site what is particular about it.
        after: the site's name now; the same unless a function became a module, or one module became several.
        new: what it applies now, as its module is written.
        parameters: names of new parameters, as in `model.named_parameters()`.
        units: of the site; None where no batch showed it.
        axis: of the units.
    """

    name: str
    activation: str
    outcome: str
    reason: str = ""
    after: str = ""
    new: str = ""
    parameters: tuple[str, ...] = ()
    units: int | None = None
    axis: int | tuple[int, ...] | None = None


@dataclass(frozen=True)
class Conversion:
    """What a call of `relume.convert` did, site by site; a sequence of `Converted`, by number or by the site's name.

    Attributes:
        to: the activation asked for.
        sites: every site that there was, in the order of the forward pass.
        change: max |f_after − f_before| over the batches' outputs, in evaluation, at the moment of the switch; None
            without batches.
        notes: what else there is to know, a sentence each.
    """

    to: str
    sites: tuple[Converted, ...]
    change: float | None = None
    notes: tuple[str, ...] = ()
    _live: Live | None = field(default=None, repr=False, compare=False)

    @property
    def converted(self) -> tuple[Converted, ...]:
        """The sites that apply the new activation."""
        return tuple(s for s in self.sites if s.outcome == CONVERTED)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all new parameters."""
        return tuple(dict.fromkeys(p for s in self.sites for p in s.parameters))

    def __iter__(self) -> Iterator[Converted]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, key: int | str) -> Converted:
        if isinstance(key, int):
            return self.sites[key]
        found = next((s for s in self.sites if key in (s.name, s.after)), None)
        if found is None:
            raise CensusMismatchError(f"no site '{key}'; there are: {', '.join(s.name for s in self.sites)}")
        return found

    # Going on

    @property
    def share(self) -> float:
        """How far the new activations have taken over: 0 just after `preserve=True`, else 1."""
        return self._acting("share").share

    def anneal(self, share: float) -> None:
        """Set by how much the new activations have taken over: 0 none, 1 wholly. At 1 the old ones are let go.

        Raises:
            ValueError: not in [0, 1], or less than it has been since they were let go.
        """
        self._acting("anneal").anneal(share)

    def step(self) -> float:
        """One training step more of the annealing: call it once for each optimizer step. Returns the share."""
        return self._acting("step").step()

    def undo(self) -> None:
        """Put back the very modules, classes and hooks that there were; new parameters leave the optimizer.

        What the model learnt in its other parameters since stays.

        Raises:
            RelumeError: a later conversion, or a change by hand, stands on this one, or it has been undone already.
        """
        self._acting("undo").undo()

    def _acting(self, what: str) -> Live:
        if self._live is None:
            raise CensusMismatchError(
                f"this Conversion is a record without its model: {what} works on the one returned"
            )
        return self._live

    def __reduce__(self) -> Any:
        return Conversion, (self.to, self.sites, self.change, self.notes)

    # Looking at it

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "to": self.to,
            "change": self.change,
            "notes": list(self.notes),
            "sites": [dataclasses.asdict(s) for s in self.sites],
        }

    def __str__(self) -> str:
        rows = [("site", "was", "became", "")]
        for s in self.sites:
            became = s.new if s.outcome == CONVERTED else s.outcome
            moved = f"now {s.after}" if s.after not in ("", s.name) else ""
            rows.append((s.name, s.activation, became, "; ".join(filter(None, (moved, s.reason)))))
        widths = [max(len(r[i]) for r in rows) for i in range(3)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[3]]).rstrip() for r in rows]
        head = f"{len(self.converted)} of {len(self.sites)} sites converted to {self.to}"
        if self.parameters:
            head += f", {len(self.parameters)} new parameters"
        if self.change is not None:
            head += f"; the output moved by at most {self.change:.3g}"
        return "\n".join([head, *lines, *self.notes])
