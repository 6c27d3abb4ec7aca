"""`Slots`: the places in a model's tensors that can only be removed together.

A slot is one index of one axis of a parameter or buffer: row 5 of `fc1.weight`, entry 5 of `bn.running_mean`, column 5
of `fc2.weight`. A *label* is a slot's number, written on every element of a tensor that would go with it. Where an
operation needs two labels to be one, they are tied; a group of tied slots goes as a whole or stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

# On an element that goes with no slot: it fits whatever it meets (FREE), or stays as it is (FIXED).
FREE, FIXED, FIRST = 0.0, 1.0, 2.0
Place = tuple[str, int]  # name of a parameter or buffer, and an axis of it


class Slots:
    """Numbers slots, ties them, and remembers which must stay.

    Args:
        model: whose parameters and buffers they are places of.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names: dict[int, str] = {}
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            self.names.setdefault(id(tensor), name)
        self.of: dict[Place, Tensor] = {}
        self._parents: list[int] = [0, 1]
        self._stay: dict[int, str] = {}

    def name(self, tensor: object) -> str | None:
        """Of a parameter or buffer of the model."""
        return self.names.get(id(tensor))

    def along(self, name: str, axis: int, size: int) -> Tensor:
        """The labels of one axis, float64 [size]; of an axis of one entry, which can't go, FREE."""
        place = (name, axis)
        if size == 1 and place not in self.of:
            return torch.zeros(1, dtype=torch.float64)
        if place not in self.of:
            first = len(self._parents)
            self._parents += range(first, first + size)
            self.of[place] = torch.arange(first, first + size, dtype=torch.float64)
        return self.of[place]

    def smaller(self, model: nn.Module, removed: Mapping[Place, Iterable[int]]) -> Slots:
        """Those of a copy from which slots have been removed: what is left keeps its labels."""
        copy = Slots(model)
        copy._parents = list(self._parents)
        for place, labels in self.of.items():
            keep = torch.ones(len(labels), dtype=torch.bool)
            keep[list(removed.get(place, ()))] = False
            copy.of[place] = labels[keep]
        return copy

    @property
    def count(self) -> int:
        """One more than the largest label."""
        return len(self._parents)

    # Ties

    def group(self, label: int) -> int:
        """The group that a label is in."""
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    def tie(self, a: Tensor, b: Tensor, why: str) -> None:
        """Make each label of `a` one with that of `b` at its place; one that meets FIXED stays, for this reason."""
        both = torch.stack(torch.broadcast_tensors(a, b))
        for axis in range(1, both.dim()):  # inputs and positions, along which labels repeat
            first = both.narrow(axis, 0, min(1, both.shape[axis]))
            if both.shape[axis] > 1 and torch.equal(both, first.expand_as(both)):
                both = first
        a, b = both
        differ = (a != b) & (a != FREE) & (b != FREE)
        if not differ.any():
            return
        pairs = torch.unique((a[differ] * 2.0**26 + b[differ]).long())
        for pair in pairs.tolist():
            one, other = pair >> 26, pair & (2**26 - 1)
            if int(FIXED) in (one, other):
                self._stay.setdefault(max(one, other), why)
            else:
                self._parents[self.group(one)] = self.group(other)

    def stay(self, labels: Tensor, why: str) -> None:
        """Slots of these labels stay, for this reason."""
        for label in torch.unique(labels).tolist():
            if label >= FIRST:
                self._stay.setdefault(int(label), why)

    def all_stay(self, why: str) -> None:
        """All slots that have labels so far."""
        for label in range(int(FIRST), len(self._parents)):
            self._stay.setdefault(label, why)

    def groups(self) -> dict[int, list[int]]:
        """The labels of every group."""
        found: dict[int, list[int]] = {}
        for label in range(int(FIRST), len(self._parents)):
            found.setdefault(self.group(label), []).append(label)
        return found

    def reasons(self) -> dict[int, str]:
        """Why groups stay, by group, for those that must."""
        found: dict[int, str] = {}
        for label, why in self._stay.items():
            found.setdefault(self.group(label), why)
        return found
