"""`Initialization`: what an initializer did to each layer, what it left alone and why; printable, and plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from rich.table import Table
from rich.text import Text

from relume.census.table import WIDTH, cut, plain_text
from relume.init.layers import Left


@dataclass(frozen=True)
class Done:
    """What was done to one weight of a layer.

    Attributes:
        layer: dotted name of the layer.
        weight: which of its weights ("q", "hh_l0"); "" when it has one.
        shape: of the weight.
        what: in words.
        reads: names of the activations whose output it reads; empty for none, None where that was of no concern.
        gain: factor that makes up for them.
        std: standard deviation that the weight has now (root mean square: weights have mean zero).
        bias: what became of the layer's biases.
        variance: of the layer's output on the batches, afterwards; None when nothing was run.
        iterations: how often its scale was corrected; None when nothing was run.
        reached: is the variance within tolerance? None when nothing was run.
    """

    layer: str
    weight: str
    shape: tuple[int, ...]
    what: str
    reads: tuple[str, ...] | None = None
    gain: float | None = None
    std: float | None = None
    bias: str = ""
    variance: float | None = None
    iterations: int | None = None
    reached: bool | None = None


@dataclass(frozen=True)
class Initialization:
    """What an initializer did, in the order in which it did it.

    Attributes:
        method: its name ("he", "lsuv").
        model: class name of the model.
        done: one entry per weight.
        left: parameters left as they are, and why.
        notes: what a reader should know besides.
    """

    method: str
    model: str
    done: tuple[Done, ...]
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()

    def __getitem__(self, layer: str) -> Done:
        """The last weight of a layer, by the layer's name.

        Raises:
            KeyError: nothing was done to such a layer.
        """
        for done in reversed(self.done):
            if done.layer == layer:
                return done
        raise KeyError(f"nothing was done to {layer!r}; layers: {', '.join(dict.fromkeys(d.layer for d in self.done))}")

    @property
    def reached(self) -> bool:
        """Has every layer that was measured come within tolerance?"""
        return all(d.reached is not False for d in self.done)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "method": self.method,
            "model": self.model,
            "done": [{**asdict(d), "shape": list(d.shape), "reads": _listed(d.reads)} for d in self.done],
            "left": {e.name: e.why for e in self.left},
            "notes": list(self.notes),
        }

    def __rich__(self) -> Table:
        numbers = sum(prod(d.shape) for d in self.done)
        weights = f"{len(self.done)} {'weight' if len(self.done) == 1 else 'weights'}"
        table = Table(
            title=Text(f"{self.method}: {self.model}, {weights}, {numbers:,} numbers", style="bold"),
            caption=Text("\n".join([*self._left_by_reason(), *self.notes]), style="dim"),
            title_justify="left",
            caption_justify="left",
            box=None,
            pad_edge=False,
            width=WIDTH,
            header_style="dim",
        )
        columns = {
            "weight": [cut(f"{d.layer}.{d.weight}" if d.weight else d.layer, 24) for d in self.done],
            "shape": ["×".join(map(str, d.shape)) for d in self.done],
            "done": [cut(d.what, 24) for d in self.done],
            "reads": ["" if d.reads is None else cut(", ".join(d.reads) or "–", 12) for d in self.done],
            "gain": [_number(d.gain) for d in self.done],
            "std": [_number(d.std) for d in self.done],
            "bias": [d.bias for d in self.done],
            "variance": [_number(d.variance) + (" !" if d.reached is False else "") for d in self.done],
            "times": ["" if d.iterations is None else str(d.iterations) for d in self.done],
        }
        if any(d.gain is not None for d in self.done):
            del columns["done"]
        shown = {name: cells for name, cells in columns.items() if any(cells)}
        for name in shown:
            left = name in ("weight", "done", "reads")
            ratio = 1 if name == "weight" else None
            table.add_column(name, justify="left" if left else "right", no_wrap=True, ratio=ratio)
        for row in zip(*shown.values(), strict=True):
            table.add_row(*map(Text, row))
        return table

    def _left_by_reason(self) -> list[str]:
        names: dict[str, list[str]] = {}
        for entry in self.left:
            names.setdefault(entry.why, []).append(entry.name)
        return [
            f"left alone ({why}): {', '.join(found[:6])}{f' and {len(found) - 6} more' if len(found) > 6 else ''}"
            for why, found in names.items()
        ]

    def __str__(self) -> str:
        return plain_text(self.__rich__())

    def __repr__(self) -> str:
        return f"Initialization({self.method!r}, {len(self.done)} weights, {len(self.left)} left alone)"


def _listed(reads: tuple[str, ...] | None) -> list[str] | None:
    return None if reads is None else list(reads)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
