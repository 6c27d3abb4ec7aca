"""`Held`: a tensor that a replay will need as it is now, kept by reference and copied only when it is about to change.

Whoever writes to tensors while some are held first calls `Holdings.protect` on what is to be written.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor


class Held:
    """One tensor as it was when it was held.

    Attributes:
        tensor: without its graph.
        nbytes: bytes of its own, not of the storage that it may be a view of.
        key: by which it is found again.
    """

    __slots__ = ("__weakref__", "_version", "key", "nbytes", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self._version = _version(tensor)
        self.nbytes = tensor.numel() * tensor.element_size()
        self.key: Any = None

    def copy(self) -> None:
        """From now on it is a tensor of its own."""
        if not self.changed:
            self.tensor = self.tensor.clone()
            self._version = _version(self.tensor)

    @property
    def changed(self) -> bool:
        """Has it been written to unnoticed?"""
        return _version(self.tensor) != self._version


class Holdings:
    """All tensors held, by the storage they lie in."""

    def __init__(self) -> None:
        self._by_storage: dict[int, list[weakref.ref[Held]]] = {}

    def hold(self, tensor: Tensor, known: dict[Any, Held]) -> Held:
        """Hold a tensor, or find it among those `known` to be held already."""
        at = storage(tensor)
        if at is None:
            held = Held(tensor)
            held.copy()
            return held
        key = (at, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, _version(tensor))
        held_before = known.get(key)
        if held_before is not None and not held_before.changed:
            return held_before
        held = known[key] = Held(tensor)
        held.key = key
        others = self._by_storage.setdefault(at, [])
        if len(others) > 8:
            others[:] = [ref for ref in others if ref() is not None]
        others.append(weakref.ref(held))
        if len(self._by_storage) > 4096:
            self._tidy()
        return held

    def protect(self, tensor: Tensor) -> None:
        """It is about to be written to."""
        at = storage(tensor)
        for ref in self._by_storage.pop(at, []) if at is not None else []:
            held = ref()
            if held is not None and storage(held.tensor) == at:
                held.copy()

    def _tidy(self) -> None:
        alive = {at: [r for r in refs if r() is not None] for at, refs in self._by_storage.items()}
        self._by_storage = {at: refs for at, refs in alive.items() if refs}


def storage(tensor: Tensor) -> int | None:
    """Where a tensor's numbers lie; None where they lie in no storage of their own."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except Exception:  # sparse, fake, or a subclass that wraps others
        return None


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
