"""`Aliases`: which entries of which parameter a tensor in a forward pass holds, through views, casts and copies."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Alias:
    """A tensor whose every element is one entry of a parameter or buffer.

    Attributes:
        name: as in `model.named_parameters()` or `named_buffers()`.
        index: int64, of the tensor's shape: the row-major number of the entry.
    """

    name: str
    index: Tensor


class Aliases:
    """Of one model, during one forward pass: storages are told apart by address, so copies are held."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._at: dict[int, list[str]] = {}
        seen: set[int] = set()
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            if id(tensor) in seen or tensor.is_sparse or tensor.numel() == 0:
                continue
            seen.add(id(tensor))
            self.tensors[name] = tensor
            self._at.setdefault(_address(tensor), []).append(name)
        self._numbers: dict[str, Tensor] = {}
        self._copies: dict[int, tuple[Tensor, str, Tensor]] = {}

    def forget_copies(self) -> None:
        self._copies.clear()

    def name_of(self, tensor: Tensor) -> str | None:
        """The parameter whose entries a tensor holds; cheap, for asking often."""
        address = _address(tensor)
        if address in self._copies:
            return self._copies[address][1]
        for name in self._at.get(address, ()):
            own = self.tensors[name]
            first = tensor.storage_offset() - own.storage_offset()
            if 0 <= first < _reach(own) and tensor.dtype == own.dtype:
                return name
        return None

    def of(self, tensor: Tensor) -> Alias | None:
        """The entries that a tensor holds, one by one."""
        name = self.name_of(tensor)
        if name is None:
            return None
        copy = self._copies.get(_address(tensor))
        if copy is not None:
            numbers, offset = copy[2], tensor.storage_offset()
        else:
            numbers = self._numbered(name)
            offset = tensor.storage_offset() - self.tensors[name].storage_offset()
        return Alias(name, torch.as_strided(numbers, tensor.shape, tensor.stride(), offset))

    def copied(self, source: Alias, copy: Tensor) -> None:
        """`copy` holds the same numbers as `source`, cast, repeated or laid out anew."""
        if source.index.shape != copy.shape or _address(copy) in self._at:
            return
        numbers = torch.zeros(_reach(copy) + copy.storage_offset(), dtype=torch.int64, device=copy.device)
        torch.as_strided(numbers, copy.shape, copy.stride(), copy.storage_offset()).copy_(source.index)
        self._copies[_address(copy)] = (copy, source.name, numbers)

    def _numbered(self, name: str) -> Tensor:
        if name not in self._numbers:
            own = self.tensors[name]
            numbers = torch.empty_strided(own.shape, own.stride(), dtype=torch.int64, device=own.device)
            self._numbers[name] = numbers.copy_(torch.arange(own.numel(), device=own.device).view(own.shape))
        return self._numbers[name]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _reach(tensor: Tensor) -> int:
    """How many elements of its storage a tensor spans."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
