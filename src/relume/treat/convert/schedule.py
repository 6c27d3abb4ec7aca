"""`Live`: the part of a conversion that acts on the model afterwards: annealing, and undoing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from relume.errors import RelumeError
from relume.treat.convert.blend import Blend
from relume.treat.convert.changes import Changes


class Live:
    """Holds the model's blends and the changes that made them.

    Args:
        changes: all that was done.
        blends: each with the slot that it is in.
        steps: optimizer steps from the old activations to the new.
        finished: called when the old ones are let go, with further changes to note.
    """

    def __init__(
        self,
        changes: Changes,
        blends: list[tuple[nn.Module, str, Blend]],
        steps: int,
        finished: Callable[[Changes], None],
    ) -> None:
        self.changes, self.blends, self.steps, self.finished = changes, blends, steps, finished
        self._undone = False
        self._done: int | None = None  # steps

    @property
    def share(self) -> float:
        return float(self.blends[0][2].share) if self.blends else 1.0

    def anneal(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"a share lies between 0, the old activations, and 1, the new; not {share}")
        self._check()
        if not self.blends:
            if share < 1:
                raise ValueError("the old activations have been let go: undo the conversion to have them back")
            return
        with torch.no_grad():
            for _, _, blend in self.blends:
                blend.share.fill_(share)
        if share == 1:
            self._let_go()

    def step(self) -> float:
        if self.blends:
            # From the share itself, which a checkpoint may have set; but in half precision it tells steps only roughly.
            seen = self.share * self.steps
            if self._done is None or abs(seen - self._done) > 0.01 * self.steps:
                self._done = round(seen)
            self._done += 1
            self.anneal(min(1.0, self._done / self.steps))
        return self.share

    def undo(self) -> None:
        self._check()
        self.changes.undo()
        self.blends, self._undone = [], True

    def _let_go(self) -> None:
        for parent, key, blend in self.blends:
            new = blend.new
            new.train(blend.training)
            _move_hooks(blend, new)
            self.changes.put_child(parent, key, new, f"'{key}'")
        self.blends = []
        self.finished(self.changes)

    def _check(self) -> None:
        if self._undone:
            raise RelumeError("this conversion has been undone")


HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    """The same dictionaries, so that the handles that the user holds still remove them."""
    for name in HOOKS:
        if name in old.__dict__:
            new.__dict__[name] = old.__dict__[name]
