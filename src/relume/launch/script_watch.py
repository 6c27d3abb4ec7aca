"""`ScriptWatch`: a watch that begins before it is known which optimizer trains its model, and tells no one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from relume.watch import Watch
from relume.watch.store import Writer
from relume.watch.watch import _unfinished


class ScriptWatch(Watch):
    """A `Watch` of a model in a script that knows nothing of it.

    Until `adopt` its step stays 0: what it counts is of the step in progress. The finder hands it every step of the
    optimizers that set its pace. What a `Watch` would warn of it only notes: the script may turn warnings into errors.
    """

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        self.adopted = False
        super().__init__(model, **settings)
        self._told_no_sites = True

    def adopt(self, optimizer: Any, steps: int) -> None:
        """An optimizer was found that trains the model; it has made so many steps."""
        if not self.adopted:
            self.adopted = True
            self.step = self._window_start = steps
            self._due = max(self._due, steps)
        self._optimizers, self._by_passes = (*self._optimizers, optimizer), False
        if self.record is not None:
            self.record.steps.trained_by(self._optimizers)
        self.about["optimizer"] = ", ".join(dict.fromkeys(type(o).__name__ for o in self._optimizers))

    def optimizer_stepped(self, optimizer: Any) -> None:
        """One more step of an optimizer that sets the pace."""
        self._after_step(optimizer, (), {})

    def keep(self, folder: Path) -> None:
        """Keep a run file from now on.

        Raises:
            RunFileError: it can't be written.
        """
        self._writer = Writer(folder, self.about)
        _unfinished.add(self)

    def drop(self) -> None:
        """Stop watching and forget what was seen."""
        self.closed = True
        _unfinished.discard(self)
        if self._ranks is not None:
            self._ranks.leave("the model is not trained, or has no activation")
        self._detach()
        self._meters.clear()

    def _attach(self) -> None:
        self._tracker.note = partial(self._tracker.note, quiet=True)  # type: ignore[method-assign]
        super()._attach()

    def _step_done(self) -> None:
        if self.adopted:
            super()._step_done()
