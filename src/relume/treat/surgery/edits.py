"""`Edits`: writes to single entries of tensors, taken back bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Edit:
    find: Callable[[], Tensor | None]
    entries: tuple[Tensor, ...]
    before: Tensor


class Edits:
    """What was written, in order; `undo` puts back what was there.

    Only the entries that were written are put back: what training has done to all others since stays.
    """

    def __init__(self) -> None:
        self._done: list[_Edit] = []
        self.undone = False

    def write(
        self, tensor: Tensor, numbers: Tensor, values: Tensor | float, find: Callable[[], Tensor | None] | None = None
    ) -> None:
        """Give entries of a tensor new values, in place.

        Args:
            tensor: of any layout in memory.
            numbers: int64 [n], row-major numbers of the entries.
            values: [n], or one for all.
            find: looks the tensor up at the time of `undo`, where another may have taken its place.
        """
        if not numbers.numel():
            return
        with torch.no_grad():
            target = tensor.detach()
            entries = torch.unravel_index(numbers.to(target.device), target.shape) if target.dim() else ()
            before = target[entries].clone()
            given = torch.as_tensor(values, dtype=target.dtype, device=target.device)
            # Noted first: an interrupt in between undoes what was not done, which changes nothing.
            self._done.append(_Edit(find or (lambda: tensor), entries, before))
            target[entries] = given

    def undo(self) -> None:
        """Put everything back, the last write first."""
        with torch.no_grad():
            while self._done:
                edit = self._done[-1]
                tensor = edit.find()
                if tensor is not None:
                    tensor.detach()[edit.entries] = edit.before
                self._done.pop()
        self.undone = True
