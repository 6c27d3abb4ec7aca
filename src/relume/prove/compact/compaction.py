"""`Compaction`: the smaller model, what was removed from which site, what stays and why, and the proof."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import nn

from relume.census.table import WIDTH, plain_text
from relume.prove.compact.evidence import CERTIFICATE
from relume.prove.compact.recipe import Recipe, save


@dataclass(frozen=True)
class Compaction:
    """What `relume.compact` made.

    Attributes:
        model: the smaller model, of the original's class; the original is untouched.
        removed: by site, the units that are gone, by their numbers in the original. They are dead, or were read by
            nothing but units that are.
        kept: by site and unit, why a dead unit stays.
        units: by site, how many there were.
        parameters: before and after.
        flops: per input, before and after (see `torch.utils.flop_counter`); None where they can't be counted.
        latency: seconds of a call, before and after; None unless asked for.
        difference: max |Δ output| over max |output|, on all batches: rounding, in the model's own precision.
        inputs: on which that was measured.
        basis: "certificate": equal for every input in its box, but for rounding. "census": equal on the data seen.
        death_bound: by site, with a census: 95 % bound for the chance that a removed unit fires on a fresh input.
        notes: what else there is to know.
        recipe: how to make a fresh model of the class as small.
    """

    model: nn.Module = field(repr=False)
    removed: dict[str, tuple[int, ...]]
    kept: dict[str, dict[int, str]]
    units: dict[str, int]
    parameters: tuple[int, int]
    flops: tuple[int, int] | None
    latency: tuple[float, float] | None
    difference: float
    inputs: int
    basis: str
    death_bound: dict[str, float]
    notes: tuple[str, ...]
    recipe: Recipe = field(repr=False)

    @property
    def exact(self) -> str:
        """For which inputs the smaller model computes the same, in words."""
        if not self.removed:
            return "nothing was removed: the model is the same function"
        if self.basis == CERTIFICATE:
            return "exact on the certificate's box, but for rounding"
        worst = max((b for n, b in self.death_bound.items() if n in self.removed), default=0.0)
        return f"exact on the data seen, but for rounding; a unit removed fires on a new input with p < {worst:.2g}"

    def save(self, path: str | Path) -> Path:
        """Write weights and recipe to one file, for `relume.rebuild(model, path)`. Returns the path."""
        return save(path, self.recipe, self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; without the model."""
        return {
            "model": self.recipe.model,
            "basis": self.basis,
            "exact": self.exact,
            "difference": self.difference,
            "inputs": self.inputs,
            "parameters": list(self.parameters),
            "flops": None if self.flops is None else list(self.flops),
            "latency": None if self.latency is None else list(self.latency),
            "notes": list(self.notes),
            "sites": {
                name: {
                    "units": count,
                    "removed": list(self.removed.get(name, ())),
                    "kept": {str(u): why for u, why in self.kept.get(name, {}).items()},
                    "death_bound": self.death_bound.get(name),
                }
                for name, count in self.units.items()
            },
        }

    def __rich__(self) -> Table:
        shown = Table(
            title=Text(self._title(), style="bold"), title_justify="left", caption=Text(self._foot(), style="dim"),
            caption_justify="left", box=None, pad_edge=False, width=WIDTH, header_style="dim",
        )  # fmt: skip
        shown.add_column("site", overflow="ellipsis", no_wrap=True, max_width=28)
        for column in ("units", "removed", "kept"):
            shown.add_column(column, justify="right", no_wrap=True)
        shown.add_column("why dead units stay", ratio=1)
        for name, count in self.units.items():
            why = Counter(self.kept.get(name, {}).values())
            reasons = "; ".join(f"{n}× {text}" if len(why) > 1 else text for text, n in why.most_common(3))
            gone = len(self.removed.get(name, ()))
            shown.add_row(Text(name), str(count), str(gone), str(sum(why.values())), Text(reasons, style="dim"))
        return shown

    def _title(self) -> str:
        gone = sum(map(len, self.removed.values()))
        before, after = self.parameters
        text = f"{gone} of {sum(self.units.values())} units removed · parameters {before:,} → {after:,}"
        if self.flops is not None:
            text += f" · FLOPs per input {self.flops[0]:,} → {self.flops[1]:,}"
        if self.latency is not None:
            text += f" · {self.latency[0] * 1e3:.3g} → {self.latency[1] * 1e3:.3g} ms"
        return text

    def _foot(self) -> str:
        text = f"{self.exact}. Output differs by {self.difference:.2g} of its largest value on {self.inputs:,} inputs"
        return ". ".join((text, *self.notes))

    def __str__(self) -> str:
        return plain_text(self.__rich__())

    def __repr__(self) -> str:
        gone = sum(map(len, self.removed.values()))
        before, after = self.parameters
        return f"Compaction({gone} units removed, {before} to {after} parameters, by {self.basis})"
