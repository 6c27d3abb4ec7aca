"""`Revival`: what `relume.revive` did to each unit, and how to take it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from relume.errors import RelumeError
from relume.treat.surgery import Edits


@dataclass(frozen=True)
class Act:
    """What was done to one unit.

    Attributes:
        site, unit: which.
        method: how.
        incoming: names of the parameters and buffers whose entries make the unit, rewritten.
        before, after: firing rate, mean and standard deviation of the pre-activation; {} where they are not known.
        note: what is particular.
    """

    site: str
    unit: int
    method: str
    incoming: tuple[str, ...] = ()
    before: dict[str, float | None] = field(default_factory=dict)
    after: dict[str, float | None] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Outgoing:
    """What became of one parameter that reads the units.

    Attributes:
        parameter: its name.
        zeroed: how many entries became zero.
        bias: that took over what they contributed; "" where that was nothing.
        largest_correction: of that bias, |Δ|.
    """

    parameter: str
    zeroed: int
    bias: str = ""
    largest_correction: float = 0.0


@dataclass(frozen=True)
class Revival:
    """What a call of `relume.revive` did; a sequence of `Act`.

    Attributes:
        method: "redo" and so on.
        preserve: was the function to be kept?
        acts: one for each unit.
        outgoing: one for each parameter that reads them.
        state: what was reset of the optimizers, "Adam.exp_avg".
        change: max |f_after − f_before| over the batches' outputs, in evaluation; None where it was not measured.
        relative: the same by the largest |f_before|.
        notes: what else there is to know, a sentence each.
    """

    method: str
    preserve: bool
    acts: tuple[Act, ...]
    outgoing: tuple[Outgoing, ...] = ()
    state: tuple[str, ...] = ()
    change: float | None = None
    relative: float | None = None
    notes: tuple[str, ...] = ()
    _edits: Edits | None = field(default=None, repr=False, compare=False)

    @property
    def units(self) -> dict[str, list[int]]:
        """By site, the units that were treated."""
        found: dict[str, list[int]] = {}
        for act in self.acts:
            found.setdefault(act.site, []).append(act.unit)
        return found

    def __iter__(self) -> Iterator[Act]:
        return iter(self.acts)

    def __len__(self) -> int:
        return len(self.acts)

    def __getitem__(self, index: int) -> Act:
        return self.acts[index]

    def undo(self) -> None:
        """Put back, bit by bit, every entry of parameters, buffers, gradients and optimizer state that was written.

        What training has done to all other entries since stays.

        Raises:
            RelumeError: it has been undone, or this is a record without its model.
        """
        if self._edits is None:
            raise RelumeError("this Revival is a record without its model: undo works on the one returned")
        if self._edits.undone:
            raise RelumeError("this revival has been undone already")
        self._edits.undo()

    def __reduce__(self) -> Any:
        values = (getattr(self, f.name) for f in dataclasses.fields(self) if not f.name.startswith("_"))
        return Revival, tuple(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "method": self.method,
            "preserve": self.preserve,
            "change": self.change,
            "relative_change": self.relative,
            "state": list(self.state),
            "notes": list(self.notes),
            "acts": [dataclasses.asdict(a) for a in self.acts],
            "outgoing": [dataclasses.asdict(o) for o in self.outgoing],
        }

    def __str__(self) -> str:
        if not self.acts:
            return "\n".join(["no unit to revive", *self.notes])
        head = f"{len(self.acts)} {'unit' if len(self.acts) == 1 else 'units'} revived by {self.method}"
        if self.change is not None:
            head += f"; the output moved by at most {self.change:.3g} ({self.relative:.1e} of its size)"
        lines = [head]
        for site, units in self.units.items():
            acts = [a for a in self.acts if a.site == site]
            shown = ", ".join(map(str, units[:12])) + (f" and {len(units) - 12} more" if len(units) > 12 else "")
            incoming = ", ".join(dict.fromkeys(n for a in acts for n in a.incoming))
            lines.append(f"  {site}: {'unit' if len(units) == 1 else 'units'} {shown}; incoming {incoming}")
            rates = [[a.before.get("firing_rate"), a.after.get("firing_rate")] for a in acts]
            if all(v is not None for pair in rates for v in pair):
                was, now = (sum(p[i] or 0 for p in rates) / len(rates) for i in range(2))
                lines.append(f"    mean firing rate {was:.3g} before, {now:.3g} after")
            lines += [f"    unit {a.unit}: {a.note}" for a in acts if a.note][:8]
        for o in self.outgoing:
            moved = f", {o.bias} takes over at most {o.largest_correction:.3g}" if o.bias else ""
            lines.append(f"  outgoing {o.parameter}: {o.zeroed} entries zeroed{moved}")
        if self.state:
            lines.append(f"  reset: {', '.join(self.state)}")
        return "\n".join([*lines, *(f"  {n}" for n in self.notes)])
